// The channel-wise grids and the static grid of activations: every code, ties, limits, packing, storable scales, and
// the search against all scales one can try.
#include "format/channel_grid.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <random>

#include "format/grid.h"
#include "format/number.h"

namespace qat {
namespace {

constexpr int kWidths[] = {2, 4, 8};

std::vector<int> codes_of(int bits, const std::vector<float>& x, float scale) {
  std::vector<int8_t> codes(x.size());
  encode_channel(bits, x.data(), static_cast<int64_t>(x.size()), scale, codes.data());
  return {codes.begin(), codes.end()};
}

std::vector<float> rounded(const std::vector<float>& x, float scale) {
  std::vector<float> out(x.size());
  round_activations(x.data(), static_cast<int64_t>(x.size()), scale, out.data());
  return out;
}

TEST(ChannelGrid, CodesAndTypes) {
  const struct {
    int bits, low, high;
    DType type;
  } rows[] = {{2, -2, 1, DType::I2}, {4, -8, 7, DType::I4}, {8, -128, 127, DType::I8}};
  for (const auto& row : rows) {
    EXPECT_EQ(lowest_code(row.bits), row.low);
    EXPECT_EQ(highest_code(row.bits), row.high);
    EXPECT_EQ(code_type(row.bits), row.type);
    EXPECT_EQ(code_bits(row.type), row.bits);
  }
  EXPECT_EQ(code_bits(DType::U8), 0);
  EXPECT_EQ(code_bits(DType::Q4_0), 0);
}

TEST(ChannelGrid, TiesGoToEvenCodesOnBothSides) {
  // In units of the scale, which is a power of two: the quotients are exact.
  const std::vector<float> units = {-4.5f, -3.5f, -2.5f, -1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f, 4.5f};
  for (const float scale : {1.0f, 0.25f, 0x1p-14f}) {
    std::vector<float> x = units;
    for (float& v : x) v *= scale;
    EXPECT_EQ(codes_of(8, x, scale), (std::vector<int>{-4, -4, -2, -2, 0, 0, 2, 2, 4, 4}));
    EXPECT_EQ(codes_of(4, x, scale), (std::vector<int>{-4, -4, -2, -2, 0, 0, 2, 2, 4, 4}));
    EXPECT_EQ(codes_of(2, x, scale), (std::vector<int>{-2, -2, -2, -2, 0, 0, 1, 1, 1, 1}));
  }
  // One step of a float beside the tie.
  EXPECT_EQ(codes_of(8, {std::nextafter(0.5f, 1.0f), std::nextafter(0.5f, 0.0f), std::nextafter(1.5f, 0.0f)}, 1.0f),
            (std::vector<int>{1, 0, 1}));
}

TEST(ChannelGrid, ClampsZerosAndDenormals) {
  for (const int bits : kWidths) {
    const int low = lowest_code(bits), high = highest_code(bits);
    EXPECT_EQ(codes_of(bits, {FLT_MAX, -FLT_MAX, 0.0f, -0.0f, FLT_TRUE_MIN, -FLT_TRUE_MIN, 1e9f, -1e9f}, 0x1p-14f),
              (std::vector<int>{high, low, 0, 0, 0, 0, high, low}));
    // The quotient overflows to infinity.
    EXPECT_EQ(codes_of(bits, {1.0f, -1.0f}, FLT_TRUE_MIN), (std::vector<int>{high, low}));
    // Half a level beyond the last one still belongs to it, whatever its parity; so does everything after.
    const float top = static_cast<float>(high), bottom = static_cast<float>(low);
    EXPECT_EQ(codes_of(bits, {top, top + 0.5f, top + 0.75f, bottom, bottom - 0.5f, bottom - 0.75f}, 1.0f),
              (std::vector<int>{high, high, high, low, low, low}));
  }
}

// What the rule says, in the library's rounding and in double precision quotients where those are exact.
TEST(ChannelGrid, EncodesLikeTheRuleInPlainWords) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int bits : kWidths) {
    for (const float scale : {0.37f, 1.0f / 3.0f, 0.0123f}) {
      for (const size_t n : {1u, 2u, 3u, 5u, 7u, 8u, 9u, 33u, 1000u}) {
        std::vector<float> x(n), fake(n), decoded(n);
        for (float& v : x) v = normal(random) * scale * static_cast<float>(highest_code(bits));
        const std::vector<int> codes = codes_of(bits, x, scale);
        const std::vector<int8_t> bytes(codes.begin(), codes.end());
        fake_quantize_channel(bits, x.data(), static_cast<int64_t>(n), scale, fake.data());
        decode_channel(bytes.data(), static_cast<int64_t>(n), scale, decoded.data());
        for (size_t i = 0; i < n; ++i) {
          const float nearest = std::nearbyint(x[i] / scale);
          const float code = std::fmin(std::fmax(nearest, static_cast<float>(lowest_code(bits))),
                                       static_cast<float>(highest_code(bits)));
          ASSERT_EQ(codes[i], static_cast<int>(code)) << bits << " bits, " << x[i] << " / " << scale;
          ASSERT_EQ(decoded[i], code * scale);
          ASSERT_EQ(fake[i], decoded[i]);
        }
      }
    }
  }
}

TEST(ChannelGrid, EveryCodeComesBack) {
  for (const int bits : kWidths) {
    for (int code = lowest_code(bits); code <= highest_code(bits); ++code)
      EXPECT_EQ(codes_of(bits, {static_cast<float>(code) * 0.0127f}, 0.0127f), (std::vector<int>{code})) << bits;
  }
}

TEST(ChannelGrid, TwoBitCodesFourPerByteLowBitsFirst) {
  const int8_t codes[] = {-2, -1, 0, 1, 1, 1, -2, 0, -1, -1};
  uint8_t packed[4];
  pack_codes(2, codes, 2, 5, packed);
  EXPECT_EQ(packed[0], 0xe4);  // 3 2 1 0, first code in the low bits
  EXPECT_EQ(packed[1], 0xab);  // 1, then padding of code 0 (bits 2)
  EXPECT_EQ(packed[2], 0x63);  // 1 2 0 3
  EXPECT_EQ(packed[3], 0xa9);
}

TEST(ChannelGrid, PackedRowsOfEveryLengthComeBack) {
  for (const int bits : kWidths) {
    for (int64_t cols = 1; cols <= 21; ++cols) {
      std::vector<int8_t> codes(static_cast<size_t>(5 * cols)), back(codes.size());
      for (size_t i = 0; i < codes.size(); ++i)
        codes[i] = static_cast<int8_t>(lowest_code(bits) + static_cast<int>(i * 37 % (1u << bits)));
      const size_t stride = row_bytes(code_type(bits), cols);
      EXPECT_EQ(stride, static_cast<size_t>((cols * bits + 7) / 8));
      std::vector<uint8_t> packed(5 * stride + 1, 0x5a);
      pack_codes(bits, codes.data(), 5, cols, packed.data());
      EXPECT_EQ(packed.back(), 0x5a) << "wrote past the end";
      unpack_codes(bits, packed.data(), 5, cols, back.data());
      EXPECT_EQ(back, codes) << bits << " bits, " << cols << " columns";
      for (const int64_t first : {int64_t{0}, cols / 2, cols - 1}) {
        std::vector<float> values(static_cast<size_t>(cols - first));
        decode_packed(bits, packed.data() + 3 * stride, first, cols - first, 0.3f, values.data());
        for (size_t i = 0; i < values.size(); ++i)
          ASSERT_EQ(values[i], static_cast<float>(codes[static_cast<size_t>(3 * cols + first) + i]) * 0.3f)
              << bits << " bits, " << cols << " columns from " << first;
      }
    }
  }
}

TEST(ChannelGrid, FourBitsArePackInt4) {
  const int8_t codes[] = {-8, 7, 3, 1, -1, 0};
  uint8_t ours[4], theirs[4];
  pack_codes(4, codes, 2, 3, ours);
  pack_int4(codes, 2, 3, theirs);
  EXPECT_EQ(std::vector<uint8_t>(ours, ours + 4), std::vector<uint8_t>(theirs, theirs + 4));
}

TEST(StorableScale, IsTheNearestThatBothSixteenBitFloatsHold) {
  std::vector<float> storable;
  for (unsigned bits = 0; bits <= 0x7c00; ++bits) {  // every positive float16
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isfinite(value) && bits >= 0x400 && bf16_to_f32(f32_to_bf16(value)) == value) storable.push_back(value);
  }
  EXPECT_EQ(storable.front(), kLeastStorableScale);
  EXPECT_EQ(storable.back(), kLargestStorableScale);
  for (size_t i = 0; i < storable.size(); ++i) {
    EXPECT_EQ(storable_scale(storable[i]), storable[i]);
    if (i == 0) continue;
    const float a = storable[i - 1], b = storable[i], middle = a + (b - a) / 2;
    EXPECT_EQ(storable_scale(std::nextafter(middle, a)), a);
    EXPECT_EQ(storable_scale(std::nextafter(middle, b)), b);
    EXPECT_EQ(storable_scale(middle), (float_bits(a) >> 16) % 2 == 0 ? a : b);
  }
  for (const float x : {0.0f, -1.0f, 1e-30f, -INFINITY, NAN}) EXPECT_EQ(storable_scale(x), kLeastStorableScale) << x;
  for (const float x : {65504.0f, 1e30f, INFINITY}) EXPECT_EQ(storable_scale(x), kLargestStorableScale) << x;
}

double error_of(int bits, const std::vector<float>& x, const float* w, float scale) {
  std::vector<float> values(x.size());
  fake_quantize_channel(bits, x.data(), static_cast<int64_t>(x.size()), scale, values.data());
  double error = 0.0;
  for (size_t i = 0; i < x.size(); ++i)
    error += (w != nullptr ? w[i] : 1.0f) * std::pow(static_cast<double>(x[i]) - values[i], 2);
  return error;
}

// The least error over all storable scales.
double least_error(int bits, const std::vector<float>& x, const float* w) {
  double least = HUGE_VAL;
  for (uint32_t i = float_bits(kLeastStorableScale) >> 16; i <= float_bits(kLargestStorableScale) >> 16; ++i)
    least = std::min(least, error_of(bits, x, w, float_from_bits(i << 16)));
  return least;
}

// Rows of many kinds: bell-shaped, heavy-tailed, an outlier, few distinct values, one sign.
std::vector<float> sample_row(size_t n, int kind, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> tails(3.0f);
  std::vector<float> x(n);
  for (float& v : x) v = kind % 2 == 0 ? normal(random) : tails(random);
  if (kind % 5 == 1) x[n / 2] *= 30.0f;
  if (kind % 5 == 2)
    for (float& v : x) v = std::round(v);
  if (kind % 5 == 3)
    for (float& v : x) v = std::fabs(v);
  for (float& v : x) v *= kind % 3 == 0 ? 0.02f : kind % 3 == 1 ? 50.0f : 0.7f;
  return x;
}

std::vector<float> sample_importance(size_t n, unsigned seed) {
  std::mt19937 random(seed + 1000);
  std::exponential_distribution<float> spread;
  std::vector<float> w(n);
  for (float& v : w) v = std::pow(spread(random), 2.0f);
  w[seed % n] = 0.0f;
  return w;
}

TEST(SearchScale, IsTheBestStorableScaleOfShortRows) {
  for (const int bits : kWidths) {
    for (int kind = 0; kind < 30; ++kind) {
      const std::vector<float> x =
          sample_row(kind % 4 == 0 ? 7 : 32 * (1 + static_cast<size_t>(kind) % 3), kind, static_cast<unsigned>(kind));
      const std::vector<float> importance = sample_importance(x.size(), static_cast<unsigned>(kind));
      for (const float* w : {static_cast<const float*>(nullptr), importance.data()}) {
        const float scale = search_scale(bits, x.data(), w, static_cast<int64_t>(x.size()));
        EXPECT_EQ(scale, storable_scale(scale));
        // Errors are summed in float: scales closer than that are equally good.
        EXPECT_LE(error_of(bits, x, w, scale), least_error(bits, x, w) * (1 + 1e-5) + 1e-30)
            << bits << " bits, kind " << kind << (w != nullptr ? ", weighted" : "");
      }
    }
  }
}

TEST(SearchScale, IsWithinAThousandthOfTheBestOfLongRows) {
  double worst = 0.0;
  for (const int bits : kWidths) {
    for (int kind = 0; kind < 10; ++kind) {
      const std::vector<float> x = sample_row(256 + 100 * static_cast<size_t>(kind), kind, static_cast<unsigned>(kind));
      const std::vector<float> w = sample_importance(x.size(), static_cast<unsigned>(kind));
      const float scale = search_scale(bits, x.data(), w.data(), static_cast<int64_t>(x.size()));
      worst = std::max(worst, error_of(bits, x, w.data(), scale) / std::max(least_error(bits, x, w.data()), 1e-30));
    }
  }
  EXPECT_LE(worst, 1.001);
}

TEST(SearchScale, RowsOnAGridAreFoundAgain) {
  std::mt19937 random(5);
  for (const int bits : kWidths) {
    for (const float scale : {kLeastStorableScale, 0.0078125f, storable_scale(0.0123f), 3.0f}) {
      std::vector<int8_t> codes(400);
      for (int8_t& c : codes) c = static_cast<int8_t>(lowest_code(bits) + static_cast<int>(random() % (1u << bits)));
      std::vector<float> x(codes.size());
      decode_channel(codes.data(), 400, scale, x.data());
      EXPECT_EQ(search_scale(bits, x.data(), nullptr, 400), scale) << bits;
    }
  }
}

TEST(SearchScale, ZerosTinyAndHugeRows) {
  const std::vector<float> zeros(40), silence(40), tiny(40, FLT_TRUE_MIN), huge(40, FLT_MAX);
  for (const int bits : kWidths) {
    EXPECT_EQ(search_scale(bits, zeros.data(), nullptr, 40), kLeastStorableScale);
    EXPECT_EQ(search_scale(bits, tiny.data(), nullptr, 40), kLeastStorableScale);
    EXPECT_EQ(search_scale(bits, huge.data(), nullptr, 40), kLargestStorableScale);
    const std::vector<float> x = sample_row(40, 0, 1);
    EXPECT_EQ(search_scale(bits, x.data(), silence.data(), 40), search_scale(bits, x.data(), nullptr, 40));
  }
}

TEST(RoundActivations, StaticScaleTiesClampsAndOff) {
  EXPECT_EQ(rounded({0.25f, 0.75f, -0.25f, -0.75f, 1.25f}, 0.5f), (std::vector<float>{0.0f, 1.0f, 0.0f, -1.0f, 1.0f}));
  EXPECT_EQ(rounded({63.5f, 64.0f, 1e9f, -64.0f, -64.5f, -1e9f}, 0.5f),
            (std::vector<float>{63.5f, 63.5f, 63.5f, -64.0f, -64.0f, -64.0f}));
  EXPECT_EQ(rounded({0.1f, -1e9f, FLT_TRUE_MIN}, 0.0f), (std::vector<float>{0.1f, -1e9f, FLT_TRUE_MIN}));
  EXPECT_EQ(rounded({0.1f, 1e9f}, -0.0f), (std::vector<float>{0.1f, 1e9f}));
  EXPECT_TRUE(std::isnan(rounded({NAN}, 0.5f)[0]));
  EXPECT_EQ(rounded({INFINITY, -INFINITY}, 0.5f), (std::vector<float>{63.5f, -64.0f}));
  std::vector<float> x = {0.3f, 9.0f};
  round_activations(x.data(), 2, 0.25f, x.data());
  EXPECT_EQ(x, (std::vector<float>{0.25f, 9.0f}));
}

TEST(ChannelGridDeathTest, OtherWidthsAreAProgrammersFault) {
  float x = 0.0f;
  int8_t code = 0;
  EXPECT_DEATH(encode_channel(3, &x, 1, 1.0f, &code), "check failed");
  EXPECT_DEATH(code_type(16), "check failed");
}

}  // namespace
}  // namespace qat
