#include "fakequant/fake_quantize.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace qat {
namespace {

constexpr int64_t kWeightsPerTask = 1 << 14;

torch::Tensor fake_quantize_cpu(const torch::Tensor& w, DType grid) {
  const torch::Tensor x = w.contiguous();
  torch::Tensor out = torch::empty_like(x);
  const int64_t cols = x.size(-1), rows = x.numel() / std::max<int64_t>(cols, 1);
  const float* from = x.data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, rows, std::max<int64_t>(1, kWeightsPerTask / std::max<int64_t>(cols, 1)),
                   [&](int64_t begin, int64_t end) {
                     fake_quantize_rows(grid, from + begin * cols, end - begin, cols, to + begin * cols);
                   });
  return out;
}

torch::Tensor quantize_dequantize(const torch::Tensor& w, DType grid) {
  QAT_CHECK(w.scalar_type() == torch::kFloat32 && w.dim() >= 1);
  QAT_CHECK(is_grid(grid) && w.size(-1) % dtype_info(grid).block_size == 0);
  if (grid == DType::F32) return w.clone();
  if (w.is_cpu()) return fake_quantize_cpu(w, grid);
  if (grid == DType::Q6_K || grid == DType::Q2_0) return fake_quantize_cpu(w.cpu(), grid).to(w.device());
  return fake_quantize_tensor_ops(w, grid);
}

// One block: x its weights, g the gradient of what they are rounded to, out that of the weights.
void q4_0_block_gradient(const float* x, const float* g, float* out) {
  int largest = 0;
  for (int j = 1; j < kBlockSize; ++j)
    if (std::fabs(x[j]) > std::fabs(x[largest])) largest = j;
  const float d = x[largest] / -8.0f;
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  float of_scale = 0.0f;
  for (int j = 0; j < kBlockSize; ++j) {
    const float level = x[j] * inverse;
    const bool beyond = level >= 7.5f;
    of_scale += g[j] * (beyond ? 7.0f : std::floor(level + 0.5f) - level);
    out[j] = beyond ? 0.0f : g[j];
  }
  out[largest] -= of_scale / 8.0f;
}

struct Estimator : torch::autograd::Function<Estimator> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& w, int64_t grid) {
    if (static_cast<DType>(grid) == DType::Q4_0) context->save_for_backward({w});
    return quantize_dequantize(w, static_cast<DType>(grid));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    if (saved.empty()) return {gradients[0], torch::Tensor()};
    const bool cpu = saved[0].is_cpu();
    return {cpu ? q4_0_gradient(saved[0], gradients[0]) : q4_0_gradient_tensor_ops(saved[0], gradients[0]),
            torch::Tensor()};
  }
};

torch::Tensor inverse_or_zero(const torch::Tensor& d) {
  return torch::where(d == 0, torch::zeros_like(d), d.reciprocal());
}

torch::Tensor through_f16(const torch::Tensor& x) { return x.to(torch::kFloat16).to(torch::kFloat32); }

}  // namespace

torch::Tensor fake_quantize(const torch::Tensor& w, DType grid) {
  return Estimator::apply(w, static_cast<int64_t>(grid));
}

torch::Tensor q4_0_gradient(const torch::Tensor& w, const torch::Tensor& gradient) {
  const torch::Tensor x = w.detach().contiguous(), g = gradient.contiguous(), out = torch::empty_like(g);
  const float *weights = x.data_ptr<float>(), *from = g.data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, x.numel() / kBlockSize, kWeightsPerTask / kBlockSize, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kBlockSize; i < end * kBlockSize; i += kBlockSize)
      q4_0_block_gradient(weights + i, from + i, to + i);
  });
  return out;
}

torch::Tensor q4_0_gradient_tensor_ops(const torch::Tensor& w, const torch::Tensor& gradient) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor x = w.reshape({-1, kBlockSize}), g = gradient.reshape({-1, kBlockSize});
  const torch::Tensor largest = x.abs().argmax(1, /*keepdim=*/true);
  const torch::Tensor level = x * inverse_or_zero(x.gather(1, largest) / -8.0);
  const torch::Tensor beyond = level >= 7.5;
  const torch::Tensor by_scale = torch::where(beyond, torch::full_like(level, 7.0), (level + 0.5).floor() - level);
  const torch::Tensor of_scale = (g * by_scale).sum(1, /*keepdim=*/true);
  return g.masked_fill(beyond, 0.0).scatter_add(1, largest, of_scale / -8.0).view_as(w);
}

torch::Tensor fake_quantize_tensor_ops(const torch::Tensor& w, DType grid) {
  const torch::NoGradGuard no_grad;
  if (grid == DType::F32) return w.clone();
  if (grid == DType::F16) return through_f16(w);
  if (grid == DType::BF16) return w.to(torch::kBFloat16).to(torch::kFloat32);
  QAT_CHECK(grid == DType::Q4_0 || grid == DType::Q8_0);
  const torch::Tensor x = w.reshape({-1, kBlockSize});
  const torch::Tensor magnitude = x.abs();
  if (grid == DType::Q4_0) {
    // argmax gives the first of several equal magnitudes, as the reference rule wants. Each line is its own operation,
    // so that no compiler contracts x * inverse + 8.5 to a fused multiply-add.
    const torch::Tensor d = x.gather(1, magnitude.argmax(1, /*keepdim=*/true)) / -8.0;
    const torch::Tensor scaled = x * inverse_or_zero(d);
    const torch::Tensor code = (scaled + 8.5).floor().clamp(0, 15) - 8;
    return (through_f16(d) * code).view_as(w);
  }
  // Divided by a tensor: CUDA divides by a scalar as a multiplication with its reciprocal, which rounds differently.
  const torch::Tensor d = magnitude.amax(1, /*keepdim=*/true) / torch::full({1, 1}, 127.0, x.options());
  const torch::Tensor scaled = x * inverse_or_zero(d);
  // Half away from zero, as std::round; torch::round goes to even.
  const torch::Tensor whole = scaled.trunc();
  const torch::Tensor code = whole + ((scaled - whole).abs() >= 0.5) * scaled.sign();
  return (through_f16(d) * code).view_as(w);
}

}  // namespace qat
