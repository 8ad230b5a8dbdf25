// Vectors of 128 bits in the vector extensions of GCC and Clang: what the kernels in *_128.h are written in. They are
// compiled once for any processor (portable) and again with the flags of an instruction set (NEON); operations that the
// extensions do not have are intrinsics where the target offers them. All of it has internal linkage, as it is compiled
// with several sets of flags: see kernels_isa.h.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace qat {
namespace {

using f32x4 = float __attribute__((vector_size(16)));
using f64x2 = double __attribute__((vector_size(16)));
using i8x16 = int8_t __attribute__((vector_size(16)));
using u8x16 = uint8_t __attribute__((vector_size(16)));
using i16x8 = int16_t __attribute__((vector_size(16)));
using u16x8 = uint16_t __attribute__((vector_size(16)));
using i32x4 = int32_t __attribute__((vector_size(16)));
using u32x4 = uint32_t __attribute__((vector_size(16)));
using u64x2 = uint64_t __attribute__((vector_size(16)));

// Vectors of four numbers that a loop keeps at once: half of the registers hold sums.
#if defined(__ARM_NEON)
constexpr int kMostVectors = 4;
#else
constexpr int kMostVectors = 2;
#endif

// How far ahead of its use memory is asked for: the next page, where the hardware's own prefetching ends.
constexpr int64_t kAhead = 4096;
inline void prefetch(const uint8_t* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(p + kAhead + line);
}

inline void copy(void* out, const void* in, int64_t bytes) { __builtin_memcpy(out, in, static_cast<size_t>(bytes)); }

template <class V>
inline V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The same bits.
template <class To, class From>
inline To as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return reinterpret_cast<To>(v);
}

inline f32x4 splat(float x) { return f32x4{x, x, x, x}; }
inline f32x4 to_floats(i32x4 v) { return __builtin_convertvector(v, f32x4); }
inline f32x4 select(i32x4 mask, f32x4 a, f32x4 b) { return mask ? a : b; }
// b if one of them is NaN.
inline f32x4 larger(f32x4 a, f32x4 b) { return a > b ? a : b; }
inline f32x4 smaller(f32x4 a, f32x4 b) { return a < b ? a : b; }

// The nearest whole number, ties to even, for |v| < 2^22: the sum has no bits left for a fraction.
inline f32x4 rounded(f32x4 v) { return (v + 0x1.8p23f) - 0x1.8p23f; }
inline i32x4 nearest(f32x4 v) { return as<i32x4>(as<u32x4>(v + 0x1.8p23f) - as<u32x4>(splat(0x1.8p23f))); }

// ---- Order

inline u8x16 zip_low(u8x16 a, u8x16 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline u8x16 zip_high(u8x16 a, u8x16 b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
inline u16x8 zip_low(u16x8 a, u16x8 b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline u16x8 zip_high(u16x8 a, u16x8 b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
template <class V>  // of four
inline V zip_low(V a, V b) {
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
}
template <class V>
inline V zip_high(V a, V b) {
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
}
template <class V>
inline V join_low(V a, V b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5);
}
template <class V>
inline V join_high(V a, V b) {
  return __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

// Four rows of four floats, transposed in place.
inline void transpose(f32x4 (&r)[4]) {
  const f32x4 a = zip_low(r[0], r[1]), b = zip_high(r[0], r[1]), c = zip_low(r[2], r[3]), d = zip_high(r[2], r[3]);
  r[0] = join_low(a, c);
  r[1] = join_high(a, c);
  r[2] = join_low(b, d);
  r[3] = join_high(b, d);
}

// 16 bytes, as numbers of 32 bits in order.
struct Ints {
  i32x4 of[4];
};
inline Ints ints_of(i8x16 v) {
#if defined(__ARM_NEON)
  const i16x8 low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v);
  return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
#else
  const u16x8 low = as<u16x8>(zip_low(as<u8x16>(v), as<u8x16>(v))),
              high = as<u16x8>(zip_high(as<u8x16>(v), as<u8x16>(v)));
  return {{as<i32x4>(zip_low(low, low)) >> 24, as<i32x4>(zip_high(low, low)) >> 24,
           as<i32x4>(zip_low(high, high)) >> 24, as<i32x4>(zip_high(high, high)) >> 24}};
#endif
}

// The lowest byte of each.
inline i8x16 narrow(i32x4 a, i32x4 b, i32x4 c, i32x4 d) {
#if defined(__SSE2__)  // for -128..127
  return (i8x16)_mm_packs_epi16(_mm_packs_epi32((__m128i)a, (__m128i)b), _mm_packs_epi32((__m128i)c, (__m128i)d));
#else
  const i16x8 low = __builtin_shufflevector(as<i16x8>(a), as<i16x8>(b), 0, 2, 4, 6, 8, 10, 12, 14);
  const i16x8 high = __builtin_shufflevector(as<i16x8>(c), as<i16x8>(d), 0, 2, 4, 6, 8, 10, 12, 14);
  return __builtin_shufflevector(as<i8x16>(low), as<i8x16>(high), 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28,
                                 30);
#endif
}

// ---- Sums

#if defined(__ARM_NEON)
inline float sum_lanes(f32x4 v) { return vaddvq_f32(v); }
inline int32_t sum_lanes(i32x4 v) { return vaddvq_s32(v); }
inline i32x4 pair_sums(i32x4 a, i32x4 b) { return vpaddq_s32(a, b); }
inline f32x4 pair_sums(f32x4 a, f32x4 b) { return vpaddq_f32(a, b); }
#else
inline float sum_lanes(f32x4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline int32_t sum_lanes(i32x4 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
template <class V>
inline V pair_sums(V a, V b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}
#endif

// Lane i is the sum of the i-th vector.
template <class V>
inline V sum_each(V a, V b, V c, V d) {
  return pair_sums(pair_sums(a, b), pair_sums(c, d));
}

inline double sum_lanes(f64x2 v) { return v[0] + v[1]; }
inline f64x2 add_to(f64x2 sum, f32x4 x) {
  return sum + (__builtin_convertvector(__builtin_shufflevector(x, x, 0, 1), f64x2) +
                __builtin_convertvector(__builtin_shufflevector(x, x, 2, 3), f64x2));
}

// ---- Products

// a * b + c, rounded once where the instruction is there, else twice.
inline f32x4 fma(f32x4 a, f32x4 b, f32x4 c) {
#if defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}
inline float fma(float a, float b, float c) {
#if defined(__ARM_NEON)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// a * b[lane] + c
template <int lane>
inline f32x4 fma_lane(f32x4 a, f32x4 b, f32x4 c) {
#if defined(__ARM_NEON)
  return vfmaq_laneq_f32(c, a, b, lane);
#else
  return a * __builtin_shufflevector(b, b, lane, lane, lane, lane) + c;
#endif
}

#if !defined(__ARM_NEON)
// Lane i: a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1].
inline i32x4 multiply_pairs(i16x8 a, i16x8 b) {
#if defined(__SSE2__)
  return (i32x4)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const auto even = [](i16x8 v) { return as<i32x4>(as<u32x4>(v) << 16) >> 16; };
  const auto odd = [](i16x8 v) { return as<i32x4>(v) >> 16; };
  return even(a) * even(b) + odd(a) * odd(b);
#endif
}

// Bytes as numbers of 16 bits.
struct Words {
  i16x8 even, odd;
};
inline Words words_of(i8x16 v) { return {as<i16x8>(as<u16x8>(v) << 8) >> 8, as<i16x8>(v) >> 8}; }
inline Words words_of(u8x16 v) { return {as<i16x8>(as<u16x8>(v) & 255), as<i16x8>(as<u16x8>(v) >> 8)}; }
inline i32x4 dot(i32x4 sum, const Words& a, const Words& b) {
  return sum + (multiply_pairs(a.even, b.even) + multiply_pairs(a.odd, b.odd));
}
#endif

// Lane i: sum + the products of the four bytes 4 i .. 4 i + 3. Unsigned ones are at most 127.
inline i32x4 dot(i32x4 sum, i8x16 a, i8x16 b) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, a, b);
#elif defined(__ARM_NEON)
  const i16x8 low = vmull_s8(vget_low_s8(a), vget_low_s8(b)), high = vmull_high_s8(a, b);
  return sum + vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
#else
  return dot(sum, words_of(a), words_of(b));
#endif
}
inline i32x4 dot(i32x4 sum, u8x16 a, i8x16 b) {
#if defined(__ARM_NEON)
  return dot(sum, as<i8x16>(a), b);
#else
  return dot(sum, words_of(a), words_of(b));
#endif
}

// ---- 16-bit floats

// Four IEEE halves, the first in the lowest bits.
inline f32x4 from_halves(uint64_t four) {
#if defined(__ARM_NEON)
  return vcvt_f32_f16(vcreate_f16(four));
#else
  const u32x4 half = as<u32x4>(zip_low(as<u16x8>(u64x2{four, 0}), u16x8{}));
  const u32x4 sign = (half & 0x8000) << 16, bits = (half & 0x7fff) << 13;
  const u32x4 normal = bits + (112u << 23), special = bits | 0x7f800000;
  // m * 2^-24 is what (1 + m / 1024) * 2^-14 has above 2^-14.
  const u32x4 subnormal = as<u32x4>(as<f32x4>(bits + (113u << 23)) - 0x1p-14f);
  const i32x4 is_subnormal = as<i32x4>(bits) < (0x400 << 13), is_special = as<i32x4>(bits) >= (0x7c00 << 13);
  const f32x4 finite = select(is_subnormal, as<f32x4>(subnormal), as<f32x4>(normal));
  return as<f32x4>(as<u32x4>(select(is_special, as<f32x4>(special), finite)) | sign);
#endif
}

inline float half_at(const uint8_t* p) { return from_halves(load<uint16_t>(p))[0]; }

}  // namespace
}  // namespace qat
