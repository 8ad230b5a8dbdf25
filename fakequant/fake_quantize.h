// Fake quantization: forward is decode(encode(w)) of format/, bit for bit; backward is an estimate of the gradient.
#pragma once

#include "fakequant/libtorch.h"
#include "format/grid.h"

namespace qat {

// The rows of w (..., cols), float32 and finite, rounded onto `grid`. Differentiable: straight-through, dL/dw =
// dL/dw_hat. cols must be a multiple of the grid's block size. CPU tensors go through format/'s fake_quantize_rows, in
// parallel over rows; CUDA tensors through the tensor operations below, except Q6_K, whose search has no tensor form:
// it is computed on the CPU.
torch::Tensor fake_quantize(const torch::Tensor& w, DType grid);

// The same numbers written in tensor operations, for any device: F32, F16, BF16, Q4_0, Q8_0. Not differentiable.
torch::Tensor fake_quantize_tensor_ops(const torch::Tensor& w, DType grid);

}  // namespace qat
