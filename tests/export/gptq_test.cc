// Rounding by second moments of inputs: less error of outputs than rounding alone, nothing else when inputs are
// independent, the same whatever the threads.
#include "export/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "export/ptq.h"
#include "format/channel_grid.h"
#include "format/grid.h"
#include "tests/expect_error.h"

namespace qat {
namespace {

using Values = std::vector<float>;

// Rows of inputs that go together as activations do: few causes, some of them strong.
Values sample_inputs(int64_t rows, int64_t width, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int64_t causes = width / 4;
  Values mixing(static_cast<size_t>(causes * width)), x(static_cast<size_t>(rows * width));
  for (float& v : mixing) v = normal(random);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < causes; ++c) {
      const float cause = normal(random) * (c == 0 ? 5.0f : 1.0f);
      for (int64_t k = 0; k < width; ++k) x[r * width + k] += cause * mixing[c * width + k];
    }
    for (int64_t k = 0; k < width; ++k) x[r * width + k] += 0.3f * normal(random);
  }
  return x;
}

Values sample_weights(int64_t rows, int64_t width) {
  std::mt19937 random(11);
  std::student_t_distribution<float> tails(5.0f);
  Values w(static_cast<size_t>(rows * width));
  for (float& v : w) v = 0.02f * tails(random);
  return w;
}

InputMoments moments_of(const Values& x, int64_t width, int threads = 1) {
  ThreadPool pool(threads);
  InputMoments moments(width);
  const int64_t rows = static_cast<int64_t>(x.size()) / width, half = rows / 2;
  moments.add(pool, select_isa(), x.data(), half);
  moments.add(pool, select_isa(), x.data() + half * width, rows - half);
  moments.factorize();
  return moments;
}

// Mean square of what outputs lose when the weights become `values`.
double output_error(const Values& x, const Values& w, const Values& values, int64_t width) {
  double error = 0.0;
  for (size_t input = 0; input < x.size(); input += width) {
    for (size_t row = 0; row < w.size(); row += width) {
      double difference = 0.0;
      for (size_t k = 0; k < static_cast<size_t>(width); ++k)
        difference += static_cast<double>(x[input + k]) * (static_cast<double>(w[row + k]) - values[row + k]);
      error += difference * difference;
    }
  }
  return error / static_cast<double>(x.size());
}

std::vector<uint8_t> plain_blocks(DType grid, const Values& w, int64_t width) {
  std::vector<uint8_t> out(w.size() / kBlockSize * dtype_info(grid).block_bytes);
  if (grid == DType::Q8_0) {
    encode_rows(grid, w.data(), static_cast<int64_t>(w.size()) / width, width, out.data());
    return out;
  }
  for (size_t i = 0; i < w.size() / kBlockSize; ++i) {
    const BlockQ4_0 block = search_q4_0(&w[i * kBlockSize], nullptr);
    std::memcpy(out.data() + i * sizeof block, &block, sizeof block);
  }
  return out;
}

Values decoded(DType grid, const std::vector<uint8_t>& blocks, size_t count, int64_t width) {
  Values values(count);
  decode_rows(grid, blocks.data(), static_cast<int64_t>(count) / width, width, values.data());
  return values;
}

struct Channels {
  Values scales;
  std::vector<int8_t> codes;
  Values values(int64_t width) const {
    Values out(codes.size());
    for (size_t r = 0; r < scales.size(); ++r)
      decode_channel(codes.data() + r * width, width, scales[r], out.data() + r * width);
    return out;
  }
};

Channels plain_channels(int bits, const Values& w, int64_t width) {
  Channels out{Values(w.size() / width), std::vector<int8_t>(w.size())};
  for (size_t r = 0; r < out.scales.size(); ++r) {
    out.scales[r] = search_scale(bits, w.data() + r * width, nullptr, width);
    encode_channel(bits, w.data() + r * width, width, out.scales[r], out.codes.data() + r * width);
  }
  return out;
}

Channels rounded_channels(const InputMoments& moments, int bits, const Values& w) {
  const int64_t width = moments.width();
  Channels out{Values(w.size() / width), std::vector<int8_t>(w.size())};
  gptq_channels(moments, bits, w.data(), static_cast<int64_t>(out.scales.size()), out.scales.data(), out.codes.data());
  return out;
}

std::vector<uint8_t> rounded_blocks(const InputMoments& moments, DType grid, const Values& w) {
  std::vector<uint8_t> out(w.size() / kBlockSize * dtype_info(grid).block_bytes);
  gptq_blocks(moments, grid, w.data(), static_cast<int64_t>(w.size()) / moments.width(), out.data());
  return out;
}

constexpr int64_t kWidth = 320;  // more than a tile, more than two batches

TEST(Gptq, OutputsLoseLessThanByRoundingAlone) {
  const Values x = sample_inputs(500, kWidth, 1), w = sample_weights(70, kWidth),
               unseen = sample_inputs(100, kWidth, 1);
  const InputMoments moments = moments_of(x, kWidth);
  for (const DType grid : {DType::Q4_0, DType::Q8_0}) {
    const double plain = output_error(x, w, decoded(grid, plain_blocks(grid, w, kWidth), w.size(), kWidth), kWidth);
    const double ours = output_error(x, w, decoded(grid, rounded_blocks(moments, grid, w), w.size(), kWidth), kWidth);
    EXPECT_LT(ours, 0.5 * plain) << dtype_name(grid);
    EXPECT_GT(ours, 0.0);
  }
  for (const int bits : {2, 4, 8}) {
    const double plain = output_error(x, w, plain_channels(bits, w, kWidth).values(kWidth), kWidth);
    const Channels ours = rounded_channels(moments, bits, w);
    EXPECT_LT(output_error(x, w, ours.values(kWidth), kWidth), 0.5 * plain) << bits;
    for (const float scale : ours.scales) EXPECT_EQ(scale, storable_scale(scale));
    for (const int8_t code : ours.codes) ASSERT_TRUE(code >= lowest_code(bits) && code <= highest_code(bits));
  }
}

TEST(Gptq, IndependentInputsOfOneSizeLeaveThePlainRule) {
  Values basis(kWidth * kWidth);  // H = 4 / kWidth on the diagonal
  for (size_t i = 0; i < kWidth; ++i) basis[i * kWidth + i] = 2.0f;
  const Values w = sample_weights(70, kWidth);
  const InputMoments silent = [] {
    InputMoments none(kWidth);
    none.factorize();
    return none;
  }();
  for (const InputMoments& moments : {moments_of(basis, kWidth), silent}) {
    // (Q8_0's own rule takes its codes from the scale before that is rounded: not the nearest ones.)
    EXPECT_EQ(rounded_blocks(moments, DType::Q4_0, w), plain_blocks(DType::Q4_0, w, kWidth));
    for (const int bits : {2, 4, 8}) {
      const Channels plain = plain_channels(bits, w, kWidth), ours = rounded_channels(moments, bits, w);
      EXPECT_EQ(ours.scales, plain.scales) << bits;
      EXPECT_EQ(ours.codes, plain.codes) << bits;
    }
  }
}

TEST(Gptq, TheFactorIsThatOfTheMomentsWhateverTheThreads) {
  const int64_t width = 600;
  const Values x = sample_inputs(200, width, 3);  // fewer rows than columns: damping makes it definite
  const InputMoments moments = moments_of(x, width, 1), other = moments_of(x, width, 3);
  const auto lower = [&](const InputMoments& m, int64_t i, int64_t j) { return m.factor()[i * width + j]; };
  double mean = 0.0, worst = 0.0;
  for (const float v : x) mean += static_cast<double>(v) * v / static_cast<double>(x.size());
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      ASSERT_EQ(lower(moments, i, j), lower(other, i, j)) << i << ' ' << j;
      double expected = i == j ? 0.01 * mean : 0.0, found = 0.0;
      for (size_t r = 0; r < 200; ++r) expected += static_cast<double>(x[r * width + i]) * x[r * width + j] / 200.0;
      for (int64_t k = 0; k <= j; ++k) found += static_cast<double>(lower(moments, i, k)) * lower(moments, j, k);
      worst = std::max(worst, std::fabs(found - expected));
    }
  }
  EXPECT_LT(worst, 1e-5 * mean);
}

// Two inputs that always say the same, loudly, among quiet ones: float sums leave no positive pivot at 1 %.
TEST(Gptq, MomentsWithoutAFactorAreDampedUntilTheyHaveOne) {
  Values x = sample_inputs(64, kWidth, 5);
  for (size_t r = 0; r < 64; ++r) x[r * kWidth + 3] = x[r * kWidth + 200] = 1e7f * x[r * kWidth];
  const Values w = sample_weights(4, kWidth);
  const Channels rounded = rounded_channels(moments_of(x, kWidth), 4, w);
  for (const float value : rounded.values(kWidth)) ASSERT_TRUE(std::isfinite(value));
}

TEST(Gptq, InputsBeyondFloatsAreRefused) {
  Values x = sample_inputs(8, kWidth, 5);
  x[17] = 1e30f;
  expect_error([&] { moments_of(x, kWidth); }, "beyond the range of floats");
}

}  // namespace
}  // namespace qat
