#include "fakequant/static_quantize.h"

#include <cmath>

#include "format/error.h"

namespace qat {

torch::Tensor static_quantize(const torch::Tensor& x, const torch::Tensor& log_scale, int bits) {
  if (!log_scale.defined() || x.numel() == 0) return x;
  QAT_CHECK(log_scale.numel() == 1);
  if (x.scalar_type() == torch::kFloat64)
    return static_quantize(x.to(torch::kFloat32), log_scale, bits).to(torch::kFloat64);
  return lsq_quantize(x, log_scale, bits, {lsq_factor(x.size(-1), bits), /*pass_clipped=*/false});
}

torch::Tensor static_log_scale(float scale) {
  QAT_CHECK(scale >= 0.0f && std::isfinite(scale));
  return scale > 0.0f ? torch::full({1}, std::log(scale)) : torch::Tensor();
}

void observe(const torch::Tensor& x, ActivationObserver& observer) {
  QAT_CHECK(x.scalar_type() == torch::kFloat32);
  const torch::Tensor values = x.detach().cpu().contiguous();
  observer.observe(values.data_ptr<float>(), values.numel());
}

}  // namespace qat
