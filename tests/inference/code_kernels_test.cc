// Activations of 8 bits against stored codes: the rounding, the dot products, the panels; each against what the codes
// and scales mean, summed in double or, where sums are integers, exactly.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <numeric>

#include "inference/kernels.h"
#include "inference/matmul.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

// Rows of activations on the grid of CodedRow, and the numbers they mean.
struct Rounded {
  Rounded(Isa isa, const std::vector<float>& x)
      : codes(x.size()),
        scales(x.size() / kCodeBlock),
        sums(scales.size()),
        half_sums(2 * scales.size()),
        values(x.size()) {
    find_code_kernels(isa)->encode_blocks(x.data(), static_cast<int64_t>(x.size()), codes.data(), scales.data(),
                                          sums.data(), half_sums.data());
    for (size_t k = 0; k < x.size(); ++k) values[k] = scales[k / kCodeBlock] * static_cast<float>(codes[k]);
  }
  std::vector<int8_t> codes;
  std::vector<float> scales, sums, half_sums, values;
};

std::string isa_of(const testing::TestParamInfo<Isa>& info) { return isa_name(info.param); }

std::vector<Isa> vector_isas() {
  std::vector<Isa> all;
  for (const Isa isa : built_isas())
    if (find_code_kernels(isa) != nullptr) all.push_back(isa);
  return all;
}

class CodeKernelsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam())) GTEST_SKIP() << "this processor does not run " << isa_name(GetParam());
  }
  std::vector<float> multiply(int threads, const std::vector<float>& x, int64_t rows, const Matrix& w) {
    ThreadPool pool(threads);
    MatmulInput input;
    std::vector<float> y(static_cast<size_t>(rows * w.rows) + 1, 7.0f);
    input.set(x.data(), rows, w.cols);
    matmul({GetParam(), true}, pool, input, w, y.data());
    EXPECT_EQ(y.back(), 7.0f) << "wrote past the end";
    y.pop_back();
    return y;
  }
};
INSTANTIATE_TEST_SUITE_P(, CodeKernelsTest, testing::ValuesIn(vector_isas()), isa_of);

constexpr DType kBlockTypesTested[] = {DType::Q2_0, DType::Q4_0, DType::Q8_0, DType::Q6_K};

TEST_P(CodeKernelsTest, BlocksOfActivationsRoundToNearest) {
  Random random(31);
  for (const float size : {1e-30f, 1.0f, 1e30f}) {
    const std::vector<float> x = random.floats(96, size);
    const Rounded r(GetParam(), x);
    for (size_t k = 0; k < x.size(); ++k) {
      float most = 0.0f;
      for (size_t i = k / 32 * 32; i < k / 32 * 32 + 32; ++i) most = std::max(most, std::fabs(x[i]));
      const float scale = r.scales[k / 32];
      EXPECT_EQ(scale, most / 127.0f);
      EXPECT_LE(std::abs(r.codes[k]), 127);
      // Half a step, and the rounding of x / scale.
      EXPECT_NEAR(static_cast<double>(r.codes[k]), static_cast<double>(x[k]) / static_cast<double>(scale), 0.5001);
    }
    for (size_t b = 0; b < r.scales.size(); ++b) {
      int low = 0, high = 0;
      for (size_t i = 32 * b; i < 32 * b + 16; ++i) low += r.codes[i], high += r.codes[i + 16];
      EXPECT_EQ(r.half_sums[2 * b], r.scales[b] * static_cast<float>(low));
      EXPECT_EQ(r.half_sums[2 * b + 1], r.scales[b] * static_cast<float>(high));
      EXPECT_EQ(r.sums[b], r.scales[b] * static_cast<float>(low + high));
    }
  }
}

TEST_P(CodeKernelsTest, BlocksThatHaveNoScale) {
  std::vector<float> x(4 * 32, 1.0f);
  std::fill_n(x.begin(), 32, 0.0f);
  x[40] = NAN;
  x[70] = -INFINITY;
  x[100] = 3.0f;
  const Rounded r(GetParam(), x);
  EXPECT_EQ(r.scales[0], 0.0f);
  EXPECT_TRUE(std::isnan(r.scales[1]) && std::isnan(r.scales[2]) && std::isnan(r.sums[2]) &&
              std::isnan(r.half_sums[3]));
  EXPECT_EQ(r.scales[3], 3.0f / 127.0f);
  for (int k = 0; k < 96; ++k) EXPECT_EQ(r.codes[static_cast<size_t>(k)], 0) << k;
  // Numbers too small for a scale that could be inverted count as zero.
  const Rounded tiny(GetParam(), std::vector<float>(32, 1e-40f));
  for (const int8_t code : tiny.codes) EXPECT_EQ(code, 0);
}

TEST_P(CodeKernelsTest, StaticCodesAreTheGridsBitForBit) {
  Random random(32);
  for (int64_t n = 1; n <= 70; ++n) {
    std::vector<float> x = random.floats(n, 40.0f);
    for (int64_t k = 0; k < n; k += 3) x[static_cast<size_t>(k)] = 0.25f * static_cast<float>(k % 7) - 0.125f;  // ties
    if (n > 8) x[7] = INFINITY, x[8] = -INFINITY;
    std::vector<int8_t> expected(static_cast<size_t>(n)), actual(static_cast<size_t>(n) + 1, 99);
    encode_channel(8, x.data(), n, 0.25f, expected.data());
    ASSERT_TRUE(find_code_kernels(GetParam())->encode_static(x.data(), n, 0.25f, actual.data()));
    EXPECT_EQ(actual.back(), 99) << "wrote past the end";
    actual.pop_back();
    EXPECT_EQ(actual, expected) << n;
    x[static_cast<size_t>(n / 2)] = NAN;
    EXPECT_FALSE(find_code_kernels(GetParam())->encode_static(x.data(), n, 0.25f, actual.data()));
  }
}

// y against what codes and scales mean: one row (dot products) and many (panels), outputs and rows that fill no tile.
TEST_P(CodeKernelsTest, ProductsOfBlocks) {
  Random random(33);
  for (const DType type : kBlockTypesTested) {
    const int64_t block = dtype_info(type).block_size;
    for (const int64_t rows : {1, 2, 7, 8, 9, 16, 17, 24, 31, 35, 59})
      for (const int64_t outputs : {1, 3, 4, 64, 65, 131})
        for (const int64_t cols : {block, 3 * block, 512 + 2 * block}) {
          if (outputs > 65 && rows > 9) continue;
          const StoredRows stored(type, random.floats(outputs * cols), outputs, cols);
          const std::vector<float> x = random.floats(rows * cols);
          const Rounded rounded(GetParam(), x);
          std::vector<float> w(static_cast<size_t>(outputs * cols));
          decode_rows(type, stored.data(), outputs, cols, w.data());
          const std::vector<float> y = multiply(2, x, rows, {type, outputs, cols, stored.data()});
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t o = 0; o < outputs; ++o) {
              double sum = 0.0, magnitude = 0.0;
              for (int64_t k = 0; k < cols; ++k) {
                const double product = static_cast<double>(rounded.values[static_cast<size_t>(r * cols + k)]) *
                                       static_cast<double>(w[static_cast<size_t>(o * cols + k)]);
                sum += product;
                magnitude += std::fabs(product);
              }
              // Sums in a block are exact; what is rounded are a few products with scales, and their sum. The offset of
              // unsigned codes is taken off in floats, which costs as many roundings of its own size again.
              ASSERT_NEAR(y[static_cast<size_t>(r * outputs + o)], sum, 40 * FLT_EPSILON * magnitude)
                  << dtype_name(type) << " " << rows << " x " << outputs << " x " << cols << " at " << r << ", " << o;
            }
        }
  }
}

// The largest codes on both sides: nothing saturates or wraps on the way. Of a type whose scale is an eighth of the
// largest weight, and has that one's sign, all but the first of a block are its highest code; where all are alike, the
// lowest.
TEST_P(CodeKernelsTest, ExtremeCodes) {
  for (const DType type : kBlockTypesTested) {
    const int64_t cols = 1024, outputs = 9;
    for (const float sign : {1.0f, -1.0f})
      for (const float rest : {1.0f, -0.875f}) {
        std::vector<float> values(static_cast<size_t>(outputs * cols));
        for (size_t k = 0; k < values.size(); ++k) values[k] = sign * (k % 32 == 0 ? 1.0f : rest);
        const StoredRows stored(type, values, outputs, cols);
        decode_rows(type, stored.data(), outputs, cols, values.data());
        const double sum = std::accumulate(values.begin(), values.begin() + cols, 0.0);
        for (const int64_t rows : {1, 16})
          for (const float most : {127.0f, -127.0f}) {
            const std::vector<float> x(static_cast<size_t>(rows * cols), most);
            for (const float y : multiply(1, x, rows, {type, outputs, cols, stored.data()}))
              EXPECT_NEAR(y, static_cast<double>(most) * sum, 1e-4 * 127.0 * cols) << dtype_name(type) << " " << rows;
          }
      }
  }
}

TEST_P(CodeKernelsTest, ARowDependsOnNothingButItself) {
  Random random(34);
  for (const DType type : kBlockTypesTested) {
    const int64_t rows = 37, outputs = 150, cols = 768;
    const StoredRows stored(type, random.floats(outputs * cols), outputs, cols);
    const Matrix w = {type, outputs, cols, stored.data()};
    std::vector<float> x = random.floats(rows * cols);
    const std::vector<float> y = multiply(1, x, rows, w);
    EXPECT_EQ(multiply(3, x, rows, w), y) << "threads";
    x[5] = NAN;  // of row 0
    const std::vector<float> last_two = multiply(2, {x.end() - 2 * cols, x.end()}, 2, w);
    EXPECT_TRUE(std::equal(last_two.begin(), last_two.end(), y.end() - 2 * outputs)) << "batch";
    const std::vector<float> with_nan = multiply(2, x, rows, w);
    for (int64_t o = 0; o < outputs; ++o) EXPECT_TRUE(std::isnan(with_nan[static_cast<size_t>(o)]));
    EXPECT_TRUE(std::equal(with_nan.begin() + outputs, with_nan.end(), y.begin() + outputs)) << "NaN spread";
  }
}

// A matrix of packed codes with static activations, any shape: integers, so equal to the bit whatever the path.
TEST_P(CodeKernelsTest, ProductsOfPackedCodesAreExact) {
  Random random(35);
  for (const int bits : {2, 4, 8})
    for (const int64_t rows : {1, 4, 5, 8, 19, 24, 32, 33})
      for (const int64_t cols : {1, 31, 64, 130, 515, 1029}) {
        const int64_t outputs = rows < 8 ? 67 : 9;
        std::vector<int8_t> codes(static_cast<size_t>(outputs * cols));
        for (size_t i = 0; i < codes.size(); ++i)
          codes[i] = i % 5 == 0 ? static_cast<int8_t>(lowest_code(bits))
                                : static_cast<int8_t>(std::floor(random.next() * static_cast<float>(1 << (bits - 1))));
        std::vector<uint8_t> packed(row_bytes(code_type(bits), cols) * static_cast<size_t>(outputs));
        pack_codes(bits, codes.data(), outputs, cols, packed.data());
        const std::vector<float> scales = random.floats(outputs);
        Matrix w = {code_type(bits), outputs, cols, packed.data()};
        w.scales = reinterpret_cast<const uint8_t*>(scales.data());
        w.input_scale = 0.5f;
        std::vector<float> x = random.floats(rows * cols, 60.0f);
        for (size_t i = 0; i < x.size(); i += 3) x[i] = -1000.0f;  // the lowest code, -128
        std::vector<int8_t> x_codes(x.size());
        encode_channel(8, x.data(), rows * cols, 0.5f, x_codes.data());
        const std::vector<float> y = multiply(2, x, rows, w);
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t o = 0; o < outputs; ++o) {
            int32_t sum = 0;
            for (int64_t k = 0; k < cols; ++k)
              sum += codes[static_cast<size_t>(o * cols + k)] * x_codes[static_cast<size_t>(r * cols + k)];
            ASSERT_EQ(y[static_cast<size_t>(r * outputs + o)],
                      static_cast<float>(sum * (0.5 * static_cast<double>(scales[static_cast<size_t>(o)]))))
                << bits << " bits, " << rows << " x " << outputs << " x " << cols << " at " << r << ", " << o;
          }
      }
}

// A lone row of floats against packed codes with no static grid: 16 bits of its largest number.
TEST_P(CodeKernelsTest, ALoneRowIn16Bits) {
  Random random(36);
  for (const int bits : {2, 4, 8})
    for (const int64_t cols : {1, 31, 130, 1029}) {
      const int64_t outputs = 67;
      std::vector<int8_t> codes(static_cast<size_t>(outputs * cols));
      for (int8_t& code : codes)
        code = static_cast<int8_t>(std::floor(random.next() * static_cast<float>(1 << (bits - 1))));
      std::vector<uint8_t> packed(row_bytes(code_type(bits), cols) * static_cast<size_t>(outputs));
      pack_codes(bits, codes.data(), outputs, cols, packed.data());
      const std::vector<float> scales = random.floats(outputs);
      Matrix w = {code_type(bits), outputs, cols, packed.data()};
      w.scales = reinterpret_cast<const uint8_t*>(scales.data());
      std::vector<float> x = random.floats(cols);
      x[0] = -1.0f;  // the largest
      const std::vector<float> y = multiply(2, x, 1, w);
      for (int64_t o = 0; o < outputs; ++o) {
        double sum = 0.0, magnitude = 0.0;
        for (int64_t k = 0; k < cols; ++k) {
          const double code = codes[static_cast<size_t>(o * cols + k)];
          sum += code * static_cast<double>(x[static_cast<size_t>(k)]);
          magnitude += std::fabs(code);
        }
        const double scale = std::fabs(static_cast<double>(scales[static_cast<size_t>(o)]));
        ASSERT_NEAR(y[static_cast<size_t>(o)], sum * static_cast<double>(scales[static_cast<size_t>(o)]),
                    scale * (magnitude / 65024 + FLT_EPSILON * std::fabs(sum)))
            << bits << " bits, " << cols << " columns, output " << o;
      }
      x[static_cast<size_t>(cols / 2)] = NAN;
      for (const float value : multiply(1, x, 1, w)) EXPECT_TRUE(std::isnan(value));
      std::fill(x.begin(), x.end(), 0.0f);
      for (const float value : multiply(1, x, 1, w)) EXPECT_EQ(value, 0.0f);
    }
}

#if defined(__x86_64__)
// Panels of floats, and results brought to rows: lanes are other rows there, the numbers the same.
TEST(Avx512Panels, AreAvx2sBitForBit) {
  if (!isa_supported(Isa::avx512)) GTEST_SKIP() << "this processor does not run avx512";
  Random random(12);
  const PanelKernel &panel = *find_panel_kernel(Isa::avx512), &panel2 = *find_panel_kernel(Isa::avx2);
  const CodeKernels &codes = *find_code_kernels(Isa::avx512), &codes2 = *find_code_kernels(Isa::avx2);
  ASSERT_NE(panel.multiply, panel2.multiply);
  ASSERT_NE(codes.store_sums, codes2.store_sums);
  for (int64_t rows = 1; rows <= kMostPanelRows; ++rows) {
    for (const int64_t outputs : {1, 7, 8, 17, 64}) {
      const int64_t depth = 33, width = (rows + kLanes - 1) / kLanes * kLanes;
      const std::vector<float> x = random.floats(width * depth), w = random.floats((outputs + kOutputStep) * depth);
      std::vector<float> y = random.floats(rows * outputs), y2 = y;
      for (const bool add : {true, false}) {
        panel.multiply(x.data(), rows, depth, w.data(), depth, outputs, y.data(), outputs, add);
        for (int64_t first = 0; first < rows; first += 8) {  // AVX2's panels are not as high
          std::vector<float> part(static_cast<size_t>(8 * depth));
          for (int64_t k = 0; k < depth; ++k) std::copy_n(x.begin() + k * width + first, 8, part.begin() + k * 8);
          panel2.multiply(part.data(), std::min<int64_t>(8, rows - first), depth, w.data(), depth, outputs,
                          y2.data() + first * outputs, outputs, add);
        }
        ASSERT_EQ(y, y2) << rows << " rows, " << outputs << " outputs";
      }
      std::vector<int32_t> sums(static_cast<size_t>(width * outputs)), x_sums(static_cast<size_t>(width));
      for (int32_t& sum : sums) sum = static_cast<int32_t>(random.floats(1)[0] * 1e6f);
      for (int32_t& sum : x_sums) sum = static_cast<int32_t>(random.floats(1)[0] * 1e4f);
      std::vector<double> x_scales(static_cast<size_t>(width), 0.037);
      x_scales[0] = std::nan("");
      codes.store_sums(sums.data(), width, rows, outputs, 8, x_sums.data(), x_scales.data(), w.data(), y.data(),
                       outputs);
      codes2.store_sums(sums.data(), width, rows, outputs, 8, x_sums.data(), x_scales.data(), w.data(), y2.data(),
                        outputs);
      ASSERT_EQ(std::memcmp(y.data(), y2.data(), y.size() * sizeof(float)), 0) << rows << " rows, " << outputs;
      codes.store_floats(x.data(), width, rows, std::min(outputs, depth), y.data(), outputs);
      codes2.store_floats(x.data(), width, rows, std::min(outputs, depth), y2.data(), outputs);
      ASSERT_EQ(std::memcmp(y.data(), y2.data(), y.size() * sizeof(float)), 0) << rows << " rows, " << outputs;
    }
  }
}
#endif

}  // namespace
}  // namespace qat
