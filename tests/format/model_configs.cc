#include "tests/format/model_configs.h"

namespace qat {

const char* const kGemma4E2B = R"({
  "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "attention_bias": false,
  "attention_k_eq_v": false,
  "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "dtype": "bfloat16", "enable_moe_block": false,
  "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
  "hidden_size": 1536, "hidden_size_per_layer_input": 256, "intermediate_size": 6144,
  "layer_types": [
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention",
    "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
  "max_position_embeddings": 131072, "moe_intermediate_size": null, "num_attention_heads": 8, "num_experts": null,
  "num_global_key_value_heads": null, "num_hidden_layers": 35, "num_key_value_heads": 1, "num_kv_shared_layers": 20,
  "rms_norm_eps": 1e-06,
  "rope_parameters": {
    "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
    "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
  "sliding_window": 512, "tie_word_embeddings": true, "top_k_experts": null, "use_bidirectional_attention": null,
  "use_double_wide_mlp": true, "vocab_size": 262144, "vocab_size_per_layer_input": 262144})";

const char* const kGemma4E4B = R"({
  "model_type": "gemma4_text", "attention_k_eq_v": false, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
  "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256, "hidden_size": 2560,
  "hidden_size_per_layer_input": 256, "intermediate_size": 10240, "max_position_embeddings": 131072,
  "num_attention_heads": 8,
  "num_global_key_value_heads": null, "num_hidden_layers": 42, "num_key_value_heads": 2, "num_kv_shared_layers": 18,
  "rms_norm_eps": 1e-06, "sliding_window": 512, "use_double_wide_mlp": false, "vocab_size": 262144,
  "vocab_size_per_layer_input": 262144})";

const char* const kGemma4_12B = R"({
  "architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified", "eos_token_id": [1, 106],
  "audio_config": {"model_type": "gemma4_unified_audio"}, "vision_config": {"model_type": "gemma4_unified_vision"},
  "tie_word_embeddings": true,
  "text_config": {
    "model_type": "gemma4_unified_text", "attention_k_eq_v": true, "bos_token_id": 2, "eos_token_id": 1,
    "pad_token_id": 0,
    "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256, "hidden_size": 3840,
    "intermediate_size": 15360,
    "max_position_embeddings": 262144, "num_attention_heads": 16, "num_global_key_value_heads": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8, "num_kv_shared_layers": 0, "rms_norm_eps": 1e-06, "sliding_window": 1024,
    "use_bidirectional_attention": "vision", "use_double_wide_mlp": false, "vocab_size": 262144}})";

const char* const kGemma4_31B = R"({
  "model_type": "gemma4_text", "attention_k_eq_v": true, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
  "final_logit_softcapping": 30.0, "global_head_dim": 512, "head_dim": 256, "hidden_size": 5376,
  "hidden_size_per_layer_input": 0, "intermediate_size": 21504, "max_position_embeddings": 262144,
  "num_attention_heads": 32,
  "num_global_key_value_heads": 4, "num_hidden_layers": 60, "num_key_value_heads": 16, "num_kv_shared_layers": 0,
  "rms_norm_eps": 1e-06, "sliding_window": 1024, "use_bidirectional_attention": "vision", "vocab_size": 262144})";

const char* const kGemma3_1B = R"({
  "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": false,
  "attn_logit_softcapping": null,
  "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "cache_implementation": "hybrid",
  "final_logit_softcapping": null,
  "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
  "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
  "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null,
  "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "torch_dtype": "bfloat16",
  "vocab_size": 262144})";

const char* const kGemma3_4B = R"({
  "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
  "text_config": {
    "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
  "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}})";

const char* const kLlama32_1B = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": false, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
  "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32,
  "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256})";

std::string patched(const std::string& config, const std::map<std::string, nlohmann::json>& set,
                    const std::vector<std::string>& remove) {
  nlohmann::json json = nlohmann::json::parse(config);
  nlohmann::json& text = json.contains("text_config") ? json["text_config"] : json;
  for (const auto& [key, value] : set) text[key] = value;
  for (const std::string& key : remove) text.erase(key);
  return json.dump();
}

void expect_same_model(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.arch, b.arch);
  EXPECT_EQ(a.hidden, b.hidden);
  EXPECT_EQ(a.heads, b.heads);
  EXPECT_EQ(a.vocab, b.vocab);
  EXPECT_EQ(a.context, b.context);
  EXPECT_EQ(a.sliding_window, b.sliding_window);
  EXPECT_EQ(a.ple, b.ple);
  EXPECT_EQ(a.ple_vocab, b.ple_vocab);
  EXPECT_EQ(a.kv_shared_layers, b.kv_shared_layers);
  EXPECT_FLOAT_EQ(static_cast<float>(a.eps), static_cast<float>(b.eps));
  EXPECT_EQ(a.softcap, b.softcap);
  EXPECT_EQ(a.attention_scale, b.attention_scale);
  EXPECT_EQ(a.embedding_scale, b.embedding_scale);
  EXPECT_EQ(a.tied, b.tied);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
  EXPECT_EQ(a.bos_id, b.bos_id);
  EXPECT_EQ(a.pad_id, b.pad_id);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (size_t i = 0; i < a.layers.size(); ++i) {
    const LayerConfig &x = a.layers[i], &y = b.layers[i];
    EXPECT_EQ(x.sliding, y.sliding) << i;
    EXPECT_EQ(x.head_dim, y.head_dim) << i;
    EXPECT_EQ(x.kv_heads, y.kv_heads) << i;
    EXPECT_EQ(x.ffn, y.ffn) << i;
    EXPECT_EQ(x.k_eq_v, y.k_eq_v) << i;
    EXPECT_EQ(x.kv_source, y.kv_source) << i;
    const std::vector<float> f = rope_frequencies(a, x), g = rope_frequencies(b, y);
    ASSERT_EQ(f.size(), g.size()) << i;
    for (size_t k = 0; k < f.size(); ++k) ASSERT_FLOAT_EQ(f[k], g[k]) << "layer " << i << ", pair " << k;
  }
  EXPECT_EQ(rope_divisors(a), rope_divisors(b));
}

}  // namespace qat
