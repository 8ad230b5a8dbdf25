// Every 16-bit float, both ways.
#include "format/number.h"

#include <gtest/gtest.h>

#include <cmath>

namespace qat {
namespace {

TEST(Number, EveryHalfRoundTrips) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = f16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(x))));
      continue;
    }
    EXPECT_EQ(f32_to_f16(x), h);
    // An independent definition of the value.
    const int exponent = (h >> 10) & 31, mantissa = h & 1023;
    const double magnitude = exponent == 31  ? HUGE_VAL
                             : exponent == 0 ? std::ldexp(mantissa, -24)
                                             : std::ldexp(1024 + mantissa, exponent - 25);
    EXPECT_EQ(static_cast<double>(x), (h & 0x8000) ? -magnitude : magnitude);
  }
}

TEST(Number, HalfRoundsToNearestEven) {
  // Between every pair of neighbouring finite halves: below, at and above the midpoint.
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const float lo = f16_to_f32(static_cast<uint16_t>(h)), hi = f16_to_f32(static_cast<uint16_t>(h + 1));
    const float middle = static_cast<float>((static_cast<double>(lo) + hi) / 2);
    EXPECT_EQ(f32_to_f16(middle), h + (h & 1)) << h;
    EXPECT_EQ(f32_to_f16(std::nextafterf(middle, lo)), h) << h;
    EXPECT_EQ(f32_to_f16(std::nextafterf(middle, hi)), h + 1) << h;
  }
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
}

TEST(Number, EveryBfloat16RoundTrips) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = bf16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(x)) EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(x))));
    else EXPECT_EQ(f32_to_bf16(x), h);
  }
  EXPECT_EQ(f32_to_bf16(float_from_bits(0x3f808000)), 0x3f80);  // tie to even
  EXPECT_EQ(f32_to_bf16(float_from_bits(0x3f818000)), 0x3f82);
  EXPECT_EQ(f32_to_bf16(float_from_bits(0x3f808001)), 0x3f81);
}

}  // namespace
}  // namespace qat
