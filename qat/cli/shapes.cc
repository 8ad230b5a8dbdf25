#include "qat/cli/shapes.h"

#include <nlohmann/json.hpp>

#include "format/error.h"
#include "qat/nearest.h"

namespace qat {
namespace {

// What the models of one architecture have in common.
constexpr const char* kLlama =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false,
        "attention_dropout": 0.0, "hidden_act": "silu", "initializer_range": 0.02, "mlp_bias": false,
        "rms_norm_eps": 1e-05, "tie_word_embeddings": true, "use_cache": true, "bos_token_id": 2, "eos_token_id": 1,
        "pad_token_id": 0, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}})";
constexpr const char* kGemma3 =
    R"({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": false,
        "attention_dropout": 0.0, "attn_logit_softcapping": null, "final_logit_softcapping": null,
        "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": true, "use_bidirectional_attention": false, "use_cache": true, "bos_token_id": 2,
        "eos_token_id": 1, "pad_token_id": 0,
        "rope_parameters": {"full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}})";
constexpr const char* kGemma4 =
    R"({"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "attention_bias": false,
        "attention_dropout": 0.0, "attention_k_eq_v": false, "enable_moe_block": false,
        "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02,
        "moe_intermediate_size": null, "num_experts": null, "num_global_key_value_heads": null, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": true, "top_k_experts": null, "use_bidirectional_attention": null, "use_cache": true,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
        "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0,
          "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}})";

struct Shape {
  ShapeInfo info;
  const char* common;
  const char* layers;  // one letter per layer, repeated: S sliding, F full attention; "" where all are full
  const char* own;
};

constexpr Shape kShapes[] = {
    {{"llama-tiny", "0.3 M weights: for tests"},
     kLlama,
     "",
     R"({"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 192, "max_position_embeddings": 512, "vocab_size": 260})"},
    {{"gemma3-tiny", "0.3 M weights: for tests"},
     kGemma3,
     "SSSSSF",
     R"({"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 32, "query_pre_attn_scalar": 32, "intermediate_size": 160, "sliding_window": 32,
        "max_position_embeddings": 512, "vocab_size": 260})"},
    {{"gemma4-tiny", "1.3 M weights: Gemma 4 E2B in small, with all its kinds of layers; bytes as tokens"},
     kGemma4,
     "SSF",
     R"({"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 32, "global_head_dim": 64, "hidden_size_per_layer_input": 32, "intermediate_size": 256,
        "use_double_wide_mlp": true, "num_kv_shared_layers": 3, "sliding_window": 64, "max_position_embeddings": 1024,
        "vocab_size": 260, "vocab_size_per_layer_input": 260})"},
    {{"llama-1b", "1.1 B weights: 16 layers 2048 wide, vocabulary 32000"},
     kLlama,
     "",
     R"({"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "intermediate_size": 8192, "max_position_embeddings": 8192, "tie_word_embeddings": false,
        "vocab_size": 32000})"},
    {{"gemma3-1b", "1.0 B weights: Gemma 3 1B"},
     kGemma3,
     "SSSSSF",
     R"({"hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1,
        "head_dim": 256, "query_pre_attn_scalar": 256, "intermediate_size": 6912, "sliding_window": 512,
        "max_position_embeddings": 32768, "vocab_size": 262144})"},
    {{"gemma4-e2b", "4.6 B weights: Gemma 4 E2B"},
     kGemma4,
     "SSSSF",
     R"({"hidden_size": 1536, "num_hidden_layers": 35, "num_attention_heads": 8, "num_key_value_heads": 1,
        "head_dim": 256, "global_head_dim": 512, "hidden_size_per_layer_input": 256, "intermediate_size": 6144,
        "use_double_wide_mlp": true, "num_kv_shared_layers": 20, "sliding_window": 512,
        "max_position_embeddings": 131072, "vocab_size": 262144, "vocab_size_per_layer_input": 262144})"},
    {{"gemma4-e4b", "7.5 B weights: Gemma 4 E4B"},
     kGemma4,
     "SSSSSF",
     R"({"hidden_size": 2560, "num_hidden_layers": 42, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 256, "global_head_dim": 512, "hidden_size_per_layer_input": 256, "intermediate_size": 10240,
        "use_double_wide_mlp": false, "num_kv_shared_layers": 18, "sliding_window": 512,
        "max_position_embeddings": 131072, "vocab_size": 262144, "vocab_size_per_layer_input": 262144})"},
};

}  // namespace

std::vector<ShapeInfo> shape_list() {
  std::vector<ShapeInfo> list;
  for (const Shape& shape : kShapes) list.push_back(shape.info);
  return list;
}

std::string shape_config(const std::string& name) {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) {
    names.emplace_back(shape.info.name);
    if (name != shape.info.name) continue;
    nlohmann::json config = nlohmann::json::parse(shape.common);
    config.merge_patch(nlohmann::json::parse(shape.own));
    const std::string pattern = shape.layers;
    const size_t layers = config["num_hidden_layers"].get<size_t>();
    for (size_t i = 0; i < layers && !pattern.empty(); ++i) {
      config["layer_types"].push_back(pattern[i % pattern.size()] == 'S' ? "sliding_attention" : "full_attention");
    }
    return config.dump(2);
  }
  std::string all;
  for (const std::string& known : names) all += (all.empty() ? "" : ", ") + known;
  fail("--shape: expected one of ", all, ", found \"", name, "\"", suggestion(name, names));
}

}  // namespace qat
