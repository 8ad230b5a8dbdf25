// Rows of weights as the unsigned bytes that panels meet (CodePanelKernel::unpack), with AVX2 and F16C; 32 codes at a
// time, in order. For translation units with these flags or more; internal linkage: see kernels_isa.h.
#pragma once

#include <immintrin.h>

#include "inference/kernels_isa.h"

namespace qat {
namespace {
namespace unpacking {

constexpr int64_t kQ2Bytes = 18, kQ4Bytes = 18, kQ8Bytes = 34, kQ6Bytes = 210;  // blocks of format/grid.h

inline __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store32(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline float half_at(const uint8_t* p) { return _cvtsh_ss(static_cast<unsigned short>(p[0] | (p[1] << 8))); }
inline __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }

inline __m256i join(__m128i low, __m128i high) { return _mm256_set_m128i(high, low); }

// 4 bits, two neighbours to a byte.
inline __m256i spread_4(__m128i bytes) {
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(bytes, mask), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  return join(_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd));
}

// 2 bits, four neighbours to a byte: every byte stands four times, in a lane of 32 bits; the upper two are shifted by 4
// bits, then every other one by 2, and each keeps the lowest two.
inline __m256i spread_2(const uint8_t* p) {
  int64_t bytes;
  __builtin_memcpy(&bytes, p, 8);
  const __m256i index =
      _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
  const __m256i copies = _mm256_shuffle_epi8(_mm256_set1_epi64x(bytes), index);
  const __m256i zero_two = _mm256_blend_epi16(copies, _mm256_srli_epi32(copies, 4), 0xaa);
  const __m256i shifted = _mm256_srli_epi16(zero_two, 2);
  const __m256i odd = _mm256_set1_epi16(static_cast<short>(0xff00));
  return _mm256_and_si256(_mm256_blendv_epi8(zero_two, shifted, odd), _mm256_set1_epi8(3));
}

// The last `cols` (below 32) codes of a row, read through a copy.
template <int bits>
inline const uint8_t* last_bytes(const uint8_t* row, int64_t cols, uint8_t* copy) {
  __builtin_memset(copy, 0, 32);
  __builtin_memcpy(copy, row, static_cast<size_t>((cols * bits + 7) / 8));
  return copy;
}

inline void unpack_i2(const uint8_t* row, int64_t cols, uint8_t* codes, float*) {
  uint8_t last[32];
  for (int64_t k = 0; k < cols; k += 32, row += 8)
    store32(codes + k, spread_2(cols - k < 32 ? last_bytes<2>(row, cols - k, last) : row));
}

inline void unpack_i4(const uint8_t* row, int64_t cols, uint8_t* codes, float*) {
  uint8_t last[32];
  for (int64_t k = 0; k < cols; k += 32, row += 16)
    store32(codes + k, spread_4(load16(cols - k < 32 ? last_bytes<4>(row, cols - k, last) : row)));
}

// Codes of 8 bits, plus 128: as they are, or in two planes, the high four bits and the low four.
template <int kPlanes>
inline void store_8_bits(__m256i code, uint8_t* codes) {
  const __m256i unsigned_code = _mm256_xor_si256(code, _mm256_set1_epi8(-128));
  if (kPlanes == 1) return store32(codes, unsigned_code);
  store32(codes, high_nibbles(unsigned_code));
  store32(codes + kCodeDepth, low_nibbles(unsigned_code));
}

template <int kPlanes>
void unpack_i8(const uint8_t* row, int64_t cols, uint8_t* codes, float*) {
  uint8_t last[32];
  for (int64_t k = 0; k < cols; k += 32, row += 32)
    store_8_bits<kPlanes>(load32(cols - k < 32 ? last_bytes<8>(row, cols - k, last) : row), codes + k);
}

inline void unpack_q2_0(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  for (int64_t k = 0; k < cols; k += 64, row += kQ2Bytes, scales += 2) {
    scales[0] = scales[1] = half_at(row);
    store32(codes + k, spread_2(row + 2));
    store32(codes + k + 32, spread_2(row + 10));
  }
}

inline void unpack_q4_0(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  const __m256i shift = _mm256_setr_epi64x(0, 0, 4, 4);
  for (int64_t k = 0; k < cols; k += 32, row += kQ4Bytes, ++scales) {
    *scales = half_at(row);
    store32(codes + k, low_nibbles(_mm256_srlv_epi64(_mm256_broadcastsi128_si256(load16(row + 2)), shift)));
  }
}

template <int kPlanes>
void unpack_q8_0(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  for (int64_t k = 0; k < cols; k += 32, row += kQ8Bytes, ++scales) {
    *scales = half_at(row);
    store_8_bits<kPlanes>(load32(row + 2), codes + k);
  }
}

// In two planes: the low four bits of the codes as they are stored, the high two beside them.
template <int kPlanes>
void unpack_q6_k(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  const __m256i top = _mm256_set1_epi8(kPlanes == 1 ? 0x30 : 3);
  for (int64_t k = 0; k < cols; k += 128, codes += 128) {
    const int64_t half = k / 128 % 2;
    const __m256i ql0 = load32(row + 64 * half), ql1 = load32(row + 64 * half + 32);
    const __m256i qh = load32(row + 128 + 32 * half);
    const auto put = [&](int64_t run, __m256i high, __m256i low) {
      high = _mm256_and_si256(high, top);
      store32(codes + 32 * run, kPlanes == 1 ? _mm256_or_si256(high, low) : high);
      if (kPlanes == 2) store32(codes + kCodeDepth + 32 * run, low);
    };
    put(0, kPlanes == 1 ? _mm256_slli_epi16(qh, 4) : qh, low_nibbles(ql0));
    put(1, kPlanes == 1 ? _mm256_slli_epi16(qh, 2) : _mm256_srli_epi16(qh, 2), low_nibbles(ql1));
    put(2, kPlanes == 1 ? qh : _mm256_srli_epi16(qh, 4), high_nibbles(ql0));
    put(3, kPlanes == 1 ? _mm256_srli_epi16(qh, 2) : _mm256_srli_epi16(qh, 6), high_nibbles(ql1));
    const float d = half_at(row + 208);
    for (int64_t g = 0; g < 8; ++g) *scales++ = d * static_cast<float>(static_cast<int8_t>(row[192 + 8 * half + g]));
    if (half == 1) row += kQ6Bytes;
  }
}

}  // namespace unpacking
}  // namespace
}  // namespace qat
