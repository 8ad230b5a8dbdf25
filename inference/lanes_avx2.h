// Runs of AVX2 vectors and sums over their lanes. For the translation units with AVX2 flags only: see kernels_isa.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace qat {

// v stays in a register: GCC would rather load it again for each of its uses, and loads are what these loops have most
// of.
inline __m256 kept(__m256 v) {
  asm("" : "+x"(v));
  return v;
}
inline __m256i kept(__m256i v) {
  asm("" : "+x"(v));
  return v;
}

inline __m256 splat(float x) { return _mm256_set1_ps(x); }

// The first n (1..7) lanes of x; the others are `rest`. Neither reads nor writes past the end.
inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256 load_first(const float* x, int64_t n, float rest = 0.0f) {
  const __m256i mask = first_lanes(n);
  return _mm256_blendv_ps(splat(rest), _mm256_maskload_ps(x, mask), _mm256_castsi256_ps(mask));
}

inline float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline double sum_lanes(__m256d v) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

// 8 rows of 8 floats, transposed in place.
inline void transpose8(__m256 (&r)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

// Bits 2 k.. of the 32 at p are the k-th of 16 codes 0..3: each as the float that `levels` has at its place. The four
// levels stand in both halves.
inline void look_up_16(const uint8_t* p, __m256 levels, __m256* low, __m256* high) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  const __m256i word = _mm256_set1_epi32(bits);
  *low = _mm256_permutevar_ps(levels, _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)));
  *high = _mm256_permutevar_ps(levels, _mm256_srlv_epi32(word, _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30)));
}

// Vectors of 8 floats, n of them, zero at first, in memory `apart` floats from one to the next. Members one inside the
// other, because GCC keeps them in registers; an array of sums it would write back to memory at each step of a loop.
template <int n>
struct Lanes {
  __m256 x = _mm256_setzero_ps();
  Lanes<n - 1> rest;

  void load(const float* p, int64_t apart = 8) {
    x = _mm256_loadu_ps(p);
    rest.load(p + apart, apart);
  }
  template <class F>
  void fill(F f, int64_t first = 0) {  // with f(first), f(first + 1), ...
    x = f(first);
    rest.fill(f, first + 1);
  }
  void store(float* p, int64_t apart = 8) const {
    _mm256_storeu_ps(p, x);
    rest.store(p + apart, apart);
  }
  void add(const Lanes& other) {
    x = _mm256_add_ps(x, other.x);
    rest.add(other.rest);
  }
  void add_product(__m256 factor, const Lanes& other) {
    x = _mm256_fmadd_ps(factor, other.x, x);
    rest.add_product(factor, other.rest);
  }
  void add_product(__m256 factor, const float* p) {
    x = _mm256_fmadd_ps(factor, _mm256_loadu_ps(p), x);
    rest.add_product(factor, p + 8);
  }
};
template <>
struct Lanes<0> {
  void load(const float*, int64_t = 8) {}
  template <class F>
  void fill(F, int64_t) {}
  void store(float*, int64_t = 8) const {}
  void add(const Lanes&) {}
  void add_product(__m256, const Lanes&) {}
  void add_product(__m256, const float*) {}
};

}  // namespace qat
