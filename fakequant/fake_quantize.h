// Fake quantization: forward is decode(encode(w)) of format/, bit for bit; backward is an estimate of the gradient.
#pragma once

#include "fakequant/libtorch.h"
#include "format/grid.h"

namespace qat {

// The rows of w (..., cols), float32 and finite, rounded onto `grid`. cols must be a multiple of the grid's block size.
// CPU tensors go through format/'s fake_quantize_rows, in parallel over rows; CUDA tensors through the tensor
// operations below, except Q6_K and Q2_0, whose searches have no tensor form: they are computed on the CPU.
//
// Differentiable, with rounding taken as the identity (straight through): dL/dw = dL/dw_hat. On Q4_0 the block's scale
// is a function of its weights too, d = m / -8 with m the weight of largest magnitude, and its gradient goes to m as
// LSQ (arXiv 1902.08153) has it: w_hat_j = d * code_j gives dw_hat_j/dd = code_j - w_j / d, or 7 where w_j lies beyond
// the grid, whose own gradient is then 0. Figures: qat/train/README.md.
torch::Tensor fake_quantize(const torch::Tensor& w, DType grid);

// The same numbers written in tensor operations, for any device: F32, F16, BF16, Q4_0, Q8_0. Not differentiable.
torch::Tensor fake_quantize_tensor_ops(const torch::Tensor& w, DType grid);

// dL/dw of fake_quantize(w, Q4_0), from dL/dw_hat: the CPU's loop, and the same in tensor operations for any device.
torch::Tensor q4_0_gradient(const torch::Tensor& w, const torch::Tensor& gradient);
torch::Tensor q4_0_gradient_tensor_ops(const torch::Tensor& w, const torch::Tensor& gradient);

}  // namespace qat
