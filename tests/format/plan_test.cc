// llama-quantize's choice of types (checked against the program with the same tables), rules, fallbacks, and the file.
#include "format/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "format/error.h"
#include "tests/format/model_configs.h"

namespace qat {
namespace {

using ::testing::HasSubstr;

struct Model {
  std::vector<TensorInfo> table;
  std::map<std::string, DType> types;
};

Model model_of(const std::string& json, DType type = DType::BF16) {
  Model model;
  model.table = tensor_table(model_config_from_json(json, "config.json"));
  for (const TensorInfo& info : model.table) model.types[info.name] = type;
  return model;
}

// Grid by GGUF name.
std::map<std::string, DType> grids(const Plan& plan, const Model& model) {
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, model.table, model.types);
  EXPECT_EQ(resolved.size(), model.table.size());
  std::map<std::string, DType> result;
  for (const TensorInfo& info : model.table) result[info.gguf] = resolved.at(info.name).grid;
  return result;
}

std::map<DType, int> counts(const std::map<std::string, DType>& grids) {
  std::map<DType, int> result;
  for (const auto& entry : grids) ++result[entry.second];
  return result;
}

std::string error_of(const Plan& plan, const Model& model) {
  try {
    resolve_plan(plan, model.table, model.types);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

// 96 wide as the goldens: 32 divides it and 256 does not; FFN of 172, which nothing divides.
const char* const kOddLlama =
    R"({"model_type": "llama", "hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 172,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 320})";

TEST(Plan, Q4_0OfATiedModel) {
  const std::map<std::string, DType> g = grids(plan_from_name("q4_0"), model_of(kGemma4E2B));
  EXPECT_EQ(g.at("token_embd.weight"), DType::Q6_K);
  EXPECT_EQ(g.at("per_layer_token_embd.weight"), DType::Q6_K);
  EXPECT_EQ(g.at("per_layer_model_proj.weight"), DType::BF16);
  EXPECT_EQ(g.at("blk.0.inp_gate.weight"), DType::Q4_0);
  EXPECT_EQ(g.at("blk.0.proj.weight"), DType::Q4_0);
  EXPECT_EQ(g.at("blk.0.layer_output_scale.weight"), DType::F32);
  EXPECT_EQ(g.at("blk.0.attn_q_norm.weight"), DType::F32);
  const std::map<DType, int> c = counts(g);
  EXPECT_EQ(c.at(DType::Q4_0), 35 * 7 + 15 * 2);
  EXPECT_EQ(c.at(DType::Q6_K), 2);
  EXPECT_EQ(c.at(DType::BF16), 1);
}

TEST(Plan, Q4_0OfAModelWithItsOwnHead) {
  const std::map<std::string, DType> g =
      grids(plan_from_name("q4_0"), model_of(patched(kLlama32_1B, {{"tie_word_embeddings", false}})));
  EXPECT_EQ(g.at("token_embd.weight"), DType::Q4_0);
  EXPECT_EQ(g.at("output.weight"), DType::Q6_K);
}

TEST(Plan, Q8_0AndFloats) {
  const Model model = model_of(kGemma4E2B);
  EXPECT_EQ(counts(grids(plan_from_name("q8_0"), model)).at(DType::Q8_0), 35 * 7 + 15 * 2 + 2);
  EXPECT_EQ(counts(grids(plan_from_name("f16"), model)).at(DType::F16), 35 * 7 + 15 * 2 + 2);
  EXPECT_EQ(counts(grids(plan_from_name("f32"), model)).at(DType::BF16),
            1);  // per_layer_model_projection is left alone
  EXPECT_EQ(counts(grids(plan_from_name("bf16"), model)).count(DType::F16), 0u);
}

TEST(Plan, NoneKeepsEveryType) {
  Model model = model_of(kGemma4E2B);
  model.types["model.norm.weight"] = DType::F16;
  const std::map<std::string, DType> g = grids(plan_from_name("none"), model);
  for (const auto& [name, grid] : g) EXPECT_EQ(grid, name == "output_norm.weight" ? DType::F16 : DType::BF16) << name;
}

TEST(Plan, RowsThatBlocksDoNotDivide) {
  const Model model = model_of(kOddLlama, DType::F32);
  const std::map<std::string, PlanEntry> r = resolve_plan(plan_from_name("q4_0"), model.table, model.types);
  EXPECT_EQ(r.at("lm_head.weight").grid, DType::Q8_0);
  EXPECT_EQ(r.at("lm_head.weight").note, "96 columns are no multiple of 256: Q8_0");
  EXPECT_EQ(r.at("model.layers.0.mlp.down_proj.weight").grid, DType::F16);
  EXPECT_EQ(r.at("model.layers.0.mlp.down_proj.weight").note, "172 columns are no multiple of 32: F16");
  EXPECT_EQ(r.at("model.layers.0.mlp.up_proj.weight").grid, DType::Q4_0);
  EXPECT_EQ(r.at("model.layers.0.mlp.up_proj.weight").note, "");
  Plan down = plan_from_name("q4_0");
  down.rules = {{"ffn_down", DType::Q6_K}};
  EXPECT_EQ(resolve_plan(down, model.table, model.types).at("model.layers.0.mlp.down_proj.weight").grid, DType::F16);
}

TEST(Plan, TypesForEmbeddingsAndHeadWhenTied) {
  const Model model = model_of(kGemma4E2B);
  Plan plan = plan_from_name("q4_0");
  const auto both = [&] {
    return std::pair(grids(plan, model).at("token_embd.weight"), grids(plan, model).at("per_layer_token_embd.weight"));
  };
  plan.has_output_type = true;
  plan.output_type = DType::Q8_0;  // the head is the embedding
  EXPECT_EQ(both(), std::pair(DType::Q8_0, DType::Q8_0));
  plan.has_embedding_type = true;
  plan.embedding_type = DType::F16;  // goes first
  EXPECT_EQ(both(), std::pair(DType::F16, DType::F16));
  plan.has_embedding_type = false;
  plan.pure = true;  // no mixture, and no output matrix
  EXPECT_EQ(both(), std::pair(DType::Q4_0, DType::Q4_0));
}

TEST(Plan, TypesForEmbeddingsAndHeadWhenNotTied) {
  const Model model = model_of(patched(kLlama32_1B, {{"tie_word_embeddings", false}}));
  Plan plan = plan_from_name("q4_0");
  plan.pure = true;
  EXPECT_EQ(grids(plan, model).at("output.weight"), DType::Q4_0);
  plan.has_output_type = true;
  plan.output_type = DType::F16;
  plan.has_embedding_type = true;
  plan.embedding_type = DType::Q8_0;
  EXPECT_EQ(grids(plan, model).at("output.weight"), DType::F16);
  EXPECT_EQ(grids(plan, model).at("token_embd.weight"), DType::Q8_0);
  EXPECT_EQ(grids(plan, model).at("blk.0.attn_q.weight"), DType::Q4_0);
}

TEST(Plan, TheFirstRuleThatMatchesEitherNameDecides) {
  const Model model = model_of(kGemma4E2B);
  Plan plan = plan_from_name("q4_0");
  plan.rules = {{R"(layers\.\d\.mlp\.(up|gate)_proj)", DType::Q8_0},  // one digit, HF's names
                {R"(^blk\.1?\d\.ffn_)", DType::F16},                  // up to 19, GGUF's names
                {"token_embd", DType::Q4_0},
                {".", DType::BF16}};
  const std::map<std::string, DType> g = grids(plan, model);
  EXPECT_EQ(g.at("blk.9.ffn_up.weight"), DType::Q8_0);
  EXPECT_EQ(g.at("blk.9.ffn_down.weight"), DType::F16);
  EXPECT_EQ(g.at("blk.10.ffn_up.weight"), DType::F16);
  EXPECT_EQ(g.at("blk.20.ffn_up.weight"), DType::BF16);
  EXPECT_EQ(g.at("token_embd.weight"), DType::Q4_0);
  EXPECT_EQ(g.at("per_layer_token_embd.weight"), DType::Q4_0);
  EXPECT_EQ(g.at("blk.0.attn_norm.weight"), DType::F32);  // rules are about matrices
  EXPECT_EQ(g.at("per_layer_model_proj.weight"), DType::BF16);
  plan.keep = true;
  EXPECT_EQ(grids(plan, model).at("blk.9.ffn_up.weight"), DType::Q8_0);
}

TEST(Plan, WhatIsWrongIsNamed) {
  const Model model = model_of(kOddLlama);
  Plan plan = plan_from_name("q4_0");
  plan.rules = {{"ffn_(", DType::Q8_0}};
  EXPECT_THAT(error_of(plan, model),
              HasSubstr("plan rule \"ffn_(\": not a regular expression: missing closing parenthesis"));
  plan.rules = {{"ffn", DType::Q4_1}};
  EXPECT_THAT(error_of(plan, model), HasSubstr("plan rule \"ffn\": expected a type that can be written"));
  EXPECT_THAT(error_of(plan, model), HasSubstr("found Q4_1"));
  plan.rules = {{"^(([a-z._0-9])+)+[^a-z._0-9]", DType::Q8_0}};  // exponential: must end
  EXPECT_THAT(error_of(plan, model), HasSubstr("cannot be matched"));
  plan.rules = {{"ffn_donw", DType::Q8_0}};
  EXPECT_THAT(error_of(plan, model), HasSubstr("plan rule \"ffn_donw\": matches no tensor"));
  plan.rules.clear();
  plan.has_embedding_type = true;
  plan.embedding_type = DType::Q2_K;
  EXPECT_THAT(error_of(plan, model), HasSubstr("token embedding type"));
  EXPECT_THROW(plan_from_name("q4_k"), Error);
}

TEST(Plan, ThereAndBackAsJson) {
  const Model model = model_of(kOddLlama);
  Plan plan = plan_from_name("q4_0");
  plan.rules = {{"attn_[\"q]\\.", DType::Q8_0}};
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, model.table, model.types);
  const std::string json = plan_to_json(plan, resolved);
  EXPECT_THAT(json, HasSubstr("172 columns"));
  const std::map<std::string, DType> back = resolved_plan_from_json(json, "qat_plan.json");
  ASSERT_EQ(back.size(), resolved.size());
  for (const auto& [name, entry] : resolved) EXPECT_EQ(back.at(name), entry.grid) << name;
  for (size_t size = 0; size + 2 < json.size(); size += 11)
    EXPECT_THROW(resolved_plan_from_json(json.substr(0, size), "qat_plan.json"), Error) << size;
}

TEST(Plan, HostileJson) {
  const auto error = [](const std::string& text) {
    try {
      resolved_plan_from_json(text, "qat_plan.json");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(error(R"({"format": "qat_plan", "version": 1, "tensors": {"a": "Q4_0", "b": "bf16"}})"), "");
  EXPECT_THAT(error("nonsense"), HasSubstr("qat_plan.json: expected JSON"));
  EXPECT_THAT(error("[1, 2]"), HasSubstr("format"));
  EXPECT_THAT(error(R"({"version": 1, "tensors": {}})"), HasSubstr("format"));
  EXPECT_THAT(error(R"({"format": "qat_plan", "version": 2, "tensors": {}})"),
              HasSubstr("version: expected 1, found 2"));
  EXPECT_THAT(error(R"({"format": "qat_plan", "version": 1})"), HasSubstr("tensors"));
  EXPECT_THAT(error(R"({"format": "qat_plan", "version": 1, "tensors": []})"), HasSubstr("tensors"));
  EXPECT_THAT(error(R"({"format": "qat_plan", "version": 1, "tensors": {"a": 7}})"),
              HasSubstr("tensors: a: expected the name of a type, found 7"));
  EXPECT_THAT(error(R"({"format": "qat_plan", "version": 1, "tensors": {"a": "Q9_9"}})"), HasSubstr("Q9_9"));
  EXPECT_THAT(error(R"({"format": "qat_plan", "version": 1, "tensors": {"a": "Q4_1"}})"), HasSubstr("found Q4_1"));
}

// format-facts.md 7.1, and the modules of the published checkpoints.
TEST(MobilePlan, WidthsOfE2B) {
  const std::map<std::string, DType> g = grids(plan_from_name("mobile"), model_of(kGemma4E2B));
  EXPECT_EQ(g.at("token_embd.weight"), DType::I2);
  EXPECT_EQ(g.at("per_layer_token_embd.weight"), DType::I4);
  EXPECT_EQ(g.at("per_layer_model_proj.weight"), DType::BF16);
  EXPECT_EQ(g.at("blk.0.attn_q.weight"), DType::I4);
  EXPECT_EQ(g.at("blk.34.attn_output.weight"), DType::I4);
  EXPECT_EQ(g.at("blk.14.ffn_gate.weight"), DType::I4);
  EXPECT_EQ(g.at("blk.15.ffn_gate.weight"), DType::I2);
  EXPECT_EQ(g.at("blk.34.ffn_down.weight"), DType::I2);
  EXPECT_EQ(g.at("blk.3.inp_gate.weight"), DType::I8);
  EXPECT_EQ(g.at("blk.3.proj.weight"), DType::I8);
  EXPECT_EQ(g.at("blk.3.attn_norm.weight"), DType::BF16);  // floats stay as the checkpoint has them
}

TEST(MobilePlan, WidthsOfE4B) {
  const Model model = model_of(patched(kGemma4E2B, {{"use_double_wide_mlp", false}}));
  const std::map<std::string, DType> g = grids(plan_from_name("mobile"), model);
  EXPECT_EQ(g.at("blk.34.ffn_down.weight"), DType::I4);
  EXPECT_EQ(g.at("per_layer_token_embd.weight"), DType::I2);
}

TEST(MobilePlan, RulesChooseWidths) {
  Plan plan = plan_from_name("mobile");
  plan.rules = {{"ffn_", DType::I4}, {"embed_tokens.weight", DType::BF16}};
  const std::map<std::string, DType> g = grids(plan, model_of(kGemma4E2B));
  EXPECT_EQ(g.at("blk.34.ffn_down.weight"), DType::I4);
  EXPECT_EQ(g.at("token_embd.weight"), DType::BF16);
  plan.rules = {{"no_such_module", DType::I4}};
  EXPECT_THAT(error_of(plan, model_of(kGemma4E2B)), HasSubstr("matches no tensor that can be quantized"));
}

TEST(MobilePlan, GridsOfTheOtherPlansAreRefused) {
  Plan plan = plan_from_name("mobile");
  plan.rules = {{"ffn_down", DType::Q4_0}};
  EXPECT_THAT(error_of(plan, model_of(kGemma4E2B)), HasSubstr("expected a type of the mobile schema"));
  plan = plan_from_name("q4_0");
  plan.rules = {{"ffn_down", DType::I4}};
  EXPECT_THAT(error_of(plan, model_of(kGemma4E2B)), HasSubstr("expected a type that can be written"));
}

}  // namespace
}  // namespace qat
