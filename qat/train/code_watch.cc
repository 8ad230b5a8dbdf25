#include "qat/train/code_watch.h"

#include <algorithm>

#include "format/error.h"

namespace qat {
namespace {

// Codes of some runs of a parameter: (n, length), float32, on the CPU.
torch::Tensor codes_of(const Parameter& p, const torch::Tensor& runs) {
  const torch::NoGradGuard no_grad;
  const int64_t count = p.log_scale.numel();
  const torch::Tensor index = runs.to(p.master.device());
  Parameter sample;
  sample.grid = p.grid;
  sample.frozen = p.frozen;
  sample.master = p.effective().detach().view({count, -1}).index_select(0, index);
  sample.log_scale = p.log_scale.detach().view({-1}).index_select(0, index);
  if (p.scale_sign.defined()) sample.scale_sign = p.scale_sign.view({-1}).index_select(0, index);
  return sample.codes().to(torch::kFloat32);
}

}  // namespace

CodeWatch::CodeWatch(const Model& model) {
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    const Parameter& p = model.parameters()[i];
    if (!p.log_scale.defined()) continue;
    const int64_t count = p.log_scale.numel(), n = std::min(count, kSample);
    Watched watched;
    watched.parameter = i;
    watched.runs = torch::arange(n, torch::kInt64).mul_(count).floor_divide_(n);
    watched_.push_back(std::move(watched));
  }
  start(model);
}

void CodeWatch::start(const Model& model) {
  for (Watched& w : watched_) {
    w.first = codes_of(model.parameters()[w.parameter], w.runs);
    w.last = w.first.clone();
    w.direction = torch::zeros_like(w.first);
  }
}

CodeWatch::Shares CodeWatch::observe(const Model& model) {
  double moved = 0.0, oscillating = 0.0, count = 0.0;
  for (Watched& w : watched_) {
    const torch::Tensor now = codes_of(model.parameters()[w.parameter], w.runs);
    const torch::Tensor change = (now - w.last).sign();
    moved += now.ne(w.first).sum().item<double>();
    oscillating += (change * w.direction).lt(0).sum().item<double>();
    count += static_cast<double>(now.numel());
    w.direction.copy_(torch::where(change == 0, w.direction, change));
    w.last.copy_(now);
  }
  return count == 0.0 ? Shares() : Shares{moved / count, oscillating / count};
}

std::vector<std::pair<std::string, torch::Tensor>> CodeWatch::state() const {
  std::vector<std::pair<std::string, torch::Tensor>> state;
  for (size_t i = 0; i < watched_.size(); ++i) {
    const std::string prefix = "codes_watched." + std::to_string(watched_[i].parameter) + ".";
    state.emplace_back(prefix + "first", watched_[i].first);
    state.emplace_back(prefix + "last", watched_[i].last);
    state.emplace_back(prefix + "direction", watched_[i].direction);
  }
  return state;
}

}  // namespace qat
