// Vectors of 512 or 256 bits with products of bytes (vpdpbusd), as the flags of the including file say: AVX-512 VNNI or
// AVX-VNNI. What is written over it (*_vnni.h) is compiled once with each. Internal linkage: see kernels_isa.h.
#pragma once

// GCC 12 takes the "undefined" vectors of its own header for mistakes (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "inference/kernels_isa.h"

namespace qat {
namespace {

inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store16(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
inline float half_at(const uint8_t* p) { return _cvtsh_ss(static_cast<unsigned short>(p[0] | (p[1] << 8))); }

#if defined(__AVX512VNNI__)

constexpr Isa kIsa = Isa::avx512;
using Ints = __m512i;  // lanes of 32 bits, or bytes
using Floats = __m512;

inline Ints load(const void* p) { return _mm512_loadu_si512(p); }
// In halves, of which every other one lies across two cache lines: from rows that begin anywhere in a line, memory
// delivers half as much to loads of 64 bytes, all of which do.
inline Ints load_weights(const uint8_t* p) {
  const auto half = [](const uint8_t* q) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)); };
  return _mm512_inserti64x4(_mm512_castsi256_si512(half(p)), half(p + 32), 1);
}
inline void store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
inline Ints zero() { return _mm512_setzero_si512(); }
inline Ints splat_byte(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline Ints splat_int(int x) { return _mm512_set1_epi32(x); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints differing(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
inline Ints shifted_right(Ints v, unsigned bits) { return _mm512_srli_epi16(v, bits); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints product(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
// sum + the products of 4 bytes of u, unsigned, with 4 of s, signed, in each lane; wraps. Around the intrinsic GCC 12
// copies every sum of a loop to another register and back.
inline Ints dot(Ints sum, Ints u, Ints s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}
// The first n bytes, n >= 1; the others 0, and not read.
inline Ints load_first(const uint8_t* p, int64_t n) { return _mm512_maskz_loadu_epi8(~__mmask64{0} >> (64 - n), p); }
// Part t of 16 bytes from p + t * stride.
inline Ints load_parts(const uint8_t* p, int64_t stride) {
  Ints v = _mm512_castsi128_si512(load16(p));
  v = _mm512_inserti32x4(v, load16(p + stride), 1);
  v = _mm512_inserti32x4(v, load16(p + 2 * stride), 2);
  return _mm512_inserti32x4(v, load16(p + 3 * stride), 3);
}
// Sums of neighbours: of each part those of a, then those of b.
inline Ints add_neighbours(Ints a, Ints b) {
  const Floats x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
  return add(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}
// The same of lanes that fit 16 bits.
inline Ints add_small_neighbours(Ints a, Ints b) {
  return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
}
// Lane 4 j + t of v as lane 4 t + j.
inline Ints transposed(Ints v) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}
inline int32_t sum_lanes(Ints v) { return _mm512_reduce_add_epi32(v); }

inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats splat(float x) { return _mm512_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
inline float sum_lanes(Floats v) { return _mm512_reduce_add_ps(v); }
// The first n lanes, of which there may be more than there are in a vector; the others 0, and not read.
inline __mmask16 first(int64_t n) { return static_cast<__mmask16>(n < 16 ? (1u << n) - 1 : 0xffffu); }
inline Floats load_lanes(const float* p, int64_t n) { return n >= 16 ? load(p) : _mm512_maskz_loadu_ps(first(n), p); }
inline Ints load_lanes(const int32_t* p, int64_t n) {
  return n >= 16 ? load(p) : _mm512_maskz_loadu_epi32(first(n), p);
}
inline void store_lanes(float* p, int64_t n, Floats v) { _mm512_mask_storeu_ps(p, first(n), v); }
inline void store_lanes(int32_t* p, int64_t n, Ints v) { _mm512_mask_storeu_epi32(p, first(n), v); }
// 16 bytes as floats.
inline Floats bytes_to_floats(const uint8_t* p) { return to_floats(_mm512_cvtepi8_epi32(load16(p))); }
// Of 8 numbers, each twice.
inline Floats load_twice(const float* p) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                               _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}

#else

constexpr Isa kIsa = Isa::avxvnni;
using Ints = __m256i;
using Floats = __m256;

inline Ints load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Ints load_weights(const uint8_t* p) { return load(p); }
inline void store(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Ints zero() { return _mm256_setzero_si256(); }
inline Ints splat_byte(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline Ints splat_int(int x) { return _mm256_set1_epi32(x); }
inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints differing(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
inline Ints shifted_right(Ints v, int bits) { return _mm256_srli_epi16(v, bits); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints product(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Ints dot(Ints sum, Ints u, Ints s) { return _mm256_dpbusd_avx_epi32(sum, u, s); }
inline Ints load_first(const uint8_t* p, int64_t n) {
  uint8_t bytes[sizeof(Ints)] = {};
  __builtin_memcpy(bytes, p, static_cast<size_t>(n));
  return load(bytes);
}
inline Ints load_parts(const uint8_t* p, int64_t stride) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)), load16(p + stride), 1);
}
inline Ints add_neighbours(Ints a, Ints b) {
  const Floats x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
  return add(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
}
inline Ints add_small_neighbours(Ints a, Ints b) {
  return _mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(1));
}
// Lane 4 j + t of v as lane 2 t + j.
inline Ints transposed(Ints v) { return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }
inline int32_t sum_lanes(Ints v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats splat(float x) { return _mm256_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats multiply_subtract(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }
inline float sum_lanes(Floats v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(splat_int(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Floats load_lanes(const float* p, int64_t n) { return n >= 8 ? load(p) : _mm256_maskload_ps(p, first(n)); }
inline Ints load_lanes(const int32_t* p, int64_t n) { return n >= 8 ? load(p) : _mm256_maskload_epi32(p, first(n)); }
inline void store_lanes(float* p, int64_t n, Floats v) {
  if (n >= 8) return _mm256_storeu_ps(p, v);
  _mm256_maskstore_ps(p, first(n), v);
}
inline void store_lanes(int32_t* p, int64_t n, Ints v) {
  if (n >= 8) return store(p, v);
  _mm256_maskstore_epi32(p, first(n), v);
}
inline Floats bytes_to_floats(const uint8_t* p) {
  return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Floats load_twice(const float* p) {
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}

#endif

constexpr int64_t kVector = sizeof(Ints);      // bytes
constexpr int64_t kVectorLanes = kVector / 4;  // of 32 bits
constexpr int64_t kParts = kVector / 16;

// Lane 4 t + j: the sum of part t of the j-th vector. are_small: two neighbours' sum fits 16 bits.
template <bool are_small>
inline Ints sum_parts(Ints a, Ints b, Ints c, Ints d) {
  if (are_small) return add_small_neighbours(add_small_neighbours(a, b), add_small_neighbours(c, d));
  return add_neighbours(add_neighbours(a, b), add_neighbours(c, d));
}

// How rows are read. Those that are met together stand far apart, and are so many streams: a processor keeps more loads
// under way of several than of one (bench.cc). `ahead` of its use memory is asked for; of four streams: with 512 bytes,
// and with 4 kB, which is too early, they read 5 to 20 % slower.
//
// Once a page, `page_ahead` of its begin, one line more is asked for, before the stream's others come there. A stream
// alone, or one of two, reads up to 40 % faster so (Zen 5 in a virtual machine; measured with distances, not derived),
// and of four none.
struct Reading {
  int streams;
  int64_t ahead, page_ahead;  // bytes; no page_ahead: 0
};
constexpr Reading kFourStreams = {4, 1536, 0};
constexpr int64_t kPage = 4096;
template <int64_t kBytes>
[[gnu::always_inline]] inline void prefetch(const uint8_t* p, const Reading& how = kFourStreams) {
  // Inlined, else GCC may drop it, as a call without effect.
  for (int64_t line = 0; line < kBytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p) + how.ahead + line, _MM_HINT_T0);
  if (how.page_ahead > 0 && reinterpret_cast<uintptr_t>(p) % kPage < kBytes)
    _mm_prefetch(reinterpret_cast<const char*>(p) + how.page_ahead, _MM_HINT_T0);
}

}  // namespace
}  // namespace qat
