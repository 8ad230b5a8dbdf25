// Sampling text from a model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "inference/engine.h"
#include "inference/kernels.h"

namespace qat {

struct SamplingOptions {
  float temperature = 0.8f;  // 0: greedy
  int top_k = 40;            // 0: all
  float top_p = 0.95f;       // 1: all
  uint64_t seed = 0;
};

// A token drawn from logits [vocab]: temperature, then top-k, then top-p, then one uniform number of xoshiro256**.
// Throws Error when a logit is NaN or +infinity.
class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options);
  int32_t sample(Span<const float> logits);

 private:
  double uniform();  // [0, 1)
  void keep_top_k(Span<const float> logits);
  int32_t sample_all(Span<const float> logits);

  SamplingOptions options_;
  const VectorKernels* kernels_;
  uint64_t state_[4];  // xoshiro256**
  std::vector<std::pair<float, int32_t>> candidates_;
  std::vector<float> probabilities_;
};

// Continues `prompt` ids by up to `tokens` tokens or to an end-of-generation token (which is not passed on); calls
// on_token for each.
void generate(Engine& engine, const Tokenizer& tokenizer, Span<const int32_t> prompt, int64_t tokens,
              const SamplingOptions& options, const std::function<void(int32_t)>& on_token);

// `count` sequences of `length` ids, each begun with BOS, sampled at temperature 1 without truncation: a teacher's own
// training data. After an end-of-generation token the sequence goes on with BOS. Sequence i depends on seed + i only,
// never on the thread count.
std::vector<std::vector<int32_t>> sample_sequences(Engine& engine, const Tokenizer& tokenizer, int64_t count,
                                                   int64_t length, uint64_t seed,
                                                   const std::function<void(int64_t done)>& progress = {});

}  // namespace qat
