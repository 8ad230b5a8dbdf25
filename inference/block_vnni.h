// Rows of blocks against a row of activations in 8 bits, over simd_vnni.h.
//
// A group is as many blocks of activations as a vector has lanes: their sums come to stand in the lanes of one vector,
// in order, as integers, and meet their two scales there together. Unsigned codes stand kOffset above what they mean;
// what that adds to a sum, a number of the activations alone, stands behind each group of them as it was arranged.
#pragma once

#include "inference/simd_vnni.h"

namespace qat {
namespace {

constexpr int64_t kQ2Bytes = 18, kQ4Bytes = 18, kQ8Bytes = 34, kQ6Bytes = 210;  // blocks of format/grid.h
constexpr int64_t kGroup = kVectorLanes;                                        // blocks of activations
constexpr int64_t kGroupCodes = 32 * kGroup;
constexpr int64_t kGroupBytes = kGroupCodes + kVector;  // arranged
static_assert(kGroupBytes * 8 == kGroupCodes * 9);      // arranged_block_bytes

// Beside four streams a token of a mapped file takes 8 to 14 % less time in Q4_0, 5 % less in Q8_0.
#if defined(__AVX512VNNI__)
constexpr Reading kReadingQ4 = {2, 3072, 6144}, kReadingQ6 = kReadingQ4, kReadingQ8 = {1, 3072, 6144};
#else
constexpr Reading kReadingQ4 = kFourStreams, kReadingQ6 = kFourStreams, kReadingQ8 = kFourStreams;
#endif

// Scales of 16 bits of 8 blocks, `bytes` apart: word i of what is loaded 2 i bytes before the i-th.
template <int kBytes>
inline __m128i halves_of_8(const uint8_t* p) {
  constexpr int64_t kStep = kBytes - 2;
  __m128i d = _mm_blend_epi16(load16(p), load16(p + kStep), 0x02);
  d = _mm_blend_epi16(d, load16(p + 2 * kStep), 0x04);
  d = _mm_blend_epi16(d, load16(p + 3 * kStep), 0x08);
  d = _mm_blend_epi16(d, load16(p + 4 * kStep), 0x10);
  d = _mm_blend_epi16(d, load16(p + 5 * kStep), 0x20);
  d = _mm_blend_epi16(d, load16(p + 6 * kStep), 0x40);
  return _mm_blend_epi16(d, load16(p + 7 * kStep), 0x80);
}

#if defined(__AVX512VNNI__)
// Of a group of 16 blocks of 18 bytes, vector i of the 288 bytes, of which the last is half a one. Loads are what there
// are most of: scales and codes are taken from the same five.
inline Ints part_of_18(const uint8_t* p, int64_t i) {
  return i < 4 ? load_weights(p + 64 * i)
               : _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 256)));
}
// The codes of its blocks 4 j ... 4 j + 3, 16 bytes each: block b's begin at word 36 j + 9 b + 1, which is 4 j + 9 b +
// 1 from vector j on, and end in the vector after it.
inline Ints codes_of_18(const uint8_t* p, int64_t j) {
  const Ints first = _mm512_set_epi16(35, 34, 33, 32, 31, 30, 29, 28, 26, 25, 24, 23, 22, 21, 20, 19, 17, 16, 15, 14,
                                      13, 12, 11, 10, 8, 7, 6, 5, 4, 3, 2, 1);
  const Ints order = _mm512_add_epi16(first, _mm512_set1_epi16(static_cast<int16_t>(4 * j)));
  return _mm512_permutex2var_epi16(part_of_18(p, j), order, part_of_18(p, j + 1));
}
// Of 8 blocks of 18 bytes: those of blocks i and i + 4 in words i and i + 4 of part i, since 18 i = 16 i + 2 i.
inline __m512i halves_of_18(const uint8_t* p) { return _mm512_mask_blend_epi16(0x80402010, load(p), load(p + 64)); }
// Block i's is word 9 i of the 144, and no two of those are the same word of their vectors.
inline Floats scales_of_18(const uint8_t* p) {
  Ints d = _mm512_mask_blend_epi16(0x80402010, part_of_18(p, 0), part_of_18(p, 1));
  d = _mm512_mask_blend_epi16(0x04020100, d, part_of_18(p, 2));
  d = _mm512_mask_blend_epi16(0x40201008, d, part_of_18(p, 3));
  d = _mm512_mask_blend_epi16(0x00000080, d, part_of_18(p, 4));
  const Ints order =
      _mm512_castsi256_si512(_mm256_setr_epi16(0, 9, 18, 27, 4, 13, 22, 31, 8, 17, 26, 3, 12, 21, 30, 7));
  return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(order, d)));
}
inline Floats scales_of_18_twice(const uint8_t* p) {
  const __m512i order =
      _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, 9, 9, 18, 18, 27, 27, 4, 4, 13, 13, 22, 22, 31, 31));
  return _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(order, halves_of_18(p))));
}
inline Floats scales_of_34(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_set_m128i(halves_of_8<34>(p + 8 * 34), halves_of_8<34>(p)));
}
#else
inline Ints codes_of_18(const uint8_t* p, int64_t j) { return load_parts(p + 36 * j + 2, 18); }
inline Floats scales_of_18(const uint8_t* p) {
  __m256i d = _mm256_blend_epi16(load(p), load(p + 32), 0x0c);
  d = _mm256_blend_epi16(d, load(p + 64), 0x30);
  d = _mm256_blend_epi16(d, load(p + 96), 0xc0);
  return _mm256_cvtph_ps(_mm_blend_epi16(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1), 0xaa));
}
inline Floats scales_of_18_twice(const uint8_t* p) {
  __m128i d = _mm_blend_epi16(load16(p), load16(p + 16), 0x02);
  d = _mm_blend_epi16(d, load16(p + 32), 0x04);
  d = _mm_blend_epi16(d, load16(p + 48), 0x08);
  return _mm256_cvtph_ps(_mm_unpacklo_epi16(d, d));
}
inline Floats scales_of_34(const uint8_t* p) { return _mm256_cvtph_ps(halves_of_8<34>(p)); }
#endif

// What a type says of a group: kBytes, of weights; kReading; kOffset; scales; sums, of its unsigned codes with the
// arranged ones of the activations; sums_of_ones, the same if all were 1; place, the arranging.

// Blocks that meet a block of activations each. The j-th of four vectors has a block in each part: 16 codes of it, and
// as many in a second vector.
inline void place_32(const int8_t* codes, int8_t* out) {
  for (int64_t b = 0; b < kGroup; ++b)
    for (int64_t half = 0; half < 2; ++half)
      store16(out + (2 * (b / kParts) + half) * kVector + 16 * (b % kParts), load16(codes + 32 * b + 16 * half));
}
// Two neighbouring lanes, of two vectors of codes 0 ... `most` with activations of 8 bits, come to sums of 16 products.
constexpr bool fits_words(int most) { return most * 128 * 16 <= INT16_MAX; }
template <int kMost, class Codes>
inline Ints sums_32(const int8_t* x, const Codes& codes) {
  const auto sum = [&](int64_t j) {
    Ints low, high;
    codes(j, &low, &high);
    return dot(dot(zero(), low, load(x + 2 * j * kVector)), high, load(x + (2 * j + 1) * kVector));
  };
  return transposed(sum_parts<fits_words(kMost)>(sum(0), sum(1), sum(2), sum(3)));
}
struct Blocks32 {
  static void place(const int8_t* codes, int8_t* out) { place_32(codes, out); }
  static Ints sums_of_ones(const int8_t* x) {
    return sums_32<1>(x, [](int64_t, Ints* low, Ints* high) { *low = *high = splat_byte(1); });
  }
};

// Elements 0..15 in the low nibbles, 16..31 in the high ones.
struct Q4_0 : Blocks32 {
  static constexpr int64_t kBytes = kGroup * kQ4Bytes;
  static constexpr Reading kReading = kReadingQ4;
  static constexpr int kOffset = 8;
  static Floats scales(const uint8_t* p) { return scales_of_18(p); }
  static Ints sums(const uint8_t* p, const int8_t* x) {
    const Ints mask = splat_byte(15);
    return sums_32<15>(x, [&](int64_t j, Ints* low, Ints* high) {
      const Ints bytes = codes_of_18(p, j);
      *low = both(bytes, mask);
      *high = both(shifted_right(bytes, 4), mask);
    });
  }
};

// Signed bytes, made unsigned.
struct Q8_0 : Blocks32 {
  static constexpr int64_t kBytes = kGroup * kQ8Bytes;
  static constexpr Reading kReading = kReadingQ8;
  static constexpr int kOffset = 128;
  static Floats scales(const uint8_t* p) { return scales_of_34(p); }
  static Ints sums(const uint8_t* p, const int8_t* x) {
    const Ints sign = splat_byte(0x80);
    return sums_32<255>(x, [&](int64_t j, Ints* low, Ints* high) {
      *low = differing(load_parts(p + j * kParts * kQ8Bytes + 2, kQ8Bytes), sign);
      *high = differing(load_parts(p + j * kParts * kQ8Bytes + 18, kQ8Bytes), sign);
    });
  }
};

// A block of 64 weights meets two of activations: 16 bytes, of which the first half is one's and the second the
// other's; element 4 i + j is in bits 2 j of byte i. The j-th of two vectors has block 2 t + j in part t; four planes.
static_assert(fits_words(3));
struct Q2_0 {
  static constexpr int64_t kBytes = kGroup / 2 * kQ2Bytes;
  static constexpr Reading kReading = kFourStreams;
  static constexpr int kOffset = 1;
  static Floats scales(const uint8_t* p) { return scales_of_18_twice(p); }
  static Ints sums(const uint8_t* p, const int8_t* x) {
    const Ints mask = splat_byte(3);
    const auto sum = [&](int64_t j) {
      const Ints bytes = load_parts(p + j * kQ2Bytes + 2, 2 * kQ2Bytes);
      const int8_t* planes = x + 4 * j * kVector;
      const Ints two = dot(dot(zero(), both(bytes, mask), load(planes)), both(shifted_right(bytes, 2), mask),
                           load(planes + kVector));
      return dot(dot(two, both(shifted_right(bytes, 4), mask), load(planes + 2 * kVector)),
                 both(shifted_right(bytes, 6), mask), load(planes + 3 * kVector));
    };
    return add_small_neighbours(sum(0), sum(1));
  }
  static Ints sums_of_ones(const int8_t* x) {
    const auto sum = [&](int64_t j) {
      Ints all = zero();
      for (int64_t i = 0; i < 4; ++i) all = dot(all, splat_byte(1), load(x + (4 * j + i) * kVector));
      return all;
    };
    return add_small_neighbours(sum(0), sum(1));
  }
  static void place(const int8_t* codes, int8_t* out) {
    for (int64_t b = 0; b < kGroup / 2; ++b)
      for (int64_t i = 0; i < 64; ++i) out[(4 * (b % 2) + i % 4) * kVector + 16 * (b / 2) + i / 4] = codes[64 * b + i];
  }
};

// Missing blocks of the last group are 0.
template <class Type>
void arrange_blocks(const int8_t* codes, int64_t cols, int8_t* out) {
  for (int64_t k = 0; k < cols; k += kGroupCodes, out += kGroupBytes) {
    int8_t last[kGroupCodes] = {};
    const bool is_whole = k + kGroupCodes <= cols;
    if (!is_whole) __builtin_memcpy(last, codes + k, static_cast<size_t>(cols - k));
    Type::place(is_whole ? codes + k : last, out);
    store(out + kGroupCodes, product(Type::sums_of_ones(out), splat_int(-Type::kOffset)));
  }
}

template <class Type>
inline Floats add_group(const uint8_t* p, const int8_t* x, Floats x_scales, Floats sum) {
  const Ints sums = add(Type::sums(p, x), load(x + kGroupCodes));
  return multiply_add(multiply(to_floats(sums), x_scales), Type::scales(p), sum);
}

// What is left of whole groups, `blocks` of activations.
template <class Type>
inline Floats add_last(const uint8_t* row, const int8_t* x, const float* x_scales, int64_t blocks, Floats sum) {
  if (blocks == 0) return sum;
  uint8_t last[Type::kBytes] = {};
  __builtin_memcpy(last, row, static_cast<size_t>(Type::kBytes / kGroup * blocks));
  return add_group<Type>(last, x, load_lanes(x_scales, blocks), sum);
}

// Sums of kRows rows that meet the same activations. One inside the other, because GCC keeps them in registers; a loop
// over an array of them it would not unroll.
template <int kRows>
struct RowSums {
  Floats sum = splat(0.0f);
  RowSums<kRows - 1> rest;
  // use(row, its sum) for rows `stride` apart.
  template <class Use>
  void for_each(const uint8_t* row, int64_t stride, const Use& use) {
    use(row, sum);
    rest.for_each(row + stride, stride, use);
  }
};
template <>
struct RowSums<0> {
  template <class Use>
  void for_each(const uint8_t*, int64_t, const Use&) {}
};

template <class Type, int kRows>
inline void dot_blocks(const uint8_t* rows, int64_t stride, const CodedRow& x, int64_t cols, float* y,
                       int64_t y_stride) {
  RowSums<kRows> sums;
  const int8_t* codes = x.codes;
  int64_t k = 0;
  for (; k + kGroupCodes <= cols; k += kGroupCodes, rows += Type::kBytes, codes += kGroupBytes) {
    const Floats x_scales = load(x.scales + k / 32);
    sums.for_each(rows, stride, [&](const uint8_t* row, Floats& sum) {
      prefetch<Type::kBytes>(row, Type::kReading);
      sum = add_group<Type>(row, codes, x_scales, sum);
    });
  }
  sums.for_each(rows, stride, [&](const uint8_t* row, Floats& sum) {
    *y = sum_lanes(add_last<Type>(row, codes, x.scales + k / 32, (cols - k) / 32, sum));
    y += y_stride;
  });
}

template <class Type>
void multiply_blocks(const uint8_t* w, int64_t stride, int64_t outputs, const CodedRow& x, int64_t cols, float* y) {
  constexpr int kStreams = Type::kReading.streams;
  const int64_t apart = outputs / kStreams;
  for (int64_t o = 0; o < apart; ++o) dot_blocks<Type, kStreams>(w + o * stride, apart * stride, x, cols, y + o, apart);
  for (int64_t o = kStreams * apart; o < outputs; ++o) dot_blocks<Type, 1>(w + o * stride, 0, x, cols, y + o, 0);
}

// ---- Q6_K. Two halves of 128 elements, each four runs of 32; a run is two groups of 16 with a scale of 8 bits each,
// and one block of activations. Codes are 0..63, 32 above what they mean, which the sums of 16 activations take off.

// The codes of four vectors from element 4 * kVector * i on, in order.
#if defined(__AVX512VNNI__)
inline void codes_q6_k(const uint8_t* block, int64_t, Ints (&codes)[4]) {
  const Ints low4 = splat_byte(15), top2 = splat_byte(0x30);
  for (int64_t half = 0; half < 2; ++half) {
    const Ints low = load(block + 64 * half);
    const __m256i high_bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 128 + 32 * half));
    const Ints high = _mm512_broadcast_i64x4(high_bits);
    const Ints up = _mm512_sllv_epi64(high, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
    const Ints down = _mm512_srlv_epi64(high, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2));
    codes[2 * half] = _mm512_or_si512(both(low, low4), both(up, top2));
    codes[2 * half + 1] = _mm512_or_si512(both(shifted_right(low, 4), low4), both(down, top2));
  }
}
#else
inline void codes_q6_k(const uint8_t* block, int64_t half, Ints (&codes)[4]) {
  const Ints low4 = splat_byte(15), top2 = splat_byte(0x30);
  const Ints ql0 = load(block + 64 * half), ql1 = load(block + 64 * half + 32), qh = load(block + 128 + 32 * half);
  const auto join = [&](Ints low, Ints high) { return _mm256_or_si256(both(low, low4), both(high, top2)); };
  codes[0] = join(ql0, _mm256_slli_epi16(qh, 4));
  codes[1] = join(ql1, _mm256_slli_epi16(qh, 2));
  codes[2] = join(shifted_right(ql0, 4), qh);
  codes[3] = join(shifted_right(ql1, 4), shifted_right(qh, 2));
}
#endif

inline Floats add_q6_k(const uint8_t* block, const CodedRow& x, int64_t first, Floats sum) {
  const Floats d = splat(half_at(block + 208)), offset = splat(32.0f);
  for (int64_t i = 0; i < 256 / (4 * kVector); ++i) {
    const int64_t k = first + 4 * kVector * i;
    Ints codes[4];
    codes_q6_k(block, i, codes);
    const auto four = [&](int64_t j) { return dot(zero(), codes[j], load(x.codes + k + j * kVector)); };
    const Ints sums = transposed(sum_parts<false>(four(0), four(1), four(2), four(3)));
    const Floats excess = multiply(load(x.half_sums + k / 16), offset);
    const Floats products = multiply_subtract(to_floats(sums), load_twice(x.scales + k / 32), excess);
    sum = multiply_add(multiply(d, bytes_to_floats(block + 192 + kVectorLanes * i)), products, sum);
  }
  return sum;
}

template <int kRows>
inline void dot_q6_k(const uint8_t* rows, int64_t stride, const CodedRow& x, int64_t cols, float* y, int64_t y_stride) {
  RowSums<kRows> sums;
  for (int64_t k = 0; k < cols; k += 256, rows += kQ6Bytes)
    sums.for_each(rows, stride, [&](const uint8_t* row, Floats& sum) {
      prefetch<kQ6Bytes>(row, kReadingQ6);
      sum = add_q6_k(row, x, k, sum);
    });
  sums.for_each(rows, stride, [&](const uint8_t*, Floats& sum) {
    *y = sum_lanes(sum);
    y += y_stride;
  });
}

inline void multiply_q6_k(const uint8_t* w, int64_t stride, int64_t outputs, const CodedRow& x, int64_t cols,
                          float* y) {
  constexpr int kStreams = kReadingQ6.streams;
  const int64_t apart = outputs / kStreams;
  for (int64_t o = 0; o < apart; ++o) dot_q6_k<kStreams>(w + o * stride, apart * stride, x, cols, y + o, apart);
  for (int64_t o = kStreams * apart; o < outputs; ++o) dot_q6_k<1>(w + o * stride, 0, x, cols, y + o, 0);
}

template <DType type, class Type>
constexpr BlockKernel kBlockKernel = {type, kIsa, multiply_blocks<Type>, arrange_blocks<Type>};

}  // namespace
}  // namespace qat
