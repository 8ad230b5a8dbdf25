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
// j has the elements P b + j, and the activations lie in the same order. What the offset adds, 2^(bits-1) times the sum
// of the activations, is taken off at the end; that sum stands behind the codes. Pairs of products fit 16 bits, and so
// do several of them (kSteps of 32 bytes), before they must be widened.

constexpr int64_t kStep = 32;  // bytes of weights
// How far ahead of its use memory is asked for, at least: as in simd_vnni.h.
constexpr int64_t kAhead = 1536;

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

int32_t sum_lanes_i32(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// Of 32 bytes of weights and what meets them: sums in 16 bits, and those of all of them in 32. Each sum is kept() so
// that GCC adds in this order: in its own it needs more registers than there are.
template <int bits>
struct Sum;

template <>
struct Sum<4> {
  static constexpr int64_t kSteps = 4;  // 4 * 2 planes * 2 * 15 * 128 = 30720
  struct Weights {
    __m256i low, high;
    explicit Weights(const uint8_t* p) : low(plane(load32(p), 0, 15)), high(plane(load32(p), 4, 15)) {}
  };
  __m256i pairs = _mm256_setzero_si256(), all = pairs;
  void add(const Weights& w, const int8_t* x) {
    pairs = kept(_mm256_add_epi16(pairs, _mm256_maddubs_epi16(w.low, load32(x))));
    pairs = kept(_mm256_add_epi16(pairs, _mm256_maddubs_epi16(w.high, load32(x + 32))));
  }
  void widen() {
    all = _mm256_add_epi32(all, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    pairs = _mm256_setzero_si256();
  }
};

// 32 bytes give 4 planes, of which the second and the last stay where they are in the byte, 4 times as large: they have
// a sum of their own, of which a quarter is taken when it is widened.
template <>
struct Sum<2> {
  static constexpr int64_t kSteps = 4;  // 4 * 2 planes * 2 * 12 * 128 = 30720
  struct Weights {
    __m256i of0, of1, of2, of3;
    explicit Weights(const uint8_t* p) {
      const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
      const __m256i bytes = load32(p), shifted = _mm256_srli_epi16(bytes, 4);
      of0 = _mm256_and_si256(bytes, low);
      of1 = _mm256_and_si256(bytes, high);
      of2 = _mm256_and_si256(shifted, low);
      of3 = _mm256_and_si256(shifted, high);
    }
  };
  __m256i ones = _mm256_setzero_si256(), fours = ones, all = ones;
  void add(const Weights& w, const int8_t* x) {
    ones = kept(_mm256_add_epi16(ones, _mm256_maddubs_epi16(w.of0, load32(x))));
    fours = kept(_mm256_add_epi16(fours, _mm256_maddubs_epi16(w.of1, load32(x + 32))));
    ones = kept(_mm256_add_epi16(ones, _mm256_maddubs_epi16(w.of2, load32(x + 64))));
    fours = kept(_mm256_add_epi16(fours, _mm256_maddubs_epi16(w.of3, load32(x + 96))));
  }
  void widen() {
    const __m256i pairs = _mm256_add_epi16(ones, _mm256_srai_epi16(fours, 2));
    all = _mm256_add_epi32(all, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    ones = fours = _mm256_setzero_si256();
  }
};

// Signed bytes on both sides: their products need 16 bits before they are added, and 32 then.
template <>
struct Sum<8> {
  static constexpr int64_t kSteps = 4;
  static __m256i widened(const void* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  struct Weights {
    __m256i low, high;
    explicit Weights(const uint8_t* p) : low(widened(p)), high(widened(p + 16)) {}
  };
  __m256i all = _mm256_setzero_si256();
  void add(const Weights& w, const int8_t* x) {
    all = _mm256_add_epi32(all, _mm256_madd_epi16(w.low, widened(x)));
    all = _mm256_add_epi32(all, _mm256_madd_epi16(w.high, widened(x + 16)));
  }
  void widen() {}
};

// Sums of kOutputs rows of weights with kRows rows of activations, nested for the reason that Lanes gives.
template <int bits, int kOutputs, int kRows>
struct Sums {
  Sum<bits> of0, of1;  // of two rows of activations; the second may be idle
  Sums<bits, kOutputs - 1, kRows> rest;
  void add(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t x_stride) {
    const typename Sum<bits>::Weights codes(w);
    of0.add(codes, x);
    if (kRows == 2) of1.add(codes, x + x_stride);
    rest.add(w + w_stride, w_stride, x, x_stride);
  }
  void widen() {
    of0.widen();
    if (kRows == 2) of1.widen();
    rest.widen();
  }
  void store(int32_t* sums, int64_t stride) const {
    sums[0] = sum_lanes_i32(of0.all);
    if (kRows == 2) sums[1] = sum_lanes_i32(of1.all);
    rest.store(sums + stride, stride);
  }
};
template <int bits, int kRows>
struct Sums<bits, 0, kRows> {
  void add(const uint8_t*, int64_t, const int8_t*, int64_t) {}
  void widen() {}
  void store(int32_t*, int64_t) const {}
};

// kOutputs rows of weights together: they share the loads of the activations.
template <int bits, int kOutputs, int kRows>
void multiply_rows(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t cols, int32_t* sums, int64_t stride) {
  constexpr int64_t kCodes = kStep * 8 / bits, kSteps = Sum<bits>::kSteps;
  const int64_t x_stride = (cols + 127) / 128 * 128 + 64, whole = cols / kCodes;
  Sums<bits, kOutputs, kRows> all;
  for (int64_t step = 0; step < whole; step += kSteps) {
    const int64_t end = whole < step + kSteps ? whole : step + kSteps;
    if (end - step == kSteps) {  // unrolled: loops this short cost as much as what is in them
#pragma GCC unroll 4
      for (int64_t j = 0; j < kSteps; ++j) {
        if (j % 2 == 0)
          for (int64_t o = 0; o < kOutputs; ++o)
            _mm_prefetch(reinterpret_cast<const char*>(w + o * w_stride + (step + j) * kStep + kAhead), _MM_HINT_T0);
        all.add(w + (step + j) * kStep, w_stride, x + (step + j) * kCodes, x_stride);
      }
    } else {
#pragma GCC unroll 1
      for (int64_t i = step; i < end; ++i) all.add(w + i * kStep, w_stride, x + i * kCodes, x_stride);
    }
    all.widen();
  }
  if (whole * kCodes < cols) {
    uint8_t last[kOutputs * kStep] = {};
    for (int64_t o = 0; o < kOutputs; ++o)
      copy(last + o * kStep, w + o * w_stride + whole * kStep, ((cols - whole * kCodes) * bits + 7) / 8);
    all.add(last, kStep, x + whole * kCodes, x_stride);
    all.widen();
  }
  all.store(sums, stride);
}

// The rows that are multiplied together stand far apart: a processor keeps more loads under way of several streams of
// memory than of one (bench.cc).
template <int bits, int kRows>
void multiply_all(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* x, int64_t cols, int32_t* sums) {
  constexpr int kTogether = kRows == 1 && bits != 2 ? 4 : 2;  // more sums of two bits than that leave the registers
  const int64_t apart = outputs / kTogether;
  for (int64_t o = 0; o < apart; ++o)
    multiply_rows<bits, kTogether, kRows>(w + o * w_stride, apart * w_stride, x, cols, sums + o * kRows, apart * kRows);
  for (int64_t o = kTogether * apart; o < outputs; ++o)
    multiply_rows<bits, 1, kRows>(w + o * w_stride, w_stride, x, cols, sums + o * kRows, kRows);
  for (int64_t r = 0; bits != 8 && r < kRows; ++r) {  // what the offset of the codes adds to a sum
    int32_t total;
    copy(&total, x + r * ((cols + 127) / 128 * 128 + 64) + padded<bits>(cols), sizeof total);
    for (int64_t i = 0; i < outputs; ++i) sums[i * kRows + r] -= total * (1 << (bits - 1));
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
