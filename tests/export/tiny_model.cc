#include "tests/export/tiny_model.h"

#include <fstream>
#include <sstream>

#include "format/grid.h"
#include "format/tokenizer.h"

namespace qat {
namespace {

// Uniform in [-1, 1), the same on every machine.
float next_uniform(uint64_t* state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<int32_t>(*state >> 32)) * 0x1p-31f;
}

// A sum of three uniforms, cubed a little: bell-shaped with outliers, as weights are.
float next_weight(uint64_t* state) {
  const float bell = next_uniform(state) + next_uniform(state) + next_uniform(state);
  return 0.02f * bell + 0.02f * bell * bell * bell;
}

void write_model(const std::string& directory, const std::string& json, DType dtype, uint64_t seed,
                 const std::string& changed, int64_t element, float value) {
  std::filesystem::create_directories(directory);
  add_file(directory + "/config.json", json);
  add_file(directory + "/tokenizer.json", byte_tokenizer_json());
  add_file(
      directory + "/tokenizer_config.json",
      R"({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>",
               "pad_token": "<pad>", "add_bos_token": true, "add_eos_token": false})");
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : tensor_table(model_config_from_json(json, "config.json")))
    specs.push_back({info.name, dtype, info.shape});
  SafetensorsWriter writer(directory + "/model.safetensors", specs);
  uint64_t state = seed;
  for (const TensorSpec& spec : specs) {
    int64_t count = 1;
    for (const int64_t extent : spec.shape) count *= extent;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = next_weight(&state);
    if (spec.name == changed) values.at(static_cast<size_t>(element)) = value;
    std::vector<uint8_t> bytes(row_bytes(dtype, count));
    encode_rows(dtype, values.data(), 1, count, bytes.data());
    writer.append(bytes.data(), bytes.size());
  }
  writer.commit();
}

}  // namespace

std::string llama_json(bool tied, int64_t ffn, int64_t vocab, const std::string& rope) {
  return R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "hidden_act": "silu", "rms_norm_eps": 1e-05,
    "max_position_embeddings": 256, "bos_token_id": 2, "eos_token_id": 1, "attention_bias": false, "mlp_bias": false,
    "rope_parameters": {"rope_theta": 500000.0, )" +
         rope + R"(}, "tie_word_embeddings": )" + (tied ? "true" : "false") + R"(, "intermediate_size": )" +
         std::to_string(ffn) + R"(, "vocab_size": )" + std::to_string(vocab) + "}";
}

std::string gemma3_json() {
  return R"({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 7, "intermediate_size": 96, "vocab_size": 260,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06, "max_position_embeddings": 512, "sliding_window": 16,
    "query_pre_attn_scalar": 32, "attention_bias": false, "tie_word_embeddings": true, "bos_token_id": 2, "eos_token_id": 1,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                    "full_attention", "sliding_attention"],
    "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}})";
}

namespace {

std::string gemma4_with(const std::string& kind) {
  return R"({"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 64, "num_attention_heads": 4,
    "head_dim": 16, "global_head_dim": 32, "num_hidden_layers": 4, "intermediate_size": 96, "vocab_size": 260,
    "vocab_size_per_layer_input": 260, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
    "max_position_embeddings": 512, "sliding_window": 16, "attention_bias": false, "tie_word_embeddings": true,
    "final_logit_softcapping": 30.0, "enable_moe_block": false, "bos_token_id": 2, "eos_token_id": 1,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}, )" +
         kind + "}";
}

}  // namespace

std::string gemma4_json() {
  return gemma4_with(R"("hidden_size_per_layer_input": 32, "num_key_value_heads": 1, "num_global_key_value_heads": null,
    "attention_k_eq_v": false, "num_kv_shared_layers": 2, "use_double_wide_mlp": true)");
}

std::string gemma4_k_eq_v_json() {
  return gemma4_with(R"("hidden_size_per_layer_input": 0, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
    "attention_k_eq_v": true, "num_kv_shared_layers": 0, "use_double_wide_mlp": false)");
}

void write_tiny_model(const std::string& directory, const std::string& config, DType dtype, uint64_t seed) {
  write_model(directory, config, dtype, seed, "", 0, 0.0f);
}

void write_tiny_model_with(const std::string& directory, const std::string& config, DType dtype,
                           const std::string& tensor, int64_t element, float value) {
  write_model(directory, config, dtype, 1, tensor, element, value);
}

std::string file_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

void add_file(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

}  // namespace qat
