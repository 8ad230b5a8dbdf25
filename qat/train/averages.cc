#include "qat/train/averages.h"

#include <algorithm>

namespace qat {

Averages::Averages(std::vector<torch::Tensor> tensors, double decay) : tensors_(std::move(tensors)), decay_(decay) {
  if (on()) restart();
}

void Averages::update() {
  if (!on()) return;
  const torch::NoGradGuard no_grad;
  ++updates;
  const double n = static_cast<double>(updates);
  const double weight = 1.0 - std::min(decay_, (n - 1.0) / (n + 9.0));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const torch::Tensor now = tensors_[i].detach();
    means_[i].lerp_(now, weight);
    // A static scale that is off yet is minus infinity, of which there is no mean.
    if (now.numel() == 1) means_[i].copy_(torch::where(now.isfinite(), means_[i], now));
  }
}

void Averages::restart() {
  if (!on()) return;
  const torch::NoGradGuard no_grad;
  means_.clear();
  for (const torch::Tensor& t : tensors_) means_.push_back(t.detach().clone());
  updates = 0;
}

void Averages::exchange() {
  if (!on()) return;
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const torch::Tensor kept = means_[i].clone();
    means_[i].copy_(tensors_[i].detach());
    tensors_[i].detach().copy_(kept);
  }
}

}  // namespace qat
