#include "format/checkpoint.h"

#include <functional>

#include "format/grid.h"
#include "format/number.h"
#include "tests/expect_error.h"
#include "tests/file_size_limit.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLlama = R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256,
  "intermediate_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
  "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
  "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "bos_token_id": 1, "eos_token_id": 2})";

constexpr const char* kGemma3 =
    R"({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 64,
  "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
  "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "query_pre_attn_scalar": 32,
  "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": true, "bos_token_id": 2, "eos_token_id": 1,
  "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                      "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}})";

constexpr const char* kGemma4 =
    R"({"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "hidden_size": 64,
  "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 40, "intermediate_size": 96, "num_hidden_layers": 4,
  "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 64, "num_kv_shared_layers": 2,
  "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"], "sliding_window": 16,
  "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
  "tie_word_embeddings": true, "use_double_wide_mlp": true, "final_logit_softcapping": 30.0, "attention_k_eq_v": false,
  "enable_moe_block": false, "bos_token_id": 2, "eos_token_id": 1,
  "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25},
                      "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}})";

// Numbers that are reproducible and differ from tensor to tensor.
std::vector<float> numbers(int64_t count, uint32_t seed) {
  std::vector<float> out;
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    out.push_back(static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-32f);
  }
  return out;
}

using Edit = std::function<void(std::vector<TensorSpec>*)>;

// An HF directory with a float tensor for every row of the table, after `edit` has had its way with the list.
void write_hf(const std::string& directory, const std::string& config, const Edit& edit = {},
              DType type = DType::BF16) {
  fs::create_directories(directory);
  put_file(directory + "/config.json", config);
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : tensor_table(model_config_from_json(config, "test")))
    specs.push_back({info.name, type, info.shape});
  if (edit) edit(&specs);
  SafetensorsWriter writer(directory + "/model.safetensors", specs);
  for (const TensorSpec& spec : specs) {
    const int64_t count = static_cast<int64_t>(*tensor_bytes(DType::I8, spec.shape));
    const std::vector<float> values = numbers(count, static_cast<uint32_t>(spec.name.size()));
    std::vector<uint8_t> bytes(*tensor_bytes(spec.dtype, spec.shape));
    if (is_grid(spec.dtype)) encode_rows(spec.dtype, values.data(), 1, count, bytes.data());
    writer.append(bytes.data(), bytes.size());
  }
  writer.commit();
}

TensorSpec& named(std::vector<TensorSpec>* specs, const std::string& name) {
  for (TensorSpec& spec : *specs)
    if (spec.name == name) return spec;
  ADD_FAILURE() << "no tensor " << name;
  return specs->front();
}

TEST(FloatCheckpoint, ReadsRowsOfEveryFloatType) {
  for (const DType type : {DType::F32, DType::F16, DType::BF16}) {
    TemporaryDirectory dir;
    write_hf(dir.path(), kLlama, {}, type);
    const FloatCheckpoint checkpoint(dir.path());
    EXPECT_TRUE(checkpoint.notices().empty());
    EXPECT_EQ(checkpoint.dtypes().size(), checkpoint.table().size());
    for (const TensorInfo& info : checkpoint.table()) {
      EXPECT_EQ(checkpoint.dtype(info), type);
      EXPECT_EQ(checkpoint.dtypes().at(info.name), type);
      const int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1, cols = info.shape.back();
      std::vector<float> expected = numbers(rows * cols, static_cast<uint32_t>(info.name.size()));
      fake_quantize_rows(type, expected.data(), 1, rows * cols, expected.data());
      EXPECT_EQ(checkpoint.read(info), expected);
      std::vector<float> last(static_cast<size_t>(cols));
      checkpoint.read_rows(info, rows - 1, -1, last.data());
      EXPECT_EQ(last, std::vector<float>(expected.end() - cols, expected.end()));
    }
  }
}

TEST(FloatCheckpoint, FindsTensorsUnderOtherPrefixes) {
  for (const std::string prefix : {"model.language_model.", "language_model.model."}) {
    TemporaryDirectory dir;
    write_hf(dir.path(), kGemma4, [&](std::vector<TensorSpec>* specs) {
      for (TensorSpec& spec : *specs) spec.name = prefix + spec.name.substr(std::string("model.").size());
    });
    const FloatCheckpoint checkpoint(dir.path());
    EXPECT_TRUE(checkpoint.notices().empty());
    EXPECT_EQ(checkpoint.tensor(checkpoint.table().front()).name, prefix + "embed_tokens.weight");
  }
}

TEST(FloatCheckpoint, TellsWhatItIgnores) {
  TemporaryDirectory dir;
  write_hf(dir.path(), kGemma4, [](std::vector<TensorSpec>* specs) {
    // What tying and K/V sharing leave unused is no news; towers and unknown tensors are.
    specs->push_back({"lm_head.weight", DType::BF16, {40, 64}});
    specs->push_back({"model.layers.3.self_attn.k_proj.weight", DType::BF16, {64, 64}});
    specs->push_back({"model.layers.3.self_attn.v_proj.weight", DType::BF16, {64, 64}});
    specs->push_back({"model.layers.3.self_attn.k_norm.weight", DType::BF16, {64}});
    specs->push_back({"model.vision_tower.a.weight", DType::BF16, {2}});
    specs->push_back({"model.audio_tower.b.weight", DType::BF16, {2}});
    for (const char* name : {"model.w", "model.x", "model.y", "model.z"}) specs->push_back({name, DType::I64, {1}});
  });
  const FloatCheckpoint checkpoint(dir.path());
  EXPECT_EQ(checkpoint.notices(),
            (std::vector<std::string>{"ignored 2 tensors of vision and audio towers",
                                      "ignored 4 unknown tensors: model.w, model.x, model.y, ..."}));
}

TEST(FloatCheckpoint, Gemma3MayHaveRowsThatNoTokenUses) {
  TemporaryDirectory dir;
  const Edit more_rows = [](std::vector<TensorSpec>* specs) {
    named(specs, "model.embed_tokens.weight").shape[0] += 24;
  };
  write_hf(dir / "gemma3", kGemma3, more_rows);
  const FloatCheckpoint checkpoint(dir / "gemma3");
  const TensorInfo& embedding = checkpoint.table().front();
  EXPECT_EQ(embedding.role, Role::token_embedding);
  EXPECT_EQ(checkpoint.tensor(embedding).shape, (std::vector<int64_t>{40, 64}));
  EXPECT_EQ(checkpoint.read(embedding).size(), 40u * 64u);
  write_hf(dir / "gemma4", kGemma4, more_rows);
  expect_error([&] { FloatCheckpoint other(dir / "gemma4"); },
               "tensor model.embed_tokens.weight: expected shape [40, 64], found [64, 64]");
}

TEST(FloatCheckpoint, NamesTheTensorThatIsWrong) {
  TemporaryDirectory dir;
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  const auto refused = [&](const Edit& edit, const std::string& expected) {
    write_hf(dir.path(), kLlama, edit);
    expect_error([&] { FloatCheckpoint checkpoint(dir.path()); }, dir.path() + ": " + expected);
  };
  refused([&](auto* specs) { named(specs, q).name = "model.layers.1.self_attn.query.weight"; },
          "expected tensor " + q + " of shape [128, 256], found none");
  refused(
      [&](auto* specs) {
        named(specs, q).shape = {256, 128};
      },
      "tensor " + q + ": expected shape [128, 256], found [256, 128]");
  refused([&](auto* specs) { named(specs, q).shape = {128 * 256}; },
          "tensor " + q + ": expected shape [128, 256], found [32768]");
  refused([&](auto* specs) { named(specs, q).dtype = DType::U8; },
          "tensor " + q + ": expected F32, F16, BF16 or F64, found U8");
  refused(
      [&](auto* specs) {
        named(specs, "model.norm.weight").shape = {1, 256};
      },
      "tensor model.norm.weight: expected shape [256], found [1, 256]");
}

TEST(FloatCheckpoint, OpensCheckpointsOfEveryArchitecture) {
  QAT_NEED_SHARED("goldens/gemma4-e2b");
  for (const char* name :
       {"goldens/llama", "goldens/gemma3", "goldens/gemma4-e2b", "goldens/gemma4-e4b", "goldens/gemma4-31b",
        "checkpoints/stories260K", "checkpoints/gemma4-micro", "checkpoints/gemma4-mini"}) {
    const FloatCheckpoint checkpoint(shared_path(name));
    EXPECT_TRUE(checkpoint.notices().empty()) << name << ": " << checkpoint.notices().front();
  }
}

// Rows of every tensor on the grid that `plan` gives it.
class QuantizedCheckpointTest : public testing::Test {
 protected:
  void prepare(const std::string& config, const Plan& plan) {
    write_hf(source_, config);
    put_file(source_ + "/tokenizer.json", "{}");
    put_file(source_ + "/model.bin", "not copied");
    plan_ = plan;
    table_ = tensor_table(model_config_from_json(config, "test"));
    resolved_ = resolve_plan(plan, table_, FloatCheckpoint(source_).dtypes());
  }
  std::vector<uint8_t> blocks(const TensorInfo& info) const {
    const int64_t cols = info.shape.back(), rows = info.shape.size() == 2 ? info.shape[0] : 1;
    const DType grid = resolved_.at(info.name).grid;
    std::vector<uint8_t> out(static_cast<size_t>(rows) * row_bytes(grid, cols));
    encode_rows(grid, numbers(rows * cols, static_cast<uint32_t>(info.name.size())).data(), rows, cols, out.data());
    return out;
  }
  // Appends `step` rows at a time.
  void write(const std::string& directory, int64_t step, bool commit = true) const {
    QuantizedCheckpointWriter writer(directory, source_, table_, plan_, resolved_);
    for (const TensorInfo& info : table_) {
      const std::vector<uint8_t> bytes = blocks(info);
      const int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
      const size_t stride = bytes.size() / static_cast<size_t>(rows);
      for (int64_t row = 0; row < rows; row += step)
        writer.append_rows(info, bytes.data() + static_cast<size_t>(row) * stride, std::min(step, rows - row));
    }
    if (commit) writer.commit();
  }
  // Rewrites the safetensors of a checkpoint after `edit`, tensor contents filled with `fill`.
  static void rewrite(const std::string& directory, const Edit& edit, uint8_t fill = 0) {
    std::vector<TensorSpec> specs;
    const Safetensors old(directory);
    for (const TensorView& view : old.tensors()) specs.push_back({view.name, view.dtype, view.shape});
    edit(&specs);
    SafetensorsWriter writer(directory + "/model.safetensors", specs);
    for (const TensorSpec& spec : specs) {
      const std::vector<uint8_t> bytes(*tensor_bytes(spec.dtype, spec.shape), fill);
      writer.append(bytes.data(), bytes.size());
    }
    writer.commit();
  }

  TemporaryDirectory dir_;
  const std::string source_ = dir_ / "hf", out_ = dir_ / "q";
  Plan plan_;
  std::vector<TensorInfo> table_;
  std::map<std::string, PlanEntry> resolved_;
};

Plan mixed_plan() {
  Plan plan = plan_from_name("q4_0");
  plan.rules = {{"q_proj", DType::Q8_0},
                {"k_proj", DType::F16},
                {"v_proj", DType::BF16},
                {"gate_proj", DType::F32},
                {"layers.1.mlp.up_proj", DType::Q2_0},
                {"up_proj", DType::Q6_K}};
  return plan;
}

TEST_F(QuantizedCheckpointTest, GivesBackTheBlocksOfEveryGrid) {
  prepare(kLlama, mixed_plan());
  std::map<DType, int> used;
  for (const auto& [name, entry] : resolved_) ++used[entry.grid];
  ASSERT_EQ(used.size(), 7u);  // F32, F16, BF16, Q2_0, Q4_0, Q8_0, Q6_K
  for (const int64_t step : {1, 7, 1000}) {
    write(out_, step);
    const QuantizedCheckpoint checkpoint(out_);
    EXPECT_EQ(checkpoint.config().hidden, 256);
    for (const TensorInfo& info : checkpoint.table()) {
      SCOPED_TRACE(info.name);
      EXPECT_EQ(checkpoint.grid(info), resolved_.at(info.name).grid);
      const std::vector<uint8_t> expected = blocks(info);
      std::vector<uint8_t> found(expected.size(), 0xee);
      checkpoint.read_blocks(info, 0, -1, found.data());
      EXPECT_EQ(found, expected);
      if (info.shape.size() != 2) continue;
      const size_t stride = expected.size() / static_cast<size_t>(info.shape[0]);
      std::vector<uint8_t> rows(3 * stride);
      checkpoint.read_blocks(info, 5, 3, rows.data());
      EXPECT_TRUE(std::equal(rows.begin(), rows.end(), expected.begin() + static_cast<int64_t>(5 * stride)));
    }
    EXPECT_EQ(resolved_plan_from_json(checkpoint.plan_json(), "plan").size(), table_.size());
  }
  EXPECT_EQ(read_file(out_ + "/config.json"), kLlama);
  EXPECT_TRUE(fs::exists(out_ + "/tokenizer.json"));
  EXPECT_FALSE(fs::exists(out_ + "/model.bin"));
}

TEST_F(QuantizedCheckpointTest, TensorsLargerThanAPieceAreWhole) {
  // 9000 x 256 elements are three pieces.
  std::string config = kLlama;
  config.replace(config.find("\"vocab_size\": 40"), 16, "\"vocab_size\": 9000");
  prepare(config, mixed_plan());
  write(out_, 5000);
  const QuantizedCheckpoint checkpoint(out_);
  const TensorInfo& embedding = table_.front();
  const std::vector<uint8_t> expected = blocks(embedding);
  std::vector<uint8_t> found(expected.size());
  checkpoint.read_blocks(embedding, 0, -1, found.data());
  EXPECT_TRUE(found == expected);
}

TEST_F(QuantizedCheckpointTest, CodesAndScalesAreAsDocumented) {
  prepare(kLlama, mixed_plan());
  write(out_, 1000);
  const Safetensors file(out_);
  const TensorInfo& down = *find_tensor_info(table_, Role::down, 1);
  const TensorView& codes = file.at(down.name + ".codes");
  EXPECT_EQ(codes.dtype, DType::U8);
  EXPECT_EQ(codes.shape, (std::vector<int64_t>{256, 144}));
  const TensorView& scales = file.at(down.name + ".scales");
  EXPECT_EQ(scales.dtype, DType::F16);
  EXPECT_EQ(scales.shape, (std::vector<int64_t>{256, 9}));
  // value = scale * (code - 8), two codes per byte, low half first.
  std::vector<float> values(256 * 288);
  decode_rows(DType::Q4_0, blocks(down).data(), 256, 288, values.data());
  const std::vector<float> scale = to_floats(scales, "q");
  for (size_t i = 0; i < values.size(); ++i) {
    const int code = (codes.bytes[i / 2] >> (4 * (i % 2))) & 15;
    ASSERT_EQ(values[i], scale[i / 32] * static_cast<float>(code - 8)) << i;
  }
  const TensorInfo& up = *find_tensor_info(table_, Role::up, 0);
  EXPECT_EQ(file.at(up.name + ".codes").shape, (std::vector<int64_t>{288, 256}));
  EXPECT_EQ(file.at(up.name + ".codes").dtype, DType::I8);
  EXPECT_EQ(file.at(up.name + ".scales").shape, (std::vector<int64_t>{288, 1}));
  EXPECT_EQ(file.at(up.name + ".sub_scales").shape, (std::vector<int64_t>{288, 16}));
}

TEST_F(QuantizedCheckpointTest, AppearsWholeOrNotAtAll) {
  prepare(kLlama, mixed_plan());
  write(out_, 1000, false);
  EXPECT_FALSE(fs::exists(out_));
  {
    const FileSizeLimit limit(100000);
    expect_error([&] { write(out_, 1000); }, "model.safetensors: cannot write");
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_.path()), {}), 1);  // the source
  write(out_, 1000);
  write(out_, 1000);  // replaces its own kind
  expect_error([&] { write(source_, 1000); },
               "will not replace this directory: it is not empty and holds no qat_plan.json");
  EXPECT_NO_THROW(FloatCheckpoint checkpoint(source_));
}

TEST_F(QuantizedCheckpointTest, NamesWhatIsWrong) {
  prepare(kLlama, mixed_plan());
  const auto opens = [&] { QuantizedCheckpoint checkpoint(out_); };
  const std::string down = "model.layers.0.mlp.down_proj.weight", up = "model.layers.0.mlp.up_proj.weight";
  write(out_, 1000);
  rewrite(out_, [&](auto* specs) { named(specs, down + ".codes").name = "x"; });
  expect_error(opens, "expected tensor " + down + ".codes, found none");
  write(out_, 1000);
  rewrite(out_, [&](auto* specs) { named(specs, down + ".scales").shape = {256, 8}; });
  expect_error(opens, "tensor " + down + ".scales: expected F16 [256, 9], found F16 [256, 8]");
  write(out_, 1000);
  rewrite(out_, [&](auto* specs) { named(specs, up + ".sub_scales").dtype = DType::U8; });
  expect_error(opens, "tensor " + up + ".sub_scales: expected I8 [288, 16], found U8 [288, 16]");

  write(out_, 1000);
  rewrite(
      out_, [](auto*) {}, 100);  // every code is 100
  const QuantizedCheckpoint checkpoint(out_);
  std::vector<uint8_t> blocks_out(288 * row_bytes(DType::Q6_K, 256));
  expect_error([&] { checkpoint.read_blocks(*find_tensor_info(table_, Role::up, 0), 0, -1, blocks_out.data()); },
               "tensor " + up + ".codes: expected codes from -32 to 31, found 100");
  expect_error([&] { checkpoint.read_blocks(*find_tensor_info(table_, Role::up, 1), 0, -1, blocks_out.data()); },
               "mlp.up_proj.weight.codes: expected codes from -1 to 2, found 100");

  write(out_, 1000);
  auto other = resolved_;
  other.erase(down);
  put_file(out_ + "/qat_plan.json", plan_to_json(plan_, other));
  expect_error(opens, "qat_plan.json: expected a grid for tensor " + down + ", found none");
  other = resolved_;
  other["model.extra.weight"] = PlanEntry();
  put_file(out_ + "/qat_plan.json", plan_to_json(plan_, other));
  expect_error(opens, "qat_plan.json: tensor model.extra.weight is not part of the model in config.json");
  other = resolved_;
  other[down].grid = DType::Q6_K;
  put_file(out_ + "/qat_plan.json", plan_to_json(plan_, other));
  expect_error(
      opens, "tensor " + down + ": expected a matrix with rows of a multiple of 256 for Q6_K, found shape [256, 288]");
  other = resolved_;
  other["model.norm.weight"].grid = DType::Q4_0;
  put_file(out_ + "/qat_plan.json", plan_to_json(plan_, other));
  expect_error(opens,
               "tensor model.norm.weight: expected a matrix with rows of a multiple of 32 for Q4_0, found shape [256]");
}

TEST_F(QuantizedCheckpointTest, KindsAreToldApartByContent) {
  prepare(kLlama, mixed_plan());
  write(out_, 1000);
  GgufWriter(dir_ / "misnamed.safetensors", {}, {}).commit();
  EXPECT_EQ(detect_model_kind(source_), ModelKind::hf_directory);
  EXPECT_EQ(detect_model_kind(out_), ModelKind::quantized_checkpoint);
  EXPECT_EQ(detect_model_kind(dir_ / "misnamed.safetensors"), ModelKind::gguf);
  const std::string looked_for =
      ": expected a GGUF file, a directory with config.json and safetensors, or a quantized checkpoint "
      "(qat_plan.json), found ";
  expect_error([&] { detect_model_kind(source_ + "/config.json"); },
               "config.json" + looked_for + "a file of another format");
  expect_error([&] { detect_model_kind(dir_.path()); }, looked_for + "a directory without either");
  expect_error([&] { detect_model_kind(dir_ / "none"); }, "none" + looked_for + "nothing");
}

}  // namespace
}  // namespace qat
