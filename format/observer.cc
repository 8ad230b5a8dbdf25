#include "format/observer.h"

#include <algorithm>
#include <cmath>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/number.h"

namespace qat {
namespace {

// bfloat16 bits of 2^-24 and of 2^24.
constexpr int kFirst = (127 - 24) << 7, kLast = (127 + 24) << 7;

// Where bin i begins. The first also holds everything smaller, the last everything larger.
double edge(size_t bin) {
  return bin == 0 ? 0.0 : static_cast<double>(bf16_to_f32(static_cast<uint16_t>(kFirst + bin)));
}

struct Bin {
  double low, high, density;  // magnitudes per unit
};

struct Errors {
  double total = 0.0;
  double clipped = 0.0;  // of the bins beyond the grid: it only grows as the scale shrinks
};

// The integral of (t - value(t))^2 over t from 0 to x: each whole step adds scale^3 / 12, and around its level, or
// beyond the highest, the error grows from 0.
double integral_of_error(double x, double scale, double highest) {
  const double level = std::min(std::nearbyint(x / scale), highest);
  const double from_level = x - level * scale;
  return level * scale * scale * scale / 12.0 + from_level * from_level * from_level / 3.0;
}

// Sums over the bins, whose magnitudes count as spread evenly: at 8 bits a step is about as wide as a bin.
Errors squared_errors(const std::vector<Bin>& bins, double scale, int bits) {
  const double highest = highest_code(bits);
  Errors errors;
  for (const Bin& bin : bins) {
    const double error =
        bin.density * (integral_of_error(bin.high, scale, highest) - integral_of_error(bin.low, scale, highest));
    errors.total += error;
    if (bin.low >= highest * scale) errors.clipped += error;
  }
  return errors;
}

}  // namespace

ActivationObserver::ActivationObserver(const ObserverOptions& options) : options_(options), bins_(kLast - kFirst) {
  QAT_CHECK(options.momentum >= 0.0 && options.momentum < 1.0);
  QAT_CHECK(options.percentile > 0.0 && options.percentile <= 100.0);
}

void ActivationObserver::observe(const float* x, int64_t count) {
  if (count == 0) return;
  uint32_t largest = 0;  // as bits, which sort as magnitudes do
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
    largest = std::max(largest, magnitude);
    const int bin = static_cast<int>(magnitude >> 16) - kFirst;
    ++bins_[static_cast<size_t>(std::clamp(bin, 0, kLast - kFirst - 1))];
  }
  const float batch = float_from_bits(largest);
  average_ = count_ == 0 ? batch : options_.momentum * average_ + (1.0 - options_.momentum) * batch;
  largest_ = std::max(largest_, batch);
  count_ += count;
}

float ActivationObserver::scale(Calibration rule, int bits) const {
  QAT_CHECK(bits == 2 || bits == 4 || bits == 8);
  if (largest_ == 0.0f) return 0.0f;
  const auto reaching = [&](float magnitude) {
    return storable_scale(magnitude / static_cast<float>(highest_code(bits)));
  };
  switch (rule) {
    case Calibration::maximum: return reaching(static_cast<float>(average_));
    case Calibration::percentile: return reaching(magnitude_at(options_.percentile / 100.0));
    case Calibration::least_squares: break;
  }
  return least_squares_scale(bits);
}

// The magnitude that `fraction` of all lie at or below.
float ActivationObserver::magnitude_at(double fraction) const {
  const double wanted = fraction * static_cast<double>(count_);
  double below = 0.0;
  for (size_t i = 0; i < bins_.size(); ++i) {
    const double here = static_cast<double>(bins_[i]);
    if (here > 0.0 && below + here >= wanted) {
      const double magnitude = edge(i) + (edge(i + 1) - edge(i)) * (wanted - below) / here;
      return std::min(static_cast<float>(magnitude), largest_);
    }
    below += here;
  }
  return largest_;
}

// Downwards from the coarsest scale that is of use (a grid on which the largest magnitude is level 2^(b-2) at most is
// contained in the one twice as fine), an eighth of the scales first, then those around the best; until what is
// clipped costs more than everything at the best scale.
float ActivationObserver::least_squares_scale(int bits) const {
  std::vector<Bin> bins;
  for (size_t i = 0; i < bins_.size(); ++i)
    if (bins_[i] > 0) bins.push_back({edge(i), edge(i + 1), static_cast<double>(bins_[i]) / (edge(i + 1) - edge(i))});
  const auto scale_of = [](int index) { return bf16_to_f32(static_cast<uint16_t>(index)); };
  constexpr int kStep = 8;
  const int least = f32_to_bf16(kLeastStorableScale);
  const int first = f32_to_bf16(storable_scale(largest_ / (static_cast<float>(1 << (bits - 2)) - 0.5f)));
  int best = first;
  double best_error = HUGE_VAL;
  const auto consider = [&](int index) {
    const Errors errors = squared_errors(bins, static_cast<double>(scale_of(index)), bits);
    if (errors.total < best_error) {
      best_error = errors.total;
      best = index;
    }
    return errors.clipped <= best_error;
  };
  for (int index = first; index >= least && consider(index); index -= kStep) continue;
  const int around = best;
  for (int index = std::min(first, around + kStep - 1); index >= std::max(least, around - kStep + 1); --index)
    consider(index);
  return scale_of(best);
}

}  // namespace qat
