// The one table of tensors: what each is called in every world, its shape as a function of the config. Nobody else
// spells a tensor name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "format/model_config.h"

namespace qat {

enum class Role {
  token_embedding,
  output,
  output_norm,
  ple_embedding,
  ple_model_projection,
  ple_projection_norm,
  attention_norm,
  q,
  k,
  v,
  o,
  q_norm,
  k_norm,
  post_attention_norm,
  ffn_norm,
  gate,
  up,
  down,
  post_ffn_norm,
  ple_gate,
  ple_projection,
  post_ple_norm,
  layer_scalar,
};

enum class TensorKind { embedding, linear, norm, scalar };

struct TensorInfo {
  Role role = Role::q;
  TensorKind kind = TensorKind::linear;
  int layer = -1;              // -1: not part of a layer
  std::string name;            // canonical: HF's text-only name, "model.layers.3.mlp.up_proj.weight"
  std::string gguf;            // "blk.3.ffn_up.weight"
  std::vector<int64_t> shape;  // [out, in] or [n]
  // 2-D weights that a plan may quantize. False for norms, scalars, and per_layer_model_projection (llama-quantize
  // and the mobile schema both keep it float).
  bool quantizable = false;
};

// Every tensor the model has, in model order (embedding, layers, output norm, head). A tied head has no row.
// A KV-shared layer has no k, v, k_norm; a K = V layer has no v.
std::vector<TensorInfo> tensor_table(const ModelConfig& config);
// nullptr when absent.
const TensorInfo* find_tensor_info(const std::vector<TensorInfo>& table, Role role, int layer = -1);

// The names an HF file may use for a canonical name, first match wins: "model.X", "model.language_model.X",
// "language_model.model.X", and "X" (the bare text model); for lm_head the same without "model.".
std::vector<std::string> hf_name_candidates(const std::string& canonical);
// True for tensors that are known and not text: vision and audio towers, their embedders.
bool is_tower_tensor(const std::string& hf_name);

}  // namespace qat
