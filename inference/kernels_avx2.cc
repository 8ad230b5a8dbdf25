// Rows and panels with AVX2, FMA and F16C. Compiled with those flags: see kernels_isa.h for what must not be used here.
#include <immintrin.h>

#include "inference/kernels_isa.h"
#include "inference/lanes_avx2.h"

namespace qat {
namespace {

// BlockQ2_0, BlockQ4_0, BlockQ8_0, BlockQ6_K of format/grid.h
constexpr int64_t kQ2Bytes = 18, kQ4Bytes = 18, kQ8Bytes = 34, kQ6Bytes = 210;

float half_at(const uint8_t* p) { return _cvtsh_ss(static_cast<unsigned short>(p[0] | (p[1] << 8))); }

__m128i load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
__m256i load32(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

// The low 8 and high 8 of 16 signed bytes, as floats.
__m256 low_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
__m256 high_floats(__m128i bytes) { return low_floats(_mm_srli_si128(bytes, 8)); }

// Sum of 16 codes times x, spread over 8 lanes.
__m256 dot16(__m128i codes, const float* x) {
  const __m256 low = _mm256_mul_ps(low_floats(codes), _mm256_loadu_ps(x));
  return _mm256_fmadd_ps(high_floats(codes), _mm256_loadu_ps(x + 8), low);
}

void scale16(__m128i codes, __m256 d, float* out) {
  _mm256_storeu_ps(out, _mm256_mul_ps(d, low_floats(codes)));
  _mm256_storeu_ps(out + 8, _mm256_mul_ps(d, high_floats(codes)));
}

// ---- Q2_0: d * (code - 1)

__m256 q2_0_levels(const uint8_t* block) {
  return _mm256_mul_ps(_mm256_set1_ps(half_at(block)), _mm256_setr_ps(-1, 0, 1, 2, -1, 0, 1, 2));
}

void decode_q2_0(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += 64, row += kQ2Bytes) {
    const __m256 levels = q2_0_levels(row);
    for (int i = 0; i < 4; ++i) {
      __m256 low, high;
      look_up_16(row + 2 + 4 * i, levels, &low, &high);
      _mm256_storeu_ps(out + k + 16 * i, low);
      _mm256_storeu_ps(out + k + 16 * i + 8, high);
    }
  }
}

float dot_q2_0(const uint8_t* row, const float* x, int64_t cols) {
  __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t k = 0; k < cols; k += 64, row += kQ2Bytes) {
    const __m256 levels = q2_0_levels(row);
    for (int i = 0; i < 4; ++i) {
      __m256 low, high;
      look_up_16(row + 2 + 4 * i, levels, &low, &high);
      const int chain = 2 * (i % 2);
      sum[chain] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + k + 16 * i), sum[chain]);
      sum[chain + 1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + k + 16 * i + 8), sum[chain + 1]);
    }
  }
  return sum_lanes(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

// ---- Q4_0: 16 bytes hold elements 0..15 in the low nibbles and 16..31 in the high ones, code + 8.

struct CodesQ4 {
  __m128i low, high;
};
CodesQ4 q4_0_codes(const uint8_t* block) {
  const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i bytes = load16(block + 2);
  return {_mm_sub_epi8(_mm_and_si128(bytes, mask), eight),
          _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), eight)};
}

void decode_q4_0(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += 32, row += kQ4Bytes) {
    const __m256 d = _mm256_set1_ps(half_at(row));
    const CodesQ4 codes = q4_0_codes(row);
    scale16(codes.low, d, out + k);
    scale16(codes.high, d, out + k + 16);
  }
}

float dot_q4_0(const uint8_t* row, const float* x, int64_t cols) {
  __m256 sum_low = _mm256_setzero_ps(), sum_high = _mm256_setzero_ps();
  for (int64_t k = 0; k < cols; k += 32, row += kQ4Bytes) {
    const __m256 d = _mm256_set1_ps(half_at(row));
    const CodesQ4 codes = q4_0_codes(row);
    sum_low = _mm256_fmadd_ps(d, dot16(codes.low, x + k), sum_low);
    sum_high = _mm256_fmadd_ps(d, dot16(codes.high, x + k + 16), sum_high);
  }
  return sum_lanes(_mm256_add_ps(sum_low, sum_high));
}

// ---- Q8_0

void decode_q8_0(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += 32, row += kQ8Bytes) {
    const __m256 d = _mm256_set1_ps(half_at(row));
    scale16(load16(row + 2), d, out + k);
    scale16(load16(row + 18), d, out + k + 16);
  }
}

float dot_q8_0(const uint8_t* row, const float* x, int64_t cols) {
  __m256 sum_low = _mm256_setzero_ps(), sum_high = _mm256_setzero_ps();
  for (int64_t k = 0; k < cols; k += 32, row += kQ8Bytes) {
    const __m256 d = _mm256_set1_ps(half_at(row));
    sum_low = _mm256_fmadd_ps(d, dot16(load16(row + 2), x + k), sum_low);
    sum_high = _mm256_fmadd_ps(d, dot16(load16(row + 18), x + k + 16), sum_high);
  }
  return sum_lanes(_mm256_add_ps(sum_low, sum_high));
}

// ---- Q6_K: two halves of 128 elements, each four runs of 32; a run is two groups of 16 with a scale each.

struct CodesQ6 {
  __m256i run[4];
};
CodesQ6 q6_k_codes(const uint8_t* block, int half) {
  const __m256i low4 = _mm256_set1_epi8(15), top2 = _mm256_set1_epi8(0x30), bias = _mm256_set1_epi8(32);
  const __m256i ql0 = load32(block + 64 * half), ql1 = load32(block + 64 * half + 32);
  const __m256i qh = load32(block + 128 + 32 * half);
  const auto join = [&](__m256i low, __m256i high) {
    return _mm256_sub_epi8(_mm256_or_si256(_mm256_and_si256(low, low4), _mm256_and_si256(high, top2)), bias);
  };
  return {{join(ql0, _mm256_slli_epi16(qh, 4)), join(ql1, _mm256_slli_epi16(qh, 2)),
           join(_mm256_srli_epi16(ql0, 4), qh), join(_mm256_srli_epi16(ql1, 4), _mm256_srli_epi16(qh, 2))}};
}

// use(codes of 16 elements, their scale, index of the first)
template <class Use>
void for_q6_k_groups(const uint8_t* block, Use use) {
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  const float d = half_at(block + 208);
  for (int half = 0; half < 2; ++half) {
    const CodesQ6 codes = q6_k_codes(block, half);
    for (int run = 0; run < 4; ++run) {
      const int group = 8 * half + 2 * run;
      use(_mm256_castsi256_si128(codes.run[run]), _mm256_set1_ps(d * static_cast<float>(scales[group])), 16 * group);
      use(_mm256_extracti128_si256(codes.run[run], 1), _mm256_set1_ps(d * static_cast<float>(scales[group + 1])),
          16 * group + 16);
    }
  }
}

void decode_q6_k(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t k = 0; k < cols; k += 256, row += kQ6Bytes)
    for_q6_k_groups(row, [&](__m128i codes, __m256 d, int first) { scale16(codes, d, out + k + first); });
}

float dot_q6_k(const uint8_t* row, const float* x, int64_t cols) {
  __m256 sum = _mm256_setzero_ps();
  for (int64_t k = 0; k < cols; k += 256, row += kQ6Bytes)
    for_q6_k_groups(
        row, [&](__m128i codes, __m256 d, int first) { sum = _mm256_fmadd_ps(d, dot16(codes, x + k + first), sum); });
  return sum_lanes(sum);
}

// ---- F32, F16, BF16: `Float` loads 8 elements, or one.

struct LoadF32 {
  static constexpr int64_t kBytes = 4;
  static __m256 eight(const uint8_t* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
  static float one(const uint8_t* p) {
    float x;
    __builtin_memcpy(&x, p, 4);
    return x;
  }
};

struct LoadF16 {
  static constexpr int64_t kBytes = 2;
  static __m256 eight(const uint8_t* p) { return _mm256_cvtph_ps(load16(p)); }
  static float one(const uint8_t* p) { return half_at(p); }
};

struct LoadBf16 {
  static constexpr int64_t kBytes = 2;
  static __m256 eight(const uint8_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  }
  static float one(const uint8_t* p) {
    const uint32_t bits = (static_cast<uint32_t>(p[0]) << 16) | (static_cast<uint32_t>(p[1]) << 24);
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  }
};

template <class Float>
void decode_floats(const uint8_t* row, int64_t cols, float* out) {
  int64_t k = 0;
  for (; k + 8 <= cols; k += 8) _mm256_storeu_ps(out + k, Float::eight(row + k * Float::kBytes));
  for (; k < cols; ++k) out[k] = Float::one(row + k * Float::kBytes);
}

template <class Float>
float dot_floats(const uint8_t* row, const float* x, int64_t cols) {
  __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  const auto add = [&](__m256 sum, int64_t k) {
    return _mm256_fmadd_ps(Float::eight(row + k * Float::kBytes), _mm256_loadu_ps(x + k), sum);
  };
  int64_t k = 0;
  for (; k + 32 <= cols; k += 32) {
    sum0 = add(sum0, k);
    sum1 = add(sum1, k + 8);
    sum2 = add(sum2, k + 16);
    sum3 = add(sum3, k + 24);
  }
  for (; k + 8 <= cols; k += 8) sum0 = add(sum0, k);
  float total = sum_lanes(_mm256_add_ps(_mm256_add_ps(sum0, sum1), _mm256_add_ps(sum2, sum3)));
  for (; k < cols; ++k) total += Float::one(row + k * Float::kBytes) * x[k];
  return total;
}

// ---- Panels

void pack_panel(const float* x, int64_t stride, int64_t rows, int64_t cols, float* panel) {
  const int64_t width = (rows + kLanes - 1) / kLanes * kLanes;
  for (int64_t first = 0; first < width; first += kLanes) {
    int64_t k = 0;
    for (; k + 8 <= cols; k += 8) {
      __m256 block[8];
      for (int64_t r = 0; r < 8; ++r)
        block[r] = first + r < rows ? _mm256_loadu_ps(x + (first + r) * stride + k) : _mm256_setzero_ps();
      transpose8(block);
      for (int64_t i = 0; i < 8; ++i) _mm256_storeu_ps(panel + (k + i) * width + first, block[i]);
    }
    for (; k < cols; ++k)
      for (int64_t r = 0; r < 8; ++r)
        panel[k * width + first + r] = first + r < rows ? x[(first + r) * stride + k] : 0.0f;
  }
}

struct Output {
  float* y;
  int64_t stride;
  int64_t rows, outputs;  // those that exist, from y on
  bool add;
};

// o[i] holds output i of 8 rows. Writes 4 outputs of up to 8 rows.
void store_tile(__m256 o0, __m256 o1, __m256 o2, __m256 o3, const Output& out) {
  const __m256 a = _mm256_unpacklo_ps(o0, o1), b = _mm256_unpackhi_ps(o0, o1);
  const __m256 c = _mm256_unpacklo_ps(o2, o3), d = _mm256_unpackhi_ps(o2, o3);
  const __m256 pairs[4] = {_mm256_shuffle_ps(a, c, 0x44), _mm256_shuffle_ps(a, c, 0xee), _mm256_shuffle_ps(b, d, 0x44),
                           _mm256_shuffle_ps(b, d, 0xee)};  // rows i and i + 4
  for (int64_t r = 0; r < 8 && r < out.rows; ++r) {
    float* y = out.y + r * out.stride;
    const __m128 four = r < 4 ? _mm256_castps256_ps128(pairs[r]) : _mm256_extractf128_ps(pairs[r - 4], 1);
    if (out.outputs >= 4) {
      _mm_storeu_ps(y, out.add ? _mm_add_ps(four, _mm_loadu_ps(y)) : four);
    } else {
      float values[4];
      _mm_storeu_ps(values, four);
      for (int64_t o = 0; o < out.outputs; ++o) y[o] = out.add ? y[o] + values[o] : values[o];
    }
  }
}

void store_outputs(const Lanes<0>&, const Lanes<0>&, const Lanes<0>&, const Lanes<0>&, const Output&) {}
template <int n>
void store_outputs(const Lanes<n>& o0, const Lanes<n>& o1, const Lanes<n>& o2, const Lanes<n>& o3, const Output& out) {
  store_tile(o0.x, o1.x, o2.x, o3.x, out);
  store_outputs(o0.rest, o1.rest, o2.rest, o3.rest,
                {out.y + kLanes * out.stride, out.stride, out.rows - kLanes, out.outputs, out.add});
}

// The heart: 4 rows of weights against a panel of 8 * kVectors rows, all sums in registers.
template <int kVectors>
void multiply_tile(const float* panel, int64_t depth, const float* w, int64_t w_stride, const Output& out) {
  Lanes<kVectors> o0, o1, o2, o3, column;
  const float *w1 = w + w_stride, *w2 = w + 2 * w_stride, *w3 = w + 3 * w_stride;
  for (int64_t k = 0; k < depth; ++k) {
    column.load(panel + k * kVectors * kLanes);
    o0.add_product(_mm256_broadcast_ss(w + k), column);
    o1.add_product(_mm256_broadcast_ss(w1 + k), column);
    o2.add_product(_mm256_broadcast_ss(w2 + k), column);
    o3.add_product(_mm256_broadcast_ss(w3 + k), column);
  }
  store_outputs(o0, o1, o2, o3, out);
}

template <int kVectors>
void multiply_outputs(const float* panel, int64_t depth, const float* w, int64_t w_stride, const Output& out) {
  for (int64_t o = 0; o < out.outputs; o += 4)
    multiply_tile<kVectors>(panel, depth, w + o * w_stride, w_stride,
                            {out.y + o, out.stride, out.rows, out.outputs - o, out.add});
}

void multiply_panel(const float* panel, int64_t rows, int64_t depth, const float* w, int64_t w_stride, int64_t outputs,
                    float* y, int64_t y_stride, bool add) {
  const Output out = {y, y_stride, rows, outputs, add};
  if (rows > 16) return multiply_outputs<3>(panel, depth, w, w_stride, out);
  if (rows > 8) return multiply_outputs<2>(panel, depth, w, w_stride, out);
  return multiply_outputs<1>(panel, depth, w, w_stride, out);
}
static_assert(kLanes == 8 && kOutputStep == 8);

}  // namespace

const RowKernel kAvx2RowKernels[kRunnableTypes] = {
    {DType::F32, Isa::avx2, decode_floats<LoadF32>, dot_floats<LoadF32>},
    {DType::F16, Isa::avx2, decode_floats<LoadF16>, dot_floats<LoadF16>},
    {DType::BF16, Isa::avx2, decode_floats<LoadBf16>, dot_floats<LoadBf16>},
    {DType::Q2_0, Isa::avx2, decode_q2_0, dot_q2_0},
    {DType::Q4_0, Isa::avx2, decode_q4_0, dot_q4_0},
    {DType::Q8_0, Isa::avx2, decode_q8_0, dot_q8_0},
    {DType::Q6_K, Isa::avx2, decode_q6_k, dot_q6_k},
};

const PanelKernel kAvx2PanelKernel = {Isa::avx2, 24, pack_panel, multiply_panel};

}  // namespace qat
