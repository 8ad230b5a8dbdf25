// Rows of blocks against activations of 8 bits, with AVX2, FMA and F16C; and the rounding to 8 bits. Compiled with
// those flags: see kernels_isa.h for what must not be used here.
#include <immintrin.h>

#include "inference/kernels_isa.h"
#include "inference/lanes_avx2.h"

namespace qat {
namespace {

// BlockQ2_0, BlockQ4_0, BlockQ8_0, BlockQ6_K of format/grid.h
constexpr int64_t kQ2Bytes = 18, kQ4Bytes = 18, kQ8Bytes = 34, kQ6Bytes = 210;
// How far ahead of its use memory is asked for: as in simd_vnni.h.
constexpr int64_t kAhead = 1536;

__m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
__m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

float half_at(const uint8_t* p) { return _cvtsh_ss(static_cast<unsigned short>(p[0] | (p[1] << 8))); }

// Inlined by force: GCC drops calls of a function that only prefetches.
[[gnu::always_inline]] inline void ask_for(const uint8_t* p, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead + line, _MM_HINT_T0);
}

// `outputs` rows, kStreams at a time that stand far apart: a processor keeps more loads under way of several streams
// than of one (bench.cc), and decoding is made of such loads. Rows<n> has what is summed up of n rows: add(x, k) of the
// next kCodes columns, from the k-th on; finish(x, k, cols, y, y_stride) what is left of the columns, and the sums.
constexpr int64_t kStreams = 4;
template <class Rows>
inline void multiply_streams(const uint8_t* w, int64_t stride, const CodedRow& x, int64_t cols, float* y,
                             int64_t y_stride) {
  Rows rows(w, stride);
  int64_t k = 0;
  for (; k + Rows::kCodes <= cols; k += Rows::kCodes) rows.add(x, k);
  rows.finish(x, k, cols, y, y_stride);
}
template <template <int> class Rows>
void multiply_rows(const uint8_t* w, int64_t stride, int64_t outputs, const CodedRow& x, int64_t cols, float* y) {
  const int64_t apart = outputs / kStreams;
  for (int64_t o = 0; o < apart; ++o)
    multiply_streams<Rows<kStreams>>(w + o * stride, apart * stride, x, cols, y + o, apart);
  for (int64_t o = kStreams * apart; o < outputs; ++o)
    multiply_streams<Rows<1>>(w + o * stride, stride, x, cols, y + o, 1);
}

// The scales of 16 bits of 8 blocks, `bytes` apart: word i of what is loaded 2 i bytes before the i-th.
template <int kBytes>
__m128i halves_of_8(const uint8_t* p) {
  constexpr int64_t kStep = kBytes - 2;
  __m128i d = _mm_blend_epi16(load16(p), load16(p + kStep), 0x02);
  d = _mm_blend_epi16(d, load16(p + 2 * kStep), 0x04);
  d = _mm_blend_epi16(d, load16(p + 3 * kStep), 0x08);
  d = _mm_blend_epi16(d, load16(p + 4 * kStep), 0x10);
  d = _mm_blend_epi16(d, load16(p + 5 * kStep), 0x20);
  d = _mm_blend_epi16(d, load16(p + 6 * kStep), 0x40);
  return _mm_blend_epi16(d, load16(p + 7 * kStep), 0x80);
}

// Of 4 blocks, each twice.
template <int kBytes>
__m128i halves_of_4(const uint8_t* p) {
  constexpr int64_t kStep = kBytes - 2;
  __m128i d = _mm_blend_epi16(load16(p), load16(p + kStep), 0x02);
  d = _mm_blend_epi16(d, load16(p + 2 * kStep), 0x04);
  d = _mm_blend_epi16(d, load16(p + 3 * kStep), 0x08);
  return _mm_unpacklo_epi16(d, d);
}

// Sums of pairs of 16-bit numbers, as floats.
__m256 pair_sums(__m256i products) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(products, _mm256_set1_epi16(1))); }

// Rows of blocks of 32. Of a type of blocks, Row says: kOffset, what its codes stand above those that they mean;
// kBytes, those of 8 blocks; scale(b), where block b has its scale; halves(b), the scales of 8 blocks; pairs(b), 16
// sums of two products of codes, at most 32512 each; add_eight, 8 blocks' products times their factors, to two sums in
// turn, as one would wait for its own last addition. Eight at a time because making scales and factors one by one would
// be half of the work.
template <class Row, int n>
struct RowsOf {
  static constexpr int64_t kCodes = 256;
  const uint8_t* blocks;
  RowsOf<Row, n - 1> rest;
  __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps(), offsets = _mm256_setzero_ps();

  RowsOf(const uint8_t* rows, int64_t stride) : blocks(rows), rest(rows + stride, stride) {}
  void add(const CodedRow& x, int64_t k) {
    const Row row = {blocks, x.codes};
    const int64_t b = k / 32;
    ask_for(row.scale(b), Row::kBytes);
    const __m256 d = _mm256_cvtph_ps(row.halves(b));
    if (Row::kOffset != 0) offsets = _mm256_fmadd_ps(d, _mm256_loadu_ps(x.sums + b), offsets);
    row.add_eight(b, _mm256_mul_ps(d, _mm256_loadu_ps(x.scales + b)), &even, &odd);
    rest.add(x, k);
  }
  void finish(const CodedRow& x, int64_t k, int64_t cols, float* y, int64_t y_stride) const {
    const Row row = {blocks, x.codes};
    float offset = Row::kOffset != 0 ? sum_lanes(offsets) : 0.0f;
    __m256 sum = even;
    for (int64_t b = k / 32; b < cols / 32; ++b) {
      const float d = half_at(row.scale(b));
      sum = _mm256_fmadd_ps(pair_sums(row.pairs(b)), _mm256_set1_ps(d * x.scales[b]), sum);
      offset += d * x.sums[b];
    }
    *y = sum_lanes(_mm256_add_ps(sum, odd)) - static_cast<float>(Row::kOffset) * offset;
    rest.finish(x, k, cols, y + y_stride, y_stride);
  }
};
template <class Row>
struct RowsOf<Row, 0> {
  RowsOf(const uint8_t*, int64_t) {}
  void add(const CodedRow&, int64_t) {}
  void finish(const CodedRow&, int64_t, int64_t, float*, int64_t) const {}
};

// Eight blocks by their pairs.
template <class Row>
void add_pairs(const Row& row, int64_t b, __m256 factors, __m256* even, __m256* odd) {
  alignas(32) float each[8];
  _mm256_store_ps(each, factors);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    *even = _mm256_fmadd_ps(pair_sums(row.pairs(b + i)), _mm256_broadcast_ss(each + i), *even);
    *odd = _mm256_fmadd_ps(pair_sums(row.pairs(b + i + 1)), _mm256_broadcast_ss(each + i + 1), *odd);
  }
}

// ---- Q4_0. Eight blocks at a time, i and i + 4 side by side, one in each half of a vector: low nibbles are elements
// 0..15 of both, high ones 16..31, and arrange_q4_0 has laid the activations out likewise.

// Codes 0..15 stand 8 above what they mean. Each pair of products is at most 2 * 15 * 127, so two pairs are at most
// 7620; sums of two and of four of those, 15240 and 30480, still fit 16 bits: hence packs_epi32 never saturates.
constexpr int64_t kQ4Eight = 8 * kQ4Bytes;

// 16 sums of two pairs: lanes 0..7 of block i of the eight at p, 8..15 of block i + 4.
template <int i>
__m256i q4_pairs(const uint8_t* p, __m256i x_low, __m256i x_high) {
  const __m256i mask = _mm256_set1_epi8(15);
  const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p + i * kQ4Bytes + 2)),
                                                load16(p + (i + 4) * kQ4Bytes + 2), 1);
  const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(bytes, mask), x_low);
  const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask), x_high);
  return _mm256_add_epi16(low, high);
}

// The scales of eight blocks: word i is 18 i bytes on, and 16 i bytes on begins the half of a vector in which it comes
// to stand in lane i.
__m256 q4_scales(const uint8_t* p) {
  __m256i d = _mm256_blend_epi16(load32(p), load32(p + 32), 0x0c);
  d = _mm256_blend_epi16(d, load32(p + 64), 0x30);
  d = _mm256_blend_epi16(d, load32(p + 96), 0xc0);
  return _mm256_cvtph_ps(_mm_blend_epi16(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1), 0xaa));
}

// What has been summed up of n rows. They share the loads of the activations: at this number of instructions a byte,
// loads bind as soon as arithmetic does. Two halves of eight blocks, first() and second(), since there are not
// registers for the activations of all.
template <int n>
struct SumsQ4_0 {
  const uint8_t* p;  // the next eight blocks
  SumsQ4_0<n - 1> rest;
  __m256 sum = _mm256_setzero_ps();
  __m256i sum0, sum1;

  SumsQ4_0(const uint8_t* rows, int64_t stride) : p(rows), rest(rows + stride, stride) {}
  void first(__m256i x0, __m256i x1, __m256i x2, __m256i x3) {
    ask_for(p, kQ4Eight);
    const __m256i one = _mm256_set1_epi16(1);
    sum0 = _mm256_packs_epi32(_mm256_madd_epi16(q4_pairs<0>(p, x0, x1), one),
                              _mm256_madd_epi16(q4_pairs<1>(p, x2, x3), one));
    rest.first(x0, x1, x2, x3);
  }
  void second(__m256i x0, __m256i x1, __m256i x2, __m256i x3) {
    const __m256i one = _mm256_set1_epi16(1);
    sum1 = _mm256_packs_epi32(_mm256_madd_epi16(q4_pairs<2>(p, x0, x1), one),
                              _mm256_madd_epi16(q4_pairs<3>(p, x2, x3), one));
    rest.second(x0, x1, x2, x3);
  }
  // x_sums: 8 * the sums of the activations.
  void add(__m256 x_scales, __m256 x_sums) {
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i sums =
        _mm256_madd_epi16(_mm256_packs_epi32(_mm256_madd_epi16(sum0, one), _mm256_madd_epi16(sum1, one)), one);
    sum = _mm256_fmadd_ps(q4_scales(p), _mm256_fmsub_ps(_mm256_cvtepi32_ps(sums), x_scales, x_sums), sum);
    p += kQ4Eight;
    rest.add(x_scales, x_sums);
  }
  // What is left of whole eights, not arranged.
  void finish(const CodedRow& x, int64_t from, int64_t blocks, float* y, int64_t y_stride) const {
    float total = sum_lanes(sum);
    const uint8_t* block = p;
    for (int64_t b = from; b < blocks; ++b, block += kQ4Bytes) {
      const __m256i bytes = _mm256_broadcastsi128_si256(load16(block + 2));
      const __m256i codes =
          _mm256_and_si256(_mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15));
      const float products = sum_lanes(pair_sums(_mm256_maddubs_epi16(codes, load32(x.codes + 32 * b))));
      total += half_at(block) * (products * x.scales[b] - 8.0f * x.sums[b]);
    }
    *y = total;
    rest.finish(x, from, blocks, y + y_stride, y_stride);
  }
};
template <>
struct SumsQ4_0<0> {
  SumsQ4_0(const uint8_t*, int64_t) {}
  void first(__m256i, __m256i, __m256i, __m256i) {}
  void second(__m256i, __m256i, __m256i, __m256i) {}
  void add(__m256, __m256) {}
  void finish(const CodedRow&, int64_t, int64_t, float*, int64_t) const {}
};

template <int n>
struct RowsQ4_0 {
  static constexpr int64_t kCodes = 256;
  SumsQ4_0<n> sums;

  RowsQ4_0(const uint8_t* rows, int64_t stride) : sums(rows, stride) {}
  void add(const CodedRow& x, int64_t k) {
    const auto codes = [&](int i) { return kept(load32(x.codes + k + 32 * i)); };
    sums.first(codes(0), codes(1), codes(2), codes(3));
    sums.second(codes(4), codes(5), codes(6), codes(7));
    const __m256 x_sums = _mm256_mul_ps(_mm256_set1_ps(8.0f), _mm256_loadu_ps(x.sums + k / 32));
    sums.add(kept(_mm256_loadu_ps(x.scales + k / 32)), x_sums);
  }
  void finish(const CodedRow& x, int64_t k, int64_t cols, float* y, int64_t y_stride) const {
    sums.finish(x, k / 32, cols / 32, y, y_stride);
  }
};

// What is left of whole eights stays as it is.
void arrange_q4_0(const int8_t* codes, int64_t cols, int8_t* out) {
  int64_t k = 0;
  for (; k + 256 <= cols; k += 256)
    for (int64_t i = 0; i < 16; ++i)  // half of a block
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k + 64 * (i / 2 % 4) + 32 * (i % 2) + 16 * (i / 8)),
                       load16(codes + k + 16 * i));
  __builtin_memcpy(out + k, codes + k, static_cast<size_t>(cols - k));
}

// Signed codes -128..127 as magnitudes, their signs given to the activations (which are never -128).
struct RowQ8_0 {
  static constexpr int kOffset = 0, kBytes = 8 * kQ8Bytes;
  const uint8_t* blocks;
  const int8_t* x;
  const uint8_t* scale(int64_t b) const { return blocks + b * kQ8Bytes; }
  __m128i halves(int64_t b) const { return halves_of_8<kQ8Bytes>(scale(b)); }
  void add_eight(int64_t b, __m256 factors, __m256* even, __m256* odd) const {
    add_pairs(*this, b, factors, even, odd);
  }
  __m256i pairs(int64_t b) const {
    const __m256i codes = load32(scale(b) + 2);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(load32(x + 32 * b), codes));
  }
};

template <int n>
using RowsQ8_0 = RowsOf<RowQ8_0, n>;

// A block of 64 weights meets two blocks of activations: here a block is half of one. Element 4 i + j is in bits 2 j of
// byte i: a plane of bits is every fourth element. arrange_q2_0 has put the activations of whole eights plane by plane,
// and of a rest in the order of pairs().
struct RowQ2_0 {
  static constexpr int kOffset = 1, kBytes = 4 * kQ2Bytes;
  const uint8_t* blocks;
  const int8_t* x;
  const uint8_t* scale(int64_t b) const { return blocks + b / 2 * kQ2Bytes; }
  __m128i halves(int64_t b) const { return halves_of_4<kQ2Bytes>(scale(b)); }
  // Blocks b .. b + 3: two of 64, one in each half of a vector. Four planes of pairs are at most 4 * 2 * 3 * 127.
  __m256 add_four(int64_t b, __m256 factors, __m256 sum) const {
    const __m256i mask = _mm256_set1_epi8(3);
    const __m256i bytes =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load16(scale(b) + 2)), load16(scale(b + 2) + 2), 1);
    const int8_t* codes = x + 32 * b;
    const auto plane = [&](int i) {
      return _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 2 * i), mask), load32(codes + 32 * i));
    };
    const __m256i pairs = _mm256_add_epi16(_mm256_add_epi16(plane(0), plane(1)), _mm256_add_epi16(plane(2), plane(3)));
    return _mm256_fmadd_ps(pair_sums(pairs), factors, sum);
  }
  void add_eight(int64_t b, __m256 factors, __m256* even, __m256* odd) const {
    const __m256i first = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), second = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    *even = add_four(b, _mm256_permutevar8x32_ps(factors, first), *even);
    *odd = add_four(b + 4, _mm256_permutevar8x32_ps(factors, second), *odd);
  }
  __m256i pairs(int64_t b) const {
    int64_t half;
    __builtin_memcpy(&half, scale(b) + 2 + 8 * (b % 2), 8);
    const __m256i planes = _mm256_srlv_epi64(_mm256_set1_epi64x(half), _mm256_setr_epi64x(0, 2, 4, 6));
    return _mm256_maddubs_epi16(_mm256_and_si256(planes, _mm256_set1_epi8(3)), load32(x + 32 * b));
  }
};

template <int n>
using RowsQ2_0 = RowsOf<RowQ2_0, n>;

// out[8 j + i] = codes[4 i + j] in each block of 32; of four blocks, as far as there are eight, the four planes one
// behind the other.
void arrange_q2_0(const int8_t* codes, int64_t cols, int8_t* out) {
  const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9,
                                          13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const auto planes_of = [&](int64_t k) {
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(load32(codes + k), gather), order);
  };
  const auto put = [&](int64_t k, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + k), v); };
  int64_t k = 0;
  for (; k + 128 <= cols / 256 * 256; k += 128) {
    const __m256i a = planes_of(k), b = planes_of(k + 32), c = planes_of(k + 64), d = planes_of(k + 96);
    const __m256i ab = _mm256_unpacklo_epi64(a, b), cd = _mm256_unpacklo_epi64(c, d);    // planes 0 and 2
    const __m256i ab1 = _mm256_unpackhi_epi64(a, b), cd1 = _mm256_unpackhi_epi64(c, d);  // planes 1 and 3
    put(k, _mm256_permute2x128_si256(ab, cd, 0x20));
    put(k + 32, _mm256_permute2x128_si256(ab1, cd1, 0x20));
    put(k + 64, _mm256_permute2x128_si256(ab, cd, 0x31));
    put(k + 96, _mm256_permute2x128_si256(ab1, cd1, 0x31));
  }
  for (; k < cols; k += 32) put(k, planes_of(k));
}

// Two halves of 128 elements, each four runs of 32, one block of activations each; a run is two groups of 16 with a
// scale of 8 bits each. Codes stand 32 above what they mean, 0..63: pairs are at most 2 * 63 * 127 = 16002, and two of
// them times their scale less than 2^23, exact in a float. What the 32 add is taken off by the sums of 16 activations.
template <int n>
struct RowsQ6_K {
  static constexpr int64_t kCodes = 256;
  const uint8_t* block;
  RowsQ6_K<n - 1> rest;
  __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps(), offsets = _mm256_setzero_ps();

  RowsQ6_K(const uint8_t* rows, int64_t stride) : block(rows), rest(rows + stride, stride) {}
  void add(const CodedRow& x, int64_t k) {
    const __m256i low4 = _mm256_set1_epi8(15), top2 = _mm256_set1_epi8(0x30);
    const __m256i one_scale = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3,
                                               2, 3, 2, 3, 2, 3, 2, 3);
    ask_for(block, kQ6Bytes);
    const __m128i bytes = load16(block + 192);
    const __m256i scales = _mm256_cvtepi8_epi16(bytes);
    const __m256 d = _mm256_set1_ps(half_at(block + 208));
    const auto float_scales = [](__m128i eight) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)); };
    const float* sums = x.half_sums + k / 16;
    const __m256 offset = _mm256_fmadd_ps(float_scales(_mm_srli_si128(bytes, 8)), _mm256_loadu_ps(sums + 8),
                                          _mm256_mul_ps(float_scales(bytes), _mm256_loadu_ps(sums)));
    offsets = _mm256_fmadd_ps(d, offset, offsets);
    alignas(32) float factors[8];
    _mm256_store_ps(factors, _mm256_mul_ps(d, _mm256_loadu_ps(x.scales + k / 32)));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m256i ql0 = load32(block + 64 * half), ql1 = load32(block + 64 * half + 32);
      const __m256i qh = load32(block + 128 + 32 * half);
      const __m256i eight =
          half == 0 ? _mm256_permute2x128_si256(scales, scales, 0x00) : _mm256_permute2x128_si256(scales, scales, 0x11);
      const auto add_run = [&](int run, __m256i low, __m256i high) {
        const __m256i codes = _mm256_or_si256(_mm256_and_si256(low, low4), _mm256_and_si256(high, top2));
        const __m256i pairs = _mm256_maddubs_epi16(codes, load32(x.codes + k + 128 * half + 32 * run));
        const __m256i scale =
            _mm256_shuffle_epi8(eight, _mm256_add_epi8(one_scale, _mm256_set1_epi8(static_cast<char>(4 * run))));
        const __m256 factor = _mm256_broadcast_ss(factors + 4 * half + run);
        __m256& sum = run % 2 == 0 ? even : odd;
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, scale)), factor, sum);
      };
      add_run(0, ql0, _mm256_slli_epi16(qh, 4));
      add_run(1, ql1, _mm256_slli_epi16(qh, 2));
      add_run(2, _mm256_srli_epi16(ql0, 4), qh);
      add_run(3, _mm256_srli_epi16(ql1, 4), _mm256_srli_epi16(qh, 2));
    }
    block += kQ6Bytes;
    rest.add(x, k);
  }
  void finish(const CodedRow& x, int64_t k, int64_t cols, float* y, int64_t y_stride) const {
    *y = sum_lanes(_mm256_add_ps(even, odd)) - 32.0f * sum_lanes(offsets);
    rest.finish(x, k, cols, y + y_stride, y_stride);
  }
};
template <>
struct RowsQ6_K<0> {
  RowsQ6_K(const uint8_t*, int64_t) {}
  void add(const CodedRow&, int64_t) {}
  void finish(const CodedRow&, int64_t, int64_t, float*, int64_t) const {}
};

// ---- Rounding to 8 bits

// 32 numbers -128..127 of 32 bits, in order, as bytes.
__m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

void encode_blocks(const float* x, int64_t n, int8_t* codes, float* scales, float* sums, float* half_sums) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int64_t k = 0; k < n; k += kCodeBlock) {
    const __m256 v0 = _mm256_loadu_ps(x + k), v1 = _mm256_loadu_ps(x + k + 8);
    const __m256 v2 = _mm256_loadu_ps(x + k + 16), v3 = _mm256_loadu_ps(x + k + 24);
    // An integer comparison orders magnitudes, infinity and NaN last.
    const auto bits = [&](__m256 v) { return _mm256_castps_si256(_mm256_and_ps(v, magnitude)); };
    const __m256i largest =
        _mm256_max_epi32(_mm256_max_epi32(bits(v0), bits(v1)), _mm256_max_epi32(bits(v2), bits(v3)));
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    const int most = _mm_cvtsi128_si32(m);
    const float scale = most >= 0x7f800000 ? __builtin_nanf("") : _mm_cvtss_f32(_mm_castsi128_ps(m)) / 127.0f;
    // A scale that is no normal number (below 1.2e-38) would not invert: the block is as good as zero.
    const bool usable = most < 0x7f800000 && scale >= 0x1p-126f;
    const __m256 inverse = _mm256_set1_ps(usable ? 1.0f / scale : 0.0f);
    const auto code = [&](__m256 v) {
      return usable ? _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)) : _mm256_setzero_si256();
    };
    const __m256i bytes = narrow(code(v0), code(v1), code(v2), code(v3));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + k), bytes);
    scales[k / kCodeBlock] = scale;
    // Sums of 8 bytes code + 128.
    const __m256i eights = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m256i sixteens = _mm256_add_epi64(eights, _mm256_shuffle_epi32(eights, 0x4e));
    const int low = _mm_cvtsi128_si32(_mm256_castsi256_si128(sixteens)) - 16 * 128;
    const int high = _mm_cvtsi128_si32(_mm256_extracti128_si256(sixteens, 1)) - 16 * 128;
    sums[k / kCodeBlock] = scale * static_cast<float>(low + high);
    half_sums[k / 16] = scale * static_cast<float>(low);
    half_sums[k / 16 + 1] = scale * static_cast<float>(high);
  }
}

bool encode_static(const float* x, int64_t n, float scale, int8_t* codes) {
  const __m256 by = _mm256_set1_ps(scale), most = _mm256_set1_ps(127.0f), least = _mm256_set1_ps(-128.0f);
  __m256 unordered = _mm256_setzero_ps();
  const auto code = [&](__m256 v) {
    unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_cvtps_epi32(_mm256_min_ps(most, _mm256_max_ps(least, _mm256_div_ps(v, by))));
  };
  const auto encode32 = [&](const float* from, int8_t* to) {
    const __m256i a = code(_mm256_loadu_ps(from)), b = code(_mm256_loadu_ps(from + 8));
    const __m256i c = code(_mm256_loadu_ps(from + 16)), d = code(_mm256_loadu_ps(from + 24));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(a, b, c, d));
  };
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) encode32(x + k, codes + k);
  if (k < n) {
    float last[32] = {};
    int8_t last_codes[32];
    __builtin_memcpy(last, x + k, static_cast<size_t>(n - k) * sizeof(float));
    encode32(last, last_codes);
    __builtin_memcpy(codes + k, last_codes, static_cast<size_t>(n - k));
  }
  return _mm256_movemask_ps(unordered) == 0;
}

// ---- Results of panels to rows

// y[r * y_stride + o] = value(o, r) lane by lane; value gives 8 rows of an output. First the tall x wide corner of a
// tile of 8 x 8.
template <class Value>
void store_corner(int64_t tall, int64_t wide, float* y, int64_t y_stride, int64_t o, int64_t r, Value value) {
  __m256 block[8];
  for (int64_t i = 0; i < 8; ++i) block[i] = i < wide ? value(o + i, r) : _mm256_setzero_ps();
  transpose8(block);
  float row[8];
  for (int64_t i = 0; i < tall; ++i) {
    _mm256_storeu_ps(row, block[i]);
    __builtin_memcpy(y + (r + i) * y_stride + o, row, static_cast<size_t>(wide) * sizeof(float));
  }
}
template <class Value>
void store_rows(int64_t rows, int64_t outputs, float* y, int64_t y_stride, Value value) {
  for (int64_t r = 0; r < rows; r += 8) {
    const int64_t tall = rows - r < 8 ? rows - r : 8;
    int64_t o = 0;
    for (; tall == 8 && o + 8 <= outputs; o += 8) {
      __m256 block[8];
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) block[i] = value(o + i, r);
      transpose8(block);
#pragma GCC unroll 8
      for (int64_t i = 0; i < 8; ++i) _mm256_storeu_ps(y + (r + i) * y_stride + o, block[i]);
    }
    for (; o < outputs; o += 8) store_corner(tall, outputs - o < 8 ? outputs - o : 8, y, y_stride, o, r, value);
  }
}

void store_floats(const float* sums, int64_t stride, int64_t rows, int64_t outputs, float* y, int64_t y_stride) {
  store_rows(rows, outputs, y, y_stride, [&](int64_t o, int64_t r) { return _mm256_loadu_ps(sums + o * stride + r); });
}

void store_sums(const int32_t* sums, int64_t stride, int64_t rows, int64_t outputs, int32_t offset,
                const int32_t* x_sums, const double* x_scales, const float* w_scales, float* y, int64_t y_stride) {
  const auto four = [&](__m128i sum, const double* x_scale, __m256d w_scale) {
    return _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtepi32_pd(sum), _mm256_mul_pd(_mm256_loadu_pd(x_scale), w_scale)));
  };
  store_rows(rows, outputs, y, y_stride, [&](int64_t o, int64_t r) {
    const __m256i excess = _mm256_mullo_epi32(load32(x_sums + r), _mm256_set1_epi32(offset));
    const __m256i sum = _mm256_sub_epi32(load32(sums + o * stride + r), excess);
    const __m256d w_scale = _mm256_set1_pd(static_cast<double>(w_scales[o]));
    return _mm256_set_m128(four(_mm256_extracti128_si256(sum, 1), x_scales + r + 4, w_scale),
                           four(_mm256_castsi256_si128(sum), x_scales + r, w_scale));
  });
}

}  // namespace

const BlockKernel kAvx2BlockKernels[kBlockTypes] = {
    {DType::Q2_0, Isa::avx2, multiply_rows<RowsQ2_0>, arrange_q2_0},
    {DType::Q4_0, Isa::avx2, multiply_rows<RowsQ4_0>, arrange_q4_0},
    {DType::Q8_0, Isa::avx2, multiply_rows<RowsQ8_0>, nullptr},
    {DType::Q6_K, Isa::avx2, multiply_rows<RowsQ6_K>, nullptr},
};

const CodeKernels kAvx2CodeKernels = {Isa::avx2, encode_blocks, encode_static, store_floats, store_sums};

}  // namespace qat
