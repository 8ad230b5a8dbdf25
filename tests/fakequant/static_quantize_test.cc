// Activations on a static grid: the rounding that the engine and transformers do, bit for bit, and its gradients.
#include "fakequant/static_quantize.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

namespace qat {
namespace {

torch::Tensor leaf(const torch::Tensor& x) { return x.clone().requires_grad_(); }

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.sizes() == b.sizes() && std::memcmp(a.data_ptr(), b.data_ptr(), static_cast<size_t>(a.numel()) * 4) == 0;
}

TEST(StaticQuantize, IsTheRoundingOfTheFileBitForBit) {
  torch::manual_seed(1);
  for (const float scale : {0.25f, 0.0115966796875f, kLeastStorableScale}) {
    for (const int64_t n : {1, 2, 3, 7, 8, 9, 15, 17, 100, 16383, 16384, 16385, 50001}) {
      torch::Tensor x = torch::randn({n}) * 60.0 * scale;
      if (n > 100) {
        x.slice(0, 0, 100) = (torch::arange(100) - 50).to(torch::kFloat32) * scale / 2;  // ties
        const float special[] = {-0.0f, FLT_TRUE_MIN,   -FLT_MAX,       std::numeric_limits<float>::infinity(),
                                 NAN,   127.5f * scale, -128.5f * scale};
        for (int64_t i = 0; i < 7; ++i) x[100 + i] = special[i];
      }
      torch::Tensor eight = torch::empty_like(x), four = torch::empty_like(x);
      round_activations(x.data_ptr<float>(), n, scale, eight.data_ptr<float>());
      fake_quantize_channel(4, x.data_ptr<float>(), n, scale, four.data_ptr<float>());
      EXPECT_TRUE(same_bits(static_quantize(x, static_log_scale(scale), 8), eight)) << n;
      EXPECT_TRUE(same_bits(static_quantize(x, static_log_scale(scale), 4), four)) << n;
    }
  }
}

TEST(StaticQuantize, OffIsTheTensorItself) {
  EXPECT_FALSE(static_log_scale(0.0f).defined());
  const torch::Tensor x = torch::randn({3, 4});
  EXPECT_TRUE(static_quantize(x, static_log_scale(0.0f), 8).is_same(x));
}

TEST(StaticQuantize, GradientsAreThoseOfTheFormulas) {
  torch::manual_seed(2);
  for (const int bits : {8, 4}) {
    for (const int64_t tokens : {1, 5, 1000}) {
      constexpr int64_t kFeatures = 33;
      const torch::Tensor x = leaf(torch::randn({2, tokens, kFeatures})), g = torch::randn(x.sizes());
      const float scale = bits == 8 ? 0.015625f : 0.25f;  // some are clipped
      const torch::Tensor log_scale = leaf(static_log_scale(scale));
      const torch::Tensor value = static_quantize(x, log_scale, bits);
      value.backward(g);
      double sum = 0.0, magnitude = 0.0, clipped = 0.0;
      const float *xs = x.data_ptr<float>(), *gs = g.data_ptr<float>(), *dx = x.grad().data_ptr<float>(),
                  *values = value.data_ptr<float>();
      for (int64_t i = 0; i < x.numel(); ++i) {
        const double ratio = static_cast<double>(xs[i]) / static_cast<double>(scale);
        const bool inside = ratio >= lowest_code(bits) && ratio <= highest_code(bits);
        const double code = static_cast<double>(values[i]) / static_cast<double>(scale);
        const double term = static_cast<double>(gs[i]) * (inside ? code - ratio : code);
        sum += term;
        magnitude += std::fabs(term);
        clipped += inside ? 0.0 : 1.0;
        ASSERT_EQ(dx[i], inside ? gs[i] : 0.0f);
      }
      const double factor = static_cast<double>(scale) / std::sqrt(kFeatures * static_cast<double>(highest_code(bits)));
      EXPECT_NEAR(log_scale.grad().item<double>(), factor * sum, factor * magnitude * 67 * 0.5 * FLT_EPSILON);
      if (tokens > 1) {
        EXPECT_GT(clipped, 0.0);
      }
    }
  }
}

TEST(StaticQuantize, TiedScalesGetTheSumOfTheirGradients) {
  torch::manual_seed(3);
  const torch::Tensor k = torch::randn({4, 16}), v = torch::randn({4, 16}) * 0.3, g = torch::randn({4, 16});
  const auto gradient = [&](bool with_k, bool with_v) {
    const torch::Tensor t = leaf(static_log_scale(0.01f));
    torch::Tensor sum = torch::zeros({4, 16});
    if (with_k) sum = sum + static_quantize(k, t, 8);
    if (with_v) sum = sum + static_quantize(v, t, 8);
    sum.backward(g);
    return t.grad().item<float>();
  };
  EXPECT_FLOAT_EQ(gradient(true, true), gradient(true, false) + gradient(false, true));
}

TEST(StaticQuantize, StridedTensorsAndBroadcastGradients) {
  torch::manual_seed(4);
  const torch::Tensor x = torch::randn({6, 10}), t = static_log_scale(0.02f);
  EXPECT_TRUE(torch::equal(static_quantize(x.t(), t, 8), static_quantize(x, t, 8).t()));
  const torch::Tensor input = leaf(x), log_scale = leaf(t);
  static_quantize(input.t(), log_scale, 8).sum().backward();
  const torch::Tensor other = leaf(x), other_scale = leaf(t);
  static_quantize(other.t().contiguous(), other_scale, 8).backward(torch::ones({10, 6}));
  EXPECT_TRUE(torch::equal(input.grad(), other.grad()));
  EXPECT_TRUE(torch::equal(log_scale.grad(), other_scale.grad()));
}

TEST(StaticQuantize, EmptyTensorsPass) {
  EXPECT_EQ(static_quantize(torch::zeros({0, 8}), static_log_scale(0.5f), 8).numel(), 0);
}

// From the calibrated maximum, learning finds the scale of the least squared error by itself.
TEST(StaticQuantize, LearnsTheScaleOfTheLeastError) {
  torch::manual_seed(5);
  const torch::Tensor x = torch::randn({256, 64});
  ActivationObserver observer;
  observe(x, observer);
  const auto error = [&](float scale) {
    return (static_quantize(x, static_log_scale(scale), 4) - x).square().mean().item<double>();
  };
  const float start = observer.scale(Calibration::maximum, 4), best = observer.scale(Calibration::least_squares, 4);
  const torch::Tensor t = leaf(static_log_scale(start));
  for (int step = 0; step < 300; ++step) {
    (static_quantize(x, t, 4) - x).square().mean().backward();
    const torch::NoGradGuard no_grad;
    torch::Tensor parameter = t;
    parameter -= 0.01 * (1 - step / 300.0) * t.grad().sign();
    parameter.mutable_grad().reset();
  }
  const float learned = storable_scales(t).item<float>();
  EXPECT_LT(error(learned), 1.002 * error(best)) << "from " << start << " to " << learned << ", least squares " << best;
  EXPECT_GT(error(start), 1.2 * error(best));
}

}  // namespace
}  // namespace qat
