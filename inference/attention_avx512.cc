// Attention with AVX-512, as attention_avx2.cc has it: queries with keys, and weights with values, as the cache stores
// them, and the softmax between. Compiled with those flags: see kernels_isa.h for what must not be used here.
//
// Four heads share what is loaded and unpacked of four keys (or of 64 columns of the values). In which order a sum is
// taken depends on the number of its terms alone, so that it is the same whatever stands beside it. Rows that are not
// whole vectors are AVX2's.
#include "inference/simd_vnni.h"

namespace qat {
namespace {

constexpr int64_t kTile = 4;  // keys, heads or vectors

// How far ahead of their use rows are asked for, a few lines with each tile: where a page ends the hardware's own
// prefetching starts anew, and a tile has too many instructions for the processor to see beyond it. Of each page one
// line earlier still (simd_vnni.h): a long context in half floats is decoded 8 % faster so. Inlined whatever the
// compiler thinks of it: GCC takes a function that only prefetches for one without effect, and drops its calls.
constexpr int64_t kRowsAhead = 8192, kRowPagesAhead = 11264;
[[gnu::always_inline]] inline void ask_for(const uint8_t* row, int64_t bytes) {
  const char* p = reinterpret_cast<const char*>(row);
#pragma GCC unroll 4
  for (int64_t line = 0; line < bytes; line += 64) _mm_prefetch(p + kRowsAhead + line, _MM_HINT_T0);
  for (int64_t page = -reinterpret_cast<intptr_t>(row) & (kPage - 1); page < bytes; page += kPage)
    _mm_prefetch(p + kRowPagesAhead + page, _MM_HINT_T0);
}

// Where eight heads or more share rows, their groups of four meet a block one after the other: the first would wait for
// memory, which the others leave idle. So each asks for its share of the lines of the next block, into the second
// level.
struct Share {
  int64_t ahead = 0, first = 0, step = 64;  // bytes: as long as the block; the group's first line; from one to its next
};
template <bool kShares>
[[gnu::always_inline]] inline void ask_for(const uint8_t* row, int64_t bytes, const Share& share) {
  if (!kShares) return ask_for(row, bytes);
  for (int64_t line = share.first; line < bytes; line += share.step)
    _mm_prefetch(reinterpret_cast<const char*>(row) + share.ahead + line, _MM_HINT_T1);
}

template <class T>
inline T load_as(const uint8_t* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

// Sixteen numbers of a row, of kBytes, times kUnit: vector n from column i on, a multiple of so many vectors as share
// bytes (kShared). Codes as in attention_avx2.cc.
struct Floats32 {
  static constexpr int64_t kBytes = 64;
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kShared = 1;
  static Floats from(const uint8_t* row, int64_t i, int64_t n) {
    return load(reinterpret_cast<const float*>(row) + i + n * kVectorLanes);
  }
};
struct Floats16 {
  static constexpr int64_t kBytes = 32;
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kShared = 1;
  static Floats from(const uint8_t* row, int64_t i, int64_t n) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i) + n));
  }
};
struct BlocksQ8_0 {
  static constexpr int64_t kBytes = 17;
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kShared = 1;
  static Floats scale(const uint8_t* block) { return _mm512_cvtph_ps(_mm256_set1_epi16(load_as<int16_t>(block))); }
  static Floats from(const uint8_t* row, int64_t i, int64_t n) {
    i += n * kVectorLanes;
    const uint8_t* block = row + i / 32 * 34;
    return multiply(bytes_to_floats(block + 2 + i % 32), scale(block));
  }
};
struct Codes8 {
  static constexpr int64_t kBytes = 16;
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kShared = 1;
  static Floats from(const uint8_t* row, int64_t i, int64_t n) { return bytes_to_floats(row + i + n * kVectorLanes); }
};
struct Codes4 {
  static constexpr int64_t kBytes = 8;
  static constexpr float kUnit = 1.0f;
  static constexpr int64_t kShared = kPairedCodes / kVectorLanes;
  static Floats from(const uint8_t* row, int64_t i, int64_t n) {
    const uint8_t* sixteen = row + i / 2 + n / 2 * 16;
    const Ints pairs = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen)));
    const bool upper = n % 2 == 1;
    return to_floats(_mm512_srai_epi32(upper ? pairs : _mm512_slli_epi32(pairs, 28), upper ? 4 : 28));
  }
};
struct Codes2 {
  static constexpr int64_t kBytes = 4;
  static constexpr float kUnit = 0x1p30f;
  static constexpr int64_t kShared = 1;
  static Floats from(const uint8_t* row, int64_t i, int64_t n) {
    const auto sixteen = load_as<int32_t>(row + i / 4 + n * kBytes);
    const Ints places = _mm512_setr_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const Ints top_bits = _mm512_sllv_epi32(splat_int(sixteen), places);
    return to_floats(differing(both(top_bits, splat_int(static_cast<int>(0xc0000000u))), splat_int(INT32_MIN)));
  }
};

// Neighbouring vectors of a row.
template <class Load, int kVectors>
inline void load_vectors(const uint8_t* row, int64_t i, Floats (&values)[kVectors]) {
#pragma GCC unroll 4
  for (int64_t n = 0; n < kVectors; ++n) values[n] = Load::from(row, i, n);
}
template <class Load>
inline void load_vectors(const uint8_t* row, int64_t i, Floats (&values)[1]) {
  const int64_t n = i / kVectorLanes % Load::kShared;
  values[0] = Load::from(row, i - n * kVectorLanes, n);
}
// From a multiple of 64 columns on: two of them share a scale.
template <>
inline void load_vectors<BlocksQ8_0, 4>(const uint8_t* row, int64_t i, Floats (&values)[4]) {
#pragma GCC unroll 2
  for (int64_t n = 0; n < 4; n += 2) {
    const uint8_t* block = row + (i / 32 + n / 2) * 34;
    const Floats scale = BlocksQ8_0::scale(block);
    values[n] = multiply(bytes_to_floats(block + 2), scale);
    values[n + 1] = multiply(bytes_to_floats(block + 18), scale);
  }
}

// ---- Queries with keys

// Of four vectors, a quarter of each one's sum in each quarter: neighbours are added first, then pairs of them.
inline Floats quarter_sums(const Floats (&v)[kTile]) {
  const auto add_neighbours = [](Floats a, Floats b) {
    return add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
  };
  return add_neighbours(add_neighbours(v[0], v[1]), add_neighbours(v[2], v[3]));
}

// A quarter each of what four such come to: the first and third, the second and fourth, and both.
inline Floats whole_sums(Floats a, Floats b, Floats c, Floats d) {
  const auto add_halves = [](Floats x, Floats y) {
    return add(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
  };
  const Floats ab = add_halves(a, b), cd = add_halves(c, d);
  return add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

// Products with four keys: of each of kHeads heads a quarter of what is returned.
template <class Load, int kHeads>
[[gnu::always_inline]] inline Floats score_tile(const float* q, int64_t q_stride, const uint8_t* const (&keys)[kTile],
                                                int64_t cols) {
  Floats sums[kHeads][kTile];
  for (auto& head : sums)
    for (Floats& sum : head) sum = splat(0.0f);
  for (int64_t i = 0; i < cols; i += Load::kShared * kVectorLanes)
#pragma GCC unroll 2
    for (int64_t n = 0; n < Load::kShared; ++n) {
      Floats key[kTile];
#pragma GCC unroll 4
      for (int64_t j = 0; j < kTile; ++j) key[j] = Load::from(keys[j], i, n);
#pragma GCC unroll 4
      for (int64_t h = 0; h < kHeads; ++h) {
        const Floats query = load(q + h * q_stride + i + n * kVectorLanes);
#pragma GCC unroll 4
        for (int64_t j = 0; j < kTile; ++j) sums[h][j] = multiply_add(query, key[j], sums[h][j]);
      }
    }
  Floats quarters[4];
#pragma GCC unroll 4
  for (int64_t h = 0; h < 4; ++h) quarters[h] = quarter_sums(sums[h < kHeads ? h : kHeads - 1]);
  return whole_sums(quarters[0], quarters[1], quarters[2], quarters[3]);
}

template <class Load, int kHeads, bool kShares = false>
void score_heads(const float* q, int64_t q_stride, const CachedRows& k, float factor, float* out, int64_t out_stride,
                 const Share& share = Share()) {
  const Floats scale = splat(factor);
  const int64_t stride = k.stride;
  const uint8_t* keys = k.data;
  int64_t left = k.count;
  for (; left >= kTile; left -= kTile, keys += kTile * stride, out += kTile) {
    ask_for<kShares>(keys, kTile * stride, share);
    const uint8_t* const four[] = {keys, keys + stride, keys + 2 * stride, keys + 3 * stride};
    const Floats scores = multiply(score_tile<Load, kHeads>(q, q_stride, four, k.cols), scale);
    _mm_storeu_ps(out, _mm512_castps512_ps128(scores));
    if (kHeads > 1) _mm_storeu_ps(out + out_stride, _mm512_extractf32x4_ps(scores, 1));
    if (kHeads > 2) _mm_storeu_ps(out + 2 * out_stride, _mm512_extractf32x4_ps(scores, 2));
    if (kHeads > 3) _mm_storeu_ps(out + 3 * out_stride, _mm512_extractf32x4_ps(scores, 3));
  }
  if (left == 0) return;
  // In place of keys that are not there the last one again, whose products nobody reads.
  const uint8_t* const last = keys + (left - 1) * stride;
  const uint8_t* const some[] = {keys, left > 1 ? keys + stride : last, left > 2 ? keys + 2 * stride : last, last};
  alignas(kVector) float scores[4][kTile];
  _mm512_store_ps(scores, multiply(score_tile<Load, kHeads>(q, q_stride, some, k.cols), scale));
  for (int64_t h = 0; h < kHeads; ++h)
    for (int64_t j = 0; j < left; ++j) out[h * out_stride + j] = scores[h][j];
}

template <class Load, int kIndex>
void scores(const float* q, int64_t q_stride, int64_t heads, const CachedRows& k, float scale, float* out,
            int64_t out_stride) {
  if (k.cols % kVectorLanes != 0)
    return kAvx2CacheKernels[kIndex].scores(q, q_stride, heads, k, scale, out, out_stride);
  Share share = {k.count * k.stride, 0, heads / 4 * 64};  // a step of one line: there is one group
  for (; heads >= 4; heads -= 4, q += 4 * q_stride, out += 4 * out_stride, share.first += 64)
    if (share.step > 64) score_heads<Load, 4, true>(q, q_stride, k, scale, out, out_stride, share);
    else score_heads<Load, 4>(q, q_stride, k, scale, out, out_stride);
  if (heads >= 2) {
    score_heads<Load, 2>(q, q_stride, k, scale, out, out_stride);
    q += 2 * q_stride;
    out += 2 * out_stride;
  }
  if (heads % 2 != 0) score_heads<Load, 1>(q, q_stride, k, scale, out, out_stride);
}

// Keys in groups, blocks b and b + 1 of kBlocks, of kHeads: products of codes are unsigned with signed, so that keys
// are 128 above theirs, and sums begin with what that adds taken away.
template <int kHeads, int kBlocks>
[[gnu::always_inline]] inline void add_key_blocks(const CodedQueries& q, const uint8_t* group, int64_t cols, int64_t b,
                                                  Floats (&total)[kHeads]) {
  const int64_t blocks = cols / kCodeBlock;
  const uint8_t* keys = group + blocks * kKeyGroup * 2 + b * kCodeBlock * kKeyGroup;
  const int8_t* codes = q.codes + b * kCodeBlock;
  Ints sums[kHeads][kBlocks];
#pragma GCC unroll 4
  for (int64_t h = 0; h < kHeads; ++h)
#pragma GCC unroll 2
    for (int64_t n = 0; n < kBlocks; ++n) sums[h][n] = splat_int(-128 * q.sums[h * blocks + b + n]);
  for (int64_t k = 0; k < kCodeBlock; k += 4)
#pragma GCC unroll 2
    for (int64_t n = 0; n < kBlocks; ++n) {
      ask_for(keys + (n * kCodeBlock + k) * kKeyGroup, kVector);
      const Ints key = differing(load(keys + (n * kCodeBlock + k) * kKeyGroup), splat_byte(-128));
#pragma GCC unroll 4
      for (int64_t h = 0; h < kHeads; ++h) {
        const auto* four = reinterpret_cast<const uint8_t*>(codes + h * cols + n * kCodeBlock + k);
        sums[h][n] = dot(sums[h][n], key, splat_int(load_as<int32_t>(four)));
      }
    }
#pragma GCC unroll 2
  for (int64_t n = 0; n < kBlocks; ++n) {
    const Floats scales = Floats16::from(group + (b + n) * kKeyGroup * 2, 0, 0);
#pragma GCC unroll 4
    for (int64_t h = 0; h < kHeads; ++h) {
      const Floats both_scales = multiply(scales, splat(q.scales[h * blocks + b + n]));
      total[h] = multiply_add(to_floats(sums[h][n]), both_scales, total[h]);
    }
  }
}

template <int kHeads>
[[gnu::always_inline]] inline void code_group_scores(const CodedQueries& q, const uint8_t* group, int64_t cols,
                                                     Floats (&total)[kHeads]) {
  const int64_t blocks = cols / kCodeBlock;
  ask_for(group, blocks * kKeyGroup * 2);
#pragma GCC unroll 4
  for (Floats& sum : total) sum = splat(0.0f);
  int64_t b = 0;
  for (; b + 2 <= blocks; b += 2) add_key_blocks<kHeads, 2>(q, group, cols, b, total);
  if (b < blocks) add_key_blocks<kHeads, 1>(q, group, cols, b, total);
}

template <int kHeads>
void score_code_groups(const CodedQueries& q, const KeyGroups& keys, float scale, float* out, int64_t out_stride) {
  for (int64_t begin = keys.first / kKeyGroup * kKeyGroup; begin < keys.last; begin += kKeyGroup) {
    Floats total[kHeads];
    code_group_scores<kHeads>(q, keys.data + begin / kKeyGroup * keys.stride, keys.cols, total);
    const int64_t from = begin < keys.first ? keys.first - begin : 0, to = keys.last - begin;
    float* first_out = out + begin + from - keys.first;
    if (from == 0 && to >= kKeyGroup) {
#pragma GCC unroll 4
      for (int64_t h = 0; h < kHeads; ++h)
        _mm512_storeu_ps(first_out + h * out_stride, multiply(total[h], splat(scale)));
      continue;
    }
    const auto kept = static_cast<__mmask16>(first(to < kKeyGroup ? to : kKeyGroup) & ~((1u << from) - 1));
#pragma GCC unroll 4
    for (int64_t h = 0; h < kHeads; ++h)
      store_lanes(first_out + h * out_stride, __builtin_popcount(kept),
                  _mm512_maskz_compress_ps(kept, multiply(total[h], splat(scale))));
  }
}

void key_scores(const CodedQueries& queries, int64_t heads, const KeyGroups& keys, float scale, float* out,
                int64_t out_stride) {
  const int64_t cols = keys.cols, blocks = cols / kCodeBlock;
  CodedQueries q = queries;
  const auto skip = [&](int64_t n) {
    q = {q.codes + n * cols, q.scales + n * blocks, q.sums + n * blocks};
    out += n * out_stride;
  };
  for (; heads >= 4; heads -= 4, skip(4)) score_code_groups<4>(q, keys, scale, out, out_stride);
  if (heads >= 2) {
    score_code_groups<2>(q, keys, scale, out, out_stride);
    skip(2);
  }
  if (heads % 2 != 0) score_code_groups<1>(q, keys, scale, out, out_stride);
}

// ---- Weights with values

// kVectors vectors of columns from i on, of kHeads heads.
template <class Load, int kHeads, int kVectors, bool kShares>
[[gnu::always_inline]] inline void mix_columns(const float* weights, int64_t weight_stride, const CachedRows& v,
                                               bool add_to, float* out, int64_t out_stride, int64_t i,
                                               const Share& share) {
  Floats sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int64_t h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int64_t n = 0; n < kVectors; ++n)
      sums[h][n] = add_to ? load(out + h * out_stride + i + n * kVectorLanes) : splat(0.0f);
  const uint8_t* row = v.data;
  for (int64_t j = 0; j < v.count; ++j, row += v.stride) {
    ask_for<kShares>(row + i / kVectorLanes * Load::kBytes, kVectors * Load::kBytes, share);
    Floats values[kVectors];
    load_vectors<Load>(row, i, values);
#pragma GCC unroll 4
    for (int64_t h = 0; h < kHeads; ++h) {
      const Floats weight = splat(weights[h * weight_stride + j]);
#pragma GCC unroll 4
      for (int64_t n = 0; n < kVectors; ++n) sums[h][n] = multiply_add(weight, values[n], sums[h][n]);
    }
  }
#pragma GCC unroll 4
  for (int64_t h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int64_t n = 0; n < kVectors; ++n) _mm512_storeu_ps(out + h * out_stride + i + n * kVectorLanes, sums[h][n]);
}

template <class Load, int kHeads, bool kShares = false>
void mix_heads(const float* weights, int64_t weight_stride, const CachedRows& v, bool add_to, float* out,
               int64_t out_stride, const Share& share = Share()) {
  int64_t i = 0;
  for (; i + kTile * kVectorLanes <= v.cols; i += kTile * kVectorLanes)
    mix_columns<Load, kHeads, kTile, kShares>(weights, weight_stride, v, add_to, out, out_stride, i, share);
  for (; i < v.cols; i += kVectorLanes)
    mix_columns<Load, kHeads, 1, kShares>(weights, weight_stride, v, add_to, out, out_stride, i, share);
}

template <class Load, int kIndex>
void mix(const float* weights, int64_t weight_stride, int64_t heads, const CachedRows& v, bool add_to, float* out,
         int64_t out_stride) {
  if (v.cols % kVectorLanes != 0)
    return kAvx2CacheKernels[kIndex].mix(weights, weight_stride, heads, v, add_to, out, out_stride);
  Share share = {v.count * v.stride, 0, heads / 4 * 64};
  for (; heads >= 4; heads -= 4, weights += 4 * weight_stride, out += 4 * out_stride, share.first += 64)
    if (share.step > 64) mix_heads<Load, 4, true>(weights, weight_stride, v, add_to, out, out_stride, share);
    else mix_heads<Load, 4>(weights, weight_stride, v, add_to, out, out_stride);
  if (heads >= 2) {
    mix_heads<Load, 2>(weights, weight_stride, v, add_to, out, out_stride);
    weights += 2 * weight_stride;
    out += 2 * out_stride;
  }
  if (heads % 2 != 0) mix_heads<Load, 1>(weights, weight_stride, v, add_to, out, out_stride);
}

// ---- Softmax

// e^x of x <= 0 or NaN: vector_avx2.cc's exp8_to_one.
inline Floats exp_to_one(Floats x) {
  const Floats whole =
      _mm512_roundscale_ps(multiply(x, splat(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Floats r = _mm512_fnmadd_ps(whole, splat(-2.12194440e-4f), _mm512_fnmadd_ps(whole, splat(0.693359375f), x));
  const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Floats of_r = splat(1.0f / 5040);
#pragma GCC unroll 7
  for (const float c : taylor) of_r = multiply_add(of_r, r, splat(c));
  const __mmask16 is_normal = _mm512_cmp_ps_mask(x, splat(-87.33654f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(is_normal, of_r, whole);
}

inline Floats load_some(const float* x, int64_t n, float rest) {
  return _mm512_mask_loadu_ps(splat(rest), first(n), x);
}

// Sums in double, of the lower lanes and of the higher.
struct DoubleSums {
  __m512d low = _mm512_setzero_pd(), high = low;
  void add(Floats x) {
    low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
  }
  double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
};

}  // namespace

SoftmaxSum softmax_avx512(float* x, int64_t n, const void* next) {
  const int64_t whole = n / kVectorLanes * kVectorLanes, rest = n - whole;
  Floats largest = splat(x[0]);
  for (int64_t i = 0; i < whole; i += kVectorLanes) largest = _mm512_max_ps(largest, load(x + i));
  if (rest > 0) largest = _mm512_max_ps(largest, load_some(x + whole, rest, x[0]));
  const float most = _mm512_reduce_max_ps(largest);
  const Floats shift = splat(most);
  DoubleSums sums;
  for (int64_t i = 0; i < whole; i += kVectorLanes) {
    _mm_prefetch(static_cast<const char*>(next) + i * static_cast<int64_t>(sizeof(float)), _MM_HINT_T0);
    const Floats e = exp_to_one(_mm512_sub_ps(load(x + i), shift));
    _mm512_storeu_ps(x + i, e);
    sums.add(e);
  }
  if (rest > 0) {
    const Floats e = exp_to_one(_mm512_sub_ps(load_some(x + whole, rest, -__builtin_inff()), shift));
    _mm512_mask_storeu_ps(x + whole, first(rest), e);
    sums.add(e);
  }
  const double total = sums.total();
  const Floats inverse = splat(static_cast<float>(1.0 / total));
  for (int64_t i = 0; i < whole; i += kVectorLanes) _mm512_storeu_ps(x + i, multiply(load(x + i), inverse));
  if (rest > 0) _mm512_mask_storeu_ps(x + whole, first(rest), multiply(load_some(x + whole, rest, 0.0f), inverse));
  return {most, static_cast<float>(total)};
}

const KeyKernel kAvx512KeyKernel = {kIsa, key_scores};

// In the order of kAvx2CacheKernels.
const CacheKernel kAvx512CacheKernels[kAvx2CacheTypes] = {
    {DType::F32, kIsa, Floats32::kUnit, scores<Floats32, 0>, mix<Floats32, 0>},
    {DType::F16, kIsa, Floats16::kUnit, scores<Floats16, 1>, mix<Floats16, 1>},
    {DType::I2, kIsa, Codes2::kUnit, scores<Codes2, 2>, mix<Codes2, 2>},
    {DType::I4, kIsa, Codes4::kUnit, scores<Codes4, 3>, mix<Codes4, 3>},
    {DType::I8, kIsa, Codes8::kUnit, scores<Codes8, 4>, mix<Codes8, 4>},
    {DType::Q8_0, kIsa, BlocksQ8_0::kUnit, scores<BlocksQ8_0, 5>, mix<BlocksQ8_0, 5>},
};

}  // namespace qat
