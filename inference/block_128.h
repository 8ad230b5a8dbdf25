// Rows of blocks against activations of 8 bits, the rounding to 8 bits, and what panels' results become, with vectors
// of 128 bits. For the translation units that simd_128.h speaks of.
#pragma once

#include "inference/codes_128.h"
#include "inference/kernels_isa.h"

namespace qat {
namespace {

// ---- Dot products, four blocks of 32 at a time: lane i is the i-th block's. Of a type of blocks, Row says: kOffset,
// what its codes stand above those that they mean; kBytes, those of four blocks; their scales; the sums of the products
// of codes.

template <int64_t kStep>
inline uint64_t four_halves(const uint8_t* p) {
  return load<uint16_t>(p) | static_cast<uint64_t>(load<uint16_t>(p + kStep)) << 16 |
         static_cast<uint64_t>(load<uint16_t>(p + 2 * kStep)) << 32 |
         static_cast<uint64_t>(load<uint16_t>(p + 3 * kStep)) << 48;
}

struct RowQ4_0 {
  static constexpr int kOffset = 8;
  static constexpr int64_t kBytes = 4 * kQ4Bytes;
  static f32x4 scales(const uint8_t* blocks) { return from_halves(four_halves<kQ4Bytes>(blocks)); }
  static i32x4 one(const uint8_t* block, const int8_t* x) {
    const u8x16 bytes = load<u8x16>(block + 2);
    return dot(dot(i32x4{}, bytes & 15, load<i8x16>(x)), bytes >> 4, load<i8x16>(x + 16));
  }
  static i32x4 sums(const uint8_t* blocks, const int8_t* x) {
    return sum_each(one(blocks, x), one(blocks + kQ4Bytes, x + 32), one(blocks + 2 * kQ4Bytes, x + 64),
                    one(blocks + 3 * kQ4Bytes, x + 96));
  }
};

struct RowQ8_0 {
  static constexpr int kOffset = 0;
  static constexpr int64_t kBytes = 4 * kQ8Bytes;
  static f32x4 scales(const uint8_t* blocks) { return from_halves(four_halves<kQ8Bytes>(blocks)); }
  static i32x4 one(const uint8_t* block, const int8_t* x) {
    const i32x4 first = dot(i32x4{}, load<i8x16>(block + 2), load<i8x16>(x));
    return dot(first, load<i8x16>(block + 18), load<i8x16>(x + 16));
  }
  static i32x4 sums(const uint8_t* blocks, const int8_t* x) {
    return sum_each(one(blocks, x), one(blocks + kQ8Bytes, x + 32), one(blocks + 2 * kQ8Bytes, x + 64),
                    one(blocks + 3 * kQ8Bytes, x + 96));
  }
};

// Two blocks of 64 weights, which meet two blocks of activations each. Element 4 i + j is in bits 2 j of byte i: a
// plane of bits is every fourth element, and arrange_q2_0 has put the activations in that order.
struct RowQ2_0 {
  static constexpr int kOffset = 1;
  static constexpr int64_t kBytes = 2 * kQ2Bytes;
  static f32x4 scales(const uint8_t* blocks) {
    const f32x4 two =
        from_halves(load<uint16_t>(blocks) | static_cast<uint32_t>(load<uint16_t>(blocks + kQ2Bytes)) << 16);
    return zip_low(two, two);
  }
  // Lanes 0 and 1 are the first block of activations, 2 and 3 the second.
  static i32x4 two(const uint8_t* block, const int8_t* x) {
    const u8x16 bytes = load<u8x16>(block + 2);
    const i32x4 first = dot(dot(i32x4{}, bytes & 3, load<i8x16>(x)), (bytes >> 2) & 3, load<i8x16>(x + 16));
    return dot(dot(first, (bytes >> 4) & 3, load<i8x16>(x + 32)), bytes >> 6, load<i8x16>(x + 48));
  }
  static i32x4 sums(const uint8_t* blocks, const int8_t* x) {
    return pair_sums(two(blocks, x), two(blocks + kQ2Bytes, x + 64));
  }
};

template <class Row>
float dot_blocks(const uint8_t* row, const CodedRow& x, int64_t cols) {
  f32x4 sum = {}, offsets = {};
  const auto add_four = [&](const uint8_t* blocks, const int8_t* codes, const float* scales, const float* sums) {
    const f32x4 d = Row::scales(blocks);
    sum = fma(d * load<f32x4>(scales), to_floats(Row::sums(blocks, codes)), sum);
    if (Row::kOffset != 0) offsets = fma(d, load<f32x4>(sums), offsets);
  };
  int64_t k = 0;
  for (; k + 128 <= cols; k += 128, row += Row::kBytes) {
    prefetch(row, Row::kBytes);
    add_four(row, x.codes + k, x.scales + k / 32, x.sums + k / 32);
  }
  if (k < cols) {  // what is left, filled up with zeros
    uint8_t blocks[Row::kBytes] = {};
    int8_t codes[128] = {};
    float scales[4] = {}, sums[4] = {};
    copy(blocks, row, (cols - k) * Row::kBytes / 128);
    copy(codes, x.codes + k, cols - k);
    copy(scales, x.scales + k / 32, (cols - k) / 8);
    copy(sums, x.sums + k / 32, (cols - k) / 8);
    add_four(blocks, codes, scales, sums);
  }
  return sum_lanes(sum) - static_cast<float>(Row::kOffset) * sum_lanes(offsets);
}

// out[16 j + i] = codes[4 i + j], in each block of 64.
inline void arrange_q2_0(const int8_t* codes, int64_t cols, int8_t* out) {
  for (int64_t k = 0; k < cols; k += 64)
    for (int64_t j = 0; j < 4; ++j)
      for (int64_t i = 0; i < 16; ++i) out[k + 16 * j + i] = codes[k + 4 * i + j];
}

// Four groups of 16, lane by lane.
inline i32x4 dot_groups(const Groups& w, const int8_t* x) {
  const auto one = [&](int64_t g) { return dot(i32x4{}, minus(w.of[g], 32), load<i8x16>(x + 16 * g)); };
  return sum_each(one(0), one(1), one(2), one(3));
}

inline float dot_q6_k(const uint8_t* row, const CodedRow& x, int64_t cols) {
  f32x4 sum = {};
  for (int64_t k = 0; k < cols; k += 256, row += kQ6Bytes) {
    prefetch(row, kQ6Bytes);
    const Ints scales = ints_of(load<i8x16>(row + 192));  // of 16 groups
    f32x4 of_block = {};
    const auto add = [&](i32x4 group_sums, i32x4 group_scales, f32x4 x_scales) {
      of_block = fma(to_floats(group_sums), to_floats(group_scales) * x_scales, of_block);
    };
    for (int64_t half = 0; half < 2; ++half) {
      const int8_t* codes = x.codes + k + 128 * half;
      const f32x4 x_scales = load<f32x4>(x.scales + k / 32 + 4 * half);
      add(dot_groups(groups_q6_k<false>(row, half), codes), scales.of[2 * half], zip_low(x_scales, x_scales));
      add(dot_groups(groups_q6_k<true>(row, half), codes + 64), scales.of[2 * half + 1], zip_high(x_scales, x_scales));
    }
    sum = fma(splat(half_at(row + 208)), of_block, sum);
  }
  return sum_lanes(sum);
}

// ---- Rounding to 8 bits

struct Magnitudes {
  i32x4 most = {};
  // An integer comparison orders magnitudes, infinity and NaN last.
  void add(f32x4 v) {
    const i32x4 bits = as<i32x4>(v) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t largest() const {
    const int32_t a = most[0] > most[1] ? most[0] : most[1], b = most[2] > most[3] ? most[2] : most[3];
    return a > b ? a : b;
  }
};

inline void encode_blocks(const float* x, int64_t n, int8_t* codes, float* scales, float* sums, float* half_sums) {
  const i8x16 ones = i8x16{} + 1;
  for (int64_t k = 0; k < n; k += kCodeBlock) {
    Magnitudes magnitudes;
    for (int64_t i = 0; i < kCodeBlock; i += 4) magnitudes.add(load<f32x4>(x + k + i));
    const int32_t most = magnitudes.largest();
    float largest;
    __builtin_memcpy(&largest, &most, sizeof largest);
    const float scale = most >= 0x7f800000 ? __builtin_nanf("") : largest / 127.0f;
    // A scale that is no normal number (below 1.2e-38) would not invert: the block is as good as zero.
    const bool usable = most < 0x7f800000 && scale >= 0x1p-126f;
    const float inverse = usable ? 1.0f / scale : 0.0f;
    float of_half[2];
    for (int64_t half = 0; half < 2; ++half) {
      const float* from = x + k + 16 * half;
      const auto code = [&](int64_t i) { return usable ? nearest(load<f32x4>(from + 4 * i) * inverse) : i32x4{}; };
      const i8x16 bytes = narrow(code(0), code(1), code(2), code(3));
      store(codes + k + 16 * half, bytes);
      of_half[half] = static_cast<float>(sum_lanes(dot(i32x4{}, bytes, ones)));
      half_sums[k / 16 + half] = scale * of_half[half];
    }
    scales[k / kCodeBlock] = scale;
    sums[k / kCodeBlock] = scale * (of_half[0] + of_half[1]);
  }
}

inline bool encode_static(const float* x, int64_t n, float scale, int8_t* codes) {
  i32x4 is_number = ~i32x4{};
  const auto encode16 = [&](const float* from, int8_t* to) {
    const auto code = [&](int64_t i) {
      const f32x4 v = load<f32x4>(from + 4 * i);
      is_number &= v == v;
      return nearest(smaller(splat(127.0f), larger(splat(-128.0f), v / scale)));
    };
    store(to, narrow(code(0), code(1), code(2), code(3)));
  };
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) encode16(x + k, codes + k);
  if (k < n) {
    float last[16] = {};
    int8_t last_codes[16];
    copy(last, x + k, 4 * (n - k));
    encode16(last, last_codes);
    copy(codes + k, last_codes, n - k);
  }
  return (is_number[0] & is_number[1] & is_number[2] & is_number[3]) != 0;
}

// ---- Results of panels to rows

inline void store_floats(const float* sums, int64_t stride, int64_t rows, int64_t outputs, float* y, int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < outputs; ++o) y[r * y_stride + o] = sums[o * stride + r];
}

inline void store_sums(const int32_t* sums, int64_t stride, int64_t rows, int64_t outputs, int32_t offset,
                       const int32_t* x_sums, const double* x_scales, const float* w_scales, float* y,
                       int64_t y_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < outputs; ++o)
      y[r * y_stride + o] = static_cast<float>(static_cast<double>(sums[o * stride + r] - offset * x_sums[r]) *
                                               (x_scales[r] * static_cast<double>(w_scales[o])));
}

// `outputs` rows by a function of one.
template <float (*dot)(const uint8_t* row, const CodedRow& x, int64_t cols)>
void one_by_one(const uint8_t* w, int64_t stride, int64_t outputs, const CodedRow& x, int64_t cols, float* y) {
  for (int64_t o = 0; o < outputs; ++o) y[o] = dot(w + o * stride, x, cols);
}

template <Isa isa>
constexpr BlockKernel kBlockKernels[kBlockTypes] = {
    {DType::Q2_0, isa, one_by_one<dot_blocks<RowQ2_0>>, arrange_q2_0},
    {DType::Q4_0, isa, one_by_one<dot_blocks<RowQ4_0>>, nullptr},
    {DType::Q8_0, isa, one_by_one<dot_blocks<RowQ8_0>>, nullptr},
    {DType::Q6_K, isa, one_by_one<dot_q6_k>, nullptr},
};

template <Isa isa>
constexpr CodeKernels kCodeKernels = {isa, encode_blocks, encode_static, store_floats, store_sums};

}  // namespace
}  // namespace qat
