// A scale that training moves, and the gradient through a grid of such scales. The parameter is the scale's logarithm:
// it stays positive and its steps are relative. The forward pass multiplies by the nearest scale that files hold
// (straight-through), so nothing is rounded at export. Gradients: LSQ (Esser et al., arXiv 1902.08153).
#pragma once

#include "fakequant/libtorch.h"
#include "format/channel_grid.h"

namespace qat {

// storable_scale(exp(log_scale)), element by element, float32. The one place where a logarithm becomes a scale: the
// forward pass, codes and export all ask here. Not differentiable.
torch::Tensor storable_scales(const torch::Tensor& log_scale);

// What a scale's gradient is multiplied by: 1 / sqrt(count * highest code), count = numbers that the scale serves.
double lsq_factor(int64_t count, int bits);

struct LsqOptions {
  double factor = 1.0;
  bool pass_clipped = false;  // x beyond the grid: false: its gradient is 0, true: straight through as everywhere else
};

// x (any shape, float32) on the grids of `bits` bits: log_scale[r] serves the r-th run of numel(x) / numel(log_scale)
// elements (whole runs; no run is cut by a row of x). On the CPU, value for value format/'s fake_quantize_channel.
// With G = dL/dx_hat and s the scale: dL/dx = G where lowest * s <= x <= highest * s, else 0 (or G); dL/ds = factor *
// sum of G * h, h = round(x/s) - x/s inside and the clamped code outside; dL/dlog_scale = dL/ds * s. A scale at the end
// of the storable range keeps its gradient. Codes are not kept for the backward pass, which computes them again.
torch::Tensor lsq_quantize(const torch::Tensor& x, const torch::Tensor& log_scale, int bits, const LsqOptions& options);

// Codes that no longer change: codes * scales, each scale serving a run of numel(codes) / numel(scales). codes: int8,
// contiguous; scales: what log_scale is stored as. Differentiable in log_scale alone: dL/dlog_scale = factor * sum of G
// * code * scale.
torch::Tensor codes_times_scales(const torch::Tensor& codes, const torch::Tensor& log_scale,
                                 const torch::Tensor& scales, double factor);

// The two halves of lsq_quantize in tensor operations, for any device. x: (runs, length), scales: (runs, 1).
torch::Tensor quantize_tensor_ops(const torch::Tensor& x, const torch::Tensor& scales, int bits);
struct LsqGradients {
  torch::Tensor x, log_scale;  // (runs, length), (runs)
};
LsqGradients lsq_backward_tensor_ops(const torch::Tensor& x, const torch::Tensor& scales, const torch::Tensor& gradient,
                                     int bits, const LsqOptions& options);

}  // namespace qat
