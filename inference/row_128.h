// Rows of every stored type, and packed codes, as floats: decoding and dot products, with vectors of 128 bits. For the
// translation units that simd_128.h speaks of.
#pragma once

#include "inference/codes_128.h"
#include "inference/kernels_isa.h"

namespace qat {
namespace {

// Sum of 16 codes times x, spread over the lanes.
inline f32x4 dot16(i8x16 codes, const float* x) {
  const Ints w = ints_of(codes);
  const f32x4 low = fma(to_floats(w.of[1]), load<f32x4>(x + 4), to_floats(w.of[0]) * load<f32x4>(x));
  const f32x4 high = fma(to_floats(w.of[3]), load<f32x4>(x + 12), to_floats(w.of[2]) * load<f32x4>(x + 8));
  return low + high;
}

inline void scale16(i8x16 codes, float scale, float* out) {
  const Ints w = ints_of(codes);
  for (int i = 0; i < 4; ++i) store(out + 4 * i, scale * to_floats(w.of[i]));
}

// ---- Blocks

template <class Blocks>
void decode_blocks(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += Blocks::kCols, row += Blocks::kBytes)
    Blocks::each(row, [&](int64_t i, i8x16 codes, float scale) { scale16(codes, scale, out + k + i); });
}

template <class Blocks>
float dot_decoded(const uint8_t* row, const float* x, int64_t cols) {
  f32x4 even = {}, odd = {};
  for (int64_t k = 0; k < cols; k += Blocks::kCols, row += Blocks::kBytes)
    Blocks::each(row, [&](int64_t i, i8x16 codes, float scale) {
      f32x4& sum = i % 32 == 0 ? even : odd;
      sum = fma(splat(scale), dot16(codes, x + k + i), sum);
    });
  return sum_lanes(even + odd);
}

// ---- F32, F16, BF16: `Float` loads 4 elements, or one.

struct LoadF32 {
  static constexpr int64_t kBytes = 4;
  static f32x4 four(const uint8_t* p) { return load<f32x4>(p); }
  static float one(const uint8_t* p) { return load<float>(p); }
};

struct LoadF16 {
  static constexpr int64_t kBytes = 2;
  static f32x4 four(const uint8_t* p) { return from_halves(load<uint64_t>(p)); }
  static float one(const uint8_t* p) { return half_at(p); }
};

struct LoadBf16 {
  static constexpr int64_t kBytes = 2;
  static f32x4 upper_halves(uint64_t four) { return as<f32x4>(zip_low(u16x8{}, as<u16x8>(u64x2{four, 0}))); }
  static f32x4 four(const uint8_t* p) { return upper_halves(load<uint64_t>(p)); }
  static float one(const uint8_t* p) { return upper_halves(load<uint16_t>(p))[0]; }
};

template <class Float>
void decode_floats(const uint8_t* row, int64_t cols, float* out) {
  int64_t k = 0;
  for (; k + 4 <= cols; k += 4) store(out + k, Float::four(row + k * Float::kBytes));
  for (; k < cols; ++k) out[k] = Float::one(row + k * Float::kBytes);
}

template <class Float>
float dot_floats(const uint8_t* row, const float* x, int64_t cols) {
  f32x4 sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  const auto add = [&](f32x4 sum, int64_t k) {
    return fma(Float::four(row + k * Float::kBytes), load<f32x4>(x + k), sum);
  };
  int64_t k = 0;
  for (; k + 16 <= cols; k += 16) {
    sum0 = add(sum0, k);
    sum1 = add(sum1, k + 4);
    sum2 = add(sum2, k + 8);
    sum3 = add(sum3, k + 12);
  }
  for (; k + 4 <= cols; k += 4) sum0 = add(sum0, k);
  float total = sum_lanes((sum0 + sum1) + (sum2 + sum3));
  for (; k < cols; ++k) total += Float::one(row + k * Float::kBytes) * x[k];
  return total;
}

// ---- Packed codes. What is left of a row after whole 16 bytes goes through a copy that is filled up with zeros.

template <int bits>
void decode_packed_row(const uint8_t* row, int64_t cols, float scale, float* out) {
  constexpr int64_t kCodes = 128 / bits;
  const auto decode = [scale](const uint8_t* bytes, float* to) {
    Packed<bits>::each(bytes, [&](int64_t i, i8x16 codes) { scale16(codes, scale, to + i); });
  };
  int64_t k = 0;
  for (; k + kCodes <= cols; k += kCodes, row += 16) decode(row, out + k);
  if (k == cols) return;
  uint8_t bytes[16] = {};
  float last[kCodes];
  copy(bytes, row, ((cols - k) * bits + 7) / 8);
  decode(bytes, last);
  copy(out + k, last, 4 * (cols - k));
}

template <int bits>
float dot_packed_row(const uint8_t* row, int64_t cols, float scale, const float* x) {
  constexpr int64_t kCodes = 128 / bits;
  f32x4 even = {}, odd = {};
  const auto add = [&](const uint8_t* bytes, const float* v) {
    Packed<bits>::each(bytes, [&](int64_t i, i8x16 codes) {
      f32x4& sum = i % 32 == 0 ? even : odd;
      sum += dot16(codes, v + i);
    });
  };
  int64_t k = 0;
  for (; k + kCodes <= cols; k += kCodes, row += 16) add(row, x + k);
  if (k < cols) {
    uint8_t bytes[16] = {};
    float last[kCodes] = {};
    copy(bytes, row, ((cols - k) * bits + 7) / 8);
    copy(last, x + k, 4 * (cols - k));
    add(bytes, last);
  }
  return scale * sum_lanes(even + odd);
}

template <Isa isa>
constexpr RowKernel kRowKernels[kRunnableTypes] = {
    {DType::F32, isa, decode_floats<LoadF32>, dot_floats<LoadF32>},
    {DType::F16, isa, decode_floats<LoadF16>, dot_floats<LoadF16>},
    {DType::BF16, isa, decode_floats<LoadBf16>, dot_floats<LoadBf16>},
    {DType::Q2_0, isa, decode_blocks<BlocksQ2_0>, dot_decoded<BlocksQ2_0>},
    {DType::Q4_0, isa, decode_blocks<BlocksQ4_0>, dot_decoded<BlocksQ4_0>},
    {DType::Q8_0, isa, decode_blocks<BlocksQ8_0>, dot_decoded<BlocksQ8_0>},
    {DType::Q6_K, isa, decode_blocks<BlocksQ6_K>, dot_decoded<BlocksQ6_K>},
};

}  // namespace
}  // namespace qat
