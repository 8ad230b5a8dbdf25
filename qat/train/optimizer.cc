#include "qat/train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace qat {
namespace {

void update_elements(const AdamUpdate& u, float rate, int64_t begin, int64_t end, const float* gradient, float* w,
                     float* mean, float* square) {
  for (int64_t i = begin; i < end; ++i) {
    const float g = gradient[i] * u.gradient_scale;
    mean[i] += (g - mean[i]) * (1.0f - u.beta1);
    square[i] = square[i] * u.beta2 + (1.0f - u.beta2) * g * g;
    w[i] = w[i] * u.keep - rate * mean[i] / (std::sqrt(square[i]) * u.root_correction + u.eps);
  }
}

// units: what the rate of each run of elements is multiplied by; undefined: 1.
void update_cpu(const AdamUpdate& u, const torch::Tensor& units, int64_t count, const float* gradient, float* w,
                float* mean, float* square) {
  constexpr int64_t kElementsPerTask = 1 << 15;
  if (!units.defined()) {
    at::parallel_for(0, count, kElementsPerTask, [&](int64_t begin, int64_t end) {
      update_elements(u, u.rate, begin, end, gradient, w, mean, square);
    });
    return;
  }
  const int64_t run = count / units.numel();
  const float* unit = units.data_ptr<float>();
  at::parallel_for(0, units.numel(), std::max<int64_t>(1, kElementsPerTask / run), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      update_elements(u, u.rate * unit[i], i * run, (i + 1) * run, gradient, w, mean, square);
  });
}

void update_tensor_ops(const AdamUpdate& u, const torch::Tensor& units, const torch::Tensor& gradient, torch::Tensor& w,
                       torch::Tensor& mean, torch::Tensor& square) {
  const torch::Tensor g = gradient * u.gradient_scale;
  mean.lerp_(g, 1.0 - u.beta1);
  square.mul_(u.beta2).addcmul_(g, g, 1.0 - u.beta2);
  const torch::Tensor root = square.sqrt().mul_(u.root_correction).add_(u.eps);
  if (units.defined()) root.view({units.numel(), -1}).div_(units.view({-1, 1}));
  w.mul_(u.keep).addcdiv_(mean, root, -u.rate);
}

}  // namespace

AdamW::AdamW(std::vector<torch::Tensor> parameters, const AdamWOptions& options, std::vector<ParameterRule> rules)
    : parameters_(std::move(parameters)), options_(options), rules_(std::move(rules)) {
  if (rules_.empty()) rules_.resize(parameters_.size());
  QAT_CHECK(rules_.size() == parameters_.size());
  for (const torch::Tensor& p : parameters_) {
    QAT_CHECK(p.is_contiguous() && p.scalar_type() == torch::kFloat32);
    const bool coded = options_.eight_bit && p.numel() >= kLeastCoded;
    for (std::vector<Moment>* moments : {&means_, &squares_})
      moments->push_back(coded ? coded_zeros(p.numel(), p.device()) : Moment{torch::zeros_like(p).detach(), {}});
  }
}

void AdamW::step(double lr, double gradient_scale) {
  const torch::NoGradGuard no_grad;
  ++steps;
  const double t = static_cast<double>(steps);
  AdamUpdate u;
  u.beta1 = static_cast<float>(options_.beta1);
  u.beta2 = static_cast<float>(options_.beta2);
  u.root_correction = static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(options_.beta2, t)));
  u.eps = static_cast<float>(options_.eps);
  u.gradient_scale = static_cast<float>(gradient_scale);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_[i].grad().defined()) continue;
    const double own_lr = lr * rules_[i].relative_lr;
    u.keep = rules_[i].decays ? static_cast<float>(1.0 - own_lr * options_.weight_decay) : 1.0f;
    u.rate = static_cast<float>(own_lr / (1.0 - std::pow(options_.beta1, t)));
    const torch::Tensor gradient = parameters_[i].grad().contiguous();
    torch::Tensor w = parameters_[i].detach(), units;
    if (rules_[i].log_unit.defined()) units = rules_[i].log_unit.detach().exp();
    Moment &mean = means_[i], &square = squares_[i];
    if (mean.scales.defined())
      (w.is_cpu() ? update_coded_cpu : update_coded_tensor_ops)(u, units, steps, gradient, w, mean, square);
    else if (w.is_cpu())
      update_cpu(u, units, w.numel(), gradient.data_ptr<float>(), w.data_ptr<float>(), mean.values.data_ptr<float>(),
                 square.values.data_ptr<float>());
    else update_tensor_ops(u, units, gradient, w, mean.values, square.values);
  }
}

void AdamW::zero_grad() {
  for (torch::Tensor& p : parameters_) p.mutable_grad().reset();
}

double gradient_norm(const std::vector<torch::Tensor>& parameters) {
  std::vector<torch::Tensor> norms;
  for (const torch::Tensor& p : parameters)
    if (p.grad().defined()) norms.push_back(p.grad().norm());
  // One transfer from the device for all.
  return norms.empty() ? 0.0 : torch::stack(norms).to(torch::kFloat64).norm().item<double>();
}

double scheduled_lr(double lr, double min_ratio, int64_t warmup, int64_t steps, int64_t step) {
  if (step <= warmup) return lr * static_cast<double>(step) / static_cast<double>(warmup);
  const double span = static_cast<double>(std::max<int64_t>(steps - warmup, 1));
  const double progress = std::min(1.0, static_cast<double>(step - warmup) / span);
  const double pi = std::acos(-1.0);
  return lr * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + std::cos(pi * progress)));
}

}  // namespace qat
