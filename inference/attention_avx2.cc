// Attention with AVX2, FMA and F16C: queries with keys, and weights with values, as the cache stores them. Compiled
// with those flags: see kernels_isa.h for what must not be used here.
//
// Four heads at a time share what is loaded and unpacked of two keys (or of two vectors of the values), or eight heads
// what is of one key, and have the eight chains of fused multiply-adds that hide their latency. In which order a sum is
// taken depends on the number of its terms alone, so that it is the same whatever stands beside it.
#include <immintrin.h>

#include "inference/kernels_isa.h"
#include "inference/lanes_avx2.h"

namespace qat {
namespace {

// As in attention_avx512.cc.
constexpr int64_t kRowsAhead = 8192;
[[gnu::always_inline]] inline void ask_for(const uint8_t* row, int64_t bytes) {
#pragma GCC unroll 4
  for (int64_t line = 0; line < bytes; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(row) + kRowsAhead + line, _MM_HINT_T0);
}

template <class T>
T load_as(const uint8_t* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

__m256i eight_bytes(const uint8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

// Eight numbers of a row from column i + c on, times kUnit; both are multiples of 8. kColumns are unpacked from the
// same bytes, or a vector is whole by itself. Codes of 2 bits are moved to the top of their lanes, the rest of which is
// cleared; they are stored as code + 2, which is two's complement but for the highest bit.
struct Floats32 {
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kColumns = 8;
  static __m256 load(const uint8_t* row, int64_t i, int64_t c) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(row + 4 * (i + c)));
  }
};
struct Floats16 {
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kColumns = 8;
  static __m256 load(const uint8_t* row, int64_t i, int64_t c) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2 * (i + c))));
  }
};
// Blocks of 32 codes after their scale (BlockQ8_0 of format/grid.h).
struct BlocksQ8_0 {
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kColumns = 8;
  static __m256 scale(const uint8_t* block) { return _mm256_cvtph_ps(_mm_set1_epi16(load_as<int16_t>(block))); }
  static __m256 load(const uint8_t* row, int64_t i, int64_t c) {
    const uint8_t* block = row + i / 32 * 34;
    return _mm256_mul_ps(_mm256_cvtepi32_ps(eight_bytes(block + 2 + i % 32 + c)), scale(block));
  }
};
struct Codes8 {
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kColumns = 8;
  static __m256 load(const uint8_t* row, int64_t i, int64_t c) { return _mm256_cvtepi32_ps(eight_bytes(row + i + c)); }
};
// In pairs: i is among the lower sixteen columns of its 32, and c >= 16, a constant for the caller, says the upper
// halves of the bytes.
struct Codes4 {
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kColumns = kPairedCodes;
  static __m256 load(const uint8_t* row, int64_t i, int64_t c) {
    const __m256i pairs = eight_bytes(row + i / 32 * 16 + ((i + c) & 15));
    const __m256i at_top = c >= 16 ? pairs : _mm256_slli_epi32(pairs, 28);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(at_top, c >= 16 ? 4 : 28));
  }
};
struct Codes2 {
  static constexpr float kUnit = 0x1p30f;
  static constexpr int64_t kColumns = 8;
  static __m256 load(const uint8_t* row, int64_t i, int64_t c) {
    const __m256i eight = _mm256_set1_epi16(load_as<int16_t>(row + (i + c) / 4));
    const __m256i places = _mm256_setr_epi32(30, 28, 26, 24, 22, 20, 18, 16);
    const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000u));
    const __m256i top_bits = _mm256_set1_epi32(static_cast<int>(0xc0000000u));
    return _mm256_cvtepi32_ps(_mm256_xor_si256(_mm256_and_si256(_mm256_sllv_epi32(eight, places), top_bits), sign));
  }
};

// Vectors of a row that are met together, and from one to the next: two of paired codes are those that share bytes.
template <class Load, int kVectors>
constexpr int64_t kApart = (Load::kColumns == kPairedCodes && kVectors == 2) ? 16 : 8;
// Where a pass over columns begins that would be from i on if its vectors were neighbours.
template <class Load, int kVectors>
constexpr int64_t place_of(int64_t i) {
  return kApart<Load, kVectors> == 16 ? i - i % 32 / 2 : i;
}
template <int kVectors, class Load>
[[gnu::always_inline]] inline Lanes<kVectors> load_vectors(Load, const uint8_t* row, int64_t i) {
  Lanes<kVectors> values;
  values.fill([&](int64_t n) { return kept(Load::load(row, i, n * kApart<Load, kVectors>)); });
  return values;
}
template <int kVectors>
[[gnu::always_inline]] inline Lanes<kVectors> load_vectors(BlocksQ8_0, const uint8_t* row, int64_t i) {
  const uint8_t* block = row + i / 32 * 34;
  const __m256 scale = BlocksQ8_0::scale(block);
  Lanes<kVectors> values;  // 1, 2 or 4 from a multiple of all their columns on: of one block
  values.fill([&](int64_t n) {
    return kept(_mm256_mul_ps(_mm256_cvtepi32_ps(eight_bytes(block + 2 + i % 32 + 8 * n)), scale));
  });
  return values;
}

// ---- Queries with keys

// Loops take two or more steps at a time: beside a busy neighbour of the core what counts is how many instructions
// there are, and one step has three to five beside its products.

// What _mm256_hadd_ps gives, in three instructions where that is four.
__m256 add_neighbours(__m256 a, __m256 b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

// Of four vectors, each one's sum: neighbours are added first, then pairs of them, then the halves.
__m128 sums_of(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 pairs = add_neighbours(add_neighbours(a, b), add_neighbours(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}

// Products of n heads with kKeys keys, lane by lane; nested for the reason that Lanes gives.
template <int n, int kKeys>
struct ScoreSums {
  Lanes<kKeys> sum;
  ScoreSums<n - 1, kKeys> rest;

  template <class LoadQuery>
  void add(const LoadQuery& load, const float* q, int64_t q_stride, const Lanes<kKeys>& keys) {
    sum.add_product(load(q), keys);
    rest.add(load, q + q_stride, q_stride, keys);
  }
  void store(__m128 scale, float* out, int64_t out_stride) const {
    if constexpr (kKeys == 1 && n >= 4) {
      float of_heads[4];
      _mm_storeu_ps(of_heads, _mm_mul_ps(sums_of(sum.x, rest.sum.x, rest.rest.sum.x, rest.rest.rest.sum.x), scale));
      for (int64_t h = 0; h < 4; ++h) out[h * out_stride] = of_heads[h];
      rest.rest.rest.rest.store(scale, out + 4 * out_stride, out_stride);
    } else if constexpr (kKeys == 4) {
      _mm_storeu_ps(out, _mm_mul_ps(sums_of(sum.x, sum.rest.x, sum.rest.rest.x, sum.rest.rest.rest.x), scale));
      rest.store(scale, out + out_stride, out_stride);
    } else if constexpr (kKeys == 2 && n >= 2) {
      const __m128 two = _mm_mul_ps(sums_of(sum.x, sum.rest.x, rest.sum.x, rest.sum.rest.x), scale);
      _mm_storel_pi(reinterpret_cast<__m64*>(out), two);
      _mm_storeh_pi(reinterpret_cast<__m64*>(out + out_stride), two);
      rest.rest.store(scale, out + 2 * out_stride, out_stride);
    } else {
      static_assert(kKeys == 1, "one key");
      _mm_store_ss(out, _mm_mul_ps(sums_of(sum.x, sum.x, sum.x, sum.x), scale));
      rest.store(scale, out + out_stride, out_stride);
    }
  }
};
template <int kKeys>
struct ScoreSums<0, kKeys> {
  template <class LoadQuery>
  void add(const LoadQuery&, const float*, int64_t, const Lanes<kKeys>&) {}
  void store(__m128, float*, int64_t) const {}
};

template <class Load, int kHeads, int kKeys>
[[gnu::always_inline]] inline void score_tile(const float* q, int64_t q_stride, const CachedRows& k,
                                              const uint8_t* keys, __m128 scale, float* out, int64_t out_stride) {
  ask_for(keys, kKeys * k.stride);
  ScoreSums<kHeads, kKeys> sums;
  int64_t i = 0;
#pragma GCC unroll 2
  for (; i + Load::kColumns <= k.cols; i += Load::kColumns) {
#pragma GCC unroll 4
    for (int64_t c = 0; c < Load::kColumns; c += 8) {
      // What one key meets is an operand in memory: that costs no instruction.
      const auto query = [&](const float* p) {
        const __m256 eight = _mm256_loadu_ps(p + i + c);
        return kKeys == 1 ? eight : kept(eight);
      };
      Lanes<kKeys> loaded;
      loaded.fill([&](int64_t j) { return kept(Load::load(keys + j * k.stride, i, c)); });
      sums.add(query, q, q_stride, loaded);
    }
  }
  if (i < k.cols) {  // only floats have such rows
    const auto first = [&](const float* p) { return load_first(p + i, k.cols - i); };
    Lanes<kKeys> loaded;
    loaded.fill([&](int64_t j) { return first(reinterpret_cast<const float*>(keys + j * k.stride)); });
    sums.add(first, q, q_stride, loaded);
  }
  sums.store(scale, out, out_stride);
}

template <class Load, int kHeads>
void score_heads(const float* q, int64_t q_stride, const CachedRows& k, float factor, float* out, int64_t out_stride) {
  const __m128 scale = _mm_set1_ps(factor);
  constexpr int kKeys = kHeads == 8 ? 1 : kHeads == 4 ? 2 : 4;
  int64_t j = 0;
  for (; j + kKeys <= k.count; j += kKeys)
    score_tile<Load, kHeads, kKeys>(q, q_stride, k, k.data + j * k.stride, scale, out + j, out_stride);
  for (; j < k.count; ++j)
    score_tile<Load, kHeads, 1>(q, q_stride, k, k.data + j * k.stride, scale, out + j, out_stride);
}

template <class Load>
void scores(const float* q, int64_t q_stride, int64_t heads, const CachedRows& k, float scale, float* out,
            int64_t out_stride) {
  // Eight heads want as many loads as multiply-adds, which pays where a key is dear to unpack.
  for (; Load::kColumns == kPairedCodes && heads >= 8; heads -= 8, q += 8 * q_stride, out += 8 * out_stride)
    score_heads<Load, 8>(q, q_stride, k, scale, out, out_stride);
  for (; heads >= 4; heads -= 4, q += 4 * q_stride, out += 4 * out_stride)
    score_heads<Load, 4>(q, q_stride, k, scale, out, out_stride);
  if (heads >= 2) {
    score_heads<Load, 2>(q, q_stride, k, scale, out, out_stride);
    q += 2 * q_stride;
    out += 2 * out_stride;
  }
  if (heads % 2 != 0) score_heads<Load, 1>(q, q_stride, k, scale, out, out_stride);
}

// Of keys in groups: the scores of kHeads heads with 8 positions from j on. Codes are at most 127, so that neither
// |key| * (query with the key's sign) nor a sum of two of them leaves its bits: 2 * 127 * 127 < 2^15.
template <int kHeads>
[[gnu::always_inline]] inline void score_eight(const CodedQueries& q, int64_t first_head, const uint8_t* group,
                                               int64_t cols, int64_t j, float scale, __m256 (&totals)[kHeads]) {
  const int64_t blocks = cols / kCodeBlock;
  const uint8_t* keys = group + blocks * kKeyGroup * 2 + 4 * j;
  const int8_t* codes = q.codes + first_head * cols;
  const __m256i ones = _mm256_set1_epi16(1);
  for (__m256& total : totals) total = _mm256_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    __m256i sums[kHeads];
    for (__m256i& sum : sums) sum = _mm256_setzero_si256();
      // Sums are kept: GCC would add up the products of a block in pairs, and has no registers for them all.
#pragma GCC unroll 8
    for (int64_t n = 0; n < kCodeBlock; n += 4) {
      const int64_t k = b * kCodeBlock + n;
      const __m256i key = kept(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys + k * kKeyGroup)));
      const __m256i size = kept(_mm256_abs_epi8(key));
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const auto* four = reinterpret_cast<const uint8_t*>(codes + h * cols + k);
        const __m256i query = _mm256_sign_epi8(_mm256_set1_epi32(load_as<int32_t>(four)), key);
        sums[h] = kept(_mm256_add_epi32(sums[h], _mm256_madd_epi16(_mm256_maddubs_epi16(size, query), ones)));
      }
    }
    const auto* halves = reinterpret_cast<const __m128i*>(group + (b * kKeyGroup + j) * 2);
    const __m256 of_keys = _mm256_cvtph_ps(_mm_loadu_si128(halves));
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const __m256 unit = _mm256_set1_ps(q.scales[(first_head + h) * blocks + b] * scale);
      totals[h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[h]), _mm256_mul_ps(of_keys, unit), totals[h]);
    }
  }
}

template <int kHeads>
void key_scores_of(const CodedQueries& q, int64_t head, const KeyGroups& keys, float scale, float* out,
                   int64_t out_stride) {
  for (int64_t begin = keys.first / 8 * 8; begin < keys.last; begin += 8) {
    const uint8_t* group = keys.data + begin / kKeyGroup * keys.stride;
    ask_for(group + begin % kKeyGroup * keys.stride / kKeyGroup, keys.stride / 2);
    __m256 totals[kHeads];
    score_eight(q, head, group, keys.cols, begin % kKeyGroup, scale, totals);
    const int64_t at = begin - keys.first;  // may be negative
    if (at >= 0 && begin + 8 <= keys.last) {
      for (int h = 0; h < kHeads; ++h) _mm256_storeu_ps(out + h * out_stride + at, totals[h]);
      continue;
    }
    const int64_t from = at < 0 ? -at : 0;
    const int64_t to = begin + 8 < keys.last ? 8 : keys.last - begin;
    for (int h = 0; h < kHeads; ++h) {
      float eight[8];
      _mm256_storeu_ps(eight, totals[h]);
      for (int64_t j = from; j < to; ++j) out[h * out_stride + at + j] = eight[j];
    }
  }
}

void key_scores(const CodedQueries& q, int64_t heads, const KeyGroups& keys, float scale, float* out,
                int64_t out_stride) {
  const int64_t fours = heads / 4 * 4;
  for (int64_t h = 0; h < fours; h += 4) key_scores_of<4>(q, h, keys, scale, out + h * out_stride, out_stride);
  out += fours * out_stride;
  if (heads % 4 == 3) key_scores_of<3>(q, fours, keys, scale, out, out_stride);
  if (heads % 4 == 2) key_scores_of<2>(q, fours, keys, scale, out, out_stride);
  if (heads % 4 == 1) key_scores_of<1>(q, fours, keys, scale, out, out_stride);
}

// ---- Weights with values

// Some columns of n heads.
template <int n, int kVectors>
struct MixSums {
  Lanes<kVectors> sum;
  MixSums<n - 1, kVectors> rest;

  void load(const float* out, int64_t stride, int64_t apart) {
    sum.load(out, apart);
    rest.load(out + stride, stride, apart);
  }
  void add(const float* weight, int64_t weight_stride, const Lanes<kVectors>& v) {
    sum.add_product(_mm256_broadcast_ss(weight), v);
    rest.add(weight + weight_stride, weight_stride, v);
  }
  void store(float* out, int64_t stride, int64_t apart) const {
    sum.store(out, apart);
    rest.store(out + stride, stride, apart);
  }
};
template <int kVectors>
struct MixSums<0, kVectors> {
  void load(const float*, int64_t, int64_t) {}
  void add(const float*, int64_t, const Lanes<kVectors>&) {}
  void store(float*, int64_t, int64_t) const {}
};

// Rows are met once for each few columns, of which accumulators stand in registers, so they are taken by so many bytes
// at a time, which with as many of the next ones stay in the first level. Memory would rest while a pass meets them
// again: each pass asks for its share of the next ones, `step` bytes with each row.
constexpr int64_t kMixedBytes = 8192;

template <class Load, int kHeads, int kVectors>
[[gnu::always_inline]] inline void mix_columns(const float* weights, int64_t weight_stride, const CachedRows& rows,
                                               bool add, float* out, int64_t out_stride, int64_t i, const uint8_t* next,
                                               int64_t step) {
  i = place_of<Load, kVectors>(i);
  MixSums<kHeads, kVectors> sums;
  if (add) sums.load(out + i, out_stride, kApart<Load, kVectors>);
  const uint8_t* row = rows.data;
#pragma GCC unroll 2
  for (int64_t j = 0; j < rows.count; ++j, row += rows.stride, next += step) {
    _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
    sums.add(weights + j, weight_stride, load_vectors<kVectors>(Load(), row, i));
  }
  sums.store(out + i, out_stride, kApart<Load, kVectors>);
}

// What is left of whole vectors; only floats have such rows.
void mix_rest(const float* weights, const CachedRows& v, bool add, float* out, int64_t i) {
  for (; i < v.cols; ++i) {
    float sum = add ? out[i] : 0.0f;
    for (int64_t j = 0; j < v.count; ++j)
      sum = __builtin_fmaf(weights[j], load_as<float>(v.data + j * v.stride + 4 * i), sum);
    out[i] = sum;
  }
}

template <class Load, int kHeads>
void mix_heads(const float* weights, int64_t weight_stride, const CachedRows& v, bool add, float* out,
               int64_t out_stride) {
  constexpr int kVectors = kHeads == 4 ? 2 : 4;
  const int64_t most = v.stride < kMixedBytes ? kMixedBytes / v.stride : 1, step = v.stride * 8 * kVectors / v.cols;
  for (int64_t first = 0; first < v.count; first += most, add = true) {
    const CachedRows rows = {v.data + first * v.stride, v.stride, v.count - first < most ? v.count - first : most,
                             v.cols};
    const float* of_rows = weights + first;
    const uint8_t* next = rows.data + most * v.stride;
    int64_t i = 0;
    for (; i + 8 * kVectors <= v.cols; i += 8 * kVectors, next += most * step)
      mix_columns<Load, kHeads, kVectors>(of_rows, weight_stride, rows, add, out, out_stride, i, next, step);
    for (; i + 8 <= v.cols; i += 8)
      mix_columns<Load, kHeads, 1>(of_rows, weight_stride, rows, add, out, out_stride, i, next, 0);
    for (int64_t h = 0; i < v.cols && h < kHeads; ++h)
      mix_rest(of_rows + h * weight_stride, rows, add, out + h * out_stride, i);
  }
}

template <class Load>
void mix(const float* weights, int64_t weight_stride, int64_t heads, const CachedRows& v, bool add, float* out,
         int64_t out_stride) {
  for (; heads >= 4; heads -= 4, weights += 4 * weight_stride, out += 4 * out_stride)
    mix_heads<Load, 4>(weights, weight_stride, v, add, out, out_stride);
  if (heads >= 2) {
    mix_heads<Load, 2>(weights, weight_stride, v, add, out, out_stride);
    weights += 2 * weight_stride;
    out += 2 * out_stride;
  }
  if (heads % 2 != 0) mix_heads<Load, 1>(weights, weight_stride, v, add, out, out_stride);
}

template <DType type, class Load>
constexpr CacheKernel kKernel = {type, Isa::avx2, Load::kUnit, scores<Load>, mix<Load>};

}  // namespace

const KeyKernel kAvx2KeyKernel = {Isa::avx2, key_scores};

const CacheKernel kAvx2CacheKernels[kAvx2CacheTypes] = {
    kKernel<DType::F32, Floats32>, kKernel<DType::F16, Floats16>, kKernel<DType::I2, Codes2>,
    kKernel<DType::I4, Codes4>,    kKernel<DType::I8, Codes8>,    kKernel<DType::Q8_0, BlocksQ8_0>,
};

}  // namespace qat
