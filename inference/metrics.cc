#include "inference/metrics.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace qat {
namespace {

constexpr double kKldFractions[] = {1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0};
constexpr double kDeltaFractions[] = {1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0};

template <size_t n>
std::vector<KlResult::Percentile> percentiles(std::vector<double> values, const double (&fractions)[n]) {
  std::sort(values.begin(), values.end());
  std::vector<KlResult::Percentile> out;
  for (const double fraction : fractions) out.push_back({fraction, percentile(values, fraction)});
  return out;
}

// Sum and sum of squares of one quantity.
struct Moments {
  double sum = 0.0, squares = 0.0;
  void add(double x) {
    sum += x;
    squares += x * x;
  }
};

Estimate exponential(const Estimate& log) { return {std::exp(log.value), std::exp(log.value) * log.error}; }

double root_of(double x) { return x > 0.0 ? std::sqrt(x) : 0.0; }

}  // namespace

Estimate mean_estimate(double sum, double sum_of_squares, int64_t n) {
  if (n < 1) return {};
  const double count = static_cast<double>(n), mean = sum / count;
  return {mean, n > 1 ? root_of((sum_of_squares / count - mean * mean) / (count - 1)) : 0.0};
}

double percentile(const std::vector<double>& sorted, double fraction) {
  QAT_CHECK(!sorted.empty() && fraction >= 0.0 && fraction <= 1.0);
  const double place = fraction * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - static_cast<double>(below);
  return (1.0 - part) * sorted[below] + part * sorted[above];
}

float log_sum_exp(const VectorKernels& kernels, const float* logits, int64_t vocab) {
  const float largest = kernels.max(logits, vocab);
  return largest + static_cast<float>(std::log(kernels.sum_exp(logits, vocab, largest)));
}

void PerplexityMeter::add(double nll) {
  sum_ += nll;
  squares_ += nll * nll;
  ++tokens_;
}

PerplexityResult PerplexityMeter::result() const {
  const Estimate nll = mean_estimate(sum_, squares_, tokens_);
  return {exponential(nll), nll.value, tokens_};
}

TokenComparison compare_rows(const VectorKernels& kernels, const float* base, float base_lse, const float* logits,
                             int64_t vocab, int32_t token) {
  const float lse = log_sum_exp(kernels, logits, vocab);
  const auto first_top = [&](const float* row) { return std::find(row, row + vocab, kernels.max(row, vocab)) - row; };
  TokenComparison out;
  out.nll = static_cast<double>(lse - logits[token]);
  out.nll_base = static_cast<double>(base_lse - base[token]);
  out.kld = kernels.kl(base, base_lse, logits, lse, vocab);
  out.same_top = first_top(base) == first_top(logits);
  return out;
}

double KlMeter::running_ppl() const {
  double sum = 0.0;
  for (const TokenComparison& token : tokens_) sum += token.nll;
  return tokens_.empty() ? 0.0 : std::exp(sum / static_cast<double>(tokens_.size()));
}

KlResult KlMeter::result() const {
  QAT_CHECK(!tokens_.empty());
  const int64_t n = static_cast<int64_t>(tokens_.size());
  const double count = static_cast<double>(n);
  Moments nll, nll_base, kld, delta, delta_square;
  double products = 0.0, same = 0.0;
  std::vector<double> klds, deltas;
  for (const TokenComparison& t : tokens_) {
    const double d = std::exp(-t.nll) - std::exp(-t.nll_base);
    nll.add(t.nll);
    nll_base.add(t.nll_base);
    products += t.nll * t.nll_base;
    kld.add(t.kld);
    delta.add(d);
    delta_square.add(d * d);
    same += t.same_top ? 1.0 : 0.0;
    klds.push_back(t.kld);
    deltas.push_back(d);
  }
  const Estimate ln_q = mean_estimate(nll.sum, nll.squares, n);
  const Estimate ln_base = mean_estimate(nll_base.sum, nll_base.squares, n);
  const double covariance = n > 1 ? (products / count - ln_q.value * ln_base.value) / (count - 1) : 0.0;

  KlResult r;
  r.tokens = n;
  r.ppl_q = exponential(ln_q);
  r.ppl_base = exponential(ln_base);
  r.nll_correlation = ln_q.error > 0.0 && ln_base.error > 0.0 ? covariance / (ln_q.error * ln_base.error) : 0.0;
  r.ln_ratio = {ln_q.value - ln_base.value,
                root_of(ln_q.error * ln_q.error + ln_base.error * ln_base.error - 2.0 * covariance)};
  r.ratio = exponential(r.ln_ratio);
  r.difference = {r.ppl_q.value - r.ppl_base.value,
                  root_of(r.ppl_q.error * r.ppl_q.error + r.ppl_base.error * r.ppl_base.error -
                          2.0 * r.ppl_q.value * r.ppl_base.value * covariance)};
  r.kld = mean_estimate(kld.sum, kld.squares, n);
  r.kld_percentiles = percentiles(std::move(klds), kKldFractions);
  r.delta_p = mean_estimate(delta.sum, delta.squares, n);
  r.delta_p_percentiles = percentiles(std::move(deltas), kDeltaFractions);
  const Estimate mean_square = mean_estimate(delta_square.sum, delta_square.squares, n);
  const double rms = root_of(mean_square.value);
  r.rms_delta_p = {rms, rms > 0.0 ? 0.5 / rms * mean_square.error : 0.0};
  const double p = same / count;
  r.same_top = {p, n > 1 ? root_of(p * (1.0 - p) / (count - 1)) : 0.0};
  return r;
}

}  // namespace qat
