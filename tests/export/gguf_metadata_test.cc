// The metadata of exported files: the keys that llama.cpp reads, with its types. (tests/interop compares them with its
// converter's.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "export/gguf_export.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

using ::testing::HasSubstr;

class Metadata : public ::testing::Test {
 protected:
  GgufMetadata of(const std::string& json, const std::map<std::string, std::string>& files = {}) {
    const std::string model = dir_ / "a-model";
    std::filesystem::remove_all(model);
    write_tiny_model(model, json, DType::BF16);
    for (const auto& [name, contents] : files) add_file(model + "/" + name, contents);
    return gguf_metadata(model_config_from_hf(model), model, gguf_file_type(DType::Q4_0));
  }

  TemporaryDirectory dir_;
};

const GgufValue* find(const GgufMetadata& metadata, const std::string& key) {
  const GgufValue* found = nullptr;
  for (const auto& [name, value] : metadata) {
    if (name != key) continue;
    EXPECT_EQ(found, nullptr) << key << " is there twice";
    found = &value;
  }
  return found;
}

// The value of a key, which must have exactly this type.
template <class T>
T get(const GgufMetadata& metadata, const std::string& key) {
  const GgufValue* value = find(metadata, key);
  if (value == nullptr || !std::holds_alternative<T>(*value)) {
    ADD_FAILURE() << key << (value == nullptr ? " is missing" : " has another type");
    return T();
  }
  return std::get<T>(*value);
}

TEST_F(Metadata, EveryFileSaysWhatItIs) {
  const GgufMetadata m = of(llama_json(true));
  EXPECT_EQ(m.front().first, "general.architecture");
  EXPECT_EQ(get<std::string>(m, "general.architecture"), "llama");
  EXPECT_EQ(get<std::string>(m, "general.type"), "model");
  EXPECT_EQ(get<std::string>(m, "general.name"), "a-model");
  EXPECT_EQ(get<std::string>(m, "general.size_label"), "78K");
  EXPECT_EQ(get<uint32_t>(m, "general.file_type"), 2u);
  EXPECT_EQ(get<uint32_t>(m, "general.quantization_version"), 2u);
  EXPECT_NE(find(m, "tokenizer.ggml.model"), nullptr);
  EXPECT_EQ(get<std::vector<std::string>>(m, "tokenizer.ggml.tokens").size(), 260u);
  std::set<std::string> names;
  for (const auto& entry : m) EXPECT_TRUE(names.insert(entry.first).second) << entry.first << " is there twice";
}

TEST_F(Metadata, Llama) {
  const GgufMetadata m = of(llama_json(false));
  EXPECT_EQ(get<uint32_t>(m, "llama.block_count"), 2u);
  EXPECT_EQ(get<uint32_t>(m, "llama.context_length"), 256u);
  EXPECT_EQ(get<uint32_t>(m, "llama.embedding_length"), 64u);
  EXPECT_EQ(get<uint32_t>(m, "llama.feed_forward_length"), 96u);
  EXPECT_EQ(get<uint32_t>(m, "llama.attention.head_count"), 4u);
  EXPECT_EQ(get<uint32_t>(m, "llama.attention.head_count_kv"), 2u);
  EXPECT_EQ(get<uint32_t>(m, "llama.attention.key_length"), 16u);
  EXPECT_EQ(get<uint32_t>(m, "llama.attention.value_length"), 16u);
  EXPECT_EQ(get<float>(m, "llama.attention.layer_norm_rms_epsilon"), 1e-5f);
  EXPECT_EQ(get<float>(m, "llama.rope.freq_base"), 500000.0f);
  EXPECT_EQ(get<uint32_t>(m, "llama.rope.dimension_count"), 16u);
  EXPECT_EQ(get<uint32_t>(m, "llama.vocab_size"), 260u);
  EXPECT_EQ(find(m, "llama.rope.freq_base_swa"), nullptr);
  EXPECT_EQ(find(m, "llama.rope.scaling.type"), nullptr);
}

TEST_F(Metadata, Gemma3) {
  const GgufMetadata m = of(gemma3_json());
  EXPECT_EQ(get<uint32_t>(m, "gemma3.attention.sliding_window"), 16u);
  EXPECT_EQ(get<uint32_t>(m, "gemma3.attention.key_length"), 32u);
  EXPECT_EQ(get<float>(m, "gemma3.rope.freq_base"), 1e6f);
  EXPECT_EQ(get<float>(m, "gemma3.rope.freq_base_swa"), 1e4f);
  EXPECT_EQ(get<std::string>(m, "gemma3.rope.scaling.type"), "linear");
  EXPECT_EQ(get<float>(m, "gemma3.rope.scaling.factor"), 8.0f);
  EXPECT_EQ(find(m, "gemma3.final_logit_softcapping"), nullptr);
}

TEST_F(Metadata, Gemma3LayersThatLlamaCppWouldRunOtherwiseAreRefused) {
  std::string json = gemma3_json();
  const std::string first = R"("layer_types": ["sliding_attention")";
  json.replace(json.find(first), first.size(), R"("layer_types": ["full_attention")");
  try {
    of(json);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("layer 0 of a gemma3 model as sliding_attention, found full_attention"));
  }
}

TEST_F(Metadata, Gemma4LikeE2B) {
  const GgufMetadata m = of(gemma4_json());
  EXPECT_EQ(get<std::vector<int32_t>>(m, "gemma4.feed_forward_length"), (std::vector<int32_t>{96, 96, 192, 192}));
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.head_count_kv"), 1u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.shared_kv_layers"), 2u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.embedding_length_per_layer_input"), 32u);
  EXPECT_EQ(get<std::vector<bool>>(m, "gemma4.attention.sliding_window_pattern"),
            (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.key_length"), 32u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.value_length"), 32u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.key_length_swa"), 16u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.value_length_swa"), 16u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.rope.dimension_count"), 32u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.rope.dimension_count_swa"), 16u);
  EXPECT_EQ(get<float>(m, "gemma4.final_logit_softcapping"), 30.0f);
  EXPECT_EQ(get<std::string>(m, "tokenizer.ggml.model"), "gemma4");
}

TEST_F(Metadata, Gemma4Like31B) {
  const GgufMetadata m = of(gemma4_k_eq_v_json());
  EXPECT_EQ(get<uint32_t>(m, "gemma4.feed_forward_length"), 96u);
  EXPECT_EQ(get<std::vector<int32_t>>(m, "gemma4.attention.head_count_kv"), (std::vector<int32_t>{2, 1, 2, 1}));
  EXPECT_EQ(get<uint32_t>(m, "gemma4.attention.shared_kv_layers"), 0u);
  EXPECT_EQ(get<uint32_t>(m, "gemma4.embedding_length_per_layer_input"), 0u);
}

TEST_F(Metadata, SamplingDefaultsOfTheModelsMakers) {
  const GgufMetadata m =
      of(llama_json(true), {{"generation_config.json", R"({"top_k": 64, "top_p": 0.95, "temperature": 1.0})"}});
  EXPECT_EQ(get<int32_t>(m, "general.sampling.top_k"), 64);
  EXPECT_EQ(get<float>(m, "general.sampling.top_p"), 0.95f);
  EXPECT_EQ(get<float>(m, "general.sampling.temp"), 1.0f);
  EXPECT_EQ(find(m, "general.sampling.min_p"), nullptr);
  for (const char* bad : {R"({"top_k": "64"})", R"({"top_k": 6.5})", R"({"top_k": 1e300})", R"([])", "{"}) {
    try {
      of(llama_json(true), {{"generation_config.json", bad}});
      FAIL() << "expected an error for " << bad;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("generation_config.json"));
    }
  }
}

TEST_F(Metadata, TokensThatUnifiedModelsMustNotSay) {
  const std::string unified =
      R"({"architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified", "text_config": )" +
      gemma4_k_eq_v_json() + "}";
  const std::string key = "tokenizer.ggml.suppress_tokens";
  const auto with = [](const std::string& tokens) {
    return std::map<std::string, std::string>{{"generation_config.json", "{\"suppress_tokens\": " + tokens + "}"}};
  };
  EXPECT_EQ(get<std::vector<int32_t>>(of(unified, with("[7, 259]")), key), (std::vector<int32_t>{7, 259}));
  EXPECT_EQ(find(of(unified), key), nullptr);
  EXPECT_EQ(find(of(gemma4_json(), with("[7]")), key), nullptr);  // as the converter
  for (const char* bad : {"[260]", "[-1]", "[\"a\"]", "[1.5]"}) EXPECT_THROW(of(unified, with(bad)), Error) << bad;
}

TEST_F(Metadata, TheChatTemplateTravels) {
  const GgufMetadata m = of(gemma4_json(), {{"chat_template.jinja", "{{ messages }}"}});
  EXPECT_EQ(get<std::string>(m, "tokenizer.chat_template"), "{{ messages }}");
}

}  // namespace
}  // namespace qat
