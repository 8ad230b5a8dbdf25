// Calibration: what magnitudes a tensor of activations takes, and the static scale that follows from them.
#pragma once

#include <cstdint>
#include <vector>

namespace qat {

enum class Calibration {
  maximum,       // the moving average of the batches' largest magnitudes reaches the highest code
  percentile,    // a percentile of all magnitudes does
  least_squares  // the least mean of (x - value)^2
};

struct ObserverOptions {
  double momentum = 0.95;     // of the moving average: what the past weighs
  double percentile = 99.99;  // percent
};

// Keeps a moving average and a histogram of magnitudes, 48 KiB. The bins are the bfloat16 numbers from 2^-24 to 2^24,
// 128 to the octave: nothing to adjust when a batch brings larger values, so the histogram does not depend on the order
// of batches or on how values are spread over them, and everything is deterministic.
class ActivationObserver {
 public:
  explicit ActivationObserver(const ObserverOptions& options = {});
  void observe(const float* x, int64_t count);  // one batch, finite
  int64_t count() const { return count_; }      // numbers seen

  // A storable scale (format/channel_grid.h), or 0, which is off, when nothing but zeros was seen. bits: 2, 4, 8.
  float scale(Calibration rule, int bits) const;

 private:
  float magnitude_at(double fraction) const;
  float least_squares_scale(int bits) const;

  ObserverOptions options_;
  std::vector<int64_t> bins_;
  int64_t count_ = 0;
  double average_ = 0.0;  // of the largest magnitude
  float largest_ = 0.0f;
};

}  // namespace qat
