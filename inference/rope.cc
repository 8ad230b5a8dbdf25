#include "inference/rope.h"

#include <cmath>

namespace qat {

void rope_cos_sin(int64_t position, const std::vector<float>& frequencies, float* out) {
  const size_t pairs = frequencies.size();
  for (size_t i = 0; i < pairs; ++i) {
    const float angle = static_cast<float>(position) * frequencies[i];
    out[i] = std::cos(angle);
    out[pairs + i] = std::sin(angle);
  }
}

void rotate(float* head, int64_t head_dim, const float* cos_sin, bool interleaved) {
  const int64_t pairs = head_dim / 2;
  const float* sin = cos_sin + pairs;
  const int64_t step = interleaved ? 2 : 1, partner = interleaved ? 1 : pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    float& a = head[i * step];
    float& b = head[i * step + partner];
    const float x = a, y = b;
    a = x * cos_sin[i] - y * sin[i];
    b = y * cos_sin[i] + x * sin[i];
  }
}

}  // namespace qat
