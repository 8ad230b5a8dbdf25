// The mobile schema as GGUF: every tensor means exactly what it meant, or there is no file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "export/gguf_export.h"
#include "format/channel_grid.h"
#include "format/number.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_mobile.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

// What the rows mean. Q2_0 by its definition: 64 weights, float16 d, element j at bits 2 * (j mod 4) of byte j / 4, d *
// (code - 1).
std::vector<float> values_of(const GgufTensor& tensor) {
  const int64_t cols = tensor.shape.back(), rows = tensor.shape.size() == 2 ? tensor.shape[0] : 1;
  std::vector<float> values(static_cast<size_t>(rows * cols));
  if (tensor.dtype != DType::Q2_0) {
    decode_rows(tensor.dtype, tensor.bytes.data(), rows, cols, values.data());
    return values;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint8_t* block = tensor.bytes.data() + i / 64 * 18;
    uint16_t d;
    std::memcpy(&d, block, 2);
    const int code = (block[2 + i % 64 / 4] >> (2 * (i % 4))) & 3;
    values[i] = f16_to_f32(d) * static_cast<float>(code - 1);
  }
  return values;
}

class MobileGguf : public testing::Test {
 protected:
  TinyMobile make(const std::string& config) {
    write_tiny_model(dir_ / "hf", config, DType::BF16);
    return quantize_tiny_mobile(dir_ / "hf");
  }
  GgufFile exported(const TinyMobile& model) {
    write_tiny_mobile(model, dir_ / "hf", dir_ / "mobile");
    export_gguf_mobile(dir_ / "mobile", dir_ / "m.gguf");
    return GgufFile(dir_ / "m.gguf");
  }
  static size_t index(const TinyMobile& model, Role role, int layer = -1) {
    return static_cast<size_t>(find_tensor_info(model.table, role, layer) - model.table.data());
  }
  TemporaryDirectory dir_;
};

TEST_F(MobileGguf, EveryTensorMeansTheSame) {
  const TinyMobile model = make(gemma4_json());
  const GgufFile file = exported(model);
  const size_t generated = 1;  // rope_freqs.weight
  EXPECT_EQ(file.tensors().size(), model.table.size() - 1 + generated) << "the head is tied";
  EXPECT_EQ(file.find_tensor("output.weight"), nullptr);
  for (size_t i = 0; i < model.table.size(); ++i) {
    if (model.table[i].role == Role::output) continue;
    const GgufTensor& tensor = file.tensor(model.table[i].gguf);
    EXPECT_EQ(tensor.shape, model.table[i].shape) << model.table[i].name;
    EXPECT_EQ(values_of(tensor), model.values[i]) << model.table[i].name;
  }
  const auto type = [&](const std::string& name) { return file.tensor(name).dtype; };
  EXPECT_EQ(type("token_embd.weight"), DType::Q2_0);
  EXPECT_EQ(type("per_layer_token_embd.weight"), DType::Q4_0);  // a scale for each 32 elements
  EXPECT_EQ(type("blk.3.ffn_down.weight"), DType::Q2_0);
  EXPECT_EQ(type("blk.0.ffn_down.weight"), DType::Q4_0);
  EXPECT_EQ(type("blk.0.proj.weight"), DType::Q8_0);
  EXPECT_EQ(type("per_layer_model_proj.weight"), DType::F32);
  EXPECT_EQ(type("blk.0.attn_norm.weight"), DType::F32);
  EXPECT_EQ(std::get<uint32_t>(*file.find("general.file_type")), 2u);  // mostly Q4_0
}

// Rows that blocks do not divide take the next type that holds the same numbers.
TEST_F(MobileGguf, NarrowRowsTakeAWiderType) {
  TinyMobile model = make(llama_json(true, 80));  // 80 columns: no block divides them
  GgufFile file = exported(model);
  EXPECT_EQ(file.tensor("blk.0.ffn_down.weight").dtype, DType::F16);
  EXPECT_EQ(values_of(file.tensor("blk.0.ffn_down.weight")), model.values[index(model, Role::down, 0)]);

  model = make(llama_json(true, 96));  // 2 bits in the upper layer: 96 is no multiple of 64, but of 32
  const GgufFile again = exported(model);
  EXPECT_EQ(again.tensor("blk.1.ffn_down.weight").dtype, DType::Q4_0);
  EXPECT_EQ(values_of(again.tensor("blk.1.ffn_down.weight")), model.values[index(model, Role::down, 1)]);
  EXPECT_EQ(again.tensor("blk.1.ffn_up.weight").dtype, DType::Q2_0);
  // Gemma 3's norms are written as 1 + w, as ever.
  model = make(gemma3_json());
  std::vector<float> norm = model.values[index(model, Role::output_norm)];
  for (float& x : norm) x += 1.0f;
  EXPECT_EQ(values_of(exported(model).tensor("output_norm.weight")), norm);
}

TEST_F(MobileGguf, AHeadOfItsOwnIsWritten) {
  TinyMobile model = make(gemma4_json());
  const size_t head = index(model, Role::output);
  model.data[head][5] ^= 1;
  const GgufFile file = exported(model);
  ASSERT_NE(file.find_tensor("output.weight"), nullptr);
  EXPECT_NE(values_of(file.tensor("output.weight")), values_of(file.tensor("token_embd.weight")));
  EXPECT_EQ(file.tensor("output.weight").dtype, DType::Q2_0);
}

TEST_F(MobileGguf, MostlyTwoBitsIsSaid) {
  TinyMobile model = make(gemma4_json());
  for (size_t i = 0; i < model.table.size(); ++i) {
    if (model.table[i].kind != TensorKind::linear || code_bits(model.specs[i].dtype) != 4) continue;
    model.specs[i].dtype = DType::I2;
    model.data[i].resize(static_cast<size_t>(model.table[i].shape[0]) * row_bytes(DType::I2, model.table[i].shape[1]));
  }
  EXPECT_EQ(std::get<uint32_t>(*exported(model).find("general.file_type")), 41u);
}

TEST_F(MobileGguf, WhatCannotBeHeldExactlyIsRefused) {
  const TinyMobile good = make(gemma4_json());
  add_file(dir_ / "m.gguf", "old");
  const auto refused = [&](const TinyMobile& model, const std::string& fragment) {
    write_tiny_mobile(model, dir_ / "hf", dir_ / "mobile");
    expect_error([&] { export_gguf_mobile(dir_ / "mobile", dir_ / "m.gguf"); }, fragment);
    EXPECT_EQ(file_bytes(dir_ / "m.gguf"), "old");
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_.path()), {}), 3) << "hf, mobile, m.gguf";
  };
  for (const Role role : {Role::q, Role::down, Role::ple_gate}) {
    for (const float wrong : {1.0001f, 1e-9f, 1e6f}) {
      TinyMobile model = good;
      const size_t i = index(good, role, 3);
      model.specs[i].scales[7] = wrong;
      refused(model, good.table[i].name + ": row 7: expected a scale that ");
    }
  }
  TinyMobile model = make(llama_json(true, 80));
  const size_t down = index(model, Role::down, 0);
  model.specs[down].scales.assign(model.specs[down].scales.size(), 1.001f);
  refused(model, "model.layers.0.mlp.down_proj.weight: row 0, column ");
}

}  // namespace
}  // namespace qat
