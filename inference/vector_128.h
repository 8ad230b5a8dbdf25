// Vectors of floats with vectors of 128 bits. For the translation units that simd_128.h speaks of.
#pragma once

#include "inference/kernels_isa.h"
#include "inference/simd_128.h"

namespace qat {
namespace {

// The first n (1..3) floats; the others are `rest`. Neither reads nor writes past the end.
inline f32x4 load_first(const float* x, int64_t n, float rest = 0.0f) {
  return f32x4{x[0], n > 1 ? x[1] : rest, n > 2 ? x[2] : rest, rest};
}
inline void store_first(float* x, int64_t n, f32x4 v) {
  for (int64_t i = 0; i < n; ++i) x[i] = v[i];
}

// e^x within 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its Taylor polynomial of degree 7 (the next term is
// 5e-9). 0 below -87.3 (where float leaves its normal range), infinity above 88.7, NaN for NaN.
inline f32x4 exp4(f32x4 x) {
  const f32x4 scaled = x * 1.44269504f, n = rounded(scaled);
  // The first has 9 bits: n * it is exact.
  const f32x4 r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  const float taylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  f32x4 p = splat(1.0f / 5040);
  for (const float c : taylor) p = fma(p, r, splat(c));
  // 2^n as two factors, so that n = 128 does not overflow before the product does.
  const i32x4 i = nearest(scaled), half = i >> 1;
  const auto power = [](i32x4 e) { return as<f32x4>((as<u32x4>(e) + 127) << 23); };
  const f32x4 y = p * power(half) * power(i - half);
  const f32x4 in_range = select(x > 88.72284f, splat(__builtin_inff()), y);
  return select(x < -87.33654f, f32x4{}, in_range);
}

// tanh within 3 ulp: Taylor's polynomial near 0, where the other form cancels.
inline f32x4 tanh4(f32x4 x) {
  const f32x4 square = x * x;
  const float taylor[] = {62.0f / 2835, -17.0f / 315, 2.0f / 15, -1.0f / 3};
  f32x4 p = splat(-1382.0f / 155925);
  for (const float c : taylor) p = fma(p, square, splat(c));
  const f32x4 near = fma(p * square, x, x);
  const f32x4 far = 1.0f - 2.0f / (exp4(x + x) + 1.0f);
  return select(square < 0.35f * 0.35f, near, far);
}

inline f32x4 times_sigmoid(f32x4 x, f32x4 y) { return x / (1.0f + exp4(-y)); }  // x / (1 + e^-y)

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline f32x4 gelu4(f32x4 x) { return times_sigmoid(x, 1.59576912f * fma(0.044715f * (x * x), x, x)); }

// x[i] = f(x[i], y[i])
template <class F>
inline void transform(float* x, const float* y, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) store(x + i, f(load<f32x4>(x + i), load<f32x4>(y + i)));
  if (i < n) store_first(x + i, n - i, f(load_first(x + i, n - i), load_first(y + i, n - i)));
}

inline void gelu_multiply(float* gate, const float* x, int64_t n) {
  transform(gate, x, n, [](f32x4 g, f32x4 v) { return gelu4(g) * v; });
}

inline void silu_multiply(float* gate, const float* x, int64_t n) {
  transform(gate, x, n, [](f32x4 g, f32x4 v) { return times_sigmoid(g, g) * v; });
}

inline void softcap(float* x, int64_t n, float cap) {
  transform(x, x, n, [cap](f32x4 v, f32x4) { return cap * tanh4(v / cap); });
}

// The limits come first, so that what is rounded is small.
inline void round_to_grid(float* x, int64_t n, float scale) {
  transform(x, x, n, [scale](f32x4 v, f32x4) {
    return rounded(smaller(splat(127.0f), larger(splat(-128.0f), v / scale))) * scale;
  });
}

inline void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  f32x4 sum0 = {}, sum1 = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const f32x4 a = load<f32x4>(x + i), b = load<f32x4>(x + i + 4);
    sum0 = fma(a, a, sum0);
    sum1 = fma(b, b, sum1);
  }
  for (; i < n; i += 4) {
    const f32x4 a = i + 4 <= n ? load<f32x4>(x + i) : load_first(x + i, n - i);
    sum0 = fma(a, a, sum0);
  }
  const float scale = 1.0f / __builtin_sqrtf(sum_lanes(sum0 + sum1) / static_cast<float>(n) + eps);
  if (weight == nullptr) {
    for (i = 0; i < n; ++i) out[i] = x[i] * scale;
  } else {
    for (i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
  }
}

inline float max(const float* x, int64_t n) {
  f32x4 m = splat(x[0]);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) m = larger(m, load<f32x4>(x + i));
  if (i < n) m = larger(m, load_first(x + i, n - i, x[0]));
  const float a = m[0] > m[1] ? m[0] : m[1], b = m[2] > m[3] ? m[2] : m[3];
  return a > b ? a : b;
}

inline double sum_exp(const float* x, int64_t n, float shift) {
  f64x2 sum = {};
  for (int64_t i = 0; i < n; i += 4) {
    const f32x4 v = i + 4 <= n ? load<f32x4>(x + i) : load_first(x + i, n - i, -__builtin_inff());
    sum = add_to(sum, exp4(v - shift));
  }
  return sum_lanes(sum);
}

inline SoftmaxSum softmax(float* x, int64_t n, const void* next) {
  const float shift = max(x, n);
  f64x2 sum = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    __builtin_prefetch(static_cast<const float*>(next) + i);
    const f32x4 e = exp4(load<f32x4>(x + i) - shift);
    store(x + i, e);
    sum = add_to(sum, e);
  }
  if (i < n) {
    const f32x4 e = exp4(load_first(x + i, n - i, -__builtin_inff()) - shift);
    store_first(x + i, n - i, e);
    sum = add_to(sum, e);
  }
  const double total = sum_lanes(sum);
  const float inverse = static_cast<float>(1.0 / total);
  for (i = 0; i < n; ++i) x[i] *= inverse;
  return {shift, static_cast<float>(total)};
}

inline double kl(const float* base, float base_lse, const float* x, float lse, int64_t n) {
  f64x2 sum = {};
  for (int64_t i = 0; i < n; i += 4) {
    const bool whole = i + 4 <= n;
    const f32x4 b = whole ? load<f32x4>(base + i) : load_first(base + i, n - i, -__builtin_inff());
    const f32x4 q = whole ? load<f32x4>(x + i) : load_first(x + i, n - i);
    const f32x4 log_p = b - base_lse;
    sum = add_to(sum, select(log_p > -16.0f, exp4(log_p) * (log_p - q + lse), f32x4{}));
  }
  return sum_lanes(sum);
}

// ---- Attention: two heads at a time share the loads of the keys or values, and have the eight chains of multiply-adds
// that hide their latency. In which order a sum is taken depends on the number of its terms alone. Structs one inside
// the other, because GCC keeps them in registers; an array of sums it would write back to memory at each step.

// Products of n rows of q with four rows of k, lane by lane.
template <int n>
struct ScoreSums {
  f32x4 sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
  ScoreSums<n - 1> rest;

  template <class Load>
  void add(const Load& load_at, const float* q, int64_t q_stride, f32x4 k0, f32x4 k1, f32x4 k2, f32x4 k3) {
    const f32x4 x = load_at(q);
    sum0 = fma(x, k0, sum0);
    sum1 = fma(x, k1, sum1);
    sum2 = fma(x, k2, sum2);
    sum3 = fma(x, k3, sum3);
    rest.add(load_at, q + q_stride, q_stride, k0, k1, k2, k3);
  }
  void finish(float scale, int64_t count, float* out, int64_t out_stride) const {
    const f32x4 four = sum_each(sum0, sum1, sum2, sum3) * scale;
    if (count == 4) store(out, four);
    else store_first(out, count, four);
    rest.finish(scale, count, out + out_stride, out_stride);
  }
};
template <>
struct ScoreSums<0> {
  template <class Load>
  void add(const Load&, const float*, int64_t, f32x4, f32x4, f32x4, f32x4) {}
  void finish(float, int64_t, float*, int64_t) const {}
};

inline const float* floats_at(const CachedRows& rows, int64_t j) {
  return reinterpret_cast<const float*>(rows.data + j * rows.stride);
}

template <int kHeads>
inline void scores_of(const float* q, int64_t q_stride, const CachedRows& k, float scale, float* out,
                      int64_t out_stride) {
  for (int64_t j = 0; j < k.count; j += 4) {
    const int64_t count = k.count - j < 4 ? k.count - j : 4;
    const float* rows[4];  // the last again for those that are not there
    for (int64_t r = 0; r < 4; ++r) rows[r] = floats_at(k, r < count ? j + r : j + count - 1);
    ScoreSums<kHeads> sums;
    int64_t i = 0;
    const auto whole = [&i](const float* p) { return load<f32x4>(p + i); };
    for (; i + 4 <= k.cols; i += 4)
      sums.add(whole, q, q_stride, whole(rows[0]), whole(rows[1]), whole(rows[2]), whole(rows[3]));
    const auto part = [&i, &k](const float* p) { return load_first(p + i, k.cols - i); };
    if (i < k.cols) sums.add(part, q, q_stride, part(rows[0]), part(rows[1]), part(rows[2]), part(rows[3]));
    sums.finish(scale, count, out + j, out_stride);
  }
}

inline void scores(const float* q, int64_t q_stride, int64_t heads, const CachedRows& k, float scale, float* out,
                   int64_t out_stride) {
  for (; heads >= 2; heads -= 2, q += 2 * q_stride, out += 2 * out_stride)
    scores_of<2>(q, q_stride, k, scale, out, out_stride);
  if (heads > 0) scores_of<1>(q, q_stride, k, scale, out, out_stride);
}

// 4 * n neighbouring columns.
template <int n>
struct Lanes {
  f32x4 x = {};
  Lanes<n - 1> rest;
  void load_from(const float* p) {
    x = load<f32x4>(p);
    rest.load_from(p + 4);
  }
  void store_to(float* p) const {
    store(p, x);
    rest.store_to(p + 4);
  }
  void add_product(float factor, const Lanes& other) {
    x = fma(splat(factor), other.x, x);
    rest.add_product(factor, other.rest);
  }
};
template <>
struct Lanes<0> {
  void load_from(const float*) {}
  void store_to(float*) const {}
  void add_product(float, const Lanes&) {}
};

// Columns of n heads.
template <int n, int kVectors>
struct MixSums {
  Lanes<kVectors> sum;
  MixSums<n - 1, kVectors> rest;
  void load_from(const float* out, int64_t stride) {
    sum.load_from(out);
    rest.load_from(out + stride, stride);
  }
  void add(const float* weight, int64_t weight_stride, const Lanes<kVectors>& v) {
    sum.add_product(*weight, v);
    rest.add(weight + weight_stride, weight_stride, v);
  }
  void store_to(float* out, int64_t stride) const {
    sum.store_to(out);
    rest.store_to(out + stride, stride);
  }
};
template <int kVectors>
struct MixSums<0, kVectors> {
  void load_from(const float*, int64_t) {}
  void add(const float*, int64_t, const Lanes<kVectors>&) {}
  void store_to(float*, int64_t) const {}
};

template <int kHeads, int kVectors>
inline void mix_columns(const float* weights, int64_t weight_stride, const CachedRows& rows, bool add, float* out,
                        int64_t out_stride, int64_t i) {
  MixSums<kHeads, kVectors> sums;
  if (add) sums.load_from(out + i, out_stride);
  for (int64_t j = 0; j < rows.count; ++j) {
    Lanes<kVectors> values;
    values.load_from(floats_at(rows, j) + i);
    sums.add(weights + j, weight_stride, values);
  }
  sums.store_to(out + i, out_stride);
}

template <int kHeads>
inline void mix_heads(const float* weights, int64_t weight_stride, const CachedRows& v, bool add, float* out,
                      int64_t out_stride) {
  int64_t i = 0;
  for (; i + 16 <= v.cols; i += 16) mix_columns<kHeads, 4>(weights, weight_stride, v, add, out, out_stride, i);
  for (; i + 4 <= v.cols; i += 4) mix_columns<kHeads, 1>(weights, weight_stride, v, add, out, out_stride, i);
  for (; i < v.cols; ++i)
    for (int64_t h = 0; h < kHeads; ++h) {
      float sum = add ? out[h * out_stride + i] : 0.0f;
      for (int64_t j = 0; j < v.count; ++j) sum = fma(weights[h * weight_stride + j], floats_at(v, j)[i], sum);
      out[h * out_stride + i] = sum;
    }
}

inline void mix(const float* weights, int64_t weight_stride, int64_t heads, const CachedRows& v, bool add, float* out,
                int64_t out_stride) {
  for (; heads >= 2; heads -= 2, weights += 2 * weight_stride, out += 2 * out_stride)
    mix_heads<2>(weights, weight_stride, v, add, out, out_stride);
  if (heads > 0) mix_heads<1>(weights, weight_stride, v, add, out, out_stride);
}

// Of a group first <= j < last, four positions to a vector.
inline void group_scores(const CodedQueries& q, int64_t heads, const uint8_t* group, int64_t cols, int64_t first,
                         int64_t last, float scale, float* out, int64_t out_stride) {
  constexpr int64_t kVectors = kKeyGroup / 4;
  const int64_t blocks = cols / kCodeBlock;
  const uint8_t* keys = group + blocks * kKeyGroup * 2;
  for (int64_t h = 0; h < heads; ++h, out += out_stride) {
    f32x4 total[kVectors] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      i32x4 sums[kVectors] = {};
      for (int64_t k = b * kCodeBlock; k < (b + 1) * kCodeBlock; k += 4) {
        const auto four = load<int32_t>(reinterpret_cast<const uint8_t*>(q.codes + h * cols + k));
        const i8x16 query = as<i8x16>(i32x4{four, four, four, four});
        for (int64_t v = 0; v < kVectors; ++v)
          sums[v] = dot(sums[v], load<i8x16>(keys + k * kKeyGroup + 16 * v), query);
      }
      const f32x4 unit = splat(q.scales[h * blocks + b] * scale);
      for (int64_t v = 0; v < kVectors; ++v) {
        const f32x4 scales = from_halves(load<uint64_t>(group + (b * kKeyGroup + 4 * v) * 2));
        total[v] = fma(__builtin_convertvector(sums[v], f32x4), scales * unit, total[v]);
      }
    }
    float all[kKeyGroup];
    for (int64_t v = 0; v < kVectors; ++v) store(all + 4 * v, total[v]);
    for (int64_t j = first; j < last; ++j) out[j - first] = all[j];
  }
}

inline void key_scores(const CodedQueries& q, int64_t heads, const KeyGroups& keys, float scale, float* out,
                       int64_t out_stride) {
  for (int64_t begin = keys.first / kKeyGroup * kKeyGroup; begin < keys.last; begin += kKeyGroup) {
    const int64_t first = keys.first > begin ? keys.first - begin : 0, rest = keys.last - begin;
    group_scores(q, heads, keys.data + begin / kKeyGroup * keys.stride, keys.cols, first,
                 rest < kKeyGroup ? rest : kKeyGroup, scale, out + begin + first - keys.first, out_stride);
  }
}

inline void decode_pairs(const uint8_t* data, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kPairedCodes, data += kPairedCodes / 2)
    for (int64_t k = 0; k < kPairedCodes / 2; ++k) {
      const int pair = static_cast<int8_t>(data[k]), lower = pair & 15;
      out[i + k] = static_cast<float>(lower - (lower & 8) * 2);
      out[i + k + kPairedCodes / 2] = static_cast<float>(pair >> 4);
    }
}

template <Isa isa>
constexpr KeyKernel kKeyKernel = {isa, key_scores};

template <Isa isa>
constexpr VectorKernels kVectorKernels = {
    isa, rms_norm, gelu_multiply, silu_multiply, softcap, max, round_to_grid, sum_exp, softmax, kl, decode_pairs};

template <Isa isa>
constexpr CacheKernel kCacheKernel = {DType::F32, isa, 1.0f, scores, mix};

}  // namespace
}  // namespace qat
