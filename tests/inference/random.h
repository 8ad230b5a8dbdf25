// Random data for tests of arithmetic, the same on every machine, and buffers that end where a guard begins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "format/channel_grid.h"
#include "format/grid.h"

namespace qat {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  // Uniform in [-1, 1).
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 32)) * 0x1p-31f;
  }
  std::vector<float> floats(int64_t count, float scale = 1.0f) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& x : out) x = scale * next();
    return out;
  }

 private:
  uint64_t state_;
};

// Rows of `type`; Q2_0, which has no encoder, on a grid of half the largest magnitude.
inline void store_rows(DType type, const std::vector<float>& values, int64_t rows, int64_t cols, uint8_t* out) {
  if (type != DType::Q2_0) return encode_rows(type, values.data(), rows, cols, out);
  for (size_t i = 0; i < values.size(); i += kBlockQ2_0, out += sizeof(BlockQ2_0)) {
    float largest = 0x1p-14f;
    for (size_t j = i; j < i + kBlockQ2_0; ++j) largest = std::max(largest, std::fabs(values[j]));
    const float scale = storable_scale(largest / 2);
    int8_t codes[kBlockQ2_0];
    encode_channel(2, values.data() + i, kBlockQ2_0, scale, codes);
    const BlockQ2_0 block = pack_q2_0(codes, scale);
    std::memcpy(out, &block, sizeof block);
  }
}

// Rows of `type` as a file would hold them, beginning at an odd address.
class StoredRows {
 public:
  StoredRows(DType type, const std::vector<float>& values, int64_t rows, int64_t cols)
      : bytes_(1 + row_bytes(type, cols) * static_cast<size_t>(rows)) {
    store_rows(type, values, rows, cols, bytes_.data() + 1);
  }
  const uint8_t* data() const { return bytes_.data() + 1; }

 private:
  std::vector<uint8_t> bytes_;
};

constexpr DType kRunnable[] = {DType::F32, DType::F16, DType::BF16, DType::Q2_0, DType::Q4_0, DType::Q8_0, DType::Q6_K};

}  // namespace qat
