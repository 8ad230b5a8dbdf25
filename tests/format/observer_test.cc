// Calibration on distributions whose answer is known.
#include "format/observer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "format/channel_grid.h"

namespace qat {
namespace {

std::vector<float> gaussian(size_t n, float sigma, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, sigma);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

void observe(ActivationObserver& observer, const std::vector<float>& x) {
  observer.observe(x.data(), static_cast<int64_t>(x.size()));
}

// Mean of (x - value)^2 for x of a normal distribution (sigma 1) on the levels -highest..highest, integrated.
double gaussian_error(double scale, double highest) {
  double sum = 0.0;
  constexpr double kStep = 1e-4;
  for (double x = kStep / 2; x < 8.0; x += kStep) {
    const double value = std::min(std::nearbyint(x / scale), highest) * scale;
    sum += (x - value) * (x - value) * std::exp(-x * x / 2);
  }
  return 2.0 * sum * kStep / std::sqrt(2.0 * std::acos(-1.0));
}

double best_gaussian_scale(double highest) {
  double low = 0.5 / highest, high = 8.0 / highest;
  while (high / low > 1.0005) {  // golden enough: the error has one minimum
    const double a = low * std::pow(high / low, 1.0 / 3), b = low * std::pow(high / low, 2.0 / 3);
    (gaussian_error(a, highest) < gaussian_error(b, highest) ? high : low) =
        gaussian_error(a, highest) < gaussian_error(b, highest) ? b : a;
  }
  return std::sqrt(low * high);
}

TEST(Observer, LeastSquaresFindsTheOptimumOfAGaussian) {
  // Uniform quantizers of a Gaussian: with 15 levels the best step is 0.3534 sigma (Max 1960).
  EXPECT_NEAR(best_gaussian_scale(7), 0.3534, 0.0005);
  for (const float sigma : {1.0f, 0.037f, 900.0f}) {
    ActivationObserver observer;
    observe(observer, gaussian(400000, sigma, 1));
    for (const int bits : {4, 8}) {
      const double highest = highest_code(bits), optimum = best_gaussian_scale(highest);
      const double found =
          static_cast<double>(observer.scale(Calibration::least_squares, bits)) / static_cast<double>(sigma);
      EXPECT_LT(gaussian_error(found, highest), 1.003 * gaussian_error(optimum, highest))
          << bits << " bits, sigma " << sigma << ": found " << found << ", optimum " << optimum;
      EXPECT_NEAR(found / optimum, 1.0, 0.03);
    }
  }
}

TEST(Observer, LeastSquaresIsTheBestOfAllScalesOnTheNumbersThemselves) {
  std::vector<float> heavy = gaussian(100000, 1.0f, 2);
  for (float& v : heavy) v = v * v * v;
  std::vector<float> outlier = gaussian(100000, 1.0f, 3);
  outlier[7] = 1000.0f;
  std::vector<float> positive = gaussian(100000, 1.0f, 4);  // as after an activation function: half are zeros
  for (float& v : positive) v = std::max(v, 0.0f);
  for (const std::vector<float>& x : {heavy, outlier, positive}) {
    ActivationObserver observer;
    observe(observer, x);
    std::vector<float> value(x.size());
    const auto error = [&](int bits, float scale) {
      fake_quantize_channel(bits, x.data(), static_cast<int64_t>(x.size()), scale, value.data());
      double sum = 0.0;
      for (size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(x[i] - value[i]), 2);
      return sum;
    };
    for (const int bits : {4, 8}) {
      const float found = observer.scale(Calibration::least_squares, bits);
      double least = HUGE_VAL;
      for (float scale = found / 8; scale < found * 8; scale *= 1.02f)
        least = std::min(least, error(bits, storable_scale(scale)));
      EXPECT_LT(error(bits, found), 1.01 * least) << bits << " bits, " << found;
    }
  }
}

TEST(Observer, PercentileOfAUniformDistribution) {
  std::vector<float> x;
  for (int i = 0; i < 100000; ++i)
    x.push_back((i % 2 == 0 ? 1.0f : -1.0f) * (static_cast<float>(i) + 0.5f) / 100000.0f);
  for (const double percent : {50.0, 99.0, 99.9, 100.0}) {
    ObserverOptions options;
    options.percentile = percent;
    ActivationObserver observer(options);
    observe(observer, x);
    // Interpolated within bins; what remains is the storable scale's step.
    EXPECT_NEAR(static_cast<double>(observer.scale(Calibration::percentile, 8)) * 127.0 / (percent / 100.0), 1.0,
                1.0 / 250)
        << percent;
  }
}

TEST(Observer, PercentileLeavesOutliersAway) {
  std::vector<float> x = gaussian(100000, 1.0f, 5);
  for (size_t i = 0; i < 5; ++i) x[i] = 5000.0f;
  ActivationObserver observer;
  observe(observer, x);
  EXPECT_NEAR(observer.scale(Calibration::percentile, 8) * 127.0f, 4.0f, 0.4f);
  EXPECT_NEAR(observer.scale(Calibration::maximum, 8) * 127.0f, 5000.0f, 20.0f);
}

TEST(Observer, MaximumIsAMovingAverageOverBatches) {
  ObserverOptions options;
  options.momentum = 0.75;
  ActivationObserver observer(options);
  observe(observer, {1.0f, -8.0f});
  EXPECT_EQ(observer.scale(Calibration::maximum, 4), storable_scale(8.0f / 7.0f));
  observe(observer, {4.0f, 2.0f});
  EXPECT_EQ(observer.scale(Calibration::maximum, 4), storable_scale(7.0f / 7.0f));
  EXPECT_EQ(observer.count(), 4);
}

TEST(Observer, HistogramDoesNotDependOnBatches) {
  const std::vector<float> x = gaussian(30000, 2.0f, 6);
  ActivationObserver whole, parts;
  observe(whole, x);
  for (size_t i = x.size(); i >= 1000; i -= 1000) parts.observe(x.data() + i - 1000, 1000);
  for (const Calibration rule : {Calibration::percentile, Calibration::least_squares})
    for (const int bits : {2, 4, 8}) EXPECT_EQ(whole.scale(rule, bits), parts.scale(rule, bits)) << bits;
}

TEST(Observer, NothingButZerosIsOff) {
  ActivationObserver observer;
  observe(observer, {});
  observe(observer, {0.0f, -0.0f, 0.0f});
  for (const Calibration rule : {Calibration::maximum, Calibration::percentile, Calibration::least_squares})
    EXPECT_EQ(observer.scale(rule, 8), 0.0f);
  observe(observer, {1e-30f});  // too small for any scale that files share
  for (const Calibration rule : {Calibration::maximum, Calibration::percentile, Calibration::least_squares})
    EXPECT_EQ(observer.scale(rule, 8), kLeastStorableScale);
}

TEST(Observer, BeyondTheBinsItStaysFinite) {
  ActivationObserver observer;
  observe(observer, {1e30f, -3e38f, 1.0f});
  for (const Calibration rule : {Calibration::maximum, Calibration::percentile, Calibration::least_squares})
    EXPECT_EQ(observer.scale(rule, 8), kLargestStorableScale);
}

}  // namespace
}  // namespace qat
