// Operations on vectors and attention, of each instruction set, against formulas in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cstring>

#include "format/channel_grid.h"
#include "format/grid.h"
#include "format/number.h"
#include "inference/kernels.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

constexpr double kEps = FLT_EPSILON;

class VectorKernelsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_supported(GetParam())) GTEST_SKIP() << "this processor does not run " << isa_name(GetParam());
    ops_ = &vector_kernels(GetParam());
    floats_ = find_cache_kernel(DType::F32, GetParam());
  }
  const VectorKernels* ops_ = nullptr;
  const CacheKernel* floats_ = nullptr;
};

CachedRows floats(const std::vector<float>& x, int64_t stride, int64_t count, int64_t cols) {
  return {reinterpret_cast<const uint8_t*>(x.data()), stride * static_cast<int64_t>(sizeof(float)), count, cols};
}

double gelu(double x) { return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); }
double silu(double x) { return x / (1.0 + std::exp(-x)); }

// 0.2 million values of every magnitude that does not overflow: relative error of exp.
TEST_P(VectorKernelsTest, ExpWithinTwoRoundings) {
  for (float x = -87.3f; x < 88.7f; x += 0.00083f) {
    const double expected = std::exp(static_cast<double>(x));
    ASSERT_NEAR(ops_->sum_exp(&x, 1, 0.0f), expected, 2 * kEps * expected) << x;
  }
  for (const float x : {0.0f, -0.0f, 1e-30f, -1e-7f}) EXPECT_EQ(ops_->sum_exp(&x, 1, 0.0f), 1.0f + x);
  const float below = -1000.0f, least = -HUGE_VALF, nan = NAN;
  EXPECT_LT(ops_->sum_exp(&below, 1, 0.0f), 1e-38);
  EXPECT_EQ(ops_->sum_exp(&least, 1, 0.0f), 0.0);
  EXPECT_TRUE(std::isnan(ops_->sum_exp(&nan, 1, 0.0f)));
}

TEST_P(VectorKernelsTest, SoftcapWithinThreeRoundings) {
  for (float x = -12.0f; x < 12.0f; x += 0.00037f) {
    float y = x;
    ops_->softcap(&y, 1, 1.0f);
    const double expected = std::tanh(static_cast<double>(x));
    ASSERT_NEAR(y, expected, 3 * kEps * std::fabs(expected)) << x;
  }
  float values[3] = {1000.0f, -1000.0f, 15.0f};
  ops_->softcap(values, 3, 30.0f);
  EXPECT_EQ(values[0], 30.0f);
  EXPECT_EQ(values[1], -30.0f);
  EXPECT_NEAR(values[2], 30.0 * std::tanh(0.5), 30 * 3 * kEps);
}

// Lengths around the width of a vector; the element after the end stays as it was.
TEST_P(VectorKernelsTest, ElementwiseAtEveryLength) {
  Random random(6);
  for (int64_t n = 1; n <= 40; ++n) {
    std::vector<float> g = random.floats(n + 1, 6.0f), x = random.floats(n + 1), gelus = g, silus = g;
    ops_->gelu_multiply(gelus.data(), x.data(), n);
    ops_->silu_multiply(silus.data(), x.data(), n);
    EXPECT_EQ(gelus.back(), g.back());
    EXPECT_EQ(silus.back(), g.back());
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const double v = static_cast<double>(g[i]), by = static_cast<double>(x[i]);
      // The exponent's argument, up to 8 here for what counts, is itself rounded.
      EXPECT_NEAR(gelus[i], gelu(v) * by, 12 * kEps * std::fabs(gelu(v) * by) + 1e-9) << v;
      EXPECT_NEAR(silus[i], silu(v) * by, 6 * kEps * std::fabs(silu(v) * by)) << v;
    }
  }
}

// Ties, both ends, what lies far beyond, zeros of both signs, and what is no number.
TEST_P(VectorKernelsTest, RoundToGridBitForBit) {
  std::vector<float> x = {HUGE_VALF, -HUGE_VALF, 3e38f, -3e38f, 0.0f, -0.0f, 1e-40f, -1e-3f};
  for (int i = -600; i <= 600; ++i)
    for (const float off : {0.0f, 1e-5f, -1e-5f}) x.push_back((static_cast<float>(i) * 0.25f + off) * 0.037f);
  for (const int64_t n : {1, 7, 8, 9, 31, static_cast<int>(x.size())}) {
    std::vector<float> expected(x), actual(x);
    round_activations(x.data(), n, 0.037f, expected.data());
    ops_->round_to_grid(actual.data(), n, 0.037f);
    EXPECT_EQ(std::memcmp(actual.data(), expected.data(), 4 * x.size()), 0) << n;
  }
  float nan = NAN;
  ops_->round_to_grid(&nan, 1, 0.5f);
  EXPECT_TRUE(std::isnan(nan));
}

TEST_P(VectorKernelsTest, RmsNormAtEveryLength) {
  Random random(7);
  for (int64_t n = 1; n <= 70; ++n) {
    const std::vector<float> x = random.floats(n, 2.0f), weight = random.floats(n);
    std::vector<float> out(static_cast<size_t>(n)), plain(static_cast<size_t>(n));
    ops_->rms_norm(x.data(), weight.data(), n, 1e-2f, out.data());
    ops_->rms_norm(x.data(), nullptr, n, 1e-2f, plain.data());
    double squares = 0.0;
    for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + 1e-2);
    // The sum of n squares, half of whose error reaches the root; then four roundings.
    const double bound = kEps * (0.25 * static_cast<double>(n) + 4);
    for (size_t i = 0; i < out.size(); ++i) {
      const double expected = static_cast<double>(x[i]) * scale;
      EXPECT_NEAR(plain[i], expected, bound * std::fabs(expected));
      EXPECT_NEAR(out[i], expected * static_cast<double>(weight[i]), bound * std::fabs(expected));
    }
    std::vector<float> in_place = x;
    ops_->rms_norm(in_place.data(), weight.data(), n, 1e-2f, in_place.data());
    EXPECT_EQ(in_place, out);
  }
}

TEST_P(VectorKernelsTest, ReductionsAtEveryLength) {
  Random random(8);
  for (int64_t n = 1; n <= 40; ++n) {
    const std::vector<float> x = random.floats(n, 9.0f), base = random.floats(n, 9.0f);
    const float largest = *std::max_element(x.begin(), x.end());
    EXPECT_EQ(ops_->max(x.data(), n), largest);
    double sum = 0.0, base_sum = 0.0;
    for (const float v : x) sum += std::exp(static_cast<double>(v));
    for (const float v : base) base_sum += std::exp(static_cast<double>(v));
    EXPECT_NEAR(ops_->sum_exp(x.data(), n, 2.0f), sum * std::exp(-2.0), 10 * kEps * sum * std::exp(-2.0));

    std::vector<float> p = x;
    ops_->softmax(p.data(), n, p.data());
    double kl = 0.0, magnitude = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(p[i], std::exp(static_cast<double>(x[i])) / sum,
                  20 * kEps * std::exp(static_cast<double>(x[i])) / sum);
      const double log_p = static_cast<double>(base[i]) - std::log(base_sum),
                   log_q = static_cast<double>(x[i]) - std::log(sum);
      if (log_p > -16) kl += std::exp(log_p) * (log_p - log_q);
      if (log_p > -16) magnitude += std::exp(log_p) * (std::fabs(log_p) + std::fabs(log_q) + 20);
    }
    const float lse = static_cast<float>(std::log(sum)), base_lse = static_cast<float>(std::log(base_sum));
    EXPECT_NEAR(ops_->kl(base.data(), base_lse, x.data(), lse, n), kl, 4 * kEps * magnitude);
  }
}

TEST_P(VectorKernelsTest, KlLeavesOutWhatASavedBaseCannotHold) {
  // log p of the second is -17: its 4e-8 * (17 + 83) must not count. All the rest is the first, where p = q.
  const float base[2] = {0.0f, -17.0f}, x[2] = {0.0f, -100.0f};
  EXPECT_EQ(ops_->kl(base, 0.0f, x, 0.0f, 2), 0.0);
  const float base_within[2] = {0.0f, -15.0f};
  EXPECT_NEAR(ops_->kl(base_within, 0.0f, x, 0.0f, 2), std::exp(-15.0) * 85, 1e-9);
}

// One head by the formula: softmax(scale * q k^T) v.
std::vector<double> attention_by_formula(const float* q, const std::vector<float>& k, const std::vector<float>& v,
                                         int64_t stride, int64_t count, int64_t head_dim, float scale) {
  std::vector<double> p(static_cast<size_t>(count)), out(static_cast<size_t>(head_dim), 0.0);
  double total = 0.0;
  for (int64_t j = 0; j < count; ++j) {
    double s = 0.0;
    for (int64_t i = 0; i < head_dim; ++i)
      s += static_cast<double>(q[i]) * static_cast<double>(k[static_cast<size_t>(j * stride + i)]);
    total += p[static_cast<size_t>(j)] = std::exp(s * static_cast<double>(scale));
  }
  for (int64_t j = 0; j < count; ++j)
    for (int64_t i = 0; i < head_dim; ++i)
      out[static_cast<size_t>(i)] +=
          p[static_cast<size_t>(j)] / total * static_cast<double>(v[static_cast<size_t>(j * stride + i)]);
  return out;
}

TEST_P(VectorKernelsTest, AttentionAgreesWithTheFormula) {
  Random random(9);
  const float scale = 0.7f;
  for (const int64_t head_dim : {1, 2, 6, 8, 12, 16, 32, 36, 40, 64, 128, 256})
    for (const int64_t count : {1, 2, 3, 4, 5, 7, 8, 9, 31, 100})
      for (const int64_t heads : {1, 2, 3, 8}) {
        const int64_t stride = head_dim * 2 + 3, q_stride = head_dim + 5, row = count + 2;
        const std::vector<float> q = random.floats(heads * q_stride), k = random.floats(count * stride),
                                 v = random.floats(count * stride);
        std::vector<float> scores(static_cast<size_t>(heads * row), 7.0f),
            out(static_cast<size_t>(heads * q_stride), 7.0f);
        floats_->scores(q.data(), q_stride, heads, floats(k, stride, count, head_dim), scale, scores.data(), row);
        for (int64_t h = 0; h < heads; ++h) {
          ops_->softmax(scores.data() + h * row, count, v.data());
          ASSERT_EQ(scores[static_cast<size_t>(h * row + count)], 7.0f);  // nothing behind a head's is touched
        }
        for (const bool add : {false, true}) {
          floats_->mix(scores.data(), row, heads, floats(v, stride, count, head_dim), add, out.data(), q_stride);
          // Scores are sums of head_dim products of at most 1, their error is the exponential's relative error; then
          // sums of count.
          const double factor = add ? 2 : 1;
          const double bound =
              factor * kEps * (0.25 * static_cast<double>(head_dim) + 0.5 * static_cast<double>(count) + 8);
          for (int64_t h = 0; h < heads; ++h) {
            const std::vector<double> expected =
                attention_by_formula(q.data() + h * q_stride, k, v, stride, count, head_dim, scale);
            for (int64_t i = 0; i < head_dim; ++i)
              ASSERT_NEAR(out[static_cast<size_t>(h * q_stride + i)], factor * expected[static_cast<size_t>(i)], bound)
                  << head_dim << " x " << count << ", head " << h << " of " << heads;
            ASSERT_EQ(out[static_cast<size_t>(h * q_stride + head_dim)], 7.0f);
          }
        }
      }
}

// To the bit: a head among others, and a position among others.
TEST_P(VectorKernelsTest, AHeadDoesNotDependOnItsCompany) {
  Random random(10);
  for (const int64_t head_dim : {6, 36, 64})
    for (const int64_t count : {1, 3, 4, 17}) {
      const int64_t heads = 13;  // three groups of four, which share what they ask for, and one
      const std::vector<float> q = random.floats(heads * head_dim), k = random.floats(count * head_dim);
      const CachedRows rows = floats(k, head_dim, count, head_dim);
      std::vector<float> together(static_cast<size_t>(heads * count)), alone(together.size());
      floats_->scores(q.data(), head_dim, heads, rows, 0.3f, together.data(), count);
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t j = 0; j < count; ++j)
          floats_->scores(q.data() + h * head_dim, head_dim, 1, {rows.data + j * rows.stride, rows.stride, 1, head_dim},
                          0.3f, alone.data() + h * count + j, count);
      EXPECT_EQ(together, alone) << head_dim << " x " << count;
      std::vector<float> mixed(static_cast<size_t>(heads * head_dim)), one(mixed.size());
      floats_->mix(together.data(), count, heads, rows, false, mixed.data(), head_dim);
      for (int64_t h = 0; h < heads; ++h)
        floats_->mix(together.data() + h * count, count, 1, rows, false, one.data() + h * head_dim, head_dim);
      EXPECT_EQ(mixed, one) << head_dim << " x " << count;
    }
}

// Of each 32 numbers the first sixteen are the bytes' lower halves; all bytes there are.
TEST_P(VectorKernelsTest, PairsOfCodesAreTheirHalves) {
  std::vector<uint8_t> bytes(256);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 37);
  std::vector<float> decoded(2 * bytes.size());
  ops_->decode_pairs(bytes.data(), static_cast<int64_t>(decoded.size()), decoded.data());
  const auto code = [](int half) { return static_cast<float>(half < 8 ? half : half - 16); };
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(decoded[i / 16 * 32 + i % 16], code(bytes[i] & 15)) << i;
    EXPECT_EQ(decoded[i / 16 * 32 + 16 + i % 16], code(bytes[i] >> 4)) << i;
  }
}

// To the bit: half floats, blocks and codes as the floats of their value, whatever bits they are.
TEST(CacheKernels, StoredNumbersAreMetAsTheirFloats) {
  Random random(11);
  for (const CacheKernel& kernel : cache_kernels()) {
    if (!isa_supported(kernel.isa) || kernel.type == DType::F32) continue;
    const CacheKernel& reference = *find_cache_kernel(DType::F32, kernel.isa);
    const bool is_coded = code_bits(kernel.type) != 0;
    for (const int64_t cols : {8, 16, 24, 32, 64, 72, 96, 512}) {
      const bool is_paired = kernel.type == DType::I4;
      if (cols % (is_paired ? kPairedCodes : is_coded ? 1 : dtype_info(kernel.type).block_size) != 0) continue;
      for (const int64_t count : {1, 2, 3, 7, 16})
        for (const int64_t heads : {1, 2, 3, 4, 7, 8}) {
          const auto stride = static_cast<int64_t>(row_bytes(kernel.type, cols)) + 3;  // rows need not touch
          std::vector<uint8_t> bytes(static_cast<size_t>(count * stride));
          for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.floats(1)[0] * 128 + 128);
          std::vector<float> decoded(static_cast<size_t>(count * cols));
          for (int64_t j = 0; j < count; ++j) {
            uint8_t* row = bytes.data() + j * stride;
            // No half float that is not a number: the upper bits of the exponent are not all 1.
            for (int64_t i = 1; kernel.type == DType::F16 && i < 2 * cols; i += 2) row[i] &= 0xbf;
            for (int64_t i = 1; kernel.type == DType::Q8_0 && i < stride; i += 34) row[i] &= 0xbf;
            float* out = decoded.data() + j * cols;
            if (is_paired) vector_kernels(Isa::scalar).decode_pairs(row, cols, out);
            else if (!is_coded) find_row_kernel(kernel.type, Isa::scalar)->decode(row, cols, out);
            else find_channel_kernel(kernel.type, Isa::scalar)->decode(row, cols, 1.0f, out);
          }
          const CachedRows stored = {bytes.data(), stride, count, cols};
          const std::vector<float> q = random.floats(heads * cols), weights = random.floats(heads * count);
          std::vector<float> a(static_cast<size_t>(heads * count)), b(a.size()), c(q), d(q);
          kernel.scores(q.data(), cols, heads, stored, 0.3f / kernel.unit, a.data(), count);
          reference.scores(q.data(), cols, heads, floats(decoded, cols, count, cols), 0.3f, b.data(), count);
          ASSERT_EQ(a, b) << dtype_name(kernel.type) << " " << cols << " x " << count << ", " << heads << " heads";
          for (const bool add : {false, true}) {
            kernel.mix(weights.data(), count, heads, stored, add, c.data(), cols);
            reference.mix(weights.data(), count, heads, floats(decoded, cols, count, cols), add, d.data(), cols);
          }
          for (float& x : c) x /= kernel.unit;
          ASSERT_EQ(c, d) << dtype_name(kernel.type) << " " << cols << " x " << count << ", " << heads << " heads";
        }
    }
  }
}

// Integers are exact, so that only a few roundings of floats are between them and the reference; nothing is written
// beside the scores that are asked for. Extreme codes first: products of two that are added in 16 bits.
TEST(KeyKernels, AreTheReference) {
  Random random(12);
  const KeyKernel& reference = *find_key_kernel(Isa::scalar);
  for (const KeyKernel& kernel : key_kernels()) {
    if (!isa_supported(kernel.isa) || kernel.isa == Isa::scalar) continue;
    for (const int64_t cols : {32, 64, 96, 256})
      for (const int64_t heads : {1, 2, 3, 4, 7, 8})
        for (const bool extreme : {true, false}) {
          const auto code = [&] {
            const float x = random.floats(1)[0];
            return static_cast<int8_t>(extreme ? (x < 0 ? -127 : 127) : std::max(-127.0f, std::min(127.0f, 127 * x)));
          };
          const int64_t blocks = cols / 32;
          const int64_t bytes = key_group_bytes(cols);
          std::vector<uint8_t> groups(static_cast<size_t>(3 * bytes));
          for (uint8_t& byte : groups) byte = static_cast<uint8_t>(code());
          for (int64_t i = 0; i < 3 * blocks * kKeyGroup; ++i) {
            const uint16_t half = f32_to_f16(random.floats(1)[0]);
            const int64_t of_group = i / (blocks * kKeyGroup), place = i % (blocks * kKeyGroup);
            std::memcpy(groups.data() + of_group * bytes + 2 * place, &half, sizeof half);
          }
          std::vector<int8_t> codes(static_cast<size_t>(heads * cols));
          std::vector<int32_t> sums(static_cast<size_t>(heads * blocks));
          for (size_t i = 0; i < codes.size(); ++i) sums[i / 32] += codes[i] = code();
          const std::vector<float> scales = random.floats(heads * blocks);
          const CodedQueries q = {codes.data(), scales.data(), sums.data()};
          for (const int64_t first : {0, 1, 7, 8, 15, 16, 31, 37})
            for (int64_t last = first + 1; last <= 3 * kKeyGroup; last += 4) {
              const int64_t stride = last - first + 2;
              const KeyGroups keys = {groups.data(), bytes, cols, first, last};
              std::vector<float> expected(static_cast<size_t>(heads * stride), 7.0f), actual(expected);
              reference.scores(q, heads, keys, 0.3f, expected.data(), stride);
              kernel.scores(q, heads, keys, 0.3f, actual.data(), stride);
              for (size_t i = 0; i < expected.size(); ++i)
                ASSERT_NEAR(actual[i], expected[i], 0.3f * 127 * 127 * static_cast<float>(cols) * FLT_EPSILON)
                    << isa_name(kernel.isa) << " " << cols << ", " << heads << " heads, " << first << " to " << last;
            }
        }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, VectorKernelsTest, testing::ValuesIn(built_isas().begin(), built_isas().end()),
                         [](const testing::TestParamInfo<Isa>& isa) { return std::string(isa_name(isa.param)); });

}  // namespace
}  // namespace qat
