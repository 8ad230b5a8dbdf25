// Rotary position embedding, in float32 as transformers computes it: angle = position * frequency, both float.
#pragma once

#include <cstdint>
#include <vector>

namespace qat {

// out [2 * frequencies]: the cosines, then the sines.
void rope_cos_sin(int64_t position, const std::vector<float>& frequencies, float* out);

// Rotates the pairs of one head by the angles of rope_cos_sin: (i, i + head_dim / 2), or (2 i, 2 i + 1) when
// interleaved.
void rotate(float* head, int64_t head_dim, const float* cos_sin, bool interleaved);

}  // namespace qat
