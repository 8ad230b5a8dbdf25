#include "qat/train/static_grids.h"

#include <cmath>
#include <limits>

#include "format/error.h"

namespace qat {
namespace {

// The linear whose scales a linear shares.
Role scale_owner(Role role) {
  if (role == Role::v) return Role::k;
  if (role == Role::up) return Role::gate;
  return role;
}

size_t index_of(Role role) { return static_cast<size_t>(role); }

std::string module_of(const TensorInfo& info) { return info.name.substr(0, info.name.rfind('.')); }

}  // namespace

StaticGrids::StaticGrids(const ModelConfig& config, const std::vector<TensorInfo>& table, const Plan& plan,
                         const std::map<std::string, PlanEntry>& resolved, torch::Device device) {
  QAT_CHECK(plan.mobile);
  layers_.resize(config.layers.size());
  for (Layer& layer : layers_) {
    layer.input.fill(-1);
    layer.output.fill(-1);
  }
  for (const TensorInfo& info : table) {
    if (info.layer < 0 || info.kind != TensorKind::linear) continue;
    Layer& layer = layers_[static_cast<size_t>(info.layer)];
    const std::string module = module_of(info);
    const size_t role = index_of(info.role), owner = index_of(scale_owner(info.role));
    if (plan.activations && code_bits(resolved.at(info.name).grid) != 0) {
      layer.input[role] = layer.input[owner] >= 0 ? layer.input[owner] : add(module + ".input_log_scale", 8, device);
      layer.output[role] =
          layer.output[owner] >= 0 ? layer.output[owner] : add(module + ".output_log_scale", 8, device);
    }
    if (info.role != Role::k) continue;
    const bool sliding = config.layers[static_cast<size_t>(info.layer)].sliding;
    const int bits = sliding ? plan.kv_sliding_bits : plan.kv_global_bits;
    if (bits == 0) continue;
    layer.cache_bits = bits;
    layer.k_cache = add(module + ".k_cache_log_scale", bits, device);
    layer.v_cache = add(module + ".v_cache_log_scale", bits, device);
  }
}

int StaticGrids::add(const std::string& name, int bits, torch::Device device) {
  Grid grid;
  grid.name = name;
  grid.log_scale = torch::full({1}, -std::numeric_limits<float>::infinity(), torch::kFloat32).to(device);
  grid.log_scale.requires_grad_(true);
  grids_.push_back(grid);
  bits_.push_back(bits);
  return static_cast<int>(grids_.size()) - 1;
}

torch::Tensor StaticGrids::log_scale(int index) const {
  if (index < 0 || !grids_[static_cast<size_t>(index)].on) return {};
  return grids_[static_cast<size_t>(index)].log_scale;
}

std::vector<LayerScales> StaticGrids::scales() const {
  std::vector<LayerScales> scales(layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (size_t role = 0; role < kRoles; ++role) {
      scales[i].input[static_cast<Role>(role)] = log_scale(layers_[i].input[role]);
      scales[i].output[static_cast<Role>(role)] = log_scale(layers_[i].output[role]);
    }
    scales[i].k_cache = log_scale(layers_[i].k_cache);
    scales[i].v_cache = log_scale(layers_[i].v_cache);
    scales[i].cache_bits = layers_[i].cache_bits;
  }
  return scales;
}

void StaticGrids::refresh() {
  for (Grid& grid : grids_) grid.on = std::isfinite(grid.log_scale.detach().cpu().item<float>());
}

ActivationProbe StaticGrids::probe() {
  observers_.assign(grids_.size(), ActivationObserver());
  return [this](int layer, ActivationKind kind, Role role, const torch::Tensor& x) {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    const int index = kind == ActivationKind::input    ? l.input[index_of(role)]
                      : kind == ActivationKind::output ? l.output[index_of(role)]
                      : kind == ActivationKind::key    ? l.k_cache
                                                       : l.v_cache;
    if (index >= 0) observe(x, observers_[static_cast<size_t>(index)]);
  };
}

void StaticGrids::calibrate(Calibration rule) {
  QAT_CHECK(observers_.size() == grids_.size());
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < grids_.size(); ++i)
    grids_[i].log_scale.fill_(std::log(static_cast<double>(observers_[i].scale(rule, bits_[i]))));  // log(0): off
  observers_.clear();
  refresh();
}

float StaticGrids::stored(int index) const {
  const torch::Tensor log_scale = this->log_scale(index);
  return log_scale.defined() ? storable_scales(log_scale).cpu().item<float>() : 0.0f;
}

float StaticGrids::input_scale(const TensorInfo& linear) const {
  if (linear.layer < 0 || layers_.empty()) return 0.0f;
  return stored(layers_[static_cast<size_t>(linear.layer)].input[index_of(linear.role)]);
}

float StaticGrids::output_scale(const TensorInfo& linear) const {
  if (linear.layer < 0 || layers_.empty()) return 0.0f;
  return stored(layers_[static_cast<size_t>(linear.layer)].output[index_of(linear.role)]);
}

CacheScales StaticGrids::cache_scales(int layer) const {
  if (layers_.empty()) return {};
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return {stored(l.k_cache), stored(l.v_cache), l.cache_bits};
}

}  // namespace qat
