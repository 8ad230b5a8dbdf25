#include "format/tensor_table.h"

#include <algorithm>

namespace qat {
namespace {

// What a role is, whatever the model: its kind and names. Rows of a layer get the prefixes "model.layers.N." and
// "blk.N.".
struct RoleInfo {
  Role role;
  TensorKind kind;
  const char* hf;
  const char* gguf;
};

// Order follows the enum (checked by role_info).
constexpr RoleInfo kRoles[] = {
    {Role::token_embedding, TensorKind::embedding, "model.embed_tokens.weight", "token_embd.weight"},
    {Role::output, TensorKind::linear, "lm_head.weight", "output.weight"},
    {Role::output_norm, TensorKind::norm, "model.norm.weight", "output_norm.weight"},
    {Role::ple_embedding, TensorKind::embedding, "model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight"},
    {Role::ple_model_projection, TensorKind::linear, "model.per_layer_model_projection.weight",
     "per_layer_model_proj.weight"},
    {Role::ple_projection_norm, TensorKind::norm, "model.per_layer_projection_norm.weight",
     "per_layer_proj_norm.weight"},
    {Role::attention_norm, TensorKind::norm, "input_layernorm.weight", "attn_norm.weight"},
    {Role::q, TensorKind::linear, "self_attn.q_proj.weight", "attn_q.weight"},
    {Role::k, TensorKind::linear, "self_attn.k_proj.weight", "attn_k.weight"},
    {Role::v, TensorKind::linear, "self_attn.v_proj.weight", "attn_v.weight"},
    {Role::o, TensorKind::linear, "self_attn.o_proj.weight", "attn_output.weight"},
    {Role::q_norm, TensorKind::norm, "self_attn.q_norm.weight", "attn_q_norm.weight"},
    {Role::k_norm, TensorKind::norm, "self_attn.k_norm.weight", "attn_k_norm.weight"},
    {Role::post_attention_norm, TensorKind::norm, "post_attention_layernorm.weight", "post_attention_norm.weight"},
    {Role::ffn_norm, TensorKind::norm, "pre_feedforward_layernorm.weight", "ffn_norm.weight"},
    {Role::gate, TensorKind::linear, "mlp.gate_proj.weight", "ffn_gate.weight"},
    {Role::up, TensorKind::linear, "mlp.up_proj.weight", "ffn_up.weight"},
    {Role::down, TensorKind::linear, "mlp.down_proj.weight", "ffn_down.weight"},
    {Role::post_ffn_norm, TensorKind::norm, "post_feedforward_layernorm.weight", "post_ffw_norm.weight"},
    {Role::ple_gate, TensorKind::linear, "per_layer_input_gate.weight", "inp_gate.weight"},
    {Role::ple_projection, TensorKind::linear, "per_layer_projection.weight", "proj.weight"},
    {Role::post_ple_norm, TensorKind::norm, "post_per_layer_input_norm.weight", "post_norm.weight"},
    {Role::layer_scalar, TensorKind::scalar, "layer_scalar", "layer_output_scale.weight"},
};

const RoleInfo& role_info(Role role) {
  const RoleInfo& row = kRoles[static_cast<size_t>(role)];
  QAT_CHECK(row.role == role);
  return row;
}

class TableBuilder {
 public:
  explicit TableBuilder(const ModelConfig& config) : config_(config) {}

  // layer < 0: a tensor of the model.
  void add(Role role, int layer, std::vector<int64_t> shape) {
    const RoleInfo& row = role_info(role);
    const std::string index = std::to_string(layer);
    TensorInfo info;
    info.role = role;
    info.kind = row.kind;
    info.layer = layer;
    info.name = layer < 0 ? row.hf : "model.layers." + index + "." + row.hf;
    info.gguf = layer < 0 ? row.gguf : "blk." + index + "." + row.gguf;
    // Llama norms twice per layer: HF calls the norm before its MLP "post_attention_layernorm".
    if (role == Role::ffn_norm && config_.arch == Arch::llama)
      info.name = "model.layers." + index + ".post_attention_layernorm.weight";
    info.shape = std::move(shape);
    info.quantizable = info.shape.size() == 2 && role != Role::ple_model_projection;
    table_.push_back(std::move(info));
  }

  void add_layer(int layer) {
    const LayerConfig& c = config_.layers[static_cast<size_t>(layer)];
    const int64_t hidden = config_.hidden, q = config_.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    const bool owns_kv = c.kv_source == layer;
    add(Role::attention_norm, layer, {hidden});
    add(Role::q, layer, {q, hidden});
    if (owns_kv) add(Role::k, layer, {kv, hidden});
    if (owns_kv && !c.k_eq_v) add(Role::v, layer, {kv, hidden});
    add(Role::o, layer, {hidden, q});
    if (config_.qk_norm()) add(Role::q_norm, layer, {c.head_dim});
    if (config_.qk_norm() && owns_kv) add(Role::k_norm, layer, {c.head_dim});
    if (config_.sandwich_norms()) add(Role::post_attention_norm, layer, {hidden});
    add(Role::ffn_norm, layer, {hidden});
    add(Role::gate, layer, {c.ffn, hidden});
    add(Role::up, layer, {c.ffn, hidden});
    add(Role::down, layer, {hidden, c.ffn});
    if (config_.sandwich_norms()) add(Role::post_ffn_norm, layer, {hidden});
    if (config_.ple > 0) {
      add(Role::ple_gate, layer, {config_.ple, hidden});
      add(Role::ple_projection, layer, {hidden, config_.ple});
      add(Role::post_ple_norm, layer, {hidden});
    }
    if (config_.arch == Arch::gemma4) add(Role::layer_scalar, layer, {1});
  }

  std::vector<TensorInfo> build() {
    const int64_t layers = static_cast<int64_t>(config_.layers.size());
    add(Role::token_embedding, -1, {config_.vocab, config_.hidden});
    if (config_.ple > 0) {
      add(Role::ple_embedding, -1, {config_.ple_vocab, layers * config_.ple});
      add(Role::ple_model_projection, -1, {layers * config_.ple, config_.hidden});
      add(Role::ple_projection_norm, -1, {config_.ple});
    }
    for (int64_t layer = 0; layer < layers; ++layer) add_layer(static_cast<int>(layer));
    add(Role::output_norm, -1, {config_.hidden});
    if (!config_.tied) add(Role::output, -1, {config_.vocab, config_.hidden});
    return std::move(table_);
  }

 private:
  const ModelConfig& config_;
  std::vector<TensorInfo> table_;
};

bool starts_with(const std::string& text, const std::string& prefix) {
  return text.compare(0, prefix.size(), prefix) == 0;
}

}  // namespace

std::vector<TensorInfo> tensor_table(const ModelConfig& config) { return TableBuilder(config).build(); }

const TensorInfo* find_tensor_info(const std::vector<TensorInfo>& table, Role role, int layer) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const TensorInfo& info) { return info.role == role && info.layer == layer; });
  return found == table.end() ? nullptr : &*found;
}

std::vector<std::string> hf_name_candidates(const std::string& canonical) {
  const std::string prefix = "model.";
  if (!starts_with(canonical, prefix)) return {canonical, "language_model." + canonical, "model." + canonical};
  const std::string rest = canonical.substr(prefix.size());
  // The last is what the bare text model (no head) saves.
  return {canonical, "model.language_model." + rest, "language_model.model." + rest, rest};
}

bool is_tower_tensor(const std::string& hf_name) {
  const std::string name = starts_with(hf_name, "model.") ? hf_name.substr(6) : hf_name;
  for (const char* prefix : {"vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.", "multi_modal_projector.",
                             "vision_embedder.", "vision_model."})
    if (starts_with(name, prefix)) return true;
  return false;
}

}  // namespace qat
