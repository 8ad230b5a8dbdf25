// GGUF metadata, written here key for key as llama.cpp's converter writes it, gives the model that config.json gives.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "format/error.h"
#include "format/model_config.h"
#include "format/tensor_table.h"
#include "tests/format/model_configs.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

using ::testing::HasSubstr;

const char* const kTinyGemma4 = R"({
  "model_type": "gemma4_text", "attention_k_eq_v": false, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
  "final_logit_softcapping": 30.0, "global_head_dim": 16, "head_dim": 8, "hidden_size": 32,
  "hidden_size_per_layer_input": 4,
  "intermediate_size": 24, "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 6,
  "layer_types": ["sliding_attention", "sliding_attention", "full_attention",
                  "sliding_attention", "sliding_attention", "full_attention"],
  "num_key_value_heads": 2, "num_kv_shared_layers": 3, "sliding_window": 16, "use_double_wide_mlp": true,
  "vocab_size": 40, "vocab_size_per_layer_input": 40})";

const char* const kTinyGemma3 = R"({
  "model_type": "gemma3_text", "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "head_dim": 8,
  "hidden_size": 32,
  "intermediate_size": 24, "max_position_embeddings": 512, "num_attention_heads": 4, "num_hidden_layers": 7,
  "num_key_value_heads": 2, "query_pre_attn_scalar": 8, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
  "sliding_window": 16, "vocab_size": 40})";

const char* const kTinyLlama = R"({
  "model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16, "hidden_size": 48,
  "intermediate_size": 24,
  "max_position_embeddings": 512, "num_attention_heads": 6, "num_hidden_layers": 3, "num_key_value_heads": 2,
  "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
  "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 64},
  "vocab_size": 40})";

GgufMetadata common_keys(const std::string& arch, uint32_t layers, uint32_t hidden, uint32_t heads, float eps,
                         float theta) {
  return {{"general.architecture", arch},
          {"general.name", std::string("Tiny")},
          {arch + ".block_count", layers},
          {arch + ".context_length", uint32_t{512}},
          {arch + ".embedding_length", hidden},
          {arch + ".attention.head_count", heads},
          {arch + ".attention.layer_norm_rms_epsilon", eps},
          {arch + ".rope.freq_base", theta}};
}

GgufMetadata gemma4_keys() {
  GgufMetadata m = common_keys("gemma4", 6, 32, 4, 1e-6f, 1e6f);
  const GgufMetadata rest = {
      {"gemma4.feed_forward_length", std::vector<int32_t>{24, 24, 24, 48, 48, 48}},
      {"gemma4.attention.head_count_kv", uint32_t{2}},
      {"gemma4.rope.freq_base_swa", 10000.0f},
      {"gemma4.attention.key_length", uint32_t{16}},
      {"gemma4.attention.value_length", uint32_t{16}},
      {"gemma4.final_logit_softcapping", 30.0f},
      {"gemma4.attention.sliding_window", uint32_t{16}},
      {"gemma4.attention.shared_kv_layers", uint32_t{3}},
      {"gemma4.embedding_length_per_layer_input", uint32_t{4}},
      {"gemma4.attention.sliding_window_pattern", std::vector<bool>{true, true, false, true, true, false}},
      {"gemma4.attention.key_length_swa", uint32_t{8}},
      {"gemma4.attention.value_length_swa", uint32_t{8}},
      {"gemma4.rope.dimension_count", uint32_t{16}},
      {"gemma4.rope.dimension_count_swa", uint32_t{8}},
      {"tokenizer.ggml.bos_token_id", uint32_t{2}},
      {"tokenizer.ggml.eos_token_id", uint32_t{1}},
      {"tokenizer.ggml.padding_token_id", uint32_t{0}}};
  m.insert(m.end(), rest.begin(), rest.end());
  return m;
}

GgufMetadata gemma3_keys() {
  GgufMetadata m = common_keys("gemma3", 7, 32, 4, 1e-6f, 1e6f);
  const GgufMetadata rest = {
      {"gemma3.feed_forward_length", uint32_t{24}},        {"gemma3.attention.head_count_kv", uint32_t{2}},
      {"gemma3.rope.scaling.type", std::string("linear")}, {"gemma3.rope.scaling.factor", 8.0f},
      {"gemma3.attention.key_length", uint32_t{8}},        {"gemma3.attention.value_length", uint32_t{8}},
      {"gemma3.attention.sliding_window", uint32_t{16}},   {"tokenizer.ggml.bos_token_id", uint32_t{2}},
      {"tokenizer.ggml.eos_token_id", uint32_t{1}},        {"tokenizer.ggml.padding_token_id", uint32_t{0}}};
  m.insert(m.end(), rest.begin(), rest.end());
  return m;
}

GgufMetadata llama_keys() {
  GgufMetadata m = common_keys("llama", 3, 48, 6, 1e-5f, 500000.0f);
  const GgufMetadata rest = {
      {"llama.feed_forward_length", uint32_t{24}},  {"llama.attention.head_count_kv", uint32_t{2}},
      {"llama.attention.key_length", uint32_t{16}}, {"llama.attention.value_length", uint32_t{16}},
      {"llama.vocab_size", uint32_t{40}},           {"llama.rope.dimension_count", uint32_t{16}},
      {"tokenizer.ggml.bos_token_id", uint32_t{1}}, {"tokenizer.ggml.eos_token_id", uint32_t{2}}};
  m.insert(m.end(), rest.begin(), rest.end());
  return m;
}

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;  // padded with zeros
};

// Every tensor of the model, and rope_freqs.weight where it needs one.
std::vector<NamedTensor> tensors_of(const ModelConfig& config) {
  std::vector<NamedTensor> tensors;
  for (const TensorInfo& info : tensor_table(config)) tensors.push_back({info.gguf, info.shape, {}});
  const std::vector<float> divisors = rope_divisors(config);
  if (!divisors.empty()) tensors.push_back({"rope_freqs.weight", {static_cast<int64_t>(divisors.size())}, divisors});
  return tensors;
}

ModelConfig written_and_read(const GgufMetadata& metadata, const std::vector<NamedTensor>& tensors) {
  TemporaryDirectory directory;
  std::vector<GgufTensorSpec> specs;
  for (const NamedTensor& tensor : tensors) specs.push_back({tensor.name, DType::F32, tensor.shape});
  GgufWriter writer(directory / "tiny.gguf", metadata, specs);
  for (const NamedTensor& tensor : tensors) {
    std::vector<float> values = tensor.values;
    size_t count = 1;
    for (const int64_t n : tensor.shape) count *= static_cast<size_t>(n);
    values.resize(count, 0.0f);
    writer.append(values.data(), values.size() * sizeof(float));
  }
  writer.commit();
  return model_config_from_gguf(GgufFile(directory / "tiny.gguf"));
}

std::string error_of(const GgufMetadata& metadata, const std::vector<NamedTensor>& tensors) {
  try {
    written_and_read(metadata, tensors);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void set(GgufMetadata* metadata, const std::string& key, GgufValue value) {
  for (auto& [name, old] : *metadata)
    if (name == key) {
      old = std::move(value);
      return;
    }
  metadata->emplace_back(key, std::move(value));
}

void erase(GgufMetadata* metadata, const std::string& key) {
  for (size_t i = 0; i < metadata->size(); ++i)
    if ((*metadata)[i].first == key) metadata->erase(metadata->begin() + static_cast<std::ptrdiff_t>(i));
}

TEST(ModelConfigGguf, Gemma4) {
  const ModelConfig hf = model_config_from_json(kTinyGemma4, "config.json");
  const ModelConfig gguf = written_and_read(gemma4_keys(), tensors_of(hf));
  expect_same_model(hf, gguf);
  EXPECT_EQ(gguf.name, "Tiny");
  EXPECT_EQ(gguf.ple_vocab, 40);
}

TEST(ModelConfigGguf, Gemma4KeysEqualValuesAreSeenByTheMissingTensor) {
  const ModelConfig hf = model_config_from_json(patched(kTinyGemma4, {{"attention_k_eq_v", true},
                                                                      {"num_global_key_value_heads", 1},
                                                                      {"num_kv_shared_layers", 0},
                                                                      {"use_double_wide_mlp", false},
                                                                      {"hidden_size_per_layer_input", 0}}),
                                                "config.json");
  GgufMetadata m = gemma4_keys();
  set(&m, "gemma4.feed_forward_length", uint32_t{24});
  set(&m, "gemma4.attention.head_count_kv", std::vector<int32_t>{2, 2, 1, 2, 2, 1});
  set(&m, "gemma4.attention.shared_kv_layers", uint32_t{0});
  set(&m, "gemma4.embedding_length_per_layer_input", uint32_t{0});
  const ModelConfig gguf = written_and_read(m, tensors_of(hf));
  expect_same_model(hf, gguf);
  EXPECT_TRUE(gguf.layers[2].k_eq_v);
}

TEST(ModelConfigGguf, Gemma3HasNoPatternAndItsNormsNeedNoOne) {
  const ModelConfig hf = model_config_from_json(kTinyGemma3, "config.json");
  const ModelConfig gguf = written_and_read(gemma3_keys(), tensors_of(hf));
  expect_same_model(hf, gguf);
  EXPECT_TRUE(hf.norm_plus_one);
  EXPECT_FALSE(gguf.norm_plus_one);
  GgufMetadata all_full = gemma3_keys();
  erase(&all_full, "gemma3.attention.sliding_window");
  for (const LayerConfig& layer : written_and_read(all_full, tensors_of(hf)).layers) EXPECT_FALSE(layer.sliding);
}

TEST(ModelConfigGguf, Gemma3WithAPeriodOrAList) {
  const ModelConfig hf = model_config_from_json(kTinyGemma3, "config.json");
  GgufMetadata m = gemma3_keys();
  set(&m, "gemma3.attention.sliding_window_pattern", uint32_t{3});
  const ModelConfig period = written_and_read(m, tensors_of(hf));
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(period.layers[i].sliding, (i + 1) % 3 != 0);
  set(&m, "gemma3.attention.sliding_window_pattern", std::vector<bool>{true, false, true, true, true, true, false});
  EXPECT_FALSE(written_and_read(m, tensors_of(hf)).layers[1].sliding);
  set(&m, "gemma3.attention.sliding_window_pattern", std::vector<bool>{true, false});
  EXPECT_THAT(error_of(m, tensors_of(hf)), HasSubstr("one value per layer (7)"));
}

TEST(ModelConfigGguf, LlamaWithAndWithoutItsOwnHead) {
  const ModelConfig hf = model_config_from_json(kTinyLlama, "config.json");
  ASSERT_FALSE(hf.tied);
  expect_same_model(hf, written_and_read(llama_keys(), tensors_of(hf)));
  const ModelConfig tied = model_config_from_json(patched(kTinyLlama, {{"tie_word_embeddings", true}}), "config.json");
  expect_same_model(tied, written_and_read(llama_keys(), tensors_of(tied)));
  // Keys that older converters leave out.
  GgufMetadata m = llama_keys();
  for (const char* key : {"llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"})
    erase(&m, key);
  ModelConfig shorter = written_and_read(m, {tensors_of(tied)[0]});
  EXPECT_EQ(shorter.layers[0].head_dim, 8);
}

TEST(ModelConfigGguf, WhatIsWrongIsNamed) {
  const std::vector<NamedTensor> tensors = tensors_of(model_config_from_json(kTinyGemma4, "config.json"));
  struct Case {
    const char* key;
    GgufValue value;
    const char* message;
  };
  const Case cases[] = {
      {"general.architecture", std::string("qwen3"), "expected llama, gemma3 or gemma4, found qwen3"},
      {"general.architecture", std::string("gemma4-assistant"), "drafter"},
      {"gemma4.block_count", uint32_t{0}, "gemma4.block_count: expected 1 to 4096"},
      {"gemma4.block_count", uint32_t{4000000000u}, "gemma4.block_count: expected 1 to 4096"},
      {"gemma4.block_count", uint32_t{7}, "one per layer (7), found 6"},
      {"gemma4.block_count", std::string("six"), "gemma4.block_count"},
      {"gemma4.embedding_length", uint32_t{0}, "hidden size"},
      {"gemma4.attention.head_count", uint32_t{0}, "gemma4.attention.head_count"},
      {"gemma4.attention.head_count", std::vector<int32_t>{4, 4, 4, 4, 4, 2}, "the same value for all layers"},
      {"gemma4.attention.head_count_kv", uint32_t{3}, "multiple of the key-value heads"},
      {"gemma4.attention.value_length", uint32_t{32}, "expected 16 (the key length), found 32"},
      {"gemma4.attention.shared_kv_layers", uint32_t{6}, "share keys and values"},
      {"gemma4.attention.shared_kv_layers", uint32_t{5}, "no full-attention layer"},
      {"gemma4.rope.dimension_count", uint32_t{8}, "expected the head size 16, found 8"},
      {"gemma4.rope.scaling.type", std::string("yarn"), "expected linear or none, found yarn"},
      {"gemma4.expert_count", uint32_t{8}, "mixture of experts"},
      {"gemma4.attention.causal", false, "bidirectional"},
      {"split.count", uint16_t{3}, "llama-gguf-split --merge"},
      {"gemma4.attention.layer_norm_rms_epsilon", std::numeric_limits<float>::quiet_NaN(), "norm epsilon"},
  };
  for (const Case& c : cases) {
    GgufMetadata m = gemma4_keys();
    set(&m, c.key, c.value);
    EXPECT_THAT(error_of(m, tensors), HasSubstr(c.message)) << c.key;
  }
  for (const char* key : {"gemma4.attention.key_length", "gemma4.attention.key_length_swa",
                          "gemma4.attention.sliding_window_pattern", "gemma4.context_length", "general.architecture"}) {
    GgufMetadata m = gemma4_keys();
    erase(&m, key);
    EXPECT_THAT(error_of(m, tensors), HasSubstr(key));
  }
}

TEST(ModelConfigGguf, TensorsThatMetadataDependsOnAreChecked) {
  const std::vector<NamedTensor> good = tensors_of(model_config_from_json(kTinyGemma4, "config.json"));
  const auto changed = [&](const std::string& name, const std::function<void(NamedTensor*)>& change) {
    std::vector<NamedTensor> tensors = good;
    for (NamedTensor& tensor : tensors)
      if (tensor.name == name) change(&tensor);
    return error_of(gemma4_keys(), tensors);
  };
  EXPECT_EQ(changed("", [](NamedTensor*) {}), "");
  EXPECT_THAT(changed("token_embd.weight", [](NamedTensor* t) { t->shape = {40}; }),
              HasSubstr("expected 2 dimensions, found 1"));
  EXPECT_THAT(changed("token_embd.weight", [](NamedTensor* t) { t->name = "embd"; }), HasSubstr("token_embd.weight"));
  EXPECT_THAT(changed("rope_freqs.weight", [](NamedTensor* t) { t->shape = {7}; }), HasSubstr("expected 8 values"));
  EXPECT_THAT(changed("rope_freqs.weight", [](NamedTensor* t) { t->values[3] = 0.0f; }),
              HasSubstr("expected positive numbers"));
  EXPECT_THAT(changed("blk.0.attn_q.weight", [](NamedTensor* t) { t->name = "blk.0.attn_q.bias"; }),
              HasSubstr("biases"));
}

}  // namespace
}  // namespace qat
