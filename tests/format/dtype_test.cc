#include "format/dtype.h"

#include <gtest/gtest.h>

#include <set>

namespace qat {
namespace {

TEST(DType, EveryRowIsFoundByEachOfItsNames) {
  std::set<std::string> names;
  std::set<int> ids;
  for (const DTypeInfo& row : dtype_table()) {
    EXPECT_EQ(dtype_info(row.id).name, row.name);
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(find_dtype_by_name(row.name)->id, row.id);
    if (row.safetensors != nullptr) {
      EXPECT_EQ(find_dtype_by_safetensors_name(row.safetensors)->id, row.id);
      EXPECT_EQ(row.block_size, 1) << row.name;
    }
    if (row.ggml_id >= 0) {
      EXPECT_TRUE(ids.insert(row.ggml_id).second) << row.name;
      EXPECT_EQ(find_dtype_by_ggml_id(static_cast<uint32_t>(row.ggml_id))->id, row.id);
    }
  }
}

TEST(DType, NamesAreCaseInsensitiveAndUnknownOnesAreNotFound) {
  EXPECT_EQ(find_dtype_by_name("q4_0")->id, DType::Q4_0);
  EXPECT_EQ(find_dtype_by_name("Q6_k")->id, DType::Q6_K);
  EXPECT_EQ(find_dtype_by_name("q4_9"), nullptr);
  EXPECT_EQ(find_dtype_by_safetensors_name("Q4_0"), nullptr);
  EXPECT_EQ(find_dtype_by_ggml_id(4), nullptr);
  EXPECT_EQ(find_dtype_by_ggml_id(0xffffffffu), nullptr);
}

TEST(DType, RowBytes) {
  EXPECT_EQ(row_bytes(DType::F32, 3), 12u);
  EXPECT_EQ(row_bytes(DType::BF16, 5), 10u);
  EXPECT_EQ(row_bytes(DType::Q4_0, 64), 36u);    // 4.5 bits per weight
  EXPECT_EQ(row_bytes(DType::Q8_0, 64), 68u);    // 8.5
  EXPECT_EQ(row_bytes(DType::Q6_K, 512), 420u);  // 6.5625
  EXPECT_EQ(row_bytes(DType::Q4_0, 0), 0u);
  EXPECT_EQ(row_bytes(DType::I4, 33), 17u);  // padded to whole bytes
  EXPECT_EQ(row_bytes(DType::I2, 33), 9u);
  EXPECT_EQ(row_bytes(DType::I2, 0), 0u);
}

TEST(DTypeDeathTest, ARowOfHalfABlockIsAProgrammersFault) { EXPECT_DEATH(row_bytes(DType::Q4_0, 33), "check failed"); }

}  // namespace
}  // namespace qat
