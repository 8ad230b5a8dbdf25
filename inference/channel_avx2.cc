// Packed codes of the channel-wise grids with AVX2 and FMA. Compiled with those flags: see kernels_isa.h for what must
// not be used here.
#include <immintrin.h>

#include "inference/kernels_isa.h"
#include "inference/lanes_avx2.h"

namespace qat {
namespace {

__m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// ---- Floats. Each width says how 32 codes become floats in order; what is left of a row goes through a copy that is
// filled up with zeros.

struct Four {
  __m256 of[4];
};

struct Floats2 {
  static constexpr int64_t kBits = 2;
  static Four load(const uint8_t* p) {
    const __m256 levels = _mm256_setr_ps(-2, -1, 0, 1, -2, -1, 0, 1);
    Four x;
    look_up_16(p, levels, &x.of[0], &x.of[1]);
    look_up_16(p + 4, levels, &x.of[2], &x.of[3]);
    return x;
  }
};

struct Floats4 {
  static constexpr int64_t kBits = 4;
  static __m256 eight(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, 4);
    const __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(bits), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i code = _mm256_and_si256(shifted, _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(code, _mm256_set1_epi32(8)));
  }
  static Four load(const uint8_t* p) { return {{eight(p), eight(p + 4), eight(p + 8), eight(p + 12)}}; }
};

struct Floats8 {
  static constexpr int64_t kBits = 8;
  static __m256 eight(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static Four load(const uint8_t* p) { return {{eight(p), eight(p + 8), eight(p + 16), eight(p + 24)}}; }
};

void copy(void* out, const void* in, int64_t bytes) { __builtin_memcpy(out, in, static_cast<size_t>(bytes)); }

// The n < 32 codes that end a row; those that are missing count as whatever zero bits mean.
template <class Codes>
Four load_last(const uint8_t* p, int64_t n) {
  uint8_t bytes[32] = {};
  copy(bytes, p, (n * Codes::kBits + 7) / 8);
  return Codes::load(bytes);
}

template <class Codes>
void decode(const uint8_t* row, int64_t cols, float scale, float* out) {
  const __m256 by = _mm256_set1_ps(scale);
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32, row += 4 * Codes::kBits) {
    const Four x = Codes::load(row);
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out + k + 8 * i, _mm256_mul_ps(x.of[i], by));
  }
  if (k == cols) return;
  const Four x = load_last<Codes>(row, cols - k);
  float last[32];
  for (int i = 0; i < 4; ++i) _mm256_storeu_ps(last + 8 * i, _mm256_mul_ps(x.of[i], by));
  copy(out + k, last, 4 * (cols - k));
}

template <class Codes>
float dot(const uint8_t* row, int64_t cols, float scale, const float* x) {
  __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  const auto add = [&](const Four& w, const float* v) {
    sum0 = _mm256_fmadd_ps(w.of[0], _mm256_loadu_ps(v), sum0);
    sum1 = _mm256_fmadd_ps(w.of[1], _mm256_loadu_ps(v + 8), sum1);
    sum2 = _mm256_fmadd_ps(w.of[2], _mm256_loadu_ps(v + 16), sum2);
    sum3 = _mm256_fmadd_ps(w.of[3], _mm256_loadu_ps(v + 24), sum3);
  };
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32, row += 4 * Codes::kBits) add(Codes::load(row), x + k);
  if (k < cols) {
    float last[32] = {};
    copy(last, x + k, 4 * (cols - k));
    add(load_last<Codes>(row, cols - k), last);
  }
  return scale * sum_lanes(_mm256_add_ps(_mm256_add_ps(sum0, sum1), _mm256_add_ps(sum2, sum3)));
}

// ---- Integers. 2 and 4 bits: 32 packed bytes give P = 8 / bits planes of 32 unsigned codes, code + 2^(bits-1); plane
// j has the elements P b + j, and the activations lie in the same order. Pairs of products fit 16 bits: at most 2 * 15
// * 128 each, and the planes of a step together 2 * 3840. What the offset adds, 2^(bits-1) times the sum of the
// activations, is taken off at the end; that sum stands behind the codes.

constexpr int64_t kStep = 32;  // bytes of weights
// How far ahead of its use memory is asked for: the next page, where the hardware's own prefetching ends.
constexpr int64_t kAhead = 4096;

template <int bits>
int64_t padded(int64_t cols) {
  constexpr int64_t kCodes = kStep * 8 / bits;
  return (cols + kCodes - 1) / kCodes * kCodes;
}

template <int bits>
void arrange(const int8_t* codes, int64_t cols, int8_t* out) {
  constexpr int64_t kPlanes = 8 / bits, kCodes = kStep * kPlanes;
  int32_t sum = 0;
  for (int64_t k = 0; k < cols; ++k) sum += codes[k];
  for (int64_t k = 0; k < cols; k += kCodes) {
    int8_t last[kCodes] = {};
    const int8_t* from = codes + k;
    if (cols - k < kCodes) {
      copy(last, from, cols - k);
      from = last;
    }
    for (int64_t j = 0; j < kPlanes; ++j)
      for (int64_t b = 0; b < kStep; ++b) out[k + kStep * j + b] = from[kPlanes * b + j];
  }
  copy(out + padded<bits>(cols), &sum, sizeof sum);
}

__m256i plane(__m256i bytes, int shift, int mask) {
  return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(static_cast<char>(mask)));
}

// 8 sums of 4 neighbours each, of 32 bytes of weights times what meets them.
template <int bits>
struct Weights;

template <>
struct Weights<4> {
  __m256i low, high;
  explicit Weights(const uint8_t* p) : low(plane(load32(p), 0, 15)), high(plane(load32(p), 4, 15)) {}
  __m256i multiply(const int8_t* x) const {
    const __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(low, load32(x)), _mm256_maddubs_epi16(high, load32(x + 32)));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
};

// Signed bytes on both sides: their products need 16 bits before they are added.
template <>
struct Weights<8> {
  __m256i low, high;
  static __m256i widen(const void* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
  explicit Weights(const uint8_t* p) : low(widen(p)), high(widen(p + 16)) {}
  __m256i multiply(const int8_t* x) const {
    return _mm256_add_epi32(_mm256_madd_epi16(low, widen(x)), _mm256_madd_epi16(high, widen(x + 16)));
  }
};

int32_t sum_lanes_i32(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// Sums of kRows rows, one inside the other for the same reason as Lanes.
template <int n>
struct Sums {
  __m256i sum = _mm256_setzero_si256();
  Sums<n - 1> rest;
  template <class W>
  void add(const W& w, const int8_t* x, int64_t stride) {
    sum = _mm256_add_epi32(sum, w.multiply(x));
    rest.add(w, x + stride, stride);
  }
  void store(int32_t* out) const {
    *out = sum_lanes_i32(sum);
    rest.store(out + 1);
  }
};
template <>
struct Sums<0> {
  template <class W>
  void add(const W&, const int8_t*, int64_t) {}
  void store(int32_t*) const {}
};

template <int bits, int kRows>
void multiply_row(const uint8_t* row, const int8_t* x, int64_t cols, int32_t* sums) {
  constexpr int64_t kCodes = kStep * 8 / bits;
  const int64_t stride = (cols + 127) / 128 * 128 + 32;
  Sums<kRows> all;
  int64_t k = 0;
  for (; k + kCodes <= cols; k += kCodes, row += kStep) {
    _mm_prefetch(reinterpret_cast<const char*>(row) + kAhead, _MM_HINT_T0);
    all.add(Weights<bits>(row), x + k, stride);
  }
  if (k < cols) {
    uint8_t last[kStep] = {};
    copy(last, row, ((cols - k) * bits + 7) / 8);
    all.add(Weights<bits>(last), x + k, stride);
  }
  all.store(sums);
}

// 2 bits: 32 bytes give 4 planes, of which the second and the last stay where they are in the byte, 4 times as large:
// they have a sum of their own. Of 5 steps both sums fit 16 bits: 5 * 2 * 4 * 768 = 30720.
struct Planes2 {
  __m256i of0, of1, of2, of3;
  explicit Planes2(const uint8_t* p) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const __m256i bytes = load32(p), shifted = _mm256_srli_epi16(bytes, 4);
    of0 = _mm256_and_si256(bytes, low);
    of1 = _mm256_and_si256(bytes, high);
    of2 = _mm256_and_si256(shifted, low);
    of3 = _mm256_and_si256(shifted, high);
  }
};

struct Sum2 {
  __m256i ones = _mm256_setzero_si256(), fours = _mm256_setzero_si256();  // of 16 bits
  __m256i all_ones = _mm256_setzero_si256(), all_fours = _mm256_setzero_si256();

  void add(const Planes2& w, const int8_t* x) {
    ones = _mm256_add_epi16(ones, _mm256_maddubs_epi16(w.of0, load32(x)));
    fours = _mm256_add_epi16(fours, _mm256_maddubs_epi16(w.of1, load32(x + 32)));
    ones = _mm256_add_epi16(ones, _mm256_maddubs_epi16(w.of2, load32(x + 64)));
    fours = _mm256_add_epi16(fours, _mm256_maddubs_epi16(w.of3, load32(x + 96)));
  }
  void widen() {
    const __m256i one = _mm256_set1_epi16(1);
    all_ones = _mm256_add_epi32(all_ones, _mm256_madd_epi16(ones, one));
    all_fours = _mm256_add_epi32(all_fours, _mm256_madd_epi16(fours, one));
    ones = fours = _mm256_setzero_si256();
  }
  int32_t total() const { return sum_lanes_i32(_mm256_add_epi32(all_ones, _mm256_srai_epi32(all_fours, 2))); }
};

template <int kRows>
void multiply_2(const uint8_t* row, const int8_t* x, int64_t cols, int32_t* sums) {
  constexpr int64_t kCodes = 4 * kStep, kSteps = 5;
  const int64_t stride = (cols + 127) / 128 * 128 + 32, whole = cols / kCodes;
  Sum2 first, second;
  const auto add = [&](const uint8_t* bytes, int64_t step) {
    const Planes2 w(bytes);
    first.add(w, x + step * kCodes);
    if (kRows == 2) second.add(w, x + stride + step * kCodes);
  };
  const auto widen = [&] {
    first.widen();
    if (kRows == 2) second.widen();
  };
  int64_t step = 0;
  for (; step + kSteps <= whole; step += kSteps) {
#pragma GCC unroll 1
    for (int64_t i = 0; i < kSteps; ++i) {
      _mm_prefetch(reinterpret_cast<const char*>(row + (step + i) * kStep) + kAhead, _MM_HINT_T0);
      add(row + (step + i) * kStep, step + i);
    }
    widen();
  }
  for (; step < whole; ++step) add(row + step * kStep, step);
  widen();
  if (step * kCodes < cols) {
    uint8_t last[kStep] = {};
    copy(last, row + step * kStep, (cols - step * kCodes + 3) / 4);
    add(last, step);
    widen();
  }
  sums[0] = first.total();
  if (kRows == 2) sums[1] = second.total();
}

template <int bits, int kRows>
void multiply_all(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* x, int64_t cols, int32_t* sums) {
  // What the offset of the codes adds to a sum.
  int32_t excess[kRows] = {};
  for (int64_t r = 0; bits != 8 && r < kRows; ++r) {
    copy(&excess[r], x + r * ((cols + 127) / 128 * 128 + 32) + padded<bits>(cols), sizeof excess[r]);
    excess[r] *= 1 << (bits - 1);
  }
  for (int64_t o = 0; o < outputs; ++o, w += w_stride, sums += kRows) {
    if (bits == 2) multiply_2<kRows>(w, x, cols, sums);
    else multiply_row<bits == 2 ? 8 : bits, kRows>(w, x, cols, sums);
    for (int64_t r = 0; r < kRows; ++r) sums[r] -= excess[r];
  }
}

template <int bits>
void multiply(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* x, int64_t rows, int64_t cols,
              int32_t* sums) {
  if (rows == 1) return multiply_all<bits, 1>(w, w_stride, outputs, x, cols, sums);
  multiply_all<bits, 2>(w, w_stride, outputs, x, cols, sums);
}
static_assert(kCodeRows == 2);

}  // namespace

const ChannelKernel kAvx2ChannelKernels[kChannelTypes] = {
    {DType::I2, Isa::avx2, decode<Floats2>, dot<Floats2>, multiply<2>, arrange<2>},
    {DType::I4, Isa::avx2, decode<Floats4>, dot<Floats4>, multiply<4>, arrange<4>},
    {DType::I8, Isa::avx2, decode<Floats8>, dot<Floats8>, multiply<8>, arrange<8>},
};

}  // namespace qat
