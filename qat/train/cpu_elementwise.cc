// On x86-64 compiled for AVX2 and FMA (this file alone): called only when cpu_elementwise_available().
#include "qat/train/cpu_elementwise.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <vector>

namespace qat {
namespace {

typedef float Vec8 __attribute__((vector_size(32)));
typedef uint32_t UInt8 __attribute__((vector_size(32)));
typedef int32_t Int8 __attribute__((vector_size(32)));
typedef double Double4 __attribute__((vector_size(32)));
typedef float Vec4 __attribute__((vector_size(16)));
typedef float UnalignedVec8 __attribute__((vector_size(32), aligned(4), may_alias));

inline Vec8 load(const float* p) { return *reinterpret_cast<const UnalignedVec8*>(p); }
inline void store(float* p, Vec8 v) { *reinterpret_cast<UnalignedVec8*>(p) = v; }
inline Vec8 splat(float x) { return Vec8{} + x; }
inline float sum_lanes(Vec8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// The n < 8 numbers at p, the rest `fill`; and back.
inline Vec8 load_some(const float* p, int64_t n, float fill) {
  Vec8 v = splat(fill);
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_some(float* p, int64_t n, Vec8 v) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// f(index, count of valid lanes) for every 8 of n numbers.
template <class F>
inline void for_eights(int64_t n, F f) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) f(i, int64_t{8});
  if (i < n) f(i, n - i);
}
inline Vec8 load_at(const float* p, int64_t n, float fill = 0.0f) { return n == 8 ? load(p) : load_some(p, n, fill); }
inline void store_at(float* p, int64_t n, Vec8 v) {
  if (n == 8) return store(p, v);
  store_some(p, n, v);
}

// e^x, relative error about 1e-7: 2^n times a polynomial of degree 7 on [-ln2/2, ln2/2]; 0 below -87, e^88 above 88 (a
// sigmoid and a tanh have their limits long before). NaN stays NaN.
inline Vec8 exponential(Vec8 x) {
  const Vec8 lowest = splat(-87.0f), highest = splat(88.0f);
  Vec8 clamped = x < lowest ? lowest : x;
  clamped = clamped > highest ? highest : clamped;
  const Vec8 shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const Vec8 n = shifted - 12582912.0f;
  const Vec8 r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec8 p = splat(1.0f / 5040.0f);
  for (const float c : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) p = p * r + c;
  const Vec8 power = reinterpret_cast<Vec8>((reinterpret_cast<UInt8>(shifted) - (0x4b400000u - 127u)) << 23);
  return x < lowest ? Vec8{} : p * power;
}

// ln x of positive, normal x, relative error about 1e-7 away from 1, absolute near it: the exponent, and Cephes' logf
// on [sqrt(1/2), sqrt(2)]. NaN stays NaN.
inline Vec8 logarithm(Vec8 x) {
  const Int8 bits = reinterpret_cast<Int8>(x);
  const Int8 exponent = (bits - 0x3f3504f3) >> 23;
  const Vec8 f = reinterpret_cast<Vec8>(bits - (exponent << 23)) - 1.0f, n = __builtin_convertvector(exponent, Vec8);
  Vec8 p = splat(7.0376836292e-2f);
  for (const float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                        2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
    p = p * f + c;
  const Vec8 square = f * f;
  const Vec8 result = n * 0.693359375f + (f + (p * f * square - n * 2.12194440e-4f - 0.5f * square));
  return x == x ? result : x;
}

inline Vec8 sigmoid(Vec8 x) { return 1.0f / (1.0f + exponential(-x)); }

// Taylor's polynomial near 0, where the other form cancels.
inline Vec8 tangent(Vec8 x) {
  const Vec8 square = x * x;
  Vec8 p = splat(-1382.0f / 155925);
  for (const float c : {62.0f / 2835, -17.0f / 315, 2.0f / 15, -1.0f / 3}) p = p * square + c;
  const Vec8 far = 1.0f - 2.0f / (exponential(x + x) + 1.0f);
  return square < splat(0.35f * 0.35f) ? p * square * x + x : far;
}

struct DoubleSum {
  Double4 a{}, b{};
  void add(Vec8 v) {
    a += __builtin_convertvector((Vec4{v[0], v[1], v[2], v[3]}), Double4);
    b += __builtin_convertvector((Vec4{v[4], v[5], v[6], v[7]}), Double4);
  }
  void add_square(Vec8 v) {
    const Double4 low = __builtin_convertvector((Vec4{v[0], v[1], v[2], v[3]}), Double4);
    const Double4 high = __builtin_convertvector((Vec4{v[4], v[5], v[6], v[7]}), Double4);
    a += low * low;
    b += high * high;
  }
  double total() const { return ((a[0] + b[0]) + (a[1] + b[1])) + ((a[2] + b[2]) + (a[3] + b[3])); }
};

struct Gate {
  Vec8 value, slope;
};
// gelu_tanh(x) = x s, s = sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)); silu(x) = x sigmoid(x).
inline Gate gate_of(Vec8 x, bool gelu) {
  const float k = 1.59576912f, cubic = 0.044715f;
  const Vec8 s = sigmoid(gelu ? k * (x + cubic * x * x * x) : x);
  const Vec8 inner = gelu ? k * (1.0f + 3.0f * cubic * x * x) : splat(1.0f);
  return {x * s, s + x * s * (1.0f - s) * inner};
}

// Through the softcap, in place; returns the largest.
float soften(float* x, int64_t n, float softcap) {
  Vec8 most = splat(-std::numeric_limits<float>::infinity());
  for_eights(n, [&](int64_t i, int64_t count) {
    Vec8 v = load_at(x + i, count, -std::numeric_limits<float>::infinity());
    if (softcap > 0.0f) v = softcap * tangent(v / softcap);
    if (count < 8)
      for (int64_t j = count; j < 8; ++j) v[j] = -std::numeric_limits<float>::infinity();
    most = v > most ? v : (v == v ? most : v);  // NaN wins
    store_at(x + i, count, v);
  });
  float result = most[0];
  for (int i = 1; i < 8; ++i) result = most[i] > result || most[i] != most[i] ? most[i] : result;
  return result;
}

double log_sum_exp(const float* x, int64_t n, float most) {
  DoubleSum sum;
  for_eights(n, [&](int64_t i, int64_t count) {
    sum.add(exponential(load_at(x + i, count, -std::numeric_limits<float>::infinity()) - most));
  });
  return static_cast<double>(most) + std::log(sum.total());
}

// Reverse KL and JSD of one token and, with `gradient`, their part of it without the softcap. At logit j it is
// a_j - q_j * sum(a): student gets a_j, teacher q_j; whoever knows the slope of the softcap puts them together.
struct Mixed {
  Vec8 a{};
  DoubleSum reverse_kl, of_p, of_q;  // sums of q (log p - log q), p log(p / m), q log(m / q)

  // q: the student's probability, d: log p - log q.
  void add(const TokenLosses& options, Vec8 p, Vec8 q, Vec8 d) {
    const Vec8 zero{};
    Vec8 slope{};
    if (options.reverse_kl_weight > 0.0f) {
      reverse_kl.add(q > zero ? q * d : q);
      slope -= options.reverse_kl_weight * d;
    }
    if (options.jsd_weight > 0.0f) {
      d = d > splat(80.0f) ? splat(80.0f) : d;  // q is 0 there
      const Vec8 m_by_q = logarithm(1.0f + options.jsd_beta * (exponential(d) - 1.0f));
      of_p.add(p > zero ? p * (d - m_by_q) : p);
      of_q.add(q > zero ? q * m_by_q : q);
      slope -= options.jsd_weight * (1.0f - options.jsd_beta) * m_by_q;
    }
    a = q > zero ? q * slope : q;
  }
  void finish(const TokenLosses& options, TokenLoss& loss) const {
    const double beta = static_cast<double>(options.jsd_beta);
    loss.reverse_kl = -reverse_kl.total();
    loss.jsd = beta * of_p.total() - (1.0 - beta) * of_q.total();
  }
  double sum(const TokenLosses& options) const {  // of all a
    return -static_cast<double>(options.reverse_kl_weight) * reverse_kl.total() -
           static_cast<double>(options.jsd_weight) * (1.0 - static_cast<double>(options.jsd_beta)) * of_q.total();
  }
};

// The same terms of one outcome in double, where there are few of them.
struct Outcome {
  double p = 0.0, q = 0.0, a = 0.0;  // a: as in Mixed

  Outcome(const TokenLosses& options, double log_p, double log_q, TokenLoss& loss)
      : p(std::exp(log_p)), q(std::exp(log_q)) {
    const double d = log_p - log_q;
    if (p > 0.0 || p != p) loss.kl += p * d;
    if (!(q > 0.0) && q == q) return;
    loss.reverse_kl -= options.reverse_kl_weight > 0.0f ? q * d : 0.0;
    a = -static_cast<double>(options.reverse_kl_weight) * q * d;
    if (options.jsd_weight == 0.0f) return;
    const double beta = static_cast<double>(options.jsd_beta);
    const double m_by_q = d > 50.0 ? d + std::log(beta) : std::log1p(beta * std::expm1(d));
    loss.jsd += (p > 0.0 ? beta * p * (d - m_by_q) : 0.0) - (1.0 - beta) * q * m_by_q;
    a -= static_cast<double>(options.jsd_weight) * (1.0 - beta) * q * m_by_q;
  }
};

double log_add(const std::vector<double>& x) {
  const double most = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (const double v : x) sum += std::exp(v - most);
  return most + std::log(sum);
}

}  // namespace

bool cpu_elementwise_available() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

void cpu_rms_norm(const float* x, const float* weight, float offset, int64_t rows, int64_t cols, double eps, float* out,
                  float* inverse) {
  for (int64_t r = 0; r < rows; ++r, x += cols, out += cols) {
    Vec8 squares{};
    for_eights(cols, [&](int64_t i, int64_t n) {
      const Vec8 v = load_at(x + i, n);
      squares += v * v;
    });
    const float scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(sum_lanes(squares)) / static_cast<double>(cols) + eps));
    inverse[r] = scale;
    for_eights(cols, [&](int64_t i, int64_t n) {
      const Vec8 v = load_at(x + i, n) * scale;
      store_at(out + i, n, weight == nullptr ? v : v * (offset + load_at(weight + i, n)));
    });
  }
}

// With g = dout * weight: dx = inverse g - x inverse^3 mean(g x).
void cpu_rms_norm_backward(const float* x, const float* weight, float offset, const float* inverse, const float* dout,
                           int64_t rows, int64_t cols, float* dx, float* dweight) {
  for (int64_t r = 0; r < rows; ++r, x += cols, dout += cols, dx += cols) {
    const float scale = inverse[r];
    const auto weighted = [&](int64_t i, int64_t n) {
      const Vec8 g = load_at(dout + i, n);
      return weight == nullptr ? g : g * (offset + load_at(weight + i, n));
    };
    Vec8 products{};
    for_eights(cols, [&](int64_t i, int64_t n) { products += weighted(i, n) * load_at(x + i, n); });
    const float along = sum_lanes(products) / static_cast<float>(cols) * scale * scale * scale;
    for_eights(cols, [&](int64_t i, int64_t n) {
      const Vec8 v = load_at(x + i, n);
      if (dweight != nullptr) store_at(dweight + i, n, load_at(dweight + i, n) + load_at(dout + i, n) * v * scale);
      store_at(dx + i, n, weighted(i, n) * scale - v * along);
    });
  }
}

void cpu_gated(const float* gate, const float* up, bool gelu, int64_t count, float* out) {
  for_eights(count, [&](int64_t i, int64_t n) {
    store_at(out + i, n, gate_of(load_at(gate + i, n), gelu).value * load_at(up + i, n));
  });
}

void cpu_gated_backward(const float* gate, const float* up, const float* dout, bool gelu, int64_t count, float* dgate,
                        float* dup) {
  for_eights(count, [&](int64_t i, int64_t n) {
    const Gate g = gate_of(load_at(gate + i, n), gelu);
    const Vec8 d = load_at(dout + i, n);
    store_at(dgate + i, n, d * load_at(up + i, n) * g.slope);
    store_at(dup + i, n, d * g.value);
  });
}

void cpu_rotate(const float* x, const float* cos, const float* sin, int64_t heads, int64_t half, bool inverse,
                float* out) {
  const float turn = inverse ? -1.0f : 1.0f;
  for (int64_t h = 0; h < heads; ++h, x += 2 * half, out += 2 * half)
    for_eights(half, [&](int64_t i, int64_t n) {
      const Vec8 a = load_at(x + i, n), b = load_at(x + half + i, n);
      const Vec8 c = load_at(cos + i, n), s = load_at(sin + i, n) * turn;
      store_at(out + i, n, a * c - b * s);
      store_at(out + half + i, n, b * c + a * s);
    });
}

TokenLoss cpu_token_losses(const TokenLosses& options, float* student, float* teacher, int64_t vocab, bool gradient) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float s_most = soften(student, vocab, options.softcap);
  const double s_lse = log_sum_exp(student, vocab, s_most);
  const double t_lse = teacher == nullptr ? 0.0 : log_sum_exp(teacher, vocab, soften(teacher, vocab, options.softcap));
  TokenLoss loss;
  if (options.target >= 0) loss.cross_entropy = s_lse - static_cast<double>(student[options.target]);
  // Between floats of the size of logits: log p - log q of each token. What a float loses of a sum's logarithm would be
  // the same for all logits, and add up.
  const float s_shift = static_cast<float>(s_lse), t_shift = static_cast<float>(t_lse);
  const float s_rest = static_cast<float>(s_lse - static_cast<double>(s_shift));
  const float t_rest = static_cast<float>(t_lse - static_cast<double>(t_shift));
  const float kl_weight = options.kl_weight, ce_weight = options.target >= 0 ? options.ce_weight : 0.0f;
  const float slope = options.softcap > 0.0f ? 1.0f / options.softcap : 0.0f;
  const float at_target = options.target >= 0 ? student[options.target] : 0.0f;
  const bool mixed = teacher != nullptr && (options.reverse_kl_weight > 0.0f || options.jsd_weight > 0.0f);
  DoubleSum kl;
  Mixed mix;
  for_eights(vocab, [&](int64_t i, int64_t n) {
    const Vec8 raw = load_at(student + i, n, -infinity), log_q = (raw - s_shift) - s_rest;
    Vec8 p{}, d{};
    if (teacher != nullptr) {
      const Vec8 log_p = (load_at(teacher + i, n, -infinity) - t_shift) - t_rest;
      p = exponential(log_p);
      d = log_p - log_q;
      kl.add(p > splat(0.0f) ? p * d : p);
    }
    if (!gradient && !mixed) return;
    const Vec8 q = exponential(log_q), squashed = raw * slope, softcap = 1.0f - squashed * squashed;
    Vec8 g = kl_weight * (q - p) + ce_weight * q;  // the difference first: of equal models it is 0
    if (mixed) {
      mix.add(options, p, q, d);
      g += mix.a;
      store_at(teacher + i, n, q * softcap);  // read already
    }
    if (gradient) store_at(student + i, n, g * softcap);
  });
  loss.kl = kl.total();
  if (mixed) mix.finish(options, loss);
  if (gradient && mixed) {
    const float sum = static_cast<float>(mix.sum(options));
    for_eights(vocab, [&](int64_t i, int64_t n) {
      store_at(student + i, n, load_at(student + i, n) - sum * load_at(teacher + i, n));
    });
  }
  if (gradient && options.target >= 0)
    student[options.target] -= options.ce_weight * (1.0f - at_target * slope * at_target * slope);
  return loss;
}

// The tail is an outcome whose probability the student's logits outside the top k share like a softmax of their own, r:
// its gradient reaches logit j times r_j. Both tails are sums, never 1 - the rest, so that a tail of 1e-12 is exact.
TokenLoss cpu_token_losses(const TokenLosses& options, const TokenTopK& teacher, float* student, int64_t vocab,
                           bool gradient) {
  const float infinity = std::numeric_limits<float>::infinity();
  soften(student, vocab, options.softcap);
  const float at_target = options.target >= 0 ? student[options.target] : 0.0f;
  std::vector<double> z;  // of the top k, then of the tail
  for (int64_t i = 0; i < teacher.count; ++i) {
    z.push_back(static_cast<double>(student[teacher.ids[i]]));
    student[teacher.ids[i]] = -infinity;
  }
  const bool has_tail = teacher.count < vocab;
  if (has_tail) z.push_back(log_sum_exp(student, vocab, soften(student, vocab, 0.0f)));
  const double lse = log_add(z);
  TokenLoss loss;
  if (options.target >= 0) loss.cross_entropy = lse - static_cast<double>(at_target);
  std::vector<Outcome> outcomes;
  double sum = 0.0;
  for (size_t i = 0; i < z.size(); ++i) {
    const bool tail = static_cast<int64_t>(i) == teacher.count;
    outcomes.emplace_back(options, static_cast<double>(tail ? teacher.log_tail : teacher.log_p[i]), z[i] - lse, loss);
    sum += outcomes.back().a;
  }
  if (!gradient) return loss;
  const double kl_weight = static_cast<double>(options.kl_weight);
  const double q_weight = (options.target >= 0 ? static_cast<double>(options.ce_weight) : 0.0) - sum;
  const float slope = options.softcap > 0.0f ? 1.0f / options.softcap : 0.0f;
  const auto gradient_of = [&](const Outcome& o) {
    return static_cast<float>(kl_weight * (o.q - o.p) + o.a + q_weight * o.q);
  };
  if (has_tail) {
    const float of_tail = gradient_of(outcomes.back()), shift = static_cast<float>(z.back());
    for_eights(vocab, [&](int64_t i, int64_t n) {
      const Vec8 raw = load_at(student + i, n, -infinity), squashed = raw * slope;
      store_at(student + i, n, exponential(raw - shift) * of_tail * (1.0f - squashed * squashed));
    });
  }
  for (int64_t i = 0; i < teacher.count; ++i) {
    const float squashed = static_cast<float>(z[static_cast<size_t>(i)]) * slope;
    student[teacher.ids[i]] = gradient_of(outcomes[static_cast<size_t>(i)]) * (1.0f - squashed * squashed);
  }
  if (options.target >= 0)
    student[options.target] -= options.ce_weight * (1.0f - at_target * slope * at_target * slope);
  return loss;
}

}  // namespace qat
