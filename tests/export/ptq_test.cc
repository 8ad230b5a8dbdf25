// quantize_checkpoint: what the quantized checkpoint holds is each tensor's rows encoded by the rule asked for,
// whatever the slabs and threads were.
#include "export/ptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/export/tiny_model.h"

namespace qat {
namespace {

using ::testing::HasSubstr;

std::string error_text(const std::string& model, const std::string& plan, const std::string& out) {
  try {
    quantize_checkpoint(model, plan_from_name(plan), {}, out);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::vector<uint8_t> stored_blocks(const QuantizedCheckpoint& checkpoint, const TensorInfo& info) {
  const int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
  std::vector<uint8_t> blocks(static_cast<size_t>(rows) * row_bytes(checkpoint.grid(info), info.shape.back()));
  checkpoint.read_blocks(info, 0, rows, blocks.data());
  return blocks;
}

TEST(Quantize, ReferenceRuleIsTheGridsOwnEncodingOfEveryTensor) {
  // 20000 x 64 weights in a table and 4096-wide rows: several slabs, several chunks per thread.
  for (const std::string& json : {llama_json(false, 4096, 20000), gemma3_json(), gemma4_json(), gemma4_k_eq_v_json()}) {
    TemporaryDirectory dir;
    write_tiny_model(dir / "hf", json, DType::BF16);
    quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), {}, dir / "q");
    const FloatCheckpoint source(dir / "hf");
    const QuantizedCheckpoint stored(dir / "q");
    int coded = 0;
    for (const TensorInfo& info : source.table()) {
      const std::vector<float> values = source.read(info);
      const DType grid = stored.grid(info);
      std::vector<uint8_t> expected(row_bytes(grid, info.shape.back()) * values.size() /
                                    static_cast<size_t>(info.shape.back()));
      encode_rows(grid, values.data(), static_cast<int64_t>(values.size()) / info.shape.back(), info.shape.back(),
                  expected.data());
      EXPECT_EQ(stored_blocks(stored, info), expected) << info.name;
      coded += grid == DType::Q4_0;
    }
    EXPECT_GT(coded, 10);
  }
}

TEST(Quantize, SearchLeavesOtherGridsAloneAndTakesImportanceByColumn) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", llama_json(false), DType::F32);
  Importance importance;
  std::vector<float>& columns = importance["model.layers.1.mlp.down_proj.weight"];
  for (int c = 0; c < 96; ++c) columns.push_back(c % 7 == 0 ? 50.0f : 0.1f);
  PtqOptions options;
  options.method = PtqMethod::mse;
  options.importance = &importance;
  quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), options, dir / "q");
  const FloatCheckpoint source(dir / "hf");
  const QuantizedCheckpoint stored(dir / "q");
  for (const TensorInfo& info : source.table()) {
    if (info.shape.size() != 2) continue;
    const std::vector<float> values = source.read(info);
    const std::vector<uint8_t> blocks = stored_blocks(stored, info);
    const bool weighted = info.name == "model.layers.1.mlp.down_proj.weight";
    if (stored.grid(info) != DType::Q4_0) {
      std::vector<uint8_t> expected(blocks.size());
      encode_rows(stored.grid(info), values.data(), info.shape[0], info.shape[1], expected.data());
      EXPECT_EQ(blocks, expected) << info.name;
      continue;
    }
    for (size_t i = 0; i * kBlockSize < values.size(); ++i) {
      const size_t column = i * kBlockSize % static_cast<size_t>(info.shape[1]);
      const BlockQ4_0 expected = search_q4_0(&values[i * kBlockSize], weighted ? &columns[column] : nullptr);
      ASSERT_EQ(std::memcmp(&blocks[i * sizeof expected], &expected, sizeof expected), 0)
          << info.name << " block " << i;
    }
  }
}

TEST(Quantize, RowsThatBlocksDoNotDivideFallBack) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", llama_json(false, 80), DType::F32);  // 80 columns: no Q4_0; 64: no Q6_K
  quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), {}, dir / "q");
  const QuantizedCheckpoint stored(dir / "q");
  EXPECT_EQ(stored.grid(*find_tensor_info(stored.table(), Role::down, 0)), DType::F16);
  EXPECT_EQ(stored.grid(*find_tensor_info(stored.table(), Role::up, 0)), DType::Q4_0);
  EXPECT_EQ(stored.grid(*find_tensor_info(stored.table(), Role::output)), DType::Q8_0);
  EXPECT_EQ(stored.grid(*find_tensor_info(stored.table(), Role::token_embedding)), DType::Q4_0);
  EXPECT_EQ(stored.grid(*find_tensor_info(stored.table(), Role::ffn_norm, 0)), DType::F32);
}

TEST(Quantize, ReportsProgressToTheEnd) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", gemma4_json(), DType::F32);
  int64_t last = 0, total = 0, calls = 0;
  quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), {}, dir / "q", [&](int64_t done, int64_t weights) {
    EXPECT_GT(done, last);
    last = done;
    total = weights;
    ++calls;
  });
  EXPECT_EQ(last, total);
  EXPECT_GT(calls, 10);
}

TEST(Quantize, WeightsThatCannotBeHeldAreNamedAndNothingIsWritten) {
  struct Case {
    const char* tensor;
    int64_t element;
    float value;
    const char* plan;
    const char* expected;
  };
  const Case cases[] = {
      {"model.layers.1.mlp.up_proj.weight", 64 * 3 + 5, NAN, "q4_0",
       "row 3, column 5: expected a finite weight that Q4_0 can hold, found nan"},
      {"model.layers.0.input_layernorm.weight", 7, -INFINITY, "q4_0",
       "row 0, column 7: expected a finite weight that F32 can hold, found -inf"},
      {"model.layers.0.mlp.up_proj.weight", 1, 70000.0f, "f16",
       "row 0, column 1: expected a finite weight that F16 can hold, found 70000"},
      {"model.layers.0.mlp.up_proj.weight", 1, 1e6f, "q4_0",
       "row 0, column 1: expected a finite weight that Q4_0 can hold, found 1e+06"},
  };
  for (const Case& c : cases) {
    TemporaryDirectory dir;
    write_tiny_model_with(dir / "hf", llama_json(true), DType::F32, c.tensor, c.element, c.value);
    const std::string text = error_text(dir / "hf", c.plan, dir / "q");
    EXPECT_THAT(text, HasSubstr(c.tensor));
    EXPECT_THAT(text, HasSubstr(c.expected));
    EXPECT_FALSE(std::filesystem::exists(dir / "q"));
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1)
        << "something half-written is left";
  }
  // The same magnitudes where they fit.
  TemporaryDirectory dir;
  write_tiny_model_with(dir / "hf", llama_json(true), DType::F32, "model.layers.0.mlp.up_proj.weight", 1, 500000.0f);
  EXPECT_EQ(error_text(dir / "hf", "q4_0", dir / "q"), "no error");
}

TEST(Quantize, MissingModelAndMissingTensor) {
  TemporaryDirectory dir;
  EXPECT_THAT(error_text(dir / "nowhere", "q4_0", dir / "q"), HasSubstr("nowhere"));
  write_tiny_model(dir / "hf", llama_json(true), DType::F32);
  add_file(dir / "hf/config.json", llama_json(false));  // wants lm_head.weight
  EXPECT_THAT(error_text(dir / "hf", "q4_0", dir / "q"), HasSubstr("lm_head.weight"));
  EXPECT_FALSE(std::filesystem::exists(dir / "q"));
}

}  // namespace
}  // namespace qat
