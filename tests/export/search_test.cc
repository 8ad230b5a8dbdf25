// The Q4_0 scale search: never worse than the reference rule, as good as any scale one can try, exact where an exact
// answer exists.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "export/ptq.h"
#include "format/number.h"

namespace qat {
namespace {

using Block = std::vector<float>;

double error_of(const BlockQ4_0& block, const Block& x, const float* w) {
  float values[kBlockSize];
  decode_block(block, values);
  double error = 0.0;
  for (size_t j = 0; j < x.size(); ++j)
    error += (w != nullptr ? w[j] : 1.0f) * std::pow(static_cast<double>(x[j]) - values[j], 2);
  return error;
}

// Blocks of many kinds: bell-shaped, heavy-tailed, one outlier, few distinct values, one sign, tiny.
std::vector<Block> sample_blocks(int count) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> tails(3.0f);
  std::vector<Block> blocks;
  for (int i = 0; i < count; ++i) {
    Block x(kBlockSize);
    for (float& v : x) v = i % 2 == 0 ? normal(random) : tails(random);
    if (i % 6 == 1) x[static_cast<size_t>(i) % kBlockSize] *= 30.0f;
    if (i % 6 == 2)
      for (float& v : x) v = std::round(v);
    if (i % 6 == 3)
      for (float& v : x) v = std::fabs(v);
    const float magnitude = i % 5 == 0 ? 1e-6f : i % 5 == 1 ? 1000.0f : 0.02f;
    for (float& v : x) v *= magnitude;
    blocks.push_back(x);
  }
  return blocks;
}

Block sample_importance(int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::exponential_distribution<float> spread;
  Block w(kBlockSize);
  for (float& v : w) v = std::pow(spread(random), 2.0f);
  if (seed % 3 == 0) w[static_cast<size_t>(seed) % kBlockSize] = 0.0f;
  return w;
}

TEST(SearchQ40, NeverWorseThanTheReferenceRuleAndUsuallyMuchBetter) {
  double searched = 0.0, reference = 0.0;
  int seed = 0;
  for (const Block& x : sample_blocks(600)) {
    const Block w = sample_importance(++seed);
    for (const float* weights : {static_cast<const float*>(nullptr), w.data()}) {
      const double found = error_of(search_q4_0(x.data(), weights), x, weights);
      const double rule = error_of(encode_q4_0(x.data()), x, weights);
      ASSERT_LE(found, rule) << "block " << seed;
      if (rule > 0.0) {
        searched += found / rule;
        reference += 1.0;
      }
    }
  }
  EXPECT_LT(searched, 0.9 * reference);
}

TEST(SearchQ40, NoScaleOfAFineScanBeatsIt) {
  int seed = 0;
  for (const Block& x : sample_blocks(60)) {
    const Block w = sample_importance(++seed);
    float largest = 0.0f;
    for (const float v : x) largest = std::max(largest, std::fabs(v));
    if (largest < 1e-3f) continue;  // scales below float16's normal range are too coarse for the comparison
    for (const float* weights : {static_cast<const float*>(nullptr), w.data()}) {
      const double found = error_of(search_q4_0(x.data(), weights), x, weights);
      double scanned = INFINITY;
      for (int i = 1; i <= 4000; ++i) {
        const float d =
            largest / 16.0f * static_cast<float>(i) / 1000.0f;  // up to a quarter of the largest: levels up to 4
        scanned = std::min(scanned, error_of(encode_q4_0_with_scale(x.data(), d), x, weights));
        scanned = std::min(scanned, error_of(encode_q4_0_with_scale(x.data(), -d), x, weights));
      }
      // Rounding the scale to float16 may favour a neighbour of the optimum by a hair.
      ASSERT_LE(found, scanned * (1.0 + 1e-3)) << "block " << seed;
    }
  }
}

TEST(SearchQ40, RecoversBlocksThatLieOnAGrid) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    // Extremes that the reference rule cannot know: the largest level is anything from 1 to 8, the scale of either
    // sign.
    const int top = 1 + trial % 7;
    std::uniform_int_distribution<int> level(-top - (trial % 2), top);
    const float d =
        f16_to_f32(f32_to_f16((trial % 3 == 0 ? -1.0f : 1.0f) * (0.001f + 0.0001f * static_cast<float>(trial))));
    Block x(kBlockSize);
    for (float& v : x) v = d * static_cast<float>(level(random));
    ASSERT_EQ(error_of(search_q4_0(x.data(), nullptr), x, nullptr), 0.0) << "trial " << trial;
  }
}

TEST(SearchQ40, UsesTheSignThatFits) {
  // +8 levels exist only with a negative scale: the largest weight is positive.
  Block x(kBlockSize);
  for (size_t j = 0; j < x.size(); ++j) x[j] = 0.5f * static_cast<float>(static_cast<int>(j % 16) - 7);
  EXPECT_EQ(error_of(search_q4_0(x.data(), nullptr), x, nullptr), 0.0);
  EXPECT_LT(f16_to_f32(search_q4_0(x.data(), nullptr).d), 0.0f);
}

TEST(SearchQ40, ZeroBlocksAndSilentInputs) {
  const Block zero(kBlockSize, 0.0f);
  const BlockQ4_0 block = search_q4_0(zero.data(), nullptr);
  EXPECT_EQ(f16_to_f32(block.d), 0.0f);
  for (const uint8_t byte : block.qs) EXPECT_EQ(byte, 0x88);

  // No input ever active: as if all mattered alike.
  const Block x = sample_blocks(1)[0];
  const BlockQ4_0 plain = search_q4_0(x.data(), nullptr), silent = search_q4_0(x.data(), zero.data());
  EXPECT_EQ(plain.d, silent.d);
  EXPECT_TRUE(std::equal(plain.qs, plain.qs + 16, silent.qs));

  // Only one input active: its weight is met to float16 precision however large the others are.
  Block w(kBlockSize, 0.0f), y(kBlockSize, 100.0f);
  w[5] = 1.0f;
  y[5] = 0.01f;
  EXPECT_LT(error_of(search_q4_0(y.data(), w.data()), y, w.data()), 1e-10);
  // The active weight is zero: nothing to fit.
  y[5] = 0.0f;
  EXPECT_EQ(error_of(search_q4_0(y.data(), w.data()), y, w.data()), 0.0);
}

TEST(SearchQ40, LargestAndSmallestMagnitudes) {
  for (const float magnitude : {1e-44f, 6e-8f, 5e-7f, 1e5f, 5e5f}) {
    Block x = sample_blocks(1)[0];
    float largest = 0.0f;
    for (const float v : x) largest = std::max(largest, std::fabs(v));
    for (float& v : x) v = v / largest * magnitude;
    const BlockQ4_0 block = search_q4_0(x.data(), nullptr);
    EXPECT_TRUE(std::isfinite(f16_to_f32(block.d))) << magnitude;
    EXPECT_LE(error_of(block, x, nullptr), error_of(encode_q4_0(x.data()), x, nullptr)) << magnitude;
  }
}

}  // namespace
}  // namespace qat
