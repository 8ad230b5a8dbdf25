// The mobile schema written: what the reader finds in it is what was given, a directory that transformers saved comes
// out the same byte for byte, and nothing is half-written.
#include "export/mobile_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "format/channel_grid.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_mobile.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

using Json = nlohmann::json;

std::string bytes_of(Span<const uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

class MobileExport : public testing::Test {
 protected:
  void SetUp() override { write_tiny_model(dir_ / "hf", gemma4_json(), DType::F32); }
  TemporaryDirectory dir_;
};

TEST_F(MobileExport, TheReaderFindsWhatWasGiven) {
  TinyMobile model = quantize_tiny_mobile(dir_ / "hf");
  model.cache_scales[0] = {0.5f, 0.25f, 4};
  float next = 0.0f;
  for (size_t i = 0; i < model.table.size(); ++i) {
    if (model.table[i].kind != TensorKind::linear || code_bits(model.specs[i].dtype) == 0) continue;
    model.specs[i].input_scale = next += 0.125f;
    model.specs[i].output_scale = model.table[i].role == Role::output ? 0.0f : next + 1.0f;
  }
  write_tiny_mobile(model, dir_ / "hf", dir_ / "mobile");
  EXPECT_EQ(detect_model_kind(dir_ / "mobile"), ModelKind::mobile);
  EXPECT_TRUE(std::filesystem::exists(dir_ / "mobile/tokenizer.json"));
  const MobileCheckpoint read(dir_ / "mobile");
  EXPECT_TRUE(read.notices().empty());
  ASSERT_EQ(read.table().size(), model.table.size());
  EXPECT_FALSE(read.config().tied);
  for (size_t i = 0; i < model.table.size(); ++i) {
    const TensorInfo& info = model.table[i];
    const MobileTensor& tensor = read.tensor(info);
    EXPECT_EQ(tensor.dtype, model.specs[i].dtype) << info.name;
    EXPECT_EQ(bytes_of(tensor.data), std::string(model.data[i].begin(), model.data[i].end())) << info.name;
    ASSERT_EQ(tensor.scales.size(), 4 * model.specs[i].scales.size()) << info.name;
    for (size_t s = 0; s < model.specs[i].scales.size(); ++s)
      ASSERT_EQ(scale_at(tensor.scales, static_cast<int64_t>(s)), model.specs[i].scales[s]) << info.name;
    EXPECT_EQ(tensor.input_scale, model.specs[i].input_scale) << info.name;
    EXPECT_EQ(tensor.output_scale, model.specs[i].output_scale) << info.name;
  }
  EXPECT_EQ(read.cache_scales(0).k, 0.5f);
  EXPECT_EQ(read.cache_scales(0).v, 0.25f);
  EXPECT_EQ(read.cache_scales(0).bits, 4);
  EXPECT_EQ(read.cache_scales(1).k, 0.0f);
  const Safetensors file(dir_ / "mobile");
  EXPECT_EQ(file.find("model.layers.1.self_attn.k_cache_scale"), nullptr);  // 0 means none
  for (const TensorView& view : file.tensors())
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.bytes.data()) % static_cast<size_t>(dtype_info(view.dtype).block_bytes),
              0u)
        << view.name << ": readers that map files want it aligned";
}

// transformers saved the golden; reading and writing it is the identity.
TEST_F(MobileExport, GoldenComesOutTheSame) {
  QAT_NEED_SHARED("goldens/gemma4-e2b-mobile");
  const std::string golden = shared_path("goldens/gemma4-e2b-mobile");
  const MobileCheckpoint read(golden);
  TinyMobile model;
  model.table = read.table();
  for (const TensorInfo& info : read.table()) {
    const MobileTensor& tensor = read.tensor(info);
    MobileSpec spec;
    spec.dtype = tensor.dtype;
    spec.scales.resize(tensor.scales.size() / 4);
    for (size_t i = 0; i < spec.scales.size(); ++i) spec.scales[i] = scale_at(tensor.scales, static_cast<int64_t>(i));
    spec.scales_per_row = std::max<int64_t>(1, tensor.scales_per_row);
    spec.input_scale = tensor.input_scale;
    spec.output_scale = tensor.output_scale;
    model.specs.push_back(spec);
    model.data.emplace_back(tensor.data.begin(), tensor.data.end());
  }
  for (int layer = 0; layer < static_cast<int>(read.config().layers.size()); ++layer)
    model.cache_scales.push_back(read.cache_scales(layer));
  write_tiny_mobile(model, golden, dir_ / "again", read.quantization());

  const Safetensors expected(golden + "/model.safetensors"), actual(dir_ / "again/model.safetensors");
  ASSERT_EQ(actual.tensors().size(), expected.tensors().size());
  for (size_t i = 0; i < expected.tensors().size(); ++i) {
    const TensorView &a = actual.tensors()[i], &e = expected.tensors()[i];
    ASSERT_EQ(a.name, e.name);
    EXPECT_EQ(a.dtype, e.dtype) << e.name;
    EXPECT_EQ(a.shape, e.shape) << e.name;
    EXPECT_EQ(bytes_of(a.bytes), bytes_of(e.bytes)) << e.name;
  }
  EXPECT_EQ(actual.metadata(), expected.metadata());
  EXPECT_EQ(Json::parse(file_bytes(dir_ / "again/config.json")), Json::parse(file_bytes(golden + "/config.json")));
  // The block that this program would have made itself gives every module the same width.
  const MobileQuantization described = describe_widths(model.table, model.specs);
  const MobileWidths ours(described, "ours"), theirs(read.quantization(), "theirs");
  for (const TensorInfo& info : model.table) {
    const std::string module = info.name.substr(0, info.name.rfind('.'));
    EXPECT_EQ(ours.bits(module, info.kind), theirs.bits(module, info.kind)) << module;
  }
}

// Whoever wrote a directory in the schema, it comes out with the same tensors, under canonical names.
TEST_F(MobileExport, WrittenAgainEveryTensorIsTheSame) {
  TinyMobile model = quantize_tiny_mobile(dir_ / "hf");
  model.cache_scales[1] = {0.5f, 0.25f, 4};
  for (size_t i = 0; i < model.table.size(); ++i)
    if (model.table[i].kind == TensorKind::linear && code_bits(model.specs[i].dtype) != 0)
      model.specs[i].input_scale = 0.5f + static_cast<float>(i);
  write_tiny_mobile(model, dir_ / "hf", dir_ / "mobile");
  std::vector<std::string> directories = {dir_ / "mobile"};
  if (std::filesystem::exists(shared_path("goldens/gemma4-e2b-mobile")))
    directories.push_back(shared_path("goldens/gemma4-e2b-mobile"));
  for (const std::string& directory : directories) {
    uint64_t last = 0, total = 1;
    export_mobile(directory, dir_ / "again", [&](uint64_t done, uint64_t bytes) {
      EXPECT_GT(done, last);
      last = done;
      total = bytes;
    });
    EXPECT_EQ(last, total);
    const Safetensors expected(directory + "/model.safetensors"), actual(dir_ / "again/model.safetensors");
    ASSERT_EQ(actual.tensors().size(), expected.tensors().size());
    for (const TensorView& e : expected.tensors()) {
      const TensorView& a = actual.at(e.name);
      EXPECT_EQ(a.dtype, e.dtype) << e.name;
      EXPECT_EQ(a.shape, e.shape) << e.name;
      EXPECT_EQ(bytes_of(a.bytes), bytes_of(e.bytes)) << e.name;
    }
    EXPECT_EQ(actual.metadata(), expected.metadata());
    EXPECT_EQ(MobileCheckpoint(dir_ / "again").config().vocab, MobileCheckpoint(directory).config().vocab);
  }
}

// Gemma 4 E2B as published: 35 layers, MLPs of 2 bits from 15 on.
TEST(DescribeWidths, PatternsHoldInAnyOrderAndUnderEveryPrefix) {
  const Json config = Json::parse(gemma4_json());
  ModelConfig model = model_config_from_json(config.dump(), "config.json");
  model.layers.resize(35, model.layers.back());
  std::vector<TensorInfo> table = mobile_table(model);
  std::vector<MobileSpec> specs(table.size());
  const auto bits_of = [](const TensorInfo& info) {
    const bool mlp = info.role == Role::gate || info.role == Role::up || info.role == Role::down;
    return mlp && info.layer < 15 ? 4 : tiny_mobile_bits(info, 1);
  };
  for (size_t i = 0; i < table.size(); ++i)
    if (const int bits = bits_of(table[i])) specs[i].dtype = code_type(bits);
  MobileQuantization quantization = describe_widths(table, specs);
  EXPECT_EQ(quantization.bits, 4);
  EXPECT_TRUE(quantization.embeddings);
  std::vector<std::string> patterns;
  for (const MobileQuantization::Rule& rule : quantization.rules)
    patterns.push_back(rule.pattern + " " + std::to_string(rule.bits));
  EXPECT_THAT(patterns,
              testing::UnorderedElementsAre("\\b(embed_tokens|lm_head)$ 2",
                                            "layers\\.(15|16|17|18|19|20|21|22|23|24|25|26|27|28|29|30|31|32|33|34)\\."
                                            "(mlp\\.down_proj|mlp\\.gate_proj|mlp\\.up_proj)$ 2",
                                            "layers\\.\\d+\\.(per_layer_input_gate|per_layer_projection)$ 8"));
  EXPECT_THAT(quantization.not_converted, testing::ElementsAre(".*\\bper_layer_model_projection$"));
  for (int order = 0; order < 2; ++order) {
    const MobileWidths widths(quantization, "config.json");
    for (const TensorInfo& info : table) {
      for (const std::string& name : hf_name_candidates(info.name))
        EXPECT_EQ(widths.bits(name.substr(0, name.rfind('.')), info.kind), bits_of(info)) << name;
    }
    std::reverse(quantization.rules.begin(), quantization.rules.end());
  }
}

TEST(DescribeWidths, FloatTablesAndOneWidth) {
  const std::vector<TensorInfo> table = mobile_table(model_config_from_json(gemma4_json(), "config.json"));
  std::vector<MobileSpec> specs(table.size());
  for (size_t i = 0; i < table.size(); ++i)
    if (table[i].kind == TensorKind::linear) specs[i].dtype = DType::I8;
  const MobileQuantization quantization = describe_widths(table, specs);
  EXPECT_EQ(quantization.bits, 8);
  EXPECT_FALSE(quantization.embeddings);
  EXPECT_TRUE(quantization.rules.empty());
  // One table packed, the other not.
  for (size_t i = 0; i < table.size(); ++i)
    if (table[i].role == Role::ple_embedding) specs[i].dtype = DType::I4;
  const MobileWidths widths(describe_widths(table, specs), "config.json");
  EXPECT_EQ(widths.bits("model.embed_tokens", TensorKind::embedding), 0);
  EXPECT_EQ(widths.bits("model.language_model.embed_tokens_per_layer", TensorKind::embedding), 4);
  EXPECT_EQ(widths.bits("lm_head", TensorKind::linear), 8);
}

TEST(MobileConfig, KeepsTheTextModelAndReplacesTheBlock) {
  MobileQuantization quantization;
  quantization.embeddings = true;
  quantization.rules = {{"lm_head$", 2}};
  quantization.not_converted = {"per_layer_model_projection"};
  const Json block = Json::parse(R"({"quant_method": "gemma", "num_bits": 4, "quantize_embeddings": true,
    "module_quant_configs": {"lm_head$": {"num_bits": 2}}, "modules_to_not_convert": ["per_layer_model_projection"]})");
  Json text = Json::parse(gemma4_json());
  text["quantization_config"] = {{"quant_method", "gemma"}, {"num_bits", 8}};
  Json expected = Json::parse(gemma4_json());
  expected["tie_word_embeddings"] = false;
  expected["quantization_config"] = block;
  EXPECT_EQ(Json::parse(mobile_config(text.dump(), quantization, "config.json")), expected);

  const Json whole = {{"model_type", "gemma4"},
                      {"architectures", {"Gemma4ForConditionalGeneration"}},
                      {"text_config", Json::parse(gemma4_json())},
                      {"vision_config", Json::object()},
                      {"dtype", "bfloat16"},
                      {"eos_token_id", {1, 106}},
                      {"tie_word_embeddings", true}};
  expected["dtype"] = "bfloat16";  // eos_token_id stays the text model's own
  EXPECT_EQ(Json::parse(mobile_config(whole.dump(), quantization, "config.json")), expected);
  expect_error([&] { mobile_config("[]", quantization, "c.json"); }, "c.json: expected a JSON object");
  expect_error([&] { mobile_config(R"({"text_config": 1})", quantization, "c.json"); }, "text_config: expected");
  expect_error([&] { mobile_config(R"({"text_config": {}, "model_type": "x"})", quantization, "c.json"); },
               "model_type: expected a multimodal model");
}

TEST_F(MobileExport, BadScalesAndOtherPeoplesDirectories) {
  const TinyMobile good = quantize_tiny_mobile(dir_ / "hf");
  const auto refused = [&](const TinyMobile& model, const std::string& out, const std::string& fragment) {
    expect_error([&] { write_tiny_mobile(model, dir_ / "hf", out); }, fragment);
  };
  for (const float wrong : {0.0f, -1.0f, NAN, INFINITY}) {
    TinyMobile model = good;
    model.specs[0].scales[3] = wrong;
    refused(model, dir_ / "mobile", model.table[0].name + ": expected finite scales above 0, found ");
    model = good;
    const size_t q = static_cast<size_t>(find_tensor_info(good.table, Role::q, 0) - good.table.data());
    model.specs[q].input_scale = wrong;
    if (wrong != 0.0f)
      refused(model, dir_ / "mobile", model.table[q].name + ": expected finite activation scales, 0 or above, found ");
  }
  EXPECT_FALSE(std::filesystem::exists(dir_ / "mobile"));
  refused(good, dir_ / "hf", "hf: expected a new directory, an empty one or one in the mobile schema");
  write_tiny_mobile(good, dir_ / "hf", dir_ / "mobile");
  write_tiny_mobile(good, dir_ / "hf", dir_ / "mobile");  // its own kind is replaced
  // Left before the end: the old one stays, nothing else.
  const std::string before = file_bytes(dir_ / "mobile/model.safetensors");
  {
    MobileWriter writer(dir_ / "mobile", dir_ / "hf", good.table, good.specs, good.cache_scales,
                        describe_widths(good.table, good.specs));
    writer.append_rows(writer.order()[0], good.data[writer.order()[0]].data(), 1);
  }
  EXPECT_EQ(file_bytes(dir_ / "mobile/model.safetensors"), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_.path()), {}), 2);
}

}  // namespace
}  // namespace qat
