// Q4_0 codes and scales of one tensor, moved by the signs of gradients: SignRound (Cheng et al., arXiv 2309.05516).
// A weight w of a block with scale d has the code clamp(round(w / d + v), -8, 7): v in [-0.5, 0.5] may take it to the
// neighbouring level, no further. d = d0 * exp(b), rounded to float16 as files hold it. v and b begin at 0.
#pragma once

#include <cstdint>
#include <vector>

#include "format/grid.h"

namespace qat {

class SignRounding {
 public:
  // weights: count floats, count a multiple of kBlockSize. start: as many blocks, whose codes and scales are those of
  // v = b = 0: weights that another code was chosen for are drawn into that code's cell (initialize.h does the same).
  SignRounding(std::vector<float> weights, const BlockQ4_0* start);

  int64_t count() const { return static_cast<int64_t>(weights_.size()); }
  // The blocks as they are now.
  const std::vector<BlockQ4_0>& blocks() const { return blocks_; }
  // The floats they mean: [count].
  void values(float* out) const;

  // Each v moves by lr (in levels) and each b by scale_lr against its gradient's sign; gradient: [count], that of
  // values(). As in the paper, rounding is taken as the identity, a v beyond the grid has no gradient, and a gradient
  // of 0 moves nothing.
  void step(const float* gradient, double lr, double scale_lr);

 private:
  void step_block(int64_t block, const float* gradient, float lr, float scale_lr);
  void encode_block(int64_t block);

  std::vector<float> weights_, offsets_;           // w, v
  std::vector<float> first_scales_, log_factors_;  // d0, b
  std::vector<BlockQ4_0> blocks_;
};

}  // namespace qat
