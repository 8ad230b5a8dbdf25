// The table against published tensor counts, shapes, and the files of real checkpoints.
#include "format/tensor_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "format/safetensors.h"
#include "tests/format/model_configs.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

using ::testing::ElementsAre;

std::vector<TensorInfo> table_of(const std::string& json) {
  return tensor_table(model_config_from_json(json, "config.json"));
}

const TensorInfo& named(const std::vector<TensorInfo>& table, const std::string& gguf) {
  for (const TensorInfo& info : table)
    if (info.gguf == gguf) return info;
  ADD_FAILURE() << "no tensor " << gguf;
  return table[0];
}

TEST(TensorTable, CountsOfPublishedGgufFiles) {
  // Gemma 4 files hold one tensor more, rope_freqs.weight, which the converter makes up.
  EXPECT_EQ(table_of(kGemma4E2B).size() + 1, 541u);
  EXPECT_EQ(table_of(kGemma4E4B).size() + 1, 666u);
  EXPECT_EQ(table_of(kGemma4_12B).size() + 1, 667u);
  EXPECT_EQ(table_of(kGemma4_31B).size() + 1, 833u);
  EXPECT_EQ(table_of(kGemma3_4B).size(), 444u);
  EXPECT_EQ(table_of(kLlama32_1B).size() + 1, 147u);
  EXPECT_EQ(table_of(patched(kLlama32_1B, {{"tie_word_embeddings", false}})).size() + 1, 148u);
}

TEST(TensorTable, ShapesOfE2B) {
  const std::vector<TensorInfo> table = table_of(kGemma4E2B);
  const std::pair<const char*, std::vector<int64_t>> expected[] = {
      {"token_embd.weight", {262144, 1536}},         {"per_layer_token_embd.weight", {262144, 8960}},
      {"per_layer_model_proj.weight", {8960, 1536}}, {"per_layer_proj_norm.weight", {256}},
      {"blk.0.attn_q.weight", {2048, 1536}},         {"blk.4.attn_q.weight", {4096, 1536}},
      {"blk.0.attn_k.weight", {256, 1536}},          {"blk.4.attn_v.weight", {512, 1536}},
      {"blk.0.attn_output.weight", {1536, 2048}},    {"blk.34.attn_output.weight", {1536, 4096}},
      {"blk.14.ffn_up.weight", {6144, 1536}},        {"blk.15.ffn_down.weight", {1536, 12288}},
      {"blk.0.inp_gate.weight", {256, 1536}},        {"blk.0.proj.weight", {1536, 256}},
      {"blk.0.attn_q_norm.weight", {256}},           {"blk.4.attn_k_norm.weight", {512}},
      {"blk.0.layer_output_scale.weight", {1}},      {"output_norm.weight", {1536}},
  };
  for (const auto& [name, shape] : expected) EXPECT_EQ(named(table, name).shape, shape) << name;
  for (int layer = 15; layer < 35; ++layer)
    for (const Role role : {Role::k, Role::v, Role::k_norm})
      EXPECT_EQ(find_tensor_info(table, role, layer), nullptr) << layer;
}

TEST(TensorTable, AKEqualsVLayerHasNoV) {
  const std::vector<TensorInfo> table = table_of(kGemma4_31B);
  EXPECT_NE(find_tensor_info(table, Role::v, 4), nullptr);
  EXPECT_EQ(find_tensor_info(table, Role::v, 5), nullptr);
  EXPECT_EQ(named(table, "blk.5.attn_k.weight").shape, (std::vector<int64_t>{2048, 5376}));
  EXPECT_EQ(named(table, "blk.5.attn_q.weight").shape, (std::vector<int64_t>{16384, 5376}));
  EXPECT_EQ(find_tensor_info(table, Role::output), nullptr);
}

TEST(TensorTable, NamesAndOrder) {
  std::vector<std::string> names, ggufs;
  for (const TensorInfo& info :
       table_of(patched(kLlama32_1B, {{"num_hidden_layers", 1}, {"tie_word_embeddings", false}}))) {
    names.push_back(info.name);
    ggufs.push_back(info.gguf);
  }
  EXPECT_THAT(names, ElementsAre("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                                 "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                                 "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                                 "model.layers.0.post_attention_layernorm.weight",
                                 "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight",
                                 "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"));
  EXPECT_THAT(ggufs, ElementsAre("token_embd.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight",
                                 "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.0.attn_output.weight",
                                 "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight",
                                 "blk.0.ffn_down.weight", "output_norm.weight", "output.weight"));
  const std::vector<TensorInfo> gemma = table_of(kGemma4E2B);
  EXPECT_EQ(named(gemma, "blk.3.ffn_norm.weight").name, "model.layers.3.pre_feedforward_layernorm.weight");
  EXPECT_EQ(named(gemma, "blk.3.post_attention_norm.weight").name, "model.layers.3.post_attention_layernorm.weight");
  EXPECT_EQ(named(gemma, "blk.3.post_ffw_norm.weight").name, "model.layers.3.post_feedforward_layernorm.weight");
  EXPECT_EQ(named(gemma, "blk.3.post_norm.weight").name, "model.layers.3.post_per_layer_input_norm.weight");
  EXPECT_EQ(named(gemma, "blk.3.layer_output_scale.weight").name, "model.layers.3.layer_scalar");
  EXPECT_EQ(named(gemma, "per_layer_proj_norm.weight").name, "model.per_layer_projection_norm.weight");
}

TEST(TensorTable, EveryNameOnce) {
  for (const char* config : {kGemma4E2B, kGemma4_31B, kGemma3_4B, kLlama32_1B}) {
    std::set<std::string> names, ggufs;
    for (const TensorInfo& info : table_of(config)) {
      EXPECT_TRUE(names.insert(info.name).second) << info.name;
      EXPECT_TRUE(ggufs.insert(info.gguf).second) << info.gguf;
      EXPECT_EQ(info.shape.size(), info.kind == TensorKind::linear || info.kind == TensorKind::embedding ? 2u : 1u)
          << info.name;
      EXPECT_EQ(info.quantizable, info.shape.size() == 2 && info.role != Role::ple_model_projection) << info.name;
    }
  }
}

TEST(TensorTable, SpellingsOfHfFiles) {
  EXPECT_THAT(hf_name_candidates("model.layers.3.mlp.up_proj.weight"),
              ElementsAre("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight",
                          "language_model.model.layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"));
  EXPECT_THAT(hf_name_candidates("lm_head.weight"),
              ElementsAre("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"));
}

TEST(TensorTable, Towers) {
  for (const char* name :
       {"model.vision_tower.encoder.layers.0.mlp.up_proj.weight", "vision_tower.x", "model.audio_tower.x",
        "model.embed_vision.embedding_projection.weight", "model.embed_audio.x", "multi_modal_projector.x",
        "model.vision_embedder.patch_dense.weight"})
    EXPECT_TRUE(is_tower_tensor(name)) << name;
  for (const char* name :
       {"model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight", "vision", ""})
    EXPECT_FALSE(is_tower_tensor(name)) << name;
}

// ------------------------------------------------------------------ the shared data, when it is there

TEST(TensorTableShared, EqualsTheFilesOfCheckpoints) {
  QAT_NEED_SHARED("goldens");
  for (const char* model :
       {"checkpoints/stories260K", "checkpoints/gemma4-micro", "checkpoints/gemma4-mini", "goldens/llama",
        "goldens/gemma3", "goldens/gemma4-e2b", "goldens/gemma4-e4b", "goldens/gemma4-31b"}) {
    const ModelConfig config = model_config_from_hf(shared_path(model));
    const std::vector<TensorInfo> table = tensor_table(config);
    const Safetensors file(shared_path(std::string(model) + "/model.safetensors"));
    EXPECT_EQ(table.size(), file.tensors().size()) << model;
    for (const TensorInfo& info : table) {
      const TensorView* tensor = file.find(info.name);
      ASSERT_NE(tensor, nullptr) << model << " " << info.name;
      EXPECT_EQ(tensor->shape, info.shape) << model << " " << info.name;
    }
  }
}

}  // namespace
}  // namespace qat
