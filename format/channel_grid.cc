#include "format/channel_grid.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "format/error.h"
#include "format/grid.h"
#include "format/number.h"

namespace qat {
namespace {

// Nearest integer, ties to even, for |x| < 2^22: the sum has no bits left for a fraction. std::nearbyint in a form that
// vectorises on every x86.
float round_half_even(float x) {
  constexpr float kMagic = 0x1.8p23f;
  return (x + kMagic) - kMagic;
}

// The level of x on a grid of `scale`. The limits are whole numbers, so clamping first changes nothing, and it keeps
// the argument of round_half_even small. A NaN fails both comparisons.
float level(float x, float scale, float low, float high) {
  const float ratio = x / scale;
  const float above = ratio < low ? low : ratio;
  return round_half_even(above > high ? high : above);
}

struct Limits {
  float low, high;
};
Limits limits_of(int bits) {
  QAT_CHECK(bits == 2 || bits == 4 || bits == 8);
  return {static_cast<float>(lowest_code(bits)), static_cast<float>(highest_code(bits))};
}

template <int bits>
void decode_packed_bits(const uint8_t* row, int64_t first, int64_t count, float scale, float* out) {
  constexpr int kPerByte = 8 / bits, kMask = (1 << bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = first + i;
    const int stored = (row[k / kPerByte] >> (bits * (k % kPerByte))) & kMask;
    out[i] = static_cast<float>(stored + lowest_code(bits)) * scale;
  }
}

// ---- The search

constexpr int kLanes = 8;  // sums side by side, so that the loop runs in vectors whatever the compiler may reorder

// Sums of w * (x - value)^2.
struct Errors {
  double total = 0.0;
  double clipped = 0.0;  // of the x that lie beyond the grid: it only grows as the scale shrinks
};

// n is a multiple of kLanes.
Errors squared_errors(const Limits& limits, const float* x, const float* w, size_t n, float scale) {
  Errors errors;
  for (size_t begin = 0; begin < n; begin += 1024) {  // float sums stay short
    float total[kLanes] = {}, clipped[kLanes] = {};
    for (size_t i = begin; i < std::min(n, begin + 1024); i += kLanes) {
      for (size_t j = 0; j < kLanes; ++j) {
        const float value = level(x[i + j], scale, limits.low, limits.high) * scale;
        const float error = w[i + j] * (x[i + j] - value) * (x[i + j] - value);
        total[j] += error;
        const bool beyond = (x[i + j] > limits.high * scale) | (x[i + j] < limits.low * scale);
        clipped[j] += beyond ? error : 0.0f;
      }
    }
    for (int j = 0; j < kLanes; ++j) {
      errors.total += static_cast<double>(total[j]);
      errors.clipped += static_cast<double>(clipped[j]);
    }
  }
  return errors;
}

// Storable scales by number: neighbours differ by one.
int scale_index(float scale) { return static_cast<int>(float_bits(scale) >> 16); }
float scale_of(int index) { return float_from_bits(static_cast<uint32_t>(index) << 16); }

}  // namespace

DType code_type(int bits) {
  limits_of(bits);
  return bits == 2 ? DType::I2 : bits == 4 ? DType::I4 : DType::I8;
}

int code_bits(DType type) { return type == DType::I2 ? 2 : type == DType::I4 ? 4 : type == DType::I8 ? 8 : 0; }

void encode_channel(int bits, const float* x, int64_t n, float scale, int8_t* codes) {
  const Limits limits = limits_of(bits);
  for (int64_t i = 0; i < n; ++i)
    codes[i] = static_cast<int8_t>(static_cast<int>(level(x[i], scale, limits.low, limits.high)));
}

void decode_channel(const int8_t* codes, int64_t n, float scale, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(codes[i]) * scale;
}

void fake_quantize_channel(int bits, const float* x, int64_t n, float scale, float* out) {
  const Limits limits = limits_of(bits);
  for (int64_t i = 0; i < n; ++i) out[i] = level(x[i], scale, limits.low, limits.high) * scale;
}

void pack_codes(int bits, const int8_t* codes, int64_t rows, int64_t cols, uint8_t* out) {
  limits_of(bits);
  if (bits == 4) return pack_int4(codes, rows, cols, out);
  if (bits == 8) {
    std::copy_n(reinterpret_cast<const uint8_t*>(codes), rows * cols, out);
    return;
  }
  const int64_t stride = (cols + 3) / 4;
  for (int64_t r = 0; r < rows; ++r, codes += cols, out += stride) {
    for (int64_t b = 0; b < stride; ++b) {
      unsigned byte = 0;
      for (int64_t j = 0; j < 4; ++j) {
        const int code = 4 * b + j < cols ? codes[4 * b + j] : 0;
        byte |= static_cast<unsigned>(code + 2) << (2 * j);
      }
      out[b] = static_cast<uint8_t>(byte);
    }
  }
}

void unpack_codes(int bits, const uint8_t* data, int64_t rows, int64_t cols, int8_t* codes) {
  limits_of(bits);
  if (bits == 4) return unpack_int4(data, rows, cols, codes);
  if (bits == 8) {
    std::copy_n(reinterpret_cast<const int8_t*>(data), rows * cols, codes);
    return;
  }
  const int64_t stride = (cols + 3) / 4;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < cols; ++k)
      codes[r * cols + k] = static_cast<int8_t>(((data[r * stride + k / 4] >> (2 * (k % 4))) & 3) - 2);
}

void decode_packed(int bits, const uint8_t* row, int64_t first, int64_t count, float scale, float* out) {
  limits_of(bits);
  if (bits == 2) return decode_packed_bits<2>(row, first, count, scale, out);
  if (bits == 4) return decode_packed_bits<4>(row, first, count, scale, out);
  decode_channel(reinterpret_cast<const int8_t*>(row) + first, count, scale, out);
}

float storable_scale(float scale) {
  if (!(scale > kLeastStorableScale)) return kLeastStorableScale;
  return std::min(bf16_to_f32(f32_to_bf16(scale)), kLargestStorableScale);
}

float search_scale(int bits, const float* x, const float* importance, int64_t n) {
  const Limits limits = limits_of(bits);
  if (importance != nullptr && std::none_of(importance, importance + n, [](float w) { return w > 0.0f; }))
    importance = nullptr;  // inputs that never spoke say nothing about which weights matter: then all do
  // Weights that count, filled up with zeros, which fit every grid.
  std::vector<float> values, weights;
  float largest = 0.0f, heaviest = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float w = importance != nullptr ? importance[i] : 1.0f;
    if (!(w > 0.0f) || x[i] == 0.0f) continue;
    values.push_back(x[i]);
    weights.push_back(w);
    largest = std::max(largest, std::fabs(x[i]));
    heaviest = std::max(heaviest, w);
  }
  if (values.empty()) return kLeastStorableScale;
  while (values.size() % kLanes != 0) {
    values.push_back(0.0f);
    weights.push_back(0.0f);
  }
  // Relative to the largest, so that no square leaves the range of floats.
  for (float& v : values) v /= largest;
  for (float& w : weights) w /= heaviest;

  // A grid on which the largest magnitude is level 2^(b-2) at most is contained in the one twice as fine; the exact
  // bound is where that level begins, half a level below. Downwards until the part of the largest weight beyond the
  // grid costs more than everything at the best scale.
  const int first = scale_index(storable_scale(largest / (static_cast<float>(1 << (bits - 2)) - 0.5f)));
  int best = first;
  double best_error = HUGE_VAL;
  const auto consider = [&](int index) {
    const Errors errors =
        squared_errors(limits, values.data(), weights.data(), values.size(), scale_of(index) / largest);
    if (errors.total < best_error) {
      best_error = errors.total;
      best = index;
    }
    return errors.clipped <= best_error;
  };
  const int least = scale_index(kLeastStorableScale), step = n < 256 || bits == 8 ? 1 : 8;
  for (int index = first; index >= least && consider(index); index -= step) continue;
  const int around = best;
  for (int index = std::min(first, around + step - 1); index >= std::max(least, around - step + 1); --index)
    consider(index);
  return scale_of(best);
}

void round_activations(const float* x, int64_t n, float scale, float* out) {
  if (scale == 0.0f) {
    std::copy_n(x, n, out);
    return;
  }
  fake_quantize_channel(8, x, n, scale, out);
}

}  // namespace qat
