// One model from every spelling of it: config.json old and new, GGUF metadata as llama.cpp's converter writes it.
#include "format/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "format/error.h"
#include "format/file_io.h"
#include "tests/format/model_configs.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig parse(const std::string& json) { return model_config_from_json(json, "config.json"); }

// The message of the Error that parsing throws; "" when it throws none.
std::string error_of(const std::string& json) {
  try {
    parse(json);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::vector<bool> sliding(const ModelConfig& config) {
  std::vector<bool> result;
  for (const LayerConfig& layer : config.layers) result.push_back(layer.sliding);
  return result;
}

// ------------------------------------------------------------------ real models

TEST(ModelConfigHf, Gemma4E2B) {
  const ModelConfig c = parse(kGemma4E2B);
  EXPECT_EQ(c.arch, Arch::gemma4);
  EXPECT_EQ(c.hidden, 1536);
  EXPECT_EQ(c.vocab, 262144);
  EXPECT_EQ(c.ple, 256);
  EXPECT_EQ(c.ple_vocab, 262144);
  EXPECT_EQ(c.sliding_window, 512);
  EXPECT_EQ(c.softcap, 30.0);
  EXPECT_EQ(c.attention_scale, 1.0);
  EXPECT_EQ(c.embedding_scale, std::sqrt(1536.0));
  EXPECT_TRUE(c.tied);
  EXPECT_FALSE(c.norm_plus_one);
  ASSERT_EQ(c.layers.size(), 35u);
  for (size_t i = 0; i < 35; ++i) {
    const LayerConfig& layer = c.layers[i];
    EXPECT_EQ(layer.sliding, (i + 1) % 5 != 0) << i;
    EXPECT_EQ(layer.head_dim, layer.sliding ? 256 : 512) << i;
    EXPECT_EQ(layer.kv_heads, 1) << i;
    EXPECT_EQ(layer.ffn, i < 15 ? 6144 : 12288) << i;
    EXPECT_EQ(layer.kv_source, i < 15 ? static_cast<int64_t>(i) : layer.sliding ? 13 : 14) << i;
    EXPECT_FALSE(layer.k_eq_v);
  }
}

TEST(ModelConfigHf, Gemma4KeysEqualValuesOnGlobalLayers) {
  const ModelConfig c = parse(kGemma4_31B);
  ASSERT_EQ(c.layers.size(), 60u);
  for (const LayerConfig& layer : c.layers) {
    EXPECT_EQ(layer.k_eq_v, !layer.sliding);
    EXPECT_EQ(layer.kv_heads, layer.sliding ? 16 : 4);
    EXPECT_EQ(layer.ffn, 21504);
  }
  EXPECT_EQ(c.ple, 0);
}

TEST(ModelConfigHf, Gemma4UnifiedHasNoPerLayerEmbeddings) {
  std::vector<std::string> notices;
  const ModelConfig c = model_config_from_json(kGemma4_12B, "config.json", &notices);
  EXPECT_EQ(c.ple, 0);
  EXPECT_EQ(c.layers[5].kv_heads, 1);
  EXPECT_EQ(c.layers[4].kv_heads, 8);
  EXPECT_THAT(c.eos_ids, ElementsAre(1, 106));
  EXPECT_THAT(notices, ElementsAre(HasSubstr("vision_config"), HasSubstr("audio_config")));
}

TEST(ModelConfigHf, GlobalKeyValueHeadsCountOnlyWithKEqualV) {
  EXPECT_EQ(parse(patched(kGemma4E2B, {{"num_global_key_value_heads", 4}})).layers[4].kv_heads, 1);
}

TEST(ModelConfigHf, PerLayerConfigReplacesGlobalHeadDim) {
  nlohmann::json per_layer = nlohmann::json::object();
  for (int i = 5; i < 60; i += 6) per_layer[std::to_string(i)] = {{"head_dim", 512}, {"num_key_value_heads", 4}};
  const std::string respelled =
      patched(kGemma4_31B, {{"per_layer_config", per_layer}}, {"global_head_dim", "num_global_key_value_heads"});
  expect_same_model(parse(kGemma4_31B), parse(respelled));
  EXPECT_THAT(error_of(patched(kGemma4_31B, {{"per_layer_config", {{"60", {{"head_dim", 512}}}}}})),
              HasSubstr("below 60"));
  EXPECT_THAT(error_of(patched(kGemma4_31B, {{"per_layer_config", {{"1", {{"experts", 512}}}}}})),
              HasSubstr("found experts"));
  EXPECT_THAT(error_of(patched(kGemma4_31B, {{"per_layer_config", {{"x", {{"head_dim", 512}}}}}})),
              HasSubstr("layer numbers"));
}

TEST(ModelConfigHf, TheLastLayerOfGemma4IsFull) {
  std::vector<std::string> notices;
  nlohmann::json types(35, "sliding_attention");
  types[14] = "full_attention";
  const ModelConfig c = model_config_from_json(patched(kGemma4E2B, {{"layer_types", types}}), "config.json", &notices);
  EXPECT_FALSE(c.layers.back().sliding);
  EXPECT_THAT(notices, ElementsAre(HasSubstr("last layer")));
}

TEST(ModelConfigHf, Gemma4DefaultsOfTransformers) {
  const ModelConfig c =
      parse(R"({"model_type": "gemma4_text", "hidden_size": 64, "num_hidden_layers": 12, "intermediate_size": 128,
      "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100})");
  EXPECT_EQ(c.ple, 256);
  EXPECT_EQ(c.ple_vocab, 262144);
  EXPECT_EQ(c.layers[0].head_dim, 256);
  EXPECT_EQ(c.layers[5].head_dim, 512);
  EXPECT_FALSE(c.layers[5].sliding);
  EXPECT_EQ(c.rope_full.partial, 0.25);
  EXPECT_EQ(c.rope_full.theta, 1e6);
  EXPECT_EQ(c.rope_sliding.theta, 1e4);
  EXPECT_EQ(c.context, 131072);
  EXPECT_EQ(c.softcap, 0.0);
  EXPECT_EQ(c.bos_id, 2);
  EXPECT_EQ(c.pad_id, 0);
  EXPECT_THAT(c.eos_ids, ElementsAre(1));
}

TEST(ModelConfigHf, Gemma3OldAndNewSpelling) {
  const ModelConfig c = parse(kGemma3_4B);
  EXPECT_EQ(c.heads, 8);  // left out of the file
  EXPECT_EQ(c.vocab, 262208);
  EXPECT_EQ(c.rope_full.linear_factor, 8.0);
  EXPECT_EQ(c.rope_full.theta, 1e6);
  EXPECT_EQ(c.rope_sliding.theta, 1e4);
  EXPECT_EQ(c.rope_sliding.linear_factor, 1.0);
  EXPECT_TRUE(c.norm_plus_one);
  EXPECT_EQ(c.attention_scale, 1.0 / 16);
  EXPECT_EQ(c.embedding_scale, std::sqrt(2560.0));
  for (size_t i = 0; i < c.layers.size(); ++i) EXPECT_EQ(c.layers[i].sliding, (i + 1) % 6 != 0) << i;
  const nlohmann::json rope = {{"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
                               {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}}};
  nlohmann::json types = nlohmann::json::array();
  for (int i = 0; i < 34; ++i) types.push_back((i + 1) % 6 ? "sliding_attention" : "full_attention");
  expect_same_model(c,
                    parse(patched(kGemma3_4B, {{"rope_parameters", rope}, {"layer_types", types}}, {"rope_scaling"})));
}

TEST(ModelConfigHf, Gemma3ScaleOf27BAndPeriods) {
  EXPECT_EQ(parse(patched(kGemma3_1B, {{"query_pre_attn_scalar", 168}})).attention_scale, 1.0 / std::sqrt(168.0));
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"}) {
    const ModelConfig c = parse(patched(patched(kGemma3_1B, {}, {"sliding_window_pattern"}), {{key, 3}}));
    for (size_t i = 0; i < c.layers.size(); ++i) EXPECT_EQ(c.layers[i].sliding, (i + 1) % 3 != 0) << key;
  }
  const ModelConfig c = parse(patched(kGemma3_1B, {{"rope_local_base_freq", 5000}, {"rope_theta", 2e6}}));
  EXPECT_EQ(c.rope_sliding.theta, 5000);
  EXPECT_EQ(c.rope_full.theta, 2e6);
}

TEST(ModelConfigHf, LlamaOldAndNewSpelling) {
  const ModelConfig c = parse(kLlama32_1B);
  EXPECT_EQ(c.layers[0].head_dim, 64);
  EXPECT_EQ(c.layers[0].kv_heads, 8);
  EXPECT_EQ(c.attention_scale, 0.125);
  EXPECT_EQ(c.embedding_scale, 1.0);
  EXPECT_TRUE(c.tied);
  EXPECT_TRUE(c.rope_full.llama3);
  EXPECT_THAT(c.eos_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(c.pad_id, -1);
  nlohmann::json rope = nlohmann::json::parse(kLlama32_1B)["rope_scaling"];
  rope["rope_theta"] = 500000.0;
  expect_same_model(c, parse(patched(kLlama32_1B, {{"rope_parameters", rope}}, {"rope_scaling", "rope_theta"})));
}

TEST(ModelConfigHf, LlamaDefaults) {
  const ModelConfig c =
      parse(R"({"model_type": "llama", "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 160,
      "num_attention_heads": 6, "vocab_size": 320, "rope_scaling": null, "num_key_value_heads": null,
      "head_dim": null})");
  EXPECT_EQ(c.layers[0].head_dim, 16);
  EXPECT_EQ(c.layers[0].kv_heads, 6);
  EXPECT_FALSE(c.tied);
  EXPECT_EQ(c.eps, 1e-6);
  EXPECT_EQ(c.context, 2048);
  EXPECT_EQ(c.rope_full.theta, 10000.0);
  EXPECT_EQ(c.bos_id, 1);
  EXPECT_THAT(c.eos_ids, ElementsAre(2));
  EXPECT_THAT(sliding(c), ElementsAre(false, false));
  const ModelConfig linear = parse(patched(kLlama32_1B, {{"rope_scaling", {{"type", "linear"}, {"factor", 4}}}}));
  EXPECT_EQ(linear.rope_full.linear_factor, 4.0);
}

TEST(ModelConfigHf, GenerationConfigAddsWaysToStop) {
  TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "my-model");
  write_file(directory / "my-model/config.json", kGemma4_12B);
  write_file(directory / "my-model/generation_config.json", R"({"eos_token_id": [1, 106, 50]})");
  const ModelConfig c = model_config_from_hf(directory / "my-model/");
  EXPECT_THAT(c.eos_ids, ElementsAre(1, 106, 50));
  EXPECT_EQ(c.name, "my-model");
  write_file(directory / "my-model/generation_config.json", "[]");
  EXPECT_THROW(model_config_from_hf(directory / "my-model"), Error);
  EXPECT_THROW(model_config_from_hf(directory / "nowhere"), Error);
}

// ------------------------------------------------------------------ refusals

struct Refusal {
  const char* key;
  nlohmann::json value;
  const char* message;
};

TEST(ModelConfigHf, WhatIsNotSupportedIsSaid) {
  const Refusal refusals[] = {
      {"model_type", "mixtral", "expected one of llama, gemma3_text, gemma3, gemma4_text"},
      {"model_type", "gemma4_assistant", "not supported yet: drafter"},
      {"enable_moe_block", true, "mixture of experts"},
      {"num_experts", 8, "mixture of experts"},
      {"attention_bias", true, "attention_bias"},
      {"mlp_bias", true, "mlp_bias"},
      {"attn_logit_softcapping", 50.0, "attn_logit_softcapping"},
      {"use_bidirectional_attention", "all", "use_bidirectional_attention"},
      {"use_bidirectional_attention", true, "use_bidirectional_attention"},
      {"hidden_activation", "relu", "hidden_activation relu"},
      {"quantization_config", {{"quant_method", "gptq"}}, "already quantized by gptq"},
      {"rope_parameters", {{"full_attention", {{"rope_type", "yarn"}, {"factor", 2}}}}, "found yarn"},
      {"rope_parameters", {{"rope_type", "default"}}, "per layer type"},
      {"rope_parameters",
       {{"sliding_attention", {{"partial_rotary_factor", 0.5}}}},
       "partial_rotary_factor: expected 1"},
  };
  for (const Refusal& refusal : refusals)
    EXPECT_THAT(error_of(patched(kGemma4E2B, {{refusal.key, refusal.value}})), HasSubstr(refusal.message))
        << refusal.key;
}

TEST(ModelConfigHf, ValuesOutOfRangeOrOfAnotherTypeAreNamed) {
  const Refusal refusals[] = {
      {"hidden_size", 0, "hidden_size: expected at least 1, found 0"},
      {"hidden_size", -5, "hidden_size"},
      {"hidden_size", 1 << 21, "hidden size: expected 1 to 1048576, found 2097152"},
      {"hidden_size", 1.5, "hidden_size: expected an integer, found 1.5"},
      {"hidden_size", "1536", "expected an integer, found \"1536\""},
      {"hidden_size", 18446744073709551615u, "expected an integer"},
      {"num_hidden_layers", 0, "num_hidden_layers"},
      {"num_hidden_layers", 1000000000, "num_hidden_layers: expected 1 to 4096"},
      {"num_hidden_layers", 36, "layer_types: expected a list of 36"},
      {"num_attention_heads", 0, "num_attention_heads"},
      {"num_attention_heads", 5000, "attention heads"},
      {"num_key_value_heads", 3, "multiple of the key-value heads, found 3"},
      {"num_key_value_heads", 0, "key-value heads"},
      {"head_dim", 255, "even"},
      {"head_dim", 1 << 20, "head size"},
      {"intermediate_size", 9223372036854775807, "intermediate_size"},
      {"intermediate_size", 1 << 25, "feed-forward width"},
      {"vocab_size", 1 << 25, "vocabulary size"},
      {"vocab_size_per_layer_input", 0, "per-layer embedding vocabulary"},
      {"hidden_size_per_layer_input", -1, "per-layer embedding width"},
      {"max_position_embeddings", 0, "context length"},
      {"sliding_window", 0, "sliding window"},
      {"rms_norm_eps", 0.0, "norm epsilon"},
      {"rms_norm_eps", "small", "rms_norm_eps: expected a number"},
      {"final_logit_softcapping", -30.0, "softcapping"},
      {"num_kv_shared_layers", 35, "num_kv_shared_layers: expected 0 to 34"},
      {"num_kv_shared_layers", INT64_MIN, "num_kv_shared_layers"},
      {"num_kv_shared_layers", 34, "no full-attention layer"},
      {"tie_word_embeddings", "yes", "expected true or false"},
      {"layer_types", {"sliding_attention"}, "layer_types: expected a list of 35"},
      {"layer_types", nlohmann::json(35, "chunked_attention"), "found \"chunked_attention\""},
      {"eos_token_id", {1, "x"}, "eos_token_id: expected an integer"},
      {"rope_parameters",
       {{"full_attention", {{"rope_type", "proportional"}, {"partial_rotary_factor", 1.5}}}},
       "partial_rotary_factor"},
      {"rope_parameters", {{"full_attention", {{"rope_theta", -1}}}}, "theta"},
      {"rope_parameters", {{"full_attention", 7}}, "full_attention: expected a JSON object, found 7"},
  };
  for (const Refusal& refusal : refusals)
    EXPECT_THAT(error_of(patched(kGemma4E2B, {{refusal.key, refusal.value}})), HasSubstr(refusal.message))
        << refusal.key << " " << refusal.value;
}

TEST(ModelConfigHf, WhatAFileSaysStaysInOneLineOfTheError) {
  // Names and keys out of the file end up in messages: no line break, nothing that a terminal would obey.
  EXPECT_THAT(error_of(patched(kGemma4_31B, {{"per_layer_config", {{"1", {{"a\nb\x1b[2J", 512}}}}}})),
              AllOf(HasSubstr("found a\\x0ab\\x1b[2J"), Not(HasSubstr("\n")), Not(HasSubstr("\x1b"))));
  EXPECT_THAT(error_of(patched(kGemma4_31B, {{"model_type", "gemma4\n"}})),
              AllOf(HasSubstr("found gemma4\\x0a"), Not(HasSubstr("\n"))));
}

TEST(ModelConfigHf, MissingKeysAndBrokenFiles) {
  for (const char* key :
       {"model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"})
    EXPECT_THAT(error_of(patched(kLlama32_1B, {}, {key})),
                HasSubstr(std::string(key) + ": expected a value, found none"));
  EXPECT_THAT(error_of(R"({"model_type": "gemma4"})"), HasSubstr("text_config: expected a value"));
  EXPECT_THAT(error_of(R"({"model_type": "gemma4", "text_config": []})"), HasSubstr("expected a JSON object"));
  EXPECT_THAT(error_of("[]"), HasSubstr("config.json: expected a JSON object"));
  EXPECT_THAT(error_of(""), HasSubstr("expected valid JSON"));
  EXPECT_THAT(error_of(patched(kLlama32_1B, {{"hidden_size", 2049}}, {"head_dim"})),
              HasSubstr("multiple of num_attention_heads"));
  EXPECT_THAT(error_of(patched(kLlama32_1B, {{"rope_scaling", {{"rope_type", "llama3"}}}})),
              HasSubstr("factor: expected a value"));
  // Cut anywhere, the file is refused with one line.
  const std::string whole = kGemma4_12B;
  for (size_t size = 0; size + 1 < whole.find_last_of('}'); size += 7) {
    const std::string error = error_of(whole.substr(0, size));
    EXPECT_THAT(error, HasSubstr("config.json"));
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

// ------------------------------------------------------------------ rotary embedding

TEST(Rope, DefaultAndLinearFrequencies) {
  ModelConfig c = parse(kLlama32_1B);
  c.rope_full = RopeConfig();
  const std::vector<float> plain = rope_frequencies(c, c.layers[0]);
  ASSERT_EQ(plain.size(), 32u);
  for (size_t i = 0; i < 32; ++i)
    EXPECT_FLOAT_EQ(plain[i], static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / 64)));
  EXPECT_TRUE(rope_divisors(c).empty());
  c.rope_full.linear_factor = 8.0;
  const std::vector<float> linear = rope_frequencies(c, c.layers[0]);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(linear[i], plain[i] / 8);
  EXPECT_TRUE(rope_divisors(c).empty());  // GGUF has a key for it
}

TEST(Rope, ProportionalRotatesTheFirstQuarter) {
  const ModelConfig c = parse(kGemma4E2B);
  const std::vector<float> f = rope_frequencies(c, c.layers[4]), divisors = rope_divisors(c);
  ASSERT_EQ(f.size(), 256u);
  ASSERT_EQ(divisors.size(), 256u);
  for (size_t i = 0; i < 256; ++i) {
    EXPECT_FLOAT_EQ(f[i], i < 64 ? static_cast<float>(std::pow(1e6, -2.0 * static_cast<double>(i) / 512)) : 0.0f) << i;
    EXPECT_EQ(divisors[i], i < 64 ? 1.0f : 1e30f) << i;
  }
  const std::vector<float> sliding_f = rope_frequencies(c, c.layers[0]);
  ASSERT_EQ(sliding_f.size(), 128u);
  EXPECT_FLOAT_EQ(sliding_f[127], static_cast<float>(std::pow(1e4, -254.0 / 256)));
}

TEST(Rope, Llama3KeepsShortWavesAndDividesLongOnes) {
  const ModelConfig c = parse(kLlama32_1B);  // factor 32, low 1, high 4, context 8192
  const std::vector<float> f = rope_frequencies(c, c.layers[0]), divisors = rope_divisors(c);
  ASSERT_EQ(divisors.size(), 32u);
  int kept = 0, mixed = 0, divided = 0;
  for (size_t i = 0; i < 32; ++i) {
    const double plain = std::pow(500000.0, -2.0 * static_cast<double>(i) / 64), wavelength = 2 * M_PI / plain;
    const double smooth = (8192 / wavelength - 1.0) / 3.0;
    const double expected = wavelength < 2048   ? plain
                            : wavelength > 8192 ? plain / 32
                                                : (1 - smooth) * plain / 32 + smooth * plain;
    EXPECT_NEAR(f[i], expected, 1e-6 * expected) << i;
    EXPECT_NEAR(divisors[i], plain / expected, 1e-5 * plain / expected) << i;
    kept += divisors[i] == 1.0f;
    divided += divisors[i] == 32.0f;
    mixed += divisors[i] > 1.0f && divisors[i] < 32.0f;
  }
  EXPECT_EQ(kept + mixed + divided, 32);
  EXPECT_GT(std::min({kept, mixed, divided}), 1);
}

TEST(Rope, AGgufFilesDivisorsDecide) {
  ModelConfig c = parse(kLlama32_1B);
  const std::vector<float> expected = rope_frequencies(c, c.layers[0]);
  c.rope_full.divisors = rope_divisors(c);
  c.rope_full.llama3 = false;
  const std::vector<float> found = rope_frequencies(c, c.layers[0]);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_FLOAT_EQ(found[i], expected[i]);
  EXPECT_EQ(rope_divisors(c), c.rope_full.divisors);
}

// ------------------------------------------------------------------ the shared data, when it is there

TEST(ModelConfigShared, WhatTheProjectCannotDoYetIsRefused) {
  QAT_NEED_SHARED("goldens");
  const auto error_for = [](const char* name) {
    try {
      model_config_from_hf(shared_path(std::string("goldens/") + name));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(error_for("gemma4-26b-a4b"), HasSubstr("mixture of experts"));
  EXPECT_THAT(error_for("gemma4-assistant"), HasSubstr("drafter"));
  EXPECT_THAT(error_for("gemma4-assistant-ordered"), HasSubstr("drafter"));
  EXPECT_EQ(error_for("gemma4-e2b-mobile"), "");  // the mobile schema has a reader of its own
}

}  // namespace
}  // namespace qat
