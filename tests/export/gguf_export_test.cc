// Export: the file holds exactly the codes, scales and floats of the checkpoint, under llama.cpp's names, in
// llama.cpp's order.
#include "export/gguf_export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "export/ptq.h"
#include "format/number.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

using ::testing::HasSubstr;

std::vector<uint8_t> bytes_of(const GgufTensor& tensor) { return {tensor.bytes.begin(), tensor.bytes.end()}; }

// Rows of a llama q or k matrix as the file must have them, written out from the rule: within a head of 16, rows 0 8 1
// 9 2 10 ...
std::vector<uint8_t> interleaved_16(const std::vector<uint8_t>& rows, size_t row_size) {
  std::vector<uint8_t> out;
  for (size_t head = 0; head * 16 * row_size < rows.size(); ++head)
    for (size_t j = 0; j < 8; ++j)
      for (const size_t row : {head * 16 + j, head * 16 + 8 + j})
        out.insert(out.end(), rows.begin() + static_cast<ptrdiff_t>(row * row_size),
                   rows.begin() + static_cast<ptrdiff_t>((row + 1) * row_size));
  return out;
}

bool is_interleaved(const ModelConfig& config, const TensorInfo& info) {
  return config.arch == Arch::llama && (info.role == Role::q || info.role == Role::k);
}

struct ArchCase {
  const char* name;
  std::string config;
};
void PrintTo(const ArchCase& c, std::ostream* out) { *out << c.name; }

class ExportOfArch : public ::testing::TestWithParam<ArchCase> {};

TEST_P(ExportOfArch, QuantizedTensorsKeepEveryCodeAndScale) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", GetParam().config, DType::BF16);
  PtqOptions options;
  options.method = PtqMethod::mse;
  quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), options, dir / "q");
  export_gguf(dir / "q", dir / "q.gguf");

  const FloatCheckpoint source(dir / "hf");
  const QuantizedCheckpoint stored(dir / "q");
  const GgufFile file(dir / "q.gguf");
  const size_t generated = rope_divisors(source.config()).empty() ? 0 : 1;
  EXPECT_EQ(file.tensors().size(), stored.table().size() + generated);
  for (const TensorInfo& info : stored.table()) {
    const GgufTensor& tensor = file.tensor(info.gguf);
    EXPECT_EQ(tensor.shape, info.shape) << info.name;
    if (info.shape.size() == 1) {
      EXPECT_EQ(tensor.dtype, DType::F32) << info.name;
      continue;  // values: next test
    }
    ASSERT_EQ(tensor.dtype, stored.grid(info)) << info.name;
    const size_t row_size = row_bytes(tensor.dtype, info.shape[1]);
    std::vector<uint8_t> expected(row_size * static_cast<size_t>(info.shape[0]));
    stored.read_blocks(info, 0, -1, expected.data());
    if (is_interleaved(source.config(), info)) expected = interleaved_16(expected, row_size);
    EXPECT_EQ(bytes_of(tensor), expected) << info.name;
  }
}

TEST_P(ExportOfArch, FloatTensorsAreTheCheckpointsRoundedOnce) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", GetParam().config, DType::F32);
  const FloatCheckpoint source(dir / "hf");
  for (const DType type : {DType::F32, DType::F16, DType::BF16}) {
    export_gguf_float(dir / "hf", type, dir / "f.gguf");
    const GgufFile file(dir / "f.gguf");
    for (const TensorInfo& info : source.table()) {
      std::vector<float> values = source.read(info);
      const bool matrix = info.shape.size() == 2;
      if (info.kind == TensorKind::norm && source.config().arch == Arch::gemma3)
        for (float& v : values) v = 1.0f + v;
      std::vector<uint8_t> expected;
      for (const float v : values) {
        const uint16_t half = type == DType::F16 ? f32_to_f16(v) : f32_to_bf16(v);
        const uint8_t* first = matrix && type != DType::F32 ? reinterpret_cast<const uint8_t*>(&half)
                                                            : reinterpret_cast<const uint8_t*>(&v);
        expected.insert(expected.end(), first, first + (matrix && type != DType::F32 ? 2 : 4));
      }
      if (is_interleaved(source.config(), info)) expected = interleaved_16(expected, row_bytes(type, info.shape[1]));
      const GgufTensor& tensor = file.tensor(info.gguf);
      EXPECT_EQ(tensor.dtype, matrix ? type : DType::F32) << info.name;
      EXPECT_EQ(bytes_of(tensor), expected) << info.name;
    }
  }
}

TEST_P(ExportOfArch, TheSameInputGivesTheSameFile) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", GetParam().config, DType::BF16);
  uint64_t last = 0, total = 0;
  export_gguf_float(dir / "hf", DType::BF16, dir / "a.gguf", [&](uint64_t done, uint64_t bytes) {
    EXPECT_GT(done, last);
    last = done;
    total = bytes;
  });
  EXPECT_EQ(last, total);
  export_gguf_float(dir / "hf", DType::BF16, dir / "b.gguf");
  EXPECT_EQ(file_bytes(dir / "a.gguf"), file_bytes(dir / "b.gguf"));
}

INSTANTIATE_TEST_SUITE_P(All, ExportOfArch,
                         ::testing::Values(ArchCase{"llama", llama_json(false)},
                                           ArchCase{"llama_tied_odd_ffn", llama_json(true, 80)},
                                           ArchCase{"gemma3", gemma3_json()}, ArchCase{"gemma4_e2b", gemma4_json()},
                                           ArchCase{"gemma4_31b", gemma4_k_eq_v_json()}),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(Export, ATiedHeadIsNotWrittenTwice) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "tied", llama_json(true), DType::F32);
  write_tiny_model(dir / "untied", llama_json(false), DType::F32);
  export_gguf_float(dir / "tied", DType::F32, dir / "tied.gguf");
  export_gguf_float(dir / "untied", DType::F32, dir / "untied.gguf");
  EXPECT_EQ(GgufFile(dir / "tied.gguf").find_tensor("output.weight"), nullptr);
  EXPECT_NE(GgufFile(dir / "untied.gguf").find_tensor("output.weight"), nullptr);
}

TEST(Export, TensorsLargerThanASlabKeepTheirOrder) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", llama_json(true, 96, 70001), DType::F32);  // 18 MB of embedding
  export_gguf_float(dir / "hf", DType::F32, dir / "f.gguf");
  const FloatCheckpoint source(dir / "hf");
  const TensorView& view = source.tensor(*find_tensor_info(source.table(), Role::token_embedding));
  const GgufFile file(dir / "f.gguf");
  const GgufTensor& tensor = file.tensor("token_embd.weight");
  ASSERT_EQ(tensor.bytes.size(), view.bytes.size());
  EXPECT_EQ(std::memcmp(tensor.bytes.data(), view.bytes.data(), view.bytes.size()), 0);
}

TEST(Export, RopeDivisorsForThoseWhoNeedThem) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "gemma4", gemma4_json(), DType::BF16);
  export_gguf_float(dir / "gemma4", DType::BF16, dir / "gemma4.gguf");
  const GgufFile gemma4(dir / "gemma4.gguf");
  const GgufTensor& still = gemma4.tensor("rope_freqs.weight");
  ASSERT_EQ(still.shape, std::vector<int64_t>{16});  // half of the global head of 32, of which a quarter rotates
  std::vector<float> values(16);
  std::memcpy(values.data(), still.bytes.data(), still.bytes.size());
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(values[i], i < 4 ? 1.0f : 1e30f);

  const std::string llama3 = R"("rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 64)";
  write_tiny_model(dir / "llama3", llama_json(true, 96, 260, llama3), DType::BF16);
  export_gguf_float(dir / "llama3", DType::BF16, dir / "llama3.gguf");
  const GgufFile with(dir / "llama3.gguf");
  const GgufTensor& scaled = with.tensor("rope_freqs.weight");
  ASSERT_EQ(scaled.shape, std::vector<int64_t>{8});
  values.resize(8);
  std::memcpy(values.data(), scaled.bytes.data(), scaled.bytes.size());
  EXPECT_EQ(values.front(), 1.0f);
  EXPECT_EQ(values.back(), 8.0f);

  write_tiny_model(dir / "gemma3", gemma3_json(), DType::BF16);
  export_gguf_float(dir / "gemma3", DType::BF16, dir / "gemma3.gguf");
  EXPECT_EQ(GgufFile(dir / "gemma3.gguf").find_tensor("rope_freqs.weight"), nullptr);
}

TEST(Export, AWeightThatF16CannotHoldIsNamedAndTheOldFileStays) {
  TemporaryDirectory dir;
  write_tiny_model_with(dir / "hf", llama_json(true), DType::F32, "model.layers.1.self_attn.o_proj.weight", 64 * 2 + 9,
                        -66000.0f);
  add_file(dir / "f.gguf", "old");
  try {
    export_gguf_float(dir / "hf", DType::F16, dir / "f.gguf");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("model.layers.1.self_attn.o_proj.weight: row 2, column 9"));
    EXPECT_THAT(error.what(), HasSubstr("-66000"));
  }
  EXPECT_EQ(file_bytes(dir / "f.gguf"), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 2) << "something half-written is left";
  export_gguf_float(dir / "hf", DType::BF16, dir / "f.gguf");
}

TEST(Export, DirectoriesThatAreNoQuantizedCheckpoint) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", llama_json(true), DType::F32);
  EXPECT_THROW(export_gguf(dir / "hf", dir / "f.gguf"), Error);  // no plan
  EXPECT_THROW(export_gguf(dir / "nowhere", dir / "f.gguf"), Error);
  quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), {}, dir / "q");
  std::string plan = file_bytes(dir / "q/qat_plan.json");
  const size_t found = plan.find("Q4_0");
  ASSERT_NE(found, std::string::npos);
  add_file(dir / "q/qat_plan.json", plan.replace(found, 4, "Q8_0"));  // codes and plan disagree
  EXPECT_THROW(export_gguf(dir / "q", dir / "f.gguf"), Error);
  EXPECT_FALSE(std::filesystem::exists(dir / "f.gguf"));
}

}  // namespace
}  // namespace qat
