// The static grids of a mobile plan: of activations into and out of each linear (8 bits), and of keys and values on
// their way into the cache. Each is one learned scale, found by calibration first. Scales are tied as the schema ties
// them: k with v, gate with up.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "fakequant/static_quantize.h"
#include "format/mobile.h"
#include "format/plan.h"

namespace qat {

constexpr size_t kRoles = static_cast<size_t>(Role::layer_scalar) + 1;

// The tensors of one layer, or of the model outside its layers, by role; undefined where the model has none.
class TensorsByRole {
 public:
  torch::Tensor& operator[](Role role) { return tensors_[static_cast<size_t>(role)]; }
  const torch::Tensor& operator[](Role role) const { return tensors_[static_cast<size_t>(role)]; }
  std::array<torch::Tensor, kRoles>& all() { return tensors_; }

 private:
  std::array<torch::Tensor, kRoles> tensors_;
};

// Logarithms of a layer's static scales, one element each; undefined: not rounded.
struct LayerScales {
  TensorsByRole input, output;  // of its linears
  torch::Tensor k_cache, v_cache;
  int cache_bits = 8;
};

enum class ActivationKind { input, output, key, value };

// Sees a tensor before it is rounded. role: of the linear; of keys and values k. Of tied scales' inputs only one is
// shown: k's, gate's.
using ActivationProbe = std::function<void(int layer, ActivationKind kind, Role role, const torch::Tensor& x)>;

class StaticGrids {
 public:
  struct Grid {
    std::string name;
    torch::Tensor log_scale;  // (1), float32, trained; -infinity: off (not calibrated, or nothing but zeros seen)
    bool on = false;
  };

  StaticGrids() = default;  // none
  // What `plan` (a mobile one) makes static: linears whose weights have codes, caches of layers that own K and V.
  StaticGrids(const ModelConfig& config, const std::vector<TensorInfo>& table, const Plan& plan,
              const std::map<std::string, PlanEntry>& resolved, torch::Device device);

  std::vector<Grid>& all() { return grids_; }
  const std::vector<Grid>& all() const { return grids_; }
  std::vector<LayerScales> scales() const;  // per layer
  // Reads `on` off the scales, after somebody wrote them.
  void refresh();

  // Calibration: probe() shows activations to the observers, calibrate() then sets every scale by the rule.
  ActivationProbe probe();
  void calibrate(Calibration rule);

  // What files hold; 0: off.
  float input_scale(const TensorInfo& linear) const;
  float output_scale(const TensorInfo& linear) const;
  CacheScales cache_scales(int layer) const;

 private:
  struct Layer {
    std::array<int, kRoles> input, output;  // indices of grids_, -1: none
    int k_cache = -1, v_cache = -1, cache_bits = 8;
  };
  int add(const std::string& name, int bits, torch::Device device);
  torch::Tensor log_scale(int index) const;
  float stored(int index) const;

  std::vector<Grid> grids_;
  std::vector<int> bits_;  // of grids_
  std::vector<Layer> layers_;
  std::vector<ActivationObserver> observers_;  // of grids_, during calibration
};

}  // namespace qat
