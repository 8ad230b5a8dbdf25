// What a model is: read from an HF config.json or from GGUF metadata, the same struct from both.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "format/gguf.h"

namespace qat {

enum class Arch { llama, gemma3, gemma4 };
const char* arch_name(Arch arch);  // "llama", "gemma3", "gemma4": also general.architecture

// Rotary embedding: pairs (i, i + head_dim/2); angle = position * inverse_frequency[i]. See rope_frequencies().
struct RopeConfig {
  double theta = 10000.0;
  double partial = 1.0;        // fraction of the head that rotates ("proportional" rope of Gemma 4's global layers)
  double linear_factor = 1.0;  // positions are divided by it (Gemma 3 4B+, global layers)
  bool llama3 = false;         // Llama 3's frequency scaling, with the four numbers below
  double factor = 8.0, low_freq_factor = 1.0, high_freq_factor = 4.0;
  int64_t original_context = 8192;
  // A GGUF file states the effect of llama3 and of `partial` as a tensor, rope_freqs.weight: frequency i is divided by
  // divisors[i]; 1e30 = does not rotate. Empty for HF configs, where the fields above say it.
  std::vector<float> divisors;
};

struct LayerConfig {
  bool sliding = false;
  int64_t head_dim = 0;
  int64_t kv_heads = 0;
  int64_t ffn = 0;        // intermediate size of this layer
  bool k_eq_v = false;    // no v_proj: V is the raw K projection
  int64_t kv_source = 0;  // layer whose K/V this one attends to; its own index when it owns them
};

struct ModelConfig {
  Arch arch = Arch::llama;
  int64_t hidden = 0;
  int64_t heads = 0;  // query heads, all layers
  int64_t vocab = 0;
  int64_t context = 0;         // max_position_embeddings
  int64_t sliding_window = 0;  // positions visible to a sliding layer, itself included; 0 = none
  int64_t ple = 0;             // width of the per-layer embeddings (hidden_size_per_layer_input), 0 = none
  int64_t ple_vocab = 0;
  int64_t kv_shared_layers = 0;
  double eps = 1e-6;
  double softcap = 0.0;  // final logit softcapping, 0 = none
  double attention_scale = 1.0;
  double embedding_scale = 1.0;
  bool tied = true;            // the head is the embedding
  bool norm_plus_one = false;  // HF weights: multiply by 1 + w (Gemma 3). GGUF stores 1 + w, so false there
  RopeConfig rope_sliding, rope_full;
  std::vector<LayerConfig> layers;
  std::vector<int64_t> eos_ids;
  int64_t bos_id = -1, pad_id = -1;
  std::string name;  // general.name: the directory's name for HF

  bool gated_gelu() const { return arch != Arch::llama; }  // gelu_pytorch_tanh, else silu
  bool qk_norm() const { return arch != Arch::llama; }
  bool v_norm() const { return arch == Arch::gemma4; }         // weightless
  bool sandwich_norms() const { return arch != Arch::llama; }  // post-attention and post-feedforward norms
};

// Text part of llama, gemma3(_text), gemma4(_text, _unified, _unified_text): towers are ignored; the notice, if any,
// goes to `notices`. Keys of every transformers release are understood; a key that may be absent gets transformers'
// default. Throws Error for another architecture, for what would change the forward pass and is not implemented
// (mixture of experts, drafters, biases, other activations or rotary embeddings, attention softcapping, bidirectional
// attention, checkpoints that are quantized already, but for the mobile schema), for a missing key, a value out of
// range, or layer lists of the wrong length.
ModelConfig model_config_from_hf(const std::string& directory, std::vector<std::string>* notices = nullptr);
ModelConfig model_config_from_json(const std::string& json, const std::string& origin,
                                   std::vector<std::string>* notices = nullptr);
// What metadata does not say is read off the tensors: a tied head (no output.weight), K = V (no attn_v), the
// vocabulary.
ModelConfig model_config_from_gguf(const GgufFile& file);

// Throws Error unless every number is in a range in which the model makes sense and no size can overflow; fills
// kv_source from kv_shared_layers. Readers of other config formats end with it.
void finish_model_config(ModelConfig* config, const std::string& origin);

// Inverse frequencies of the head_dim/2 pairs of a layer, in radians per position (0 = does not rotate);
// float32 with the roundings of transformers.
std::vector<float> rope_frequencies(const ModelConfig& config, const LayerConfig& layer);
// The divisors llama.cpp wants in rope_freqs.weight (1.0 = unchanged, 1e30 = does not rotate, Llama 3's factors);
// empty when the model needs none.
std::vector<float> rope_divisors(const ModelConfig& config);

}  // namespace qat
