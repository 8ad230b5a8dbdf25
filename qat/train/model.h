// The model in LibTorch: Llama, Gemma 3 and Gemma 4 (dense) as one straight-line forward pass that the config drives.
// Weights are kept as float32 masters by canonical tensor name; the forward pass sees them on the grids of a plan.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "fakequant/libtorch.h"
#include "format/checkpoint.h"
#include "qat/train/lora.h"
#include "qat/train/static_grids.h"

namespace qat {

// What a forward pass multiplies by.
struct ForwardWeights {
  TensorsByRole global;
  std::vector<TensorsByRole> layers;
  std::vector<LayerScales> scales;  // per layer; empty: activations and caches are float
  torch::Tensor& at(const TensorInfo& info) {
    return (info.layer < 0 ? global : layers[static_cast<size_t>(info.layer)])[info.role];
  }
  const torch::Tensor& at(const TensorInfo& info) const { return const_cast<ForwardWeights*>(this)->at(info); }
  // (vocab, hidden): the embedding when the head is tied.
  const torch::Tensor& head() const {
    return global[Role::output].defined() ? global[Role::output] : global[Role::token_embedding];
  }
};

struct Parameter {
  TensorInfo info;
  torch::Tensor
      master;  // float32, info.shape; once frozen on a grid of learned scales: its codes, not trained any more
  DType grid = DType::F32;  // what the forward pass rounds it to
  bool trained = true;      // false: a buffer (layer_scalar)
  // Channel-wise grids: logarithm of the learned scales, (rows * scales per row), trained; Q4_0: of each block's, with
  // its sign, which stays (fakequant/block_scale.h). Undefined for other grids.
  torch::Tensor log_scale, scale_sign;
  bool frozen = false, widened = false;
  Adapter adapter;  // what is trained instead of the master; undefined: none, and once frozen it has no effect
  // With adapters: the master is no longer what the model's file holds, so that a checkpoint of the run has to.
  bool master_moved = false;
  bool learns_scale() const { return log_scale.defined() && log_scale.requires_grad(); }
  // What is rounded: the master, with its adapter added.
  torch::Tensor effective() const { return adapter.defined() && !frozen ? adapted(master, adapter) : master; }
  // The effective master as the forward pass multiplies by it. Differentiable in the master or its adapter, and in
  // log_scale.
  torch::Tensor quantized() const;
  // Where log_scale is defined. Codes: int8, info.shape, on the CPU; scales: float32 with their sign, as files hold
  // them.
  torch::Tensor codes() const;
  torch::Tensor scales() const;
};

// A tensor that the optimizer moves.
struct Trained {
  enum Kind { weight, norm, weight_scale, activation_scale };
  std::string name;
  torch::Tensor tensor;
  Kind kind = weight;
  torch::Tensor unit;  // weights on grids of learned scales: the logarithms of these
};

class Model {
 public:
  // Every tensor as float32 on `device`. Throws Error naming the tensor that holds a NaN or an infinity.
  Model(const FloatCheckpoint& checkpoint, torch::Device device);

  const ModelConfig& config() const { return config_; }
  const std::vector<TensorInfo>& table() const { return table_; }
  torch::Device device() const { return device_; }
  std::vector<Parameter>& parameters() { return parameters_; }  // in table order
  const std::vector<Parameter>& parameters() const { return parameters_; }
  // Sets each parameter's grid; the plan must name every tensor of the table. Scales of channel-wise grids begin where
  // a search finds the least squared error, those of Q4_0 where llama-quantize has them (initialize.h moves both);
  // those of activations and caches are off until they are calibrated.
  void apply_plan(const Plan& plan, const std::map<std::string, PlanEntry>& resolved);
  // After apply_plan(): every weight stays, and what takes_adapter() gets one. Throws Error as check_rank().
  void adapt(const AdapterOptions& options);
  StaticGrids& static_grids() { return static_grids_; }
  const StaticGrids& static_grids() const { return static_grids_; }
  std::vector<Trained> trained() const;  // frozen or not: what a checkpoint of the run holds
  // Staged widths: 2-bit weights get 4 bits, as if the plan had it so; and back, from the masters as they are by then.
  void widen();
  void narrow();
  // Codes on grids of learned scales stay what they are now; their scales, norms and the rest go on learning.
  void freeze_codes();
  // Against oscillation: masters on grids of learned scales go `strength` (0 to 1) of the way to their level. A weight
  // whose gradient is weaker than that stays in its cell.
  void draw_to_levels(double strength);
  void mark_frozen();  // the masters already are codes: read back from a checkpoint
  // The masters on their grids, outside autograd: for evaluation and for a frozen teacher.
  ForwardWeights forward_weights() const;

 private:
  ModelConfig config_;
  std::vector<TensorInfo> table_;
  std::vector<Parameter> parameters_;
  StaticGrids static_grids_;
  torch::Device device_;
};

// The weights of one optimizer step: each tensor is rounded onto its grid once, and the rounding is cut out of the
// graph of the forward pass, so that any number of forward and backward passes may share it. backward() then sends the
// gradients that they left through the fake-quantizer to the masters, whose grad() it sets; to adapters they have gone
// by then (quantized_for_step).
class StepWeights {
 public:
  explicit StepWeights(Model& model);
  const ForwardWeights& forward() const { return forward_; }
  void backward();

 private:
  struct Quantized {
    torch::Tensor value;  // fake_quantize(master), in the graph of the master
    torch::Tensor leaf;   // the same memory, a leaf: what the forward pass uses
  };
  std::vector<Quantized> quantized_;
  ForwardWeights forward_;
};

// What depends on the config and the sequence length alone.
struct Positions {
  torch::Tensor cos_sliding, sin_sliding, cos_full, sin_full;  // (length, 1, head_dim / 2)
  torch::Tensor mask_sliding, mask_full;  // (length, length): 0 or -infinity. Undefined when just causal
                                          // and attention is fused
};
Positions make_positions(const ModelConfig& config, int64_t length, torch::Device device);

struct ForwardOptions {
  bool gradient_checkpointing = false;  // keep only the layers' inputs, compute the rest again in the backward pass
  // When set: sees the embedding (index 0) and the output of layer i (index i + 1), and returns what the next layer
  // gets.
  std::function<torch::Tensor(size_t index, const torch::Tensor& hidden)> residual_hook;
  ActivationProbe probe;  // when set: sees activations, keys and values before they are rounded
};

// ids: (batch, length) int64, all < vocab. Returns the final normalized hidden states (batch, length, hidden); logits
// are softcap(hidden * head^T), which the losses take in chunks.
torch::Tensor forward_hidden(const ModelConfig& config, const ForwardWeights& weights, const Positions& positions,
                             const torch::Tensor& ids, const ForwardOptions& options = {});

// softcap * tanh(logits / softcap), or the logits when softcap is 0.
torch::Tensor soften_logits(const torch::Tensor& logits, double softcap);

}  // namespace qat
