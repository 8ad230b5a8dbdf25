// The mobile schema: which module has which width (transformers' rules), what a directory must hold, and every way in
// which one can be wrong.
#include "format/mobile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>

#include "format/channel_grid.h"
#include "format/error.h"
#include "tests/expect_error.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

using Json = nlohmann::ordered_json;

// Two layers, the second shares the first's K and V. 38 columns fill no whole byte of 2-bit codes.
Json small_config() {
  return Json::parse(R"({"architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "hidden_size": 38,
    "num_attention_heads": 2, "head_dim": 8, "global_head_dim": 8, "num_hidden_layers": 2, "intermediate_size": 15,
    "vocab_size": 20, "vocab_size_per_layer_input": 20, "hidden_size_per_layer_input": 6, "num_key_value_heads": 1,
    "num_kv_shared_layers": 1, "use_double_wide_mlp": false, "rms_norm_eps": 1e-06, "max_position_embeddings": 64,
    "sliding_window": 16, "tie_word_embeddings": false, "layer_types": ["full_attention", "full_attention"],
    "rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25,
    "rope_theta": 1000000.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    "quantization_config": {"quant_method": "gemma", "num_bits": 4, "quantize_embeddings": true,
      "module_quant_configs": {"embed_tokens$|lm_head$": {"num_bits": 2}, "layers\\.1\\.mlp": {"num_bits": 2},
        "per_layer_input_gate|per_layer_projection$": {"num_bits": 8}},
      "modules_to_not_convert": ["per_layer_model_projection"]}})");
}

using Tensors = std::map<std::string, std::pair<TensorSpec, std::string>>;  // by name, with bytes

std::string floats_as_bytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), 4 * values.size()};
}

void put(Tensors* tensors, const std::string& name, DType dtype, const std::vector<int64_t>& shape,
         const std::string& bytes) {
  (*tensors)[name] = {{name, dtype, shape}, bytes};
}

void put_scales(Tensors* tensors, const std::string& name, const std::vector<int64_t>& shape) {
  std::vector<float> scales(*tensor_bytes(DType::I8, shape));
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = 0.01f * static_cast<float>(1 + i % 50);
  put(tensors, name, DType::F32, shape, floats_as_bytes(scales));
}

// Codes of a module: the bytes 7, 14, 21, ...
std::string code_bytes(size_t count) {
  std::string bytes(count, '\0');
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<char>(7 * (i + 1));
  return bytes;
}

// What the config above asks for, spelled out without the code under test.
int small_bits(const TensorInfo& info) {
  switch (info.role) {
    case Role::token_embedding:
    case Role::output: return 2;
    case Role::ple_gate:
    case Role::ple_projection: return 8;
    case Role::gate:
    case Role::up:
    case Role::down: return info.layer == 1 ? 2 : 4;
    case Role::ple_model_projection: return 0;
    default: return info.kind == TensorKind::linear || info.kind == TensorKind::embedding ? 4 : 0;
  }
}

Tensors small_tensors(const std::string& prefix = "model.") {
  Tensors tensors;
  for (const TensorInfo& info : tensor_table(model_config_from_json(small_config().dump(), "config.json"))) {
    std::string name = info.name.compare(0, 6, "model.") == 0 ? prefix + info.name.substr(6) : info.name;
    const int bits = small_bits(info);
    if (bits == 0) {
      put(&tensors, name, DType::F32, info.shape,
          floats_as_bytes(std::vector<float>(*tensor_bytes(DType::I8, info.shape), 0.5f)));
      continue;
    }
    name.resize(name.size() - std::string(".weight").size());
    const int64_t rows = info.shape[0], stride = (info.shape[1] * bits + 7) / 8;
    const bool embedding = info.kind == TensorKind::embedding;
    put(&tensors, name + (embedding ? ".embedding_quantized" : ".weight"), bits == 8 ? DType::I8 : DType::U8,
        {rows, stride}, code_bytes(static_cast<size_t>(rows * stride)));
    put_scales(&tensors, name + (embedding ? ".embedding_scale" : ".weight_scale"),
               {rows, info.role == Role::ple_embedding ? 2 : 1});
    if (embedding) continue;
    put(&tensors, name + ".input_activation_scale", DType::F32, {}, floats_as_bytes({0.125f}));
    put(&tensors, name + ".output_activation_scale", DType::F32, {},
        floats_as_bytes({info.role == Role::output ? 0.0f : 0.25f}));
  }
  put(&tensors, prefix + "layers.0.self_attn.k_cache_scale", DType::F32, {}, floats_as_bytes({0.03f}));
  put(&tensors, prefix + "layers.0.self_attn.v_cache_scale", DType::F32, {}, floats_as_bytes({0.04f}));
  return tensors;
}

class Mobile : public testing::Test {
 protected:
  void write(const Json& config, const Tensors& tensors,
             const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
    put_file(dir_ / "config.json", config.dump());
    std::vector<TensorSpec> specs;
    for (const auto& entry : tensors) specs.push_back(entry.second.first);
    SafetensorsWriter writer(dir_ / "model.safetensors", specs, metadata);
    for (const auto& entry : tensors) writer.append(entry.second.second.data(), entry.second.second.size());
    writer.commit();
  }
  // The error for tensors that `edit` changed.
  void expect_refused(const std::function<void(Tensors*)>& edit, const std::string& fragment) {
    Tensors tensors = small_tensors();
    edit(&tensors);
    write(small_config(), tensors);
    expect_error([&] { MobileCheckpoint(dir_.path()); }, fragment);
  }
  const TensorInfo& info(const MobileCheckpoint& checkpoint, Role role, int layer = -1) {
    return *find_tensor_info(checkpoint.table(), role, layer);
  }
  TemporaryDirectory dir_;
};

int bits_of(const std::string& block, const std::string& module, TensorKind kind = TensorKind::linear) {
  const std::string json = R"({"quantization_config": {"quant_method": "gemma", )" + block + "}}";
  return MobileWidths(mobile_quantization_from_json(json, "config.json"), "config.json").bits(module, kind);
}

// Each line was tried with transformers' replace_with_quant_layers and should_convert_module.
TEST(MobileWidths, AreTransformers) {
  const std::string rules = R"("modules_to_not_convert": [], "module_quant_configs": {)";
  EXPECT_EQ(bits_of(R"("modules_to_not_convert": [])", "model.layers.0.mlp.up_proj"), 4);
  EXPECT_EQ(bits_of(R"("num_bits": 8, "modules_to_not_convert": [])", "model.layers.0.mlp.up_proj"), 8);
  EXPECT_EQ(bits_of(R"("num_bits": 8, )" + rules + R"("mlp": {}})", "model.layers.0.mlp.up_proj"), 8);
  // The first of two that begin to match at the same place ...
  EXPECT_EQ(bits_of(rules + R"("mlp": {"num_bits": 2}, "mlp\\.up": {"num_bits": 8}})", "model.layers.0.mlp.up_proj"),
            2);
  // ... but one that matches further to the left comes before.
  EXPECT_EQ(bits_of(rules + R"("mlp": {"num_bits": 2}, "layers\\.0": {"num_bits": 8}})", "model.layers.0.mlp.up_proj"),
            8);
  EXPECT_EQ(bits_of(rules + R"("layers\\.[0-4]\\.mlp": {"num_bits": 2}})", "model.layers.14.mlp.up_proj"), 4);
  EXPECT_EQ(bits_of(rules + R"("embed_tokens$|lm_head$": {"num_bits": 2}})", "lm_head"), 2);
}

TEST(MobileWidths, ModulesThatStayFloat) {
  const auto skipped = [](const std::string& name, const std::string& module) {
    return bits_of(R"("modules_to_not_convert": [")" + name + R"("])", module) == 0;
  };
  EXPECT_TRUE(skipped("per_layer_model_projection", "model.per_layer_model_projection"));  // an ending
  EXPECT_TRUE(skipped("model.layers.1", "model.layers.1.mlp.up_proj"));                    // a beginning
  EXPECT_TRUE(skipped("model.layers.1", "model.layers.11.mlp.up_proj"));                   // is enough
  EXPECT_TRUE(skipped("model.*up", "model.layers.11.mlp.up_proj"));
  EXPECT_FALSE(skipped("layers.1", "model.layers.1.mlp.up_proj"));  // in the middle
  EXPECT_FALSE(skipped("up", "model.layers.1.mlp.up_proj"));
  const std::string none = R"("modules_to_not_convert": [])";
  EXPECT_EQ(bits_of(none, "model.embed_tokens", TensorKind::embedding), 0);
  EXPECT_EQ(bits_of(none + R"(, "quantize_embeddings": true)", "model.embed_tokens", TensorKind::embedding), 4);
  EXPECT_EQ(bits_of(none + R"(, "quantize_embeddings": true)", "model.norm", TensorKind::norm), 0);
}

TEST(MobileWidths, WrongBlocksAreRefused) {
  const auto refused = [](const std::string& block, const std::string& fragment) {
    expect_error([&] { bits_of(block, "lm_head"); }, "config.json: quantization_config: " + fragment);
  };
  refused(R"("num_bits": 3)", "num_bits: expected 2, 4 or 8, found 3");
  refused(R"("num_bits": "4")", "num_bits: expected 2, 4 or 8, found \"4\"");
  refused(R"("quantize_embeddings": 1)", "quantize_embeddings: expected true or false, found 1");
  refused(R"("module_quant_configs": [])", "module_quant_configs: expected an object, found []");
  refused(R"("module_quant_configs": {"a": 2})", "module_quant_configs: a: expected an object, found 2");
  refused(R"("module_quant_configs": {"a": {"num_bits": 16}})",
          "module_quant_configs: a: num_bits: expected 2, 4 or 8, found 16");
  refused(R"("num_bits": 4)", "modules_to_not_convert: expected a list of names, found none");
  refused(R"("modules_to_not_convert": "lm_head")", "modules_to_not_convert: expected a list of names, found");
  refused(R"("modules_to_not_convert": [1])", "modules_to_not_convert: expected a list of names, found [1]");
  refused(R"("modules_to_not_convert": ["a("])", "modules_to_not_convert \"a(\": not a regular expression");
  refused(R"("modules_to_not_convert": [], "module_quant_configs": {"[": {}})",
          "module_quant_configs \"[\": not a regular expression");
  expect_error([] { mobile_quantization_from_json(R"({"quantization_config": {"quant_method": "gptq"}})", "c.json"); },
               "c.json: expected a quantization_config with \"quant_method\": \"gemma\"");
}

TEST_F(Mobile, ReadsEveryTensorInPlace) {
  for (const std::string prefix : {"model.", "model.language_model."}) {
    Tensors tensors = small_tensors(prefix);
    put(&tensors, "model.vision_tower.x.weight", DType::I8, {2, 2}, "abcd");
    put(&tensors, "model.vision_tower.x.weight_scale", DType::F32, {2, 1}, "abcdefgh");
    put(&tensors, prefix + "layers.1.self_attn.k_proj.weight_scale", DType::F32, {}, "abcd");  // shared: not used
    put(&tensors, "surprise", DType::U8, {}, "x");
    write(small_config(), tensors);
    EXPECT_EQ(detect_model_kind(dir_.path()), ModelKind::mobile);
    const MobileCheckpoint checkpoint(dir_.path());
    EXPECT_EQ(checkpoint.notices(), (std::vector<std::string>{"ignored 2 tensors of vision and audio towers",
                                                              "ignored 1 unknown tensors: surprise"}));
    for (const TensorInfo& info : checkpoint.table()) {
      const MobileTensor& tensor = checkpoint.tensor(info);
      const int bits = small_bits(info);
      EXPECT_EQ(code_bits(tensor.dtype), bits) << info.name;
      if (bits == 0) {
        EXPECT_THAT(checkpoint.read(info), testing::Each(0.5f)) << info.name;
        EXPECT_EQ(tensor.scales.size(), 0u);
        continue;
      }
      const size_t bytes = static_cast<size_t>(info.shape[0]) * row_bytes(tensor.dtype, info.shape[1]);
      ASSERT_EQ(tensor.data.size(), bytes) << info.name;
      EXPECT_EQ(std::memcmp(tensor.data.data(), code_bytes(bytes).data(), bytes), 0) << info.name;
      EXPECT_EQ(tensor.scales_per_row, info.role == Role::ple_embedding ? 2 : 1);
      for (int64_t i = 0; i < info.shape[0] * tensor.scales_per_row; ++i)
        ASSERT_EQ(scale_at(tensor.scales, i), 0.01f * static_cast<float>(1 + i % 50)) << info.name;
      const bool linear = info.kind == TensorKind::linear;
      EXPECT_EQ(tensor.input_scale, linear ? 0.125f : 0.0f) << info.name;
      EXPECT_EQ(tensor.output_scale, linear && info.role != Role::output ? 0.25f : 0.0f) << info.name;
    }
    EXPECT_EQ(checkpoint.cache_scales(0).k, 0.03f);
    EXPECT_EQ(checkpoint.cache_scales(0).v, 0.04f);
    EXPECT_EQ(checkpoint.cache_scales(1).k, 0.0f);
  }
}

TEST_F(Mobile, WidthsOfTheCacheAreInTheMetadata) {
  write(small_config(), small_tensors());
  EXPECT_EQ(MobileCheckpoint(dir_.path()).cache_scales(0).bits, 8);  // nothing said
  write(small_config(), small_tensors(), {{kCacheBits, "4,0"}});
  EXPECT_EQ(MobileCheckpoint(dir_.path()).cache_scales(0).bits, 4);
  for (const char* wrong : {"", "4", "4,0,0", "4,3", "4,", "4 0", "-4,0"}) {
    write(small_config(), small_tensors(), {{kCacheBits, wrong}});
    expect_error(
        [&] { MobileCheckpoint(dir_.path()); },
        "metadata qat.kv_cache_bits: expected 0, 2, 4 or 8 for each of 2 layers, found \"" + std::string(wrong));
  }
}

TEST_F(Mobile, WithoutCacheScalesAndWithFloatEmbeddings) {
  Tensors tensors = small_tensors();
  for (const char* name :
       {"model.layers.0.self_attn.k_cache_scale", "model.layers.0.self_attn.v_cache_scale",
        "model.embed_tokens.embedding_quantized", "model.embed_tokens.embedding_scale",
        "model.embed_tokens_per_layer.embedding_quantized", "model.embed_tokens_per_layer.embedding_scale"})
    EXPECT_EQ(tensors.erase(name), 1u);
  put(&tensors, "model.embed_tokens.weight", DType::BF16, {20, 38}, std::string(2 * 20 * 38, '\0'));
  put(&tensors, "model.embed_tokens_per_layer.weight", DType::F16, {20, 12}, std::string(2 * 20 * 12, '\0'));
  Json config = small_config();
  config["quantization_config"]["quantize_embeddings"] = false;
  write(config, tensors);
  const MobileCheckpoint checkpoint(dir_.path());
  EXPECT_EQ(checkpoint.cache_scales(0).k, 0.0f);
  EXPECT_EQ(checkpoint.tensor(info(checkpoint, Role::token_embedding)).dtype, DType::BF16);
  EXPECT_EQ(checkpoint.tensor(info(checkpoint, Role::ple_embedding)).dtype, DType::F16);
  // The same tensors where the config says that they are packed.
  write(small_config(), tensors);
  expect_error([&] { MobileCheckpoint(dir_.path()); },
               "expected tensor model.embed_tokens.embedding_quantized U8 [20, 10], found none");
}

TEST_F(Mobile, MissingTensors) {
  const auto without = [&](const std::string& name, const std::string& expected) {
    expect_refused([&](Tensors* t) { EXPECT_EQ(t->erase(name), 1u) << name; }, expected);
  };
  without("model.layers.1.mlp.up_proj.weight", "expected tensor model.layers.1.mlp.up_proj.weight of shape [15, 38]");
  without("model.layers.1.mlp.up_proj.weight_scale",
          "expected tensor model.layers.1.mlp.up_proj.weight_scale F32 [15, 1], found none");
  without("lm_head.input_activation_scale", "expected tensor lm_head.input_activation_scale F32 [], found none");
  without("lm_head.output_activation_scale", "expected tensor lm_head.output_activation_scale F32 [], found none");
  without("model.embed_tokens.embedding_quantized", "expected tensor model.embed_tokens.weight of shape [20, 38]");
  without("model.embed_tokens.embedding_scale", "model.embed_tokens.embedding_scale F32 [20, 1], found none");
  without("model.norm.weight", "expected tensor model.norm.weight of shape [38], found none");
}

TEST_F(Mobile, WrongWidthsTypesAndShapes) {
  const std::string up = "model.layers.1.mlp.up_proj", scale = up + ".weight_scale";
  const auto as = [&](const std::string& name, DType dtype, const std::vector<int64_t>& shape,
                      const std::string& expected) {
    expect_refused([&](Tensors* t) { put(t, name, dtype, shape, std::string(*tensor_bytes(dtype, shape), '\1')); },
                   expected);
  };
  as(up + ".weight", DType::U8, {15, 19}, up + ".weight: expected U8 [15, 10], found U8 [15, 19]");  // 4 bits, not 2
  as(up + ".weight", DType::U8, {15, 9}, up + ".weight: expected U8 [15, 10], found U8 [15, 9]");
  as(up + ".weight", DType::I8, {15, 38}, up + ".weight: expected U8 [15, 10], found I8 [15, 38]");
  as(up + ".weight", DType::F32, {15, 38}, up + ".weight: expected U8 [15, 10], found F32 [15, 38]");
  as("model.layers.1.per_layer_projection.weight", DType::U8, {38, 6}, "expected I8 [38, 6], found U8 [38, 6]");
  as(scale, DType::F16, {15, 1}, scale + ": expected F32 [15, 1], found F16 [15, 1]");
  as(scale, DType::F32, {15}, scale + ": expected F32 [15, 1], found F32 [15]");
  as(scale, DType::F32, {15, 2}, scale + ": expected F32 [15, 1], found F32 [15, 2]");
  as(up + ".input_activation_scale", DType::F32, {15}, "input_activation_scale: expected F32 [], found F32 [15]");
  const std::string table = "model.embed_tokens_per_layer.embedding_scale";
  as(table, DType::F32, {20, 5}, table + ": expected a count of columns that divides 12, found shape [20, 5]");
  as(table, DType::F32, {20, 0}, table + ": expected a count of columns that divides 12, found shape [20, 0]");
  as(table, DType::F32, {19, 2}, table + ": expected F32 [20, 2], found F32 [19, 2]");
  as("model.norm.weight", DType::U8, {38}, "model.norm.weight: expected F32, F16, BF16 or F64 [38], found U8 [38]");
  as("model.per_layer_model_projection.weight", DType::F32, {12, 37}, "F64 [12, 38], found F32 [12, 37]");
}

TEST_F(Mobile, WrongScales) {
  const std::string up = "model.layers.1.mlp.up_proj";
  for (const float wrong : {0.0f, -0.5f, NAN, INFINITY}) {
    expect_refused(
        [&](Tensors* t) {
          std::vector<float> scales(15, 0.5f);
          scales[7] = wrong;
          put(t, up + ".weight_scale", DType::F32, {15, 1}, floats_as_bytes(scales));
        },
        "tensor " + up + ".weight_scale: row 7: expected a finite scale above 0, found ");
    if (wrong == 0.0f) continue;  // an activation scale of 0 is off
    for (const std::string& name :
         {up + ".input_activation_scale", up + ".output_activation_scale",
          std::string("model.layers.0.self_attn.k_cache_scale"), std::string("model.layers.0.self_attn.v_cache_scale")})
      expect_refused([&](Tensors* t) { put(t, name, DType::F32, {}, floats_as_bytes({wrong})); },
                     "tensor " + name + ": expected a finite scale, 0 or above, found ");
  }
}

TEST_F(Mobile, IsNotAFloatCheckpoint) {
  write(small_config(), small_tensors());
  expect_error([&] { FloatCheckpoint(dir_.path()); },
               "expected float weights, found a checkpoint already quantized in the mobile schema");
}

TEST_F(Mobile, OtherDirectoriesAreNot) {
  write(small_config(), small_tensors());
  for (const char* text : {"{}", "[", "[]", R"({"quantization_config": null})", R"({"quantization_config": []})",
                           R"({"quantization_config": {}})", R"({"quantization_config": {"quant_method": 1}})",
                           R"({"quantization_config": {"quant_method": "gptq"}})"}) {
    put_file(dir_ / "config.json", text);
    EXPECT_EQ(detect_model_kind(dir_.path()), ModelKind::hf_directory) << text;
  }
}

TEST(MobileGolden, HasTheWidthsThatItsConfigNames) {
  QAT_NEED_SHARED("goldens/gemma4-e2b-mobile");
  const MobileCheckpoint checkpoint(shared_path("goldens/gemma4-e2b-mobile"));
  EXPECT_TRUE(checkpoint.notices().empty());
  std::map<DType, int> counts;
  for (const TensorInfo& info : checkpoint.table()) ++counts[checkpoint.tensor(info).dtype];
  // 4 bits: q, k, v, o of 10 layers (5 own K and V), MLPs of 5, the per-layer table; 2: MLPs of 5, table, head.
  EXPECT_EQ(counts[DType::I4], 30 + 15 + 1);
  EXPECT_EQ(counts[DType::I2], 15 + 2);
  EXPECT_EQ(counts[DType::I8], 20);
  for (int layer = 0; layer < 10; ++layer) EXPECT_EQ(checkpoint.cache_scales(layer).k > 0.0f, layer < 5) << layer;
}

}  // namespace
}  // namespace qat
