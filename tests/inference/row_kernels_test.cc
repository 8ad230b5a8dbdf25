// Every row of the table of kernels, against the grids' own decoding and sums in double.
#include <gtest/gtest.h>

#include <cfloat>

#include "inference/kernels.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

class RowKernels : public testing::TestWithParam<RowKernel> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam().isa)) GTEST_SKIP() << "this processor does not run " << isa_name(GetParam().isa);
  }
  // Lengths around the widths of vectors and unrolled loops, in whole blocks.
  std::vector<int64_t> lengths() const {
    const int64_t block = dtype_info(GetParam().type).block_size;
    std::vector<int64_t> out;
    for (int64_t n = 1; n <= (block == 1 ? 70 : 9); ++n) out.push_back(n * block);
    if (block == 1) out.insert(out.end(), {255, 256, 257, 1000});
    return out;
  }
};

TEST_P(RowKernels, DecodeIsTheGridsBitForBit) {
  Random random(1);
  for (const int64_t cols : lengths()) {
    const StoredRows row(GetParam().type, random.floats(cols), 1, cols);
    std::vector<float> expected(static_cast<size_t>(cols)), actual(static_cast<size_t>(cols) + 1, 7.0f);
    decode_rows(GetParam().type, row.data(), 1, cols, expected.data());
    GetParam().decode(row.data(), cols, actual.data());
    for (int64_t k = 0; k < cols; ++k)
      ASSERT_EQ(actual[static_cast<size_t>(k)], expected[static_cast<size_t>(k)])
          << "cols " << cols << " element " << k;
    EXPECT_EQ(actual.back(), 7.0f) << "wrote past the end";
  }
}

// All bit patterns of 16-bit floats and of block scales: zero, subnormals, infinities, both signs.
TEST_P(RowKernels, DecodeEveryScaleOrValue) {
  const DType type = GetParam().type;
  if (type == DType::F32) return;
  const int64_t block = dtype_info(type).block_size, cols = block == 1 ? 8 : block;
  std::vector<float> ramp(static_cast<size_t>(cols));
  for (int64_t k = 0; k < cols; ++k) ramp[static_cast<size_t>(k)] = static_cast<float>(k - cols / 3);
  std::vector<uint8_t> row(row_bytes(type, cols));
  store_rows(type, ramp, 1, cols, row.data());
  std::vector<float> expected(static_cast<size_t>(cols)), actual(static_cast<size_t>(cols));
  const size_t at = type == DType::Q6_K ? 208 : 0;
  for (unsigned bits = 0; bits <= 0xffff; ++bits) {
    row[at] = static_cast<uint8_t>(bits);
    row[at + 1] = static_cast<uint8_t>(bits >> 8);
    decode_rows(type, row.data(), 1, cols, expected.data());
    GetParam().decode(row.data(), cols, actual.data());
    for (size_t k = 0; k < expected.size(); ++k) {
      if (std::isnan(expected[k])) {
        ASSERT_TRUE(std::isnan(actual[k])) << std::hex << bits;
      } else {
        ASSERT_EQ(actual[k], expected[k]) << std::hex << bits;
      }
    }
  }
}

// A sum of n products in float, in any order, is off by at most n roundings of the sum of magnitudes.
TEST_P(RowKernels, DotAgreesWithDouble) {
  Random random(2);
  for (const int64_t cols : lengths()) {
    const StoredRows row(GetParam().type, random.floats(cols), 1, cols);
    const std::vector<float> x = random.floats(cols, 3.0f);
    std::vector<float> weights(static_cast<size_t>(cols));
    decode_rows(GetParam().type, row.data(), 1, cols, weights.data());
    double sum = 0.0, magnitude = 0.0;
    for (size_t k = 0; k < x.size(); ++k) {
      sum += static_cast<double>(weights[k]) * static_cast<double>(x[k]);
      magnitude += std::fabs(static_cast<double>(weights[k]) * static_cast<double>(x[k]));
    }
    const double bound = 0.5 * FLT_EPSILON * static_cast<double>(cols + 4) * magnitude;
    EXPECT_NEAR(GetParam().dot(row.data(), x.data(), cols), sum, bound) << "cols " << cols;
  }
}

std::string kernel_name(const testing::TestParamInfo<RowKernel>& row) {
  return std::string(dtype_name(row.param.type)) + "_" + isa_name(row.param.isa);
}

INSTANTIATE_TEST_SUITE_P(Table, RowKernels, testing::ValuesIn(row_kernels().begin(), row_kernels().end()), kernel_name);

TEST(RowKernelTable, HasEveryTypeForEveryIsa) {
  for (const DType type : kRunnable) {
    EXPECT_TRUE(runs_type(type));
    for (const Isa isa : built_isas()) EXPECT_NE(find_row_kernel(type, isa), nullptr) << isa_name(isa);
    EXPECT_NE(std::string(runnable_types()).find(dtype_name(type)), std::string::npos);
  }
  EXPECT_FALSE(runs_type(DType::Q4_K));
  EXPECT_FALSE(runs_type(DType::I8));
}

}  // namespace
}  // namespace qat
