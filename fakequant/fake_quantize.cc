#include "fakequant/fake_quantize.h"

#include <algorithm>

#include "format/error.h"

namespace qat {
namespace {

torch::Tensor fake_quantize_cpu(const torch::Tensor& w, DType grid) {
  const torch::Tensor x = w.contiguous();
  torch::Tensor out = torch::empty_like(x);
  const int64_t cols = x.size(-1), rows = x.numel() / std::max<int64_t>(cols, 1);
  const float* from = x.data_ptr<float>();
  float* to = out.data_ptr<float>();
  constexpr int64_t kWeightsPerTask = 1 << 14;
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
  if (grid == DType::Q6_K) return fake_quantize_cpu(w.cpu(), grid).to(w.device());
  return fake_quantize_tensor_ops(w, grid);
}

struct StraightThrough : torch::autograd::Function<StraightThrough> {
  static torch::Tensor forward(torch::autograd::AutogradContext*, const torch::Tensor& w, int64_t grid) {
    return quantize_dequantize(w, static_cast<DType>(grid));
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 torch::autograd::variable_list gradients) {
    return {gradients[0], torch::Tensor()};
  }
};

torch::Tensor inverse_or_zero(const torch::Tensor& d) {
  return torch::where(d == 0, torch::zeros_like(d), d.reciprocal());
}

torch::Tensor through_f16(const torch::Tensor& x) { return x.to(torch::kFloat16).to(torch::kFloat32); }

}  // namespace

torch::Tensor fake_quantize(const torch::Tensor& w, DType grid) {
  return StraightThrough::apply(w, static_cast<int64_t>(grid));
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
