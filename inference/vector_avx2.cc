// Vectors of floats with AVX2 and FMA. Compiled with those flags: see kernels_isa.h for what must not be used here.
#include <immintrin.h>

#include "inference/kernels_isa.h"
#include "inference/lanes_avx2.h"

namespace qat {
namespace {

float max_lanes(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// Adds 8 floats to 4 sums in double.
__m256d add_to(__m256d sum, __m256 x) {
  return _mm256_add_pd(
      sum, _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))));
}

// e^x = 2^n e^r, |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7 (the next term is 5e-9): within 2 ulp.
struct Exponential {
  __m256 of_r;
  __m256i n;
  explicit Exponential(__m256 x) {
    const __m256 whole =
        _mm256_round_ps(_mm256_mul_ps(x, splat(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 ln2_high = splat(0.693359375f),
                 ln2_low = splat(-2.12194440e-4f);  // the first has 9 bits: n * it is exact
    const __m256 r = _mm256_fnmadd_ps(whole, ln2_low, _mm256_fnmadd_ps(whole, ln2_high, x));
    const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    of_r = splat(1.0f / 5040);
    for (const float c : taylor) of_r = _mm256_fmadd_ps(of_r, r, splat(c));
    n = _mm256_cvtps_epi32(whole);
  }
};
__m256 power_of_two(__m256i e) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
}
__m256 zero_below_normal(__m256 x, __m256 y) {
  return _mm256_blendv_ps(y, _mm256_setzero_ps(), _mm256_cmp_ps(x, splat(-87.33654f), _CMP_LT_OQ));
}

// 0 below -87.3 (where float leaves its normal range), infinity above 88.7, NaN for NaN.
__m256 exp8(__m256 x) {
  const Exponential e(x);
  // 2^n as two factors, so that n = 128 does not overflow before the product does.
  const __m256i half = _mm256_srai_epi32(e.n, 1);
  const __m256 y = _mm256_mul_ps(_mm256_mul_ps(e.of_r, power_of_two(half)), power_of_two(_mm256_sub_epi32(e.n, half)));
  const __m256 in_range = _mm256_blendv_ps(y, splat(__builtin_inff()), _mm256_cmp_ps(x, splat(88.72284f), _CMP_GT_OQ));
  return zero_below_normal(x, in_range);
}

// The same of x <= 0 or NaN, where one power of two is enough.
__m256 exp8_to_one(__m256 x) {
  const Exponential e(x);
  return zero_below_normal(x, _mm256_mul_ps(e.of_r, power_of_two(e.n)));
}

// tanh within 3 ulp: Taylor's polynomial near 0, where the other form cancels.
__m256 tanh8(__m256 x) {
  const __m256 square = _mm256_mul_ps(x, x);
  const float taylor[] = {62.0f / 2835, -17.0f / 315, 2.0f / 15, -1.0f / 3};
  __m256 p = splat(-1382.0f / 155925);
  for (const float c : taylor) p = _mm256_fmadd_ps(p, square, splat(c));
  const __m256 near = _mm256_fmadd_ps(_mm256_mul_ps(p, square), x, x);
  const __m256 e = exp8(_mm256_add_ps(x, x));
  const __m256 far = _mm256_sub_ps(splat(1.0f), _mm256_div_ps(splat(2.0f), _mm256_add_ps(e, splat(1.0f))));
  return _mm256_blendv_ps(far, near, _mm256_cmp_ps(square, splat(0.35f * 0.35f), _CMP_LT_OQ));
}

// x / (1 + e^-y)
__m256 times_sigmoid(__m256 x, __m256 y) {
  const __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), y));
  return _mm256_div_ps(x, _mm256_add_ps(splat(1.0f), e));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
__m256 gelu8(__m256 x) {
  const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(splat(0.044715f), _mm256_mul_ps(x, x)), x, x);
  return times_sigmoid(x, _mm256_mul_ps(splat(1.59576912f), cubic));
}

__m256 silu8(__m256 x) { return times_sigmoid(x, x); }

// x[i] = f(x[i], y[i])
template <class F>
void transform(float* x, const float* y, int64_t n, F f) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, f(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
  if (i < n) _mm256_maskstore_ps(x + i, first_lanes(n - i), f(load_first(x + i, n - i), load_first(y + i, n - i)));
}

void gelu_multiply(float* gate, const float* x, int64_t n) {
  transform(gate, x, n, [](__m256 g, __m256 v) { return _mm256_mul_ps(gelu8(g), v); });
}

void silu_multiply(float* gate, const float* x, int64_t n) {
  transform(gate, x, n, [](__m256 g, __m256 v) { return _mm256_mul_ps(silu8(g), v); });
}

void softcap(float* x, int64_t n, float cap) {
  transform(x, x, n,
            [cap](__m256 v, __m256) { return _mm256_mul_ps(splat(cap), tanh8(_mm256_div_ps(v, splat(cap)))); });
}

// The sum with 1.5 * 2^23 has no bits left for a fraction; the limits come first, so that it is always that small. A
// comparison with NaN keeps the second operand, which is the NaN.
void round_to_grid(float* x, int64_t n, float scale) {
  const __m256 magic = splat(0x1.8p23f);
  transform(x, x, n, [&](__m256 v, __m256) {
    const __m256 ratio = _mm256_div_ps(v, splat(scale));
    const __m256 level = _mm256_min_ps(splat(127.0f), _mm256_max_ps(splat(-128.0f), ratio));
    return _mm256_mul_ps(_mm256_sub_ps(_mm256_add_ps(level, magic), magic), splat(scale));
  });
}

float sum_squares(const float* x, int64_t n) {
  __m256 sum0 = _mm256_setzero_ps(), sum1 = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
    sum0 = _mm256_fmadd_ps(a, a, sum0);
    sum1 = _mm256_fmadd_ps(b, b, sum1);
  }
  for (; i < n; i += 8) {
    const __m256 a = i + 8 <= n ? _mm256_loadu_ps(x + i) : load_first(x + i, n - i);
    sum0 = _mm256_fmadd_ps(a, a, sum0);
  }
  return sum_lanes(_mm256_add_ps(sum0, sum1));
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const float scale = 1.0f / __builtin_sqrtf(sum_squares(x, n) / static_cast<float>(n) + eps);
  if (weight == nullptr) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale;
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
  }
}

float max(const float* x, int64_t n) {
  __m256 m = splat(x[0]);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) m = _mm256_max_ps(m, _mm256_loadu_ps(x + i));
  if (i < n) m = _mm256_max_ps(m, load_first(x + i, n - i, x[0]));
  return max_lanes(m);
}

double sum_exp(const float* x, int64_t n, float shift) {
  __m256d sum = _mm256_setzero_pd();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 v = i + 8 <= n ? _mm256_loadu_ps(x + i) : load_first(x + i, n - i, -__builtin_inff());
    sum = add_to(sum, exp8(_mm256_sub_ps(v, splat(shift))));
  }
  return sum_lanes(sum);
}

SoftmaxSum softmax(float* x, int64_t n, const void* next) {
  const float largest = max(x, n);
  const __m256 shift = splat(largest);
  __m256d sum = _mm256_setzero_pd();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_prefetch(static_cast<const char*>(next) + i * static_cast<int64_t>(sizeof(float)), _MM_HINT_T0);
    const __m256 e = exp8_to_one(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift));
    _mm256_storeu_ps(x + i, e);
    sum = add_to(sum, e);
  }
  if (i < n) {
    const __m256 e = exp8_to_one(_mm256_sub_ps(load_first(x + i, n - i, -__builtin_inff()), shift));
    _mm256_maskstore_ps(x + i, first_lanes(n - i), e);
    sum = add_to(sum, e);
  }
  const double total = sum_lanes(sum);
  const float inverse = static_cast<float>(1.0 / total);
  for (i = 0; i < n; ++i) x[i] *= inverse;
  return {largest, static_cast<float>(total)};
}

double kl(const float* base, float base_lse, const float* x, float lse, int64_t n) {
  __m256d sum = _mm256_setzero_pd();
  for (int64_t i = 0; i < n; i += 8) {
    const bool whole = i + 8 <= n;
    const __m256 b = whole ? _mm256_loadu_ps(base + i) : load_first(base + i, n - i, -__builtin_inff());
    const __m256 q = whole ? _mm256_loadu_ps(x + i) : load_first(x + i, n - i);
    const __m256 log_p = _mm256_sub_ps(b, splat(base_lse));
    const __m256 difference = _mm256_add_ps(_mm256_sub_ps(log_p, q), splat(lse));
    const __m256 counts = _mm256_cmp_ps(log_p, splat(-16.0f), _CMP_GT_OQ);
    sum = add_to(sum, _mm256_and_ps(counts, _mm256_mul_ps(exp8(log_p), difference)));
  }
  return sum_lanes(sum);
}

void decode_pairs(const uint8_t* data, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kPairedCodes, data += kPairedCodes / 2)
#pragma GCC unroll 2
    for (int64_t k = 0; k < kPairedCodes / 2; k += 8) {
      const __m256i pairs = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(data + k)));
      const __m256i lower = _mm256_srai_epi32(_mm256_slli_epi32(pairs, 28), 28), upper = _mm256_srai_epi32(pairs, 4);
      _mm256_storeu_ps(out + i + k, _mm256_cvtepi32_ps(lower));
      _mm256_storeu_ps(out + i + k + kPairedCodes / 2, _mm256_cvtepi32_ps(upper));
    }
}

}  // namespace

const VectorKernels kAvx2VectorKernels = {
    Isa::avx2, rms_norm, gelu_multiply, silu_multiply, softcap, max, round_to_grid, sum_exp, softmax, kl, decode_pairs};

}  // namespace qat
