#include "qat/train/model.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "fakequant/block_scale.h"
#include "fakequant/channel_quantize.h"
#include "fakequant/fake_quantize.h"
#include "qat/train/checkpointing.h"
#include "qat/train/layer.h"
#include "qat/train/ops.h"

namespace qat {
namespace {

// Rows of a table scaled: (batch, length, width). As in transformers, the padding token's row gets no gradient from
// here.
torch::Tensor embed(const torch::Tensor& table, const torch::Tensor& ids, int64_t padding_id, double scale) {
  const torch::Tensor rows = torch::embedding(table, ids, padding_id);
  return scale == 1.0 ? rows : rows * scale;
}

// What every layer gets of the per-layer embeddings: one (batch, length, ple) per layer.
std::vector<torch::Tensor> per_layer_inputs(const ModelConfig& c, const TensorsByRole& w, const torch::Tensor& ids,
                                            const torch::Tensor& embedded) {
  const std::vector<int64_t> shape = {ids.size(0), ids.size(1), static_cast<int64_t>(c.layers.size()), c.ple};
  const torch::Tensor token =
      embed(w[Role::ple_embedding], ids, c.pad_id, std::sqrt(static_cast<double>(c.ple))).view(shape);
  const torch::Tensor projected =
      at::linear(embedded, w[Role::ple_model_projection]) * (1.0 / std::sqrt(static_cast<double>(c.hidden)));
  const torch::Tensor context = rms_norm(projected.view(shape), w[Role::ple_projection_norm], c.eps, c.norm_plus_one);
  return ((context + token) * std::sqrt(0.5)).unbind(2);
}

// The tensors of one layer: weights, and the scales of its static grids.
struct LayerTensors {
  TensorsByRole weights;
  LayerScales scales;
};

// The linears of one layer, their inputs and outputs rounded where they are static.
class Linears {
 public:
  Linears(int layer, const LayerTensors& tensors, const ActivationProbe& probe)
      : layer_(layer), t_(tensors), probe_(probe) {}
  torch::Tensor input(const torch::Tensor& x, Role role) const {
    return rounded(x, ActivationKind::input, role, t_.scales.input[role], 8);
  }
  // x: as input() gave it.
  torch::Tensor product(const torch::Tensor& x, Role role) const {
    return rounded(at::linear(x, t_.weights[role]), ActivationKind::output, role, t_.scales.output[role], 8);
  }
  torch::Tensor operator()(const torch::Tensor& x, Role role) const { return product(input(x, role), role); }
  torch::Tensor cached(const torch::Tensor& x, ActivationKind kind) const {
    const torch::Tensor& scale = kind == ActivationKind::key ? t_.scales.k_cache : t_.scales.v_cache;
    return rounded(x, kind, Role::k, scale, t_.scales.cache_bits);
  }

 private:
  torch::Tensor rounded(const torch::Tensor& x, ActivationKind kind, Role role, const torch::Tensor& log_scale,
                        int bits) const {
    if (probe_) probe_(layer_, kind, role, x);
    return static_quantize(x, log_scale, bits);
  }

  int layer_;
  const LayerTensors& t_;
  const ActivationProbe& probe_;
};

// One decoder layer. ple: undefined when the model has none. k, v: those of the source layer, undefined when the layer
// owns its own.
LayerOutput layer_forward(const ModelConfig& c, const LayerConfig& layer, const LayerTensors& tensors,
                          const Linears& linear, const Positions& positions, torch::Tensor h, const torch::Tensor& ple,
                          torch::Tensor k, torch::Tensor v) {
  const TensorsByRole& w = tensors.weights;
  const auto norm = [&](const torch::Tensor& x, Role role) { return rms_norm(x, w[role], c.eps, c.norm_plus_one); };
  const torch::Tensor& cos = layer.sliding ? positions.cos_sliding : positions.cos_full;
  const torch::Tensor& sin = layer.sliding ? positions.sin_sliding : positions.sin_full;
  const torch::Tensor& mask = layer.sliding ? positions.mask_sliding : positions.mask_full;
  const int64_t batch = h.size(0), length = h.size(1);
  const std::vector<int64_t> q_shape = {batch, length, c.heads, layer.head_dim};
  const std::vector<int64_t> kv_shape = {batch, length, layer.kv_heads, layer.head_dim};

  const torch::Tensor a = norm(h, Role::attention_norm);
  torch::Tensor q = linear(a, Role::q).view(q_shape);
  if (c.qk_norm()) q = norm(q, Role::q_norm);
  q = rotate(q, cos, sin);
  if (!k.defined()) {
    const torch::Tensor shared = linear.input(a, Role::k);
    k = linear.product(shared, Role::k).view(kv_shape);
    v = layer.k_eq_v ? k : linear.product(shared, Role::v).view(kv_shape);
    if (c.qk_norm()) k = norm(k, Role::k_norm);
    if (c.v_norm()) v = rms_norm(v, {}, c.eps, false);
    k = linear.cached(rotate(k, cos, sin), ActivationKind::key);
    v = linear.cached(v, ActivationKind::value);
  }
  torch::Tensor attended =
      linear(attention(q, k, v, mask, layer.sliding ? c.sliding_window : 0, c.attention_scale), Role::o);
  if (c.sandwich_norms()) attended = norm(attended, Role::post_attention_norm);
  h = h + attended;

  const torch::Tensor f = norm(h, Role::ffn_norm);
  const torch::Tensor shared = linear.input(f, Role::gate);
  const torch::Tensor gated =
      gated_activation(linear.product(shared, Role::gate), linear.product(shared, Role::up), c.gated_gelu());
  torch::Tensor fed = linear(gated, Role::down);
  if (c.sandwich_norms()) fed = norm(fed, Role::post_ffn_norm);
  h = h + fed;

  if (ple.defined()) {
    const torch::Tensor g = gated_activation(linear(h, Role::ple_gate), ple, c.gated_gelu());
    h = h + norm(linear(g, Role::ple_projection), Role::post_ple_norm);
  }
  if (w[Role::layer_scalar].defined()) h = h * w[Role::layer_scalar];
  return {h, k, v};
}

// Every defined tensor of a layer, in a fixed order.
std::vector<torch::Tensor*> defined_tensors(LayerTensors& t) {
  std::vector<torch::Tensor*> list;
  for (TensorsByRole* tensors : {&t.weights, &t.scales.input, &t.scales.output})
    for (torch::Tensor& x : tensors->all()) list.push_back(&x);
  list.push_back(&t.scales.k_cache);
  list.push_back(&t.scales.v_cache);
  list.erase(std::remove_if(list.begin(), list.end(), [](const torch::Tensor* x) { return !x->defined(); }),
             list.end());
  return list;
}

// The same, but only its inputs are kept for the backward pass.
LayerOutput checkpointed_layer(const ModelConfig& c, const LayerConfig& layer, int index, const LayerTensors& tensors,
                               const ActivationProbe& probe, const Positions& positions, const torch::Tensor& h,
                               const torch::Tensor& ple, const torch::Tensor& k, const torch::Tensor& v) {
  // Inputs are listed without the undefined ones: h, ple, k, v, then the layer's tensors.
  torch::autograd::variable_list inputs = {h};
  for (const torch::Tensor& x : {ple, k, v})
    if (x.defined()) inputs.push_back(x);
  LayerTensors all = tensors;
  for (const torch::Tensor* x : defined_tensors(all)) inputs.push_back(*x);
  const bool has_ple = ple.defined(), shares_kv = k.defined();
  const auto run = [=, &c, &layer, &probe,
                    &positions](const torch::autograd::variable_list& list) -> torch::autograd::variable_list {
    size_t next = 1;
    const torch::Tensor ple_in = has_ple ? list[next++] : torch::Tensor();
    const torch::Tensor k_in = shares_kv ? list[next++] : torch::Tensor();
    const torch::Tensor v_in = shares_kv ? list[next++] : torch::Tensor();
    LayerTensors given = all;
    for (torch::Tensor* x : defined_tensors(given)) *x = list[next++];
    const Linears linear(index, given, probe);
    const LayerOutput out = layer_forward(c, layer, given, linear, positions, list[0], ple_in, k_in, v_in);
    if (shares_kv) return {out.h};
    return {out.h, out.k, out.v};
  };
  const auto outputs = checkpointed(run, inputs);
  return shares_kv ? LayerOutput{outputs[0], k, v} : LayerOutput{outputs[0], outputs[1], outputs[2]};
}

struct RopeTables {
  torch::Tensor cos, sin;
};

RopeTables rope_tables(const ModelConfig& config, const LayerConfig& layer, int64_t length, torch::Device device) {
  const std::vector<float> frequencies = rope_frequencies(config, layer);
  const torch::Tensor f = torch::tensor(frequencies);
  const torch::Tensor angles = torch::arange(length, torch::kFloat32).unsqueeze(1) * f.unsqueeze(0);
  return {angles.cos().unsqueeze(1).to(device), angles.sin().unsqueeze(1).to(device)};
}

// 0 where query row sees key column, -infinity elsewhere. window 0: all earlier positions.
torch::Tensor attention_mask(int64_t length, int64_t window, torch::Device device) {
  const torch::Tensor position = torch::arange(length);
  const torch::Tensor distance = position.unsqueeze(1) - position.unsqueeze(0);
  torch::Tensor hidden = distance < 0;
  if (window > 0) hidden = hidden.logical_or(distance >= window);
  return torch::zeros({length, length}).masked_fill(hidden, -std::numeric_limits<float>::infinity()).to(device);
}

}  // namespace

Model::Model(const FloatCheckpoint& checkpoint, torch::Device device)
    : config_(checkpoint.config()), table_(checkpoint.table()), device_(device) {
  for (const TensorInfo& info : table_) {
    Parameter parameter;
    parameter.info = info;
    parameter.trained = info.kind != TensorKind::scalar;
    parameter.master = torch::empty(info.shape, torch::kFloat32);
    checkpoint.read_rows(info, 0, -1, parameter.master.data_ptr<float>());
    if (!parameter.master.isfinite().all().item<bool>())
      fail(checkpoint.directory(), ": tensor ", info.name, ": expected finite weights, found NaN or infinity");
    parameter.master = parameter.master.to(device).requires_grad_(parameter.trained);
    parameters_.push_back(std::move(parameter));
  }
}

namespace {

// Of weights on a channel-wise grid: the logarithms of scales of the least squared error.
torch::Tensor searched_scales(const Parameter& p, const ModelConfig& config) {
  const int64_t cols = p.info.shape.back() / mobile_scales_per_row(config, p.info);
  return search_log_scales(p.effective(), cols, code_bits(p.grid));
}

// Another width; the tensor of scales stays, since an optimizer may know it.
void move_to_grid(Parameter& p, DType grid, const ModelConfig& config) {
  const torch::NoGradGuard no_grad;
  p.grid = grid;
  p.log_scale.detach().copy_(searched_scales(p, config));
}

}  // namespace

void Model::apply_plan(const Plan& plan, const std::map<std::string, PlanEntry>& resolved) {
  for (Parameter& parameter : parameters_) {
    const auto entry = resolved.find(parameter.info.name);
    QAT_CHECK(entry != resolved.end());
    parameter.grid = entry->second.grid;
    if (parameter.grid == DType::Q4_0) {
      BlockScales scales = reference_block_scales(parameter.master);
      parameter.log_scale = scales.log_scale.requires_grad_(true);
      parameter.scale_sign = scales.sign;
    }
    if (code_bits(parameter.grid) != 0) parameter.log_scale = searched_scales(parameter, config_).requires_grad_(true);
  }
  if (plan.mobile) static_grids_ = StaticGrids(config_, table_, plan, resolved, device_);
}

void Model::widen() {
  for (Parameter& p : parameters_) {
    if (p.grid != DType::I2) continue;
    p.widened = true;
    move_to_grid(p, DType::I4, config_);
  }
}

void Model::narrow() {
  for (Parameter& p : parameters_) {
    if (!p.widened) continue;
    p.widened = false;
    move_to_grid(p, DType::I2, config_);
  }
}

void Model::adapt(const AdapterOptions& options) {
  std::map<std::string, PlanEntry> grids;
  for (const Parameter& p : parameters_) grids[p.info.name].grid = p.grid;
  check_rank(table_, grids, options.rank);
  std::mt19937_64 random(options.seed);
  for (Parameter& p : parameters_) {
    p.trained = false;
    p.master.requires_grad_(false);
    if (takes_adapter(p.info, p.grid)) p.adapter = make_adapter(p.info, options, random, device_);
    else if (p.log_scale.defined()) p.log_scale.requires_grad_(false);
  }
}

std::vector<Trained> Model::trained() const {
  std::vector<Trained> all;
  for (const Parameter& p : parameters_) {
    if (p.trained)
      all.push_back({p.info.name, p.master, p.info.shape.size() == 1 ? Trained::norm : Trained::weight, p.log_scale});
    if (p.adapter.defined()) {
      all.push_back({p.info.name + ".lora_A", p.adapter.a, Trained::weight, {}});
      all.push_back({p.info.name + ".lora_B", p.adapter.b, Trained::weight, {}});
    }
    if (p.learns_scale()) all.push_back({p.info.name + ".log_scale", p.log_scale, Trained::weight_scale, {}});
  }
  for (const StaticGrids::Grid& grid : static_grids_.all())
    all.push_back({grid.name, grid.log_scale, Trained::activation_scale, {}});
  return all;
}

void Model::freeze_codes() {
  const torch::NoGradGuard no_grad;
  for (Parameter& p : parameters_)
    if (p.learns_scale()) p.master.detach().copy_(p.codes());
  mark_frozen();
}

void Model::draw_to_levels(double strength) {
  const torch::NoGradGuard no_grad;
  for (Parameter& p : parameters_)
    if (p.log_scale.defined() && !p.frozen) p.master.detach().lerp_(p.quantized(), strength);
}

void Model::mark_frozen() {
  for (Parameter& p : parameters_) {
    p.frozen = p.learns_scale();
    p.master_moved = p.master_moved || p.frozen;
  }
}

torch::Tensor Parameter::codes() const {
  if (frozen) return master.detach().cpu().contiguous().to(torch::kInt8);
  if (scale_sign.defined()) return block_codes(effective(), log_scale, scale_sign);
  return channel_codes(effective(), log_scale, code_bits(grid));
}

torch::Tensor Parameter::scales() const {
  return scale_sign.defined() ? stored_block_scales(log_scale, scale_sign) : storable_scales(log_scale);
}

torch::Tensor Parameter::quantized() const {
  if (scale_sign.defined()) {
    if (!frozen) return block_quantize(effective(), log_scale, scale_sign);
    return frozen_block_quantize(master.detach().to(torch::kInt8), log_scale, scale_sign);
  }
  const int bits = code_bits(grid);
  if (bits == 0) return fake_quantize(effective(), grid);
  if (frozen) return frozen_channel_quantize(master.detach().to(torch::kInt8), log_scale, bits);
  return channel_quantize(effective(), log_scale, bits);
}

ForwardWeights Model::forward_weights() const {
  const torch::NoGradGuard no_grad;
  ForwardWeights weights;
  weights.layers.resize(config_.layers.size());
  for (const Parameter& p : parameters_)
    weights.at(p.info) = p.grid == DType::F32 ? p.master.detach() : p.quantized().detach();
  weights.scales = static_grids_.scales();
  return weights;
}

StepWeights::StepWeights(Model& model) {
  forward_.layers.resize(model.config().layers.size());
  forward_.scales = model.static_grids().scales();
  for (Parameter& parameter : model.parameters()) {
    torch::Tensor& used = forward_.at(parameter.info);
    if (parameter.grid == DType::F32) {
      used = parameter.master;  // nothing to round: the forward pass uses the master itself
      continue;
    }
    if (parameter.adapter.defined()) {
      used = quantized_for_step(parameter);
      continue;
    }
    const torch::Tensor value = parameter.quantized();
    used = value.detach().requires_grad_(parameter.trained);
    if (parameter.trained) quantized_.push_back({value, used});
  }
}

void StepWeights::backward() {
  for (Quantized& q : quantized_) {
    if (!q.leaf.grad().defined()) continue;
    torch::autograd::backward({q.value}, {q.leaf.grad()});
    q.leaf.mutable_grad().reset();
  }
}

Positions make_positions(const ModelConfig& config, int64_t length, torch::Device device) {
  Positions p;
  for (const LayerConfig& layer : config.layers) {
    torch::Tensor& cos = layer.sliding ? p.cos_sliding : p.cos_full;
    torch::Tensor& sin = layer.sliding ? p.sin_sliding : p.sin_full;
    torch::Tensor& mask = layer.sliding ? p.mask_sliding : p.mask_full;
    if (cos.defined()) continue;
    const RopeTables tables = rope_tables(config, layer, length, device);
    cos = tables.cos;
    sin = tables.sin;
    const bool windowed = layer.sliding && config.sliding_window > 0 && config.sliding_window < length;
    if (windowed || !kHasFusedAttention) mask = attention_mask(length, windowed ? config.sliding_window : 0, device);
  }
  return p;
}

torch::Tensor forward_hidden(const ModelConfig& config, const ForwardWeights& weights, const Positions& positions,
                             const torch::Tensor& ids, const ForwardOptions& options) {
  torch::Tensor h = embed(weights.global[Role::token_embedding], ids, config.pad_id, config.embedding_scale);
  std::vector<torch::Tensor> ple(config.layers.size());
  if (config.ple > 0) ple = per_layer_inputs(config, weights.global, ids, h);
  std::vector<torch::Tensor> keys(config.layers.size()), values(config.layers.size());
  if (options.residual_hook) h = options.residual_hook(0, h);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const auto source = static_cast<size_t>(layer.kv_source);
    const int index = static_cast<int>(i);
    const LayerTensors tensors{weights.layers[i], weights.scales.empty() ? LayerScales() : weights.scales[i]};
    const Linears linear(index, tensors, options.probe);
    const LayerOutput out =
        options.gradient_checkpointing
            ? checkpointed_layer(config, layer, index, tensors, options.probe, positions, h, ple[i], keys[source],
                                 values[source])
            : layer_forward(config, layer, tensors, linear, positions, h, ple[i], keys[source], values[source]);
    h = out.h;
    keys[i] = out.k;
    values[i] = out.v;
    if (options.residual_hook) h = options.residual_hook(i + 1, h);
  }
  return rms_norm(h, weights.global[Role::output_norm], config.eps, config.norm_plus_one);
}

torch::Tensor soften_logits(const torch::Tensor& logits, double softcap) {
  return softcap > 0.0 ? (logits / softcap).tanh() * softcap : logits;
}

torch::Tensor embed_rows(const torch::Tensor& table, const torch::Tensor& ids, double scale) {
  return embed(table, ids, -1, scale);
}

torch::Tensor per_layer_input(const ModelConfig& config, const torch::Tensor& table, const torch::Tensor& projection,
                              const torch::Tensor& norm, const torch::Tensor& ids, const torch::Tensor& embedded) {
  ModelConfig of_one_layer = config;
  of_one_layer.layers.resize(1);
  of_one_layer.pad_id = -1;
  TensorsByRole weights;
  weights[Role::ple_embedding] = table;
  weights[Role::ple_model_projection] = projection;
  weights[Role::ple_projection_norm] = norm;
  return per_layer_inputs(of_one_layer, weights, ids, embedded)[0];
}

LayerOutput decoder_layer(const ModelConfig& config, size_t index, const TensorsByRole& weights,
                          const Positions& positions, const torch::Tensor& h, const torch::Tensor& ple,
                          const torch::Tensor& k, const torch::Tensor& v) {
  const LayerTensors tensors{weights, {}};
  const ActivationProbe no_probe;
  const Linears linear(static_cast<int>(index), tensors, no_probe);
  return layer_forward(config, config.layers[index], tensors, linear, positions, h, ple, k, v);
}

}  // namespace qat
