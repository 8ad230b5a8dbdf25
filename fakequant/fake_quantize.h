// Fake quantization: forward is decode(encode(w)) of format/, bit for bit; backward is an estimate of the gradient.
#pragma once

#include <torch/torch.h>

#include "format/grid.h"

namespace qat {

// Rows of w (..., cols) float32 rounded onto `grid`; straight-through gradient: dL/dw = dL/dw_hat, zero where the grid saturates
// only if `clip_gradient`. CPU tensors go through format/'s fake_quantize_rows (in parallel over rows); CUDA tensors through the
// tensor realisation below. cols must be a multiple of the block size.
torch::Tensor fake_quantize(const torch::Tensor& w, DType grid);

// The same function written in tensor operations, for any device. Tested equal to format/ with no tolerance.
torch::Tensor fake_quantize_tensor_ops(const torch::Tensor& w, DType grid);

}  // namespace qat
