// Q4_0 blocks whose scale training moves: d = sign * exp(log_scale), rounded to float16 as files hold it, and codes
// clamp(round(w / d), -8, 7). The sign is fixed: it says which end of a block reaches the eighth level. Gradients as in
// learned_scale.h: LSQ (Esser et al., arXiv 1902.08153).
//
// Everywhere: w is float32, its last dimension a multiple of kBlockSize; log_scale and sign (+1 or -1) are float32 with
// numel(w) / kBlockSize elements, one per block in the order of w.
#pragma once

#include "fakequant/libtorch.h"
#include "format/grid.h"

namespace qat {

// The signed scales as float32, each exactly a float16 other than 0. Not differentiable.
torch::Tensor stored_block_scales(const torch::Tensor& log_scale, const torch::Tensor& sign);

// log_scale and sign of signed scales d; a block without a scale (d = 0) begins at the least one.
struct BlockScales {
  torch::Tensor log_scale, sign;
};
BlockScales block_scales_of(const torch::Tensor& d);
// The scales of the reference rule (format/grid.h, encode_q4_0) for w.
BlockScales reference_block_scales(const torch::Tensor& w);

// w rounded to its blocks: on the CPU value for value encode_q4_0_with_scale's. Differentiable in w, straight through
// everywhere, weights beyond the grid too (without them: recipes/results/ablation.md), and in log_scale.
torch::Tensor block_quantize(const torch::Tensor& w, const torch::Tensor& log_scale, const torch::Tensor& sign);

// Its codes, -8..7 as int8, w's shape, on the CPU.
torch::Tensor block_codes(const torch::Tensor& w, const torch::Tensor& log_scale, const torch::Tensor& sign);

// Codes that no longer change (int8, contiguous): codes * scale, differentiable in log_scale alone.
torch::Tensor frozen_block_quantize(const torch::Tensor& codes, const torch::Tensor& log_scale,
                                    const torch::Tensor& sign);

// block_quantize and the gradient of its log_scale, (blocks), in tensor operations, for any device. x, gradient:
// (blocks, 32), d: (blocks, 1), as stored.
torch::Tensor block_quantize_tensor_ops(const torch::Tensor& x, const torch::Tensor& d);
torch::Tensor block_scale_backward_tensor_ops(const torch::Tensor& x, const torch::Tensor& d,
                                              const torch::Tensor& gradient);

}  // namespace qat
