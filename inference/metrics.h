// The statistics of an evaluation, from figures of single tokens. Each is defined as llama-perplexity defines it.
#pragma once

#include <cstdint>
#include <vector>

#include "inference/evaluate.h"
#include "inference/kernels.h"

namespace qat {

// Mean of n values and its standard error, from their sum and the sum of their squares.
Estimate mean_estimate(double sum, double sum_of_squares, int64_t n);

// Linear interpolation at fraction * (n - 1) of sorted values; n >= 1, fraction in [0, 1].
double percentile(const std::vector<double>& sorted, double fraction);

// log(sum(exp(logits))), in float as the logits are.
float log_sum_exp(const VectorKernels& kernels, const float* logits, int64_t vocab);

// Collects -log p of the text's tokens (nats).
class PerplexityMeter {
 public:
  void add(double nll);
  PerplexityResult result() const;
  int64_t tokens() const { return tokens_; }

 private:
  double sum_ = 0.0, squares_ = 0.0;
  int64_t tokens_ = 0;
};

// One scored token under both models.
struct TokenComparison {
  double nll = 0.0, nll_base = 0.0;  // of the text's token, nats
  double kld = 0.0;                  // of the model's distribution from the base's, nats
  bool same_top = false;
};

// Both logits rows and the text's token. base_lse is 0 when `base` holds log probabilities already. Tokens with a base
// probability below e^-16 are left out of the divergence: a saved base does not hold them, and figures must be
// comparable.
TokenComparison compare_rows(const VectorKernels& kernels, const float* base, float base_lse, const float* logits,
                             int64_t vocab, int32_t token);

class KlMeter {
 public:
  void add(const TokenComparison& token) { tokens_.push_back(token); }
  KlResult result() const;
  double running_ppl() const;

 private:
  std::vector<TokenComparison> tokens_;
};

}  // namespace qat
