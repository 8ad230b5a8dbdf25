// The specification in format/README.md, line by line, and bytes that llama-quantize wrote.
#include "format/grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "format/channel_grid.h"
#include "format/number.h"

namespace qat {
namespace {

using Block32 = std::vector<float>;

std::vector<float> decoded(DType grid, const std::vector<uint8_t>& bytes, int64_t cols) {
  std::vector<float> out(static_cast<size_t>(cols));
  decode_rows(grid, bytes.data(), 1, cols, out.data());
  return out;
}

std::vector<uint8_t> encoded(DType grid, const std::vector<float>& x) {
  std::vector<uint8_t> out(row_bytes(grid, static_cast<int64_t>(x.size())));
  encode_rows(grid, x.data(), 1, static_cast<int64_t>(x.size()), out.data());
  return out;
}

// 32 values: those given, then zeros.
Block32 block_of(std::vector<float> values) {
  values.resize(kBlockSize, 0.0f);
  return values;
}

int q4_code(const BlockQ4_0& block, int j) { return j < 16 ? block.qs[j] & 15 : block.qs[j - 16] >> 4; }

template <class Block>
bool same_bytes(const Block& a, const Block& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// Blocks of many kinds: ordinary, exact ties, both signs of the extreme, zeros, tiny, huge, wide range of magnitudes.
std::vector<float> hard_values(int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(count));
  for (size_t begin = 0; begin < x.size(); begin += 32) {
    const int kind = static_cast<int>(random() % 10);
    for (size_t i = begin; i < std::min(begin + 32, x.size()); ++i) {
      const float v = normal(random);
      switch (kind) {
        case 0: x[i] = 0.0f; break;
        case 1: x[i] = -0.0f; break;
        case 2: x[i] = static_cast<float>(static_cast<int>(random() % 17) - 8); break;
        case 3: x[i] = static_cast<float>(static_cast<int>(random() % 33) - 16) / 2; break;
        case 4: x[i] = v * 1e-7f; break;   // scale is a subnormal half
        case 5: x[i] = v * 1e-40f; break;  // values are subnormal floats, 1/d is infinite
        case 6: x[i] = v * 1e4f; break;
        case 7: x[i] = std::ldexp(v, static_cast<int>(random() % 60) - 50); break;
        case 8: x[i] = bf16_to_f32(f32_to_bf16(v * 0.02f)); break;
        default: x[i] = v * 0.02f; break;
      }
    }
  }
  return x;
}

// ------------------------------------------------------------------ Q4_0

TEST(GridQ4_0, EveryNibbleAtEveryPlaceHasItsValue) {
  for (int code = 0; code < 16; ++code)
    for (int j = 0; j < kBlockSize; ++j) {
      BlockQ4_0 block = {};
      block.d = f32_to_f16(0.5f);
      for (uint8_t& b : block.qs) b = 0x88;
      uint8_t& byte = block.qs[j % 16];
      byte = static_cast<uint8_t>(j < 16 ? (byte & 0xf0) | code : (byte & 0x0f) | (code << 4));
      float out[kBlockSize];
      decode_block(block, out);
      for (int i = 0; i < kBlockSize; ++i) EXPECT_EQ(out[i], i == j ? 0.5f * static_cast<float>(code - 8) : 0.0f);
    }
}

TEST(GridQ4_0, TheExtremeGetsCodeZeroAndGivesTheScaleItsSign) {
  const BlockQ4_0 negative = encode_q4_0(block_of({1, -8, 3}).data());
  EXPECT_EQ(f16_to_f32(negative.d), 1.0f);
  EXPECT_EQ(q4_code(negative, 1), 0);
  EXPECT_EQ(q4_code(negative, 0), 9);
  const BlockQ4_0 positive = encode_q4_0(block_of({1, 8, 3}).data());
  EXPECT_EQ(f16_to_f32(positive.d), -1.0f);
  EXPECT_EQ(q4_code(positive, 1), 0);
  EXPECT_EQ(q4_code(positive, 0), 7);
}

TEST(GridQ4_0, OfEqualExtremesTheFirstDecidesAndTheOtherSaturates) {
  for (int first = 0; first < kBlockSize; ++first)
    for (int second = first + 1; second < kBlockSize; ++second)
      for (const float sign : {-1.0f, 1.0f}) {
        Block32 x = block_of({});
        x[static_cast<size_t>(first)] = 2 * sign;
        x[static_cast<size_t>(second)] = -2 * sign;
        const BlockQ4_0 block = encode_q4_0(x.data());
        ASSERT_EQ(f16_to_f32(block.d), -0.25f * sign);
        ASSERT_EQ(q4_code(block, first), 0);
        ASSERT_EQ(q4_code(block, second), 15);
      }
}

TEST(GridQ4_0, TiesRoundUpInCodeSpace) {
  // The last one is a tie too: x/d + 8.5 is rounded to float before it is cut.
  const Block32 x = block_of({-8, 0.5f, -0.5f, 1.5f, -1.5f, 6.5f, 7.5f, -7.5f, 0.499999f, std::nextafter(0.5f, 0.0f)});
  const BlockQ4_0 block = encode_q4_0(x.data());  // d = 1
  const int expected[] = {0, 9, 8, 10, 7, 15, 15, 1, 8, 9};
  for (int j = 0; j < 10; ++j) EXPECT_EQ(q4_code(block, j), expected[j]) << x[static_cast<size_t>(j)];
}

TEST(GridQ4_0, CodesComeFromTheScaleBeforeItIsRounded) {
  // d = 1.0004 is stored as 1: an x between half of the one and half of the other tells which scale was used.
  const float extreme = -8.0f * 1.0004f, d = extreme / -8.0f;
  const float rounded = f16_to_f32(f32_to_f16(d));
  ASSERT_LT(rounded, d);
  const float x = (rounded / 2 + d / 2) / 2;  // above half of the stored scale, below half of the exact one
  EXPECT_EQ(q4_code(encode_q4_0(block_of({extreme, x}).data()), 1), 8);
  EXPECT_EQ(q4_code(encode_q4_0_with_scale(block_of({extreme, x}).data(), d), 1), 9);
}

TEST(GridQ4_0, ZeroBlocks) {
  for (const float zero : {0.0f, -0.0f}) {
    const BlockQ4_0 block = encode_q4_0(Block32(kBlockSize, zero).data());
    EXPECT_EQ(block.d, 0x8000);  // 0 / -8
    for (int j = 0; j < kBlockSize; ++j) EXPECT_EQ(q4_code(block, j), 8);
    float out[kBlockSize];
    decode_block(block, out);
    for (const float v : out) EXPECT_EQ(v, 0.0f);
  }
}

TEST(GridQ4_0, ScalesOutsideHalfPrecision) {
  float out[kBlockSize];
  // 8 * 65504 is the largest magnitude; from 8 * 65520 on the stored scale is infinite.
  decode_block(encode_q4_0(block_of({-8 * 65504.0f, 65504.0f}).data()), out);
  EXPECT_EQ(out[0], -8 * 65504.0f);
  EXPECT_EQ(out[1], 65504.0f);
  EXPECT_EQ(encode_q4_0(block_of({-8 * 65520.0f}).data()).d, 0x7c00);
  // 2^-24 is the smallest scale; up to half of it everything becomes zero.
  decode_block(encode_q4_0(block_of({-0x1p-21f, 0x1p-24f}).data()), out);
  EXPECT_EQ(out[1], 0x1p-24f);
  decode_block(encode_q4_0(block_of({-0x1p-22f, 0x1p-23f}).data()), out);
  for (const float v : out) EXPECT_EQ(v, 0.0f);
  decode_block(encode_q4_0(block_of({-1e-42f, 1e-43f}).data()), out);
  for (const float v : out) EXPECT_EQ(v, 0.0f);
}

// The rule as prose has it: one element after the other.
BlockQ4_0 plain_q4_0(const float* x) {
  float extreme = 0.0f;
  for (int j = 0; j < kBlockSize; ++j)
    if (std::fabs(x[j]) > std::fabs(extreme)) extreme = x[j];
  const float d = extreme / -8.0f;
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  BlockQ4_0 block = {};
  block.d = f32_to_f16(d);
  if (std::isinf(inverse)) return block;
  for (int j = 0; j < kBlockSize; ++j) {
    const int code = std::min(15, static_cast<int>(x[j] * inverse + 8.5f));
    block.qs[j % 16] = static_cast<uint8_t>(block.qs[j % 16] | (j < 16 ? code : code << 4));
  }
  return block;
}

TEST(GridQ4_0, EqualsThePlainRule) {
  const std::vector<float> x = hard_values(32 * 20000, 1);
  for (size_t i = 0; i < x.size(); i += 32)
    ASSERT_TRUE(same_bytes(encode_q4_0(&x[i]), plain_q4_0(&x[i]))) << "block " << i / 32;
}

TEST(GridQ4_0, AScaleChosenElsewhere) {
  // d is rounded to half before the codes are taken, so that they belong to what is stored.
  const float d = 1.0004f;
  const BlockQ4_0 block = encode_q4_0_with_scale(block_of({100, -100, 0.5f, -0.5f, -8.4f}).data(), d);
  EXPECT_EQ(f16_to_f32(block.d), 1.0f);
  const int expected[] = {15, 0, 9, 8, 0};
  for (int j = 0; j < 5; ++j) EXPECT_EQ(q4_code(block, j), expected[j]) << j;
  EXPECT_EQ(q4_code(encode_q4_0_with_scale(block_of({1}).data(), -1.0f), 0), 7);
  const BlockQ4_0 zero = encode_q4_0_with_scale(block_of({100, -100}).data(), 0.0f);
  for (int j = 0; j < kBlockSize; ++j) EXPECT_EQ(q4_code(zero, j), 8);
}

// ------------------------------------------------------------------ Q8_0

TEST(GridQ8_0, EveryByteHasItsValue) {
  for (int code = -128; code < 128; ++code) {
    BlockQ8_0 block;
    block.d = f32_to_f16(-0.25f);
    for (int8_t& q : block.qs) q = static_cast<int8_t>(code);
    float out[kBlockSize];
    decode_block(block, out);
    for (const float v : out) EXPECT_EQ(v, -0.25f * static_cast<float>(code));
  }
}

TEST(GridQ8_0, TiesRoundAwayFromZero) {
  const Block32 x = block_of({-127, 0.5f, -0.5f, 1.5f, 2.5f, -2.5f, std::nextafter(0.5f, 0.0f), 126.5f, 127});
  const BlockQ8_0 block = encode_q8_0(x.data());
  EXPECT_EQ(f16_to_f32(block.d), 1.0f);
  const int expected[] = {-127, 1, -1, 2, 3, -3, 0, 127, 127};
  for (int j = 0; j < 9; ++j) EXPECT_EQ(block.qs[j], expected[j]) << x[static_cast<size_t>(j)];
}

TEST(GridQ8_0, EqualsThePlainRule) {
  const std::vector<float> x = hard_values(32 * 20000, 2);
  for (size_t i = 0; i < x.size(); i += 32) {
    float largest = 0.0f;
    for (size_t j = i; j < i + 32; ++j) largest = std::max(largest, std::fabs(x[j]));
    const float d = largest / 127.0f, inverse = d != 0.0f ? 1.0f / d : 0.0f;
    BlockQ8_0 plain = {};
    plain.d = f32_to_f16(d);
    if (!std::isinf(inverse))
      for (size_t j = 0; j < 32; ++j) plain.qs[j] = static_cast<int8_t>(std::round(x[i + j] * inverse));
    ASSERT_TRUE(same_bytes(encode_q8_0(&x[i]), plain)) << "block " << i / 32;
  }
}

TEST(GridQ8_0, ZeroBlocks) {
  const BlockQ8_0 block = encode_q8_0(Block32(kBlockSize, -0.0f).data());
  EXPECT_EQ(block.d, 0);
  for (const int8_t q : block.qs) EXPECT_EQ(q, 0);
}

// ------------------------------------------------------------------ Q6_K

TEST(GridQ6_K, EveryCodeAtEveryPlace) {
  for (int code = -32; code < 32; ++code)
    for (int j = 0; j < kSuperBlock; ++j) {
      int8_t codes[kSuperBlock] = {}, back[kSuperBlock];
      codes[j] = static_cast<int8_t>(code);
      BlockQ6_K block = {};
      pack_q6_k_codes(codes, &block);
      unpack_q6_k_codes(block, back);
      ASSERT_EQ(std::memcmp(codes, back, sizeof codes), 0) << code << " at " << j;
    }
}

TEST(GridQ6_K, GroupsOf16HaveTheirOwnScale) {
  BlockQ6_K block = {};
  block.d = f32_to_f16(0.5f);
  int8_t codes[kSuperBlock];
  for (int j = 0; j < kSuperBlock; ++j) codes[j] = static_cast<int8_t>(j % 64 - 32);
  pack_q6_k_codes(codes, &block);
  for (int g = 0; g < 16; ++g) block.scales[g] = static_cast<int8_t>(g * 17 - 128);
  float out[kSuperBlock];
  decode_block(block, out);
  for (int j = 0; j < kSuperBlock; ++j)
    EXPECT_EQ(out[j], 0.5f * static_cast<float>(block.scales[j / 16]) * static_cast<float>(codes[j])) << j;
}

// One candidate after the other, one element after the other.
float plain_group_scale(const float* x, int8_t* codes) {
  float extreme = 0.0f;
  for (int i = 0; i < 16; ++i)
    if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
  for (int i = 0; i < 16; ++i) codes[i] = -32;
  if (std::fabs(extreme) < 1e-15f) return 0.0f;
  float scale = 0.0f, best = 0.0f;
  for (const int k : {0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
    const float inverse = -(32.0f + 0.1f * static_cast<float>(k)) / extreme;
    float sum_xl = 0.0f, sum_ll = 0.0f;
    float levels[16];
    for (int i = 0; i < 16; ++i) {
      levels[i] = std::min(31.0f, std::max(-32.0f, std::nearbyint(inverse * x[i])));
      sum_xl += x[i] * x[i] * x[i] * levels[i];
      sum_ll += x[i] * x[i] * levels[i] * levels[i];
    }
    if (k != 0 && !(sum_ll > 0.0f && sum_xl * sum_xl > best * sum_ll)) continue;
    scale = sum_ll != 0.0f ? sum_xl / sum_ll : 0.0f;
    best = scale * sum_xl;
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<int8_t>(levels[i]);
  }
  return scale;
}

BlockQ6_K plain_q6_k(const float* x) {
  int8_t codes[kSuperBlock];
  float scales[16], extreme = 0.0f;
  for (int g = 0; g < 16; ++g) {
    scales[g] = plain_group_scale(x + 16 * g, codes + 16 * g);
    if (std::fabs(scales[g]) > std::fabs(extreme)) extreme = scales[g];
  }
  BlockQ6_K block = {};
  if (std::fabs(extreme) < 1e-15f) return block;
  const float inverse = -128.0f / extreme;
  block.d = f32_to_f16(1.0f / inverse);
  for (int g = 0; g < 16; ++g) {
    block.scales[g] = static_cast<int8_t>(std::min(127.0f, std::nearbyint(inverse * scales[g])));
    const float d = f16_to_f32(block.d) * static_cast<float>(block.scales[g]);
    if (d == 0.0f) continue;
    for (int j = 16 * g; j < 16 * g + 16; ++j)
      codes[j] = static_cast<int8_t>(std::min(31.0f, std::max(-32.0f, std::nearbyint(x[j] / d))));
  }
  pack_q6_k_codes(codes, &block);
  return block;
}

TEST(GridQ6_K, EqualsThePlainSearch) {
  const std::vector<float> x = hard_values(kSuperBlock * 1500, 3);
  for (size_t i = 0; i < x.size(); i += kSuperBlock)
    ASSERT_TRUE(same_bytes(encode_q6_k(&x[i]), plain_q6_k(&x[i]))) << "block " << i / kSuperBlock;
}

TEST(GridQ6_K, ZeroBlocksAndGroups) {
  std::vector<float> x(kSuperBlock, 0.0f);
  const BlockQ6_K zero = encode_q6_k(x.data()), nothing = {};
  EXPECT_TRUE(same_bytes(zero, nothing));
  x[20] = 1.0f;
  float out[kSuperBlock];
  decode_block(encode_q6_k(x.data()), out);
  for (int j = 0; j < kSuperBlock; ++j) {
    if (j == 20) EXPECT_NEAR(out[j], 1.0f, 1e-3f);
    else EXPECT_EQ(out[j], 0.0f) << j;
  }
}

// ------------------------------------------------------------------ every grid

constexpr DType kGrids[] = {DType::F32, DType::F16, DType::BF16, DType::Q2_0, DType::Q4_0, DType::Q8_0, DType::Q6_K};

TEST(GridQ2_0, EveryCodeAtEveryPlace) {
  for (int place = 0; place < 64; ++place) {
    for (int code = 0; code < 4; ++code) {
      std::vector<uint8_t> bytes(18, 0x55);  // codes 1: zeros
      bytes[0] = 0x00;
      bytes[1] = 0xb8;  // -0.5
      const size_t byte = static_cast<size_t>(2 + place / 4);
      const int shift = 2 * (place % 4);
      bytes[byte] = static_cast<uint8_t>((bytes[byte] & ~(3 << shift)) | (code << shift));
      std::vector<float> expected(64);
      expected[static_cast<size_t>(place)] = -0.5f * static_cast<float>(code - 1);
      EXPECT_EQ(decoded(DType::Q2_0, bytes, 64), expected) << place << " code " << code;
    }
  }
}

double squared_error(const float* x, const BlockQ2_0& block) {
  float values[kBlockQ2_0];
  decode_block(block, values);
  double error = 0.0;
  for (int j = 0; j < kBlockQ2_0; ++j) error += std::pow(static_cast<double>(x[j]) - values[j], 2);
  return error;
}

// Codes are the nearest levels to the stored scale; the scale is hardly worse than the best of a fine sweep, and much
// better than ggml's, the largest magnitude.
TEST(GridQ2_0, TheScaleIsNearTheBest) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  double found = 0.0, best = 0.0, ggml = 0.0;
  for (int i = 0; i < 500; ++i) {
    std::vector<float> x(kBlockQ2_0);
    for (float& v : x) v = normal(random);
    if (i % 3 == 0) x[static_cast<size_t>(i) % kBlockQ2_0] *= 5.0f;
    float largest = 0.0f;
    for (const float v : x) largest = std::max(largest, std::fabs(v));
    const auto with_scale = [&](float d) {
      BlockQ2_0 block = {};
      block.d = f32_to_f16(d);
      const float stored = f16_to_f32(block.d);
      for (int j = 0; j < kBlockQ2_0; ++j) {
        const int level = std::clamp(static_cast<int>(std::floor(x[static_cast<size_t>(j)] / stored + 0.5f)), -1, 2);
        block.qs[j / 4] = static_cast<uint8_t>(block.qs[j / 4] | ((level + 1) << (2 * (j % 4))));
      }
      return block;
    };
    const BlockQ2_0 block = encode_q2_0(x.data());
    EXPECT_NEAR(squared_error(x.data(), with_scale(f16_to_f32(block.d))), squared_error(x.data(), block), 1e-9);
    found += squared_error(x.data(), block);
    ggml += squared_error(x.data(), with_scale(largest));
    double least = 1e9;
    for (int k = 20; k <= 200; ++k)
      for (const float sign : {1.0f, -1.0f})
        least = std::min(least, squared_error(x.data(), with_scale(sign * largest * static_cast<float>(k) / 200.0f)));
    best += least;
  }
  EXPECT_LT(found, 1.02 * best);
  EXPECT_LT(found, 0.5 * ggml);
}

TEST(GridQ2_0, ZeroBlocksAndGridPoints) {
  std::vector<float> x(kBlockQ2_0, 0.0f), out(kBlockQ2_0);
  decode_block(encode_q2_0(x.data()), out.data());
  EXPECT_EQ(out, x);
  for (size_t j = 0; j < x.size(); ++j) x[j] = -0.25f * static_cast<float>(static_cast<int>(j % 4) - 1);
  decode_block(encode_q2_0(x.data()), out.data());
  EXPECT_EQ(out, x);
}

// A channel-wise row of 2 bits is a Q2_0 row of the same values, whatever the scale that both hold.
TEST(GridQ2_0, HoldsTwoBitRowsExactly) {
  int8_t codes[64];
  for (int j = 0; j < 64; ++j) codes[j] = static_cast<int8_t>((j * 7 + j / 9) % 4 - 2);
  int scales = 0;
  for (uint32_t bits = float_bits(kLeastStorableScale); bits <= float_bits(kLargestStorableScale); bits += 1 << 16) {
    const float scale = float_from_bits(bits);  // neighbours differ in the last bit of a bfloat16
    const BlockQ2_0 block = pack_q2_0(codes, scale);
    float values[64];
    decode_block(block, values);
    for (int j = 0; j < 64; ++j) ASSERT_EQ(values[j], static_cast<float>(codes[j]) * scale) << scale;
    ++scales;
  }
  EXPECT_EQ(scales, 30 * 128);
}

TEST(Grid, WhichTypesAreGrids) {
  int grids = 0;
  for (const DTypeInfo& row : dtype_table()) grids += is_grid(row.id);
  EXPECT_EQ(grids, 7);
  for (const DType grid : kGrids) EXPECT_TRUE(is_grid(grid)) << dtype_name(grid);
  EXPECT_FALSE(has_codes(DType::BF16));
  EXPECT_TRUE(has_codes(DType::Q6_K));
}

TEST(Grid, FakeQuantizationIsDecodeOfEncodeAlsoInPlace) {
  const int64_t rows = 5, cols = 512;
  for (const DType grid : kGrids) {
    std::vector<float> x = hard_values(static_cast<int>(rows * cols), 4), expected(x.size()), found(x.size());
    std::vector<uint8_t> bytes(row_bytes(grid, cols) * static_cast<size_t>(rows));
    encode_rows(grid, x.data(), rows, cols, bytes.data());
    decode_rows(grid, bytes.data(), rows, cols, expected.data());
    fake_quantize_rows(grid, x.data(), rows, cols, found.data());
    EXPECT_EQ(std::memcmp(expected.data(), found.data(), found.size() * 4), 0) << dtype_name(grid);
    fake_quantize_rows(grid, x.data(), rows, cols, x.data());
    EXPECT_EQ(std::memcmp(expected.data(), x.data(), x.size() * 4), 0) << dtype_name(grid);
  }
}

TEST(Grid, ValuesOnTheGridStayWhereTheyAre) {
  // The extreme is on the grid, so the scale is found again. Not so for Q6_K, whose scale is a result of a search.
  for (const DType grid : {DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0}) {
    std::vector<float> once(32 * 4000), twice(once.size());
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (float& v : once) v = normal(random);
    fake_quantize_rows(grid, once.data(), 1, static_cast<int64_t>(once.size()), once.data());
    fake_quantize_rows(grid, once.data(), 1, static_cast<int64_t>(once.size()), twice.data());
    EXPECT_EQ(once, twice) << dtype_name(grid);
  }
}

TEST(Grid, SixteenBitFloatsRoundToNearestEven) {
  const std::vector<float> x = {1.0f, 1.00048828125f, 1.00146484375f, 65504.0f, 1e-8f, -2.0f};
  const auto f16 = decoded(DType::F16, encoded(DType::F16, x), 6);
  EXPECT_EQ(f16, (std::vector<float>{1.0f, 1.0f, 1.001953125f, 65504.0f, 0.0f, -2.0f}));
  const auto bf16 = decoded(DType::BF16, encoded(DType::BF16, {1.00390625f, 1.01171875f, 3e38f}), 3);
  EXPECT_EQ(bf16, (std::vector<float>{1.0f, 1.015625f, bf16_to_f32(0x7f62)}));
}

TEST(Grid, CodesAndScalesGoThereAndBack) {
  std::mt19937 random(6);
  struct Range {
    DType grid;
    int low, high;
  };
  for (const auto& [grid, least, most] : {Range{DType::Q2_0, -1, 2}, Range{DType::Q4_0, -8, 7},
                                          Range{DType::Q8_0, -128, 127}, Range{DType::Q6_K, -32, 31}}) {
    const int64_t rows = 3, cols = 512;
    std::vector<uint8_t> bytes(row_bytes(grid, cols) * rows), back(bytes.size());
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
    const CodedRows coded = unpack_rows(grid, bytes.data(), rows, cols);
    pack_rows(coded, back.data());
    EXPECT_EQ(bytes, back) << dtype_name(grid);
    const auto [low, high] = std::minmax_element(coded.codes.begin(), coded.codes.end());
    EXPECT_EQ(*low, least);
    EXPECT_EQ(*high, most);
  }
}

TEST(Grid, CodesTimesScalesAreTheValues) {
  const std::vector<float> x = hard_values(512, 7);
  for (const DType grid : {DType::Q2_0, DType::Q4_0, DType::Q8_0, DType::Q6_K}) {
    const std::vector<uint8_t> bytes = encoded(grid, x);
    const std::vector<float> values = decoded(grid, bytes, 512);
    const CodedRows coded = unpack_rows(grid, bytes.data(), 1, 512);
    const size_t block = static_cast<size_t>(dtype_info(grid).block_size);
    for (size_t i = 0; i < 512; ++i) {
      float scale = f16_to_f32(coded.scales[i / block]);
      if (grid == DType::Q6_K) scale *= static_cast<float>(coded.sub_scales[i / 16]);
      ASSERT_EQ(values[i], scale * static_cast<float>(coded.codes[i])) << dtype_name(grid) << " " << i;
    }
  }
}

TEST(Grid, FourBitCodesTwoPerByteRowsPadded) {
  const int8_t codes[] = {-8, 7, 3, 1, -1, 0};
  uint8_t packed[4];
  pack_int4(codes, 2, 3, packed);
  EXPECT_EQ(packed[0], 0xf0);  // code + 8, first code in the low half
  EXPECT_EQ(packed[1], 0x8b);  // 3, then padding of code 0
  EXPECT_EQ(packed[2], 0x79);
  EXPECT_EQ(packed[3], 0x88);
  for (const int64_t cols : {1, 2, 3, 16, 31, 33}) {
    std::vector<int8_t> all(static_cast<size_t>(5 * cols)), back(all.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int8_t>(static_cast<int>(i * 7 % 16) - 8);
    std::vector<uint8_t> bytes(static_cast<size_t>(5 * ((cols + 1) / 2)));
    pack_int4(all.data(), 5, cols, bytes.data());
    unpack_int4(bytes.data(), 5, cols, back.data());
    EXPECT_EQ(all, back) << cols;
  }
}

TEST(GridDeathTest, HalfABlockIsAProgrammersFault) {
  float x[40] = {};
  uint8_t out[64];
  EXPECT_DEATH(encode_rows(DType::Q4_0, x, 1, 40, out), "check failed");
  EXPECT_DEATH(encode_rows(DType::Q4_1, x, 1, 32, out), "check failed");
}

// ------------------------------------------------------------------ llama.cpp's bytes

// What llama-quantize (llama.cpp 0.7) writes for gold_values().
constexpr char kGoldQ4_0[] =
    "192490537bd7786da726f9117d2e145eedb18d23ddd30fbe81bb18ebf03dddb0ea571a101924d7119f627ad6877db73509218d3e246e"
    "cfa341d4121cd0305d23c6f4fea2022ef486f02384251a54d2a6ce1acbc0fb895d74d182dfa3e904ec7fbdb66bdbf7ce409e873c9cb7"
    "f02398bf0cbca1ec6a2d45a152488201e4fdbe23e620c0a4de3bfdf34fefc3fc6a2c228e";
constexpr char kGoldQ8_0[] =
    "211481b12aedfa50f1db0f8d5364c063518a0bd6eb49f2e420a6748ef09d93d25b2f9d1352ac6b6499320529874a48811ef61e81484a"
    "8729053299646bac523363ce8a942114f08e74a620e4f249ebd60b8a5163c064538d0fdbf150faed2ab1819bfeaca3e3df13734564c5"
    "7e79b54a2044a96665a53e1941aa6b6eb3502f5bc88289de7f6286030014c3ce25c0a8db5a1e2d8128134bc78ea201a594d057233a97"
    "463979fdcde850fcef13f438bf93b31fceca139e7f9a0abebe0a9a7f9e13cace1fb393bf38f4fc51e8cc0014fd793946973a2357d094"
    "a501a28ec74b1328812d1e5adba8c025cec30388607dce13dd8881c75b2f51b26f6ca941193fa56667a844214bb47a7fc4654573e29d"
    "a7fe";
constexpr char kGoldQ6_K[] =
    "c01cfb8b9e94cc47a453350960b9f5b25d3b467cc448f7b9a0cf047b0ebc979335fb7bf9061c31da82f36260687e08a00353615b31cd"
    "55aaecfad58d1a83e1f4110419e0ca177697dbc18a0592e2f4c950a80cbd797771ac0e9130111d268bf17322002b73c84ccdcbb8a109"
    "6d0090ad6961f88bdd3c1803fb70f233819c761d1c003e8d211bd939521cef0339f74b707dce2218da3a511facc3ce8b2f06c0516905"
    "1e4dfc95db0ae6fc32eeb7fd2cc42ee30f6628f9150f9c2d141aaac2f8ba81758b8f8980787d81767e7e768488781082";

std::vector<float> gold_values() {
  std::vector<float> x(256);
  for (int i = 0; i < 256; ++i)
    x[static_cast<size_t>(i)] = static_cast<float>((i * i * 37 + i * 11) % 257 - 128) / 1000.0f;
  return x;
}

std::string hex(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (const uint8_t b : bytes) {
    text += "0123456789abcdef"[b >> 4];
    text += "0123456789abcdef"[b & 15];
  }
  return text;
}

TEST(Grid, BytesOfLlamaQuantize) {
  EXPECT_EQ(hex(encoded(DType::Q4_0, gold_values())), kGoldQ4_0);
  EXPECT_EQ(hex(encoded(DType::Q8_0, gold_values())), kGoldQ8_0);
  EXPECT_EQ(hex(encoded(DType::Q6_K, gold_values())), kGoldQ6_K);
}

}  // namespace
}  // namespace qat
