// Perplexity and KL divergence, defined exactly as llama-perplexity computes them (tools/perplexity/perplexity.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "inference/engine.h"

namespace qat {

struct Estimate {
  double value = 0.0;
  double error = 0.0;  // one standard error, 0 when not defined
};

// Non-overlapping chunks of `context` tokens of the whole text (with BOS when the tokenizer adds one); a trailing part
// is dropped. The second half of each chunk is scored: context - 1 - context/2 tokens.
struct EvalChunks {
  int64_t context = 512;
  bool add_bos = false;  // the first token of each chunk is replaced by BOS in the forward pass
  int32_t bos_id = -1;
  std::vector<int32_t> tokens;  // chunks * context
  int64_t count() const { return static_cast<int64_t>(tokens.size()) / context; }
};
// Throws Error when the text has fewer than 2 * context tokens, naming both numbers. max_chunks < 0: all.
EvalChunks make_chunks(const Tokenizer& tokenizer, const std::string& text, const std::string& origin, int64_t context,
                       int64_t max_chunks = -1);

struct PerplexityResult {
  Estimate perplexity;
  double mean_nll = 0.0;  // nats per token
  int64_t tokens = 0;     // scored
};

struct KlResult {
  Estimate ppl_q, ppl_base, ln_ratio, ratio,
      difference;                // mean PPL(Q), PPL(base), ln(PPL(Q)/PPL(base)), PPL ratio, PPL(Q) - PPL(base)
  double nll_correlation = 0.0;  // of ln PPL(Q) and ln PPL(base), 0..1
  Estimate kld, delta_p, rms_delta_p, same_top;  // nats/token; fractions 0..1 (delta_p, rms, same_top)
  struct Percentile {
    double fraction;
    double value;
  };
  std::vector<Percentile> kld_percentiles;      // 1 (max), 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0 (min)
  std::vector<Percentile> delta_p_percentiles;  // 1, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0
  int64_t tokens = 0;
};

using EvalProgress = std::function<void(int64_t chunks_done, int64_t chunks, double running_ppl)>;

PerplexityResult perplexity(Engine& engine, const EvalChunks& chunks, const EvalProgress& progress = {});
// Against a base model run side by side (float32 logits, nothing rounded). As against a saved base, tokens to which the
// base gives a probability below e^-16 do not count in the divergence (the file cannot hold them), so that the figures
// can be compared. One does remain apart: the saved base's own perplexity takes such a token of the text for likelier
// than it is.
KlResult kl_divergence(Engine& engine, Engine& base, const EvalChunks& chunks, const EvalProgress& progress = {});
// The same of one or more models (of one vocabulary, checked), in their order; the base reads the text once. The
// progress shows the first one's perplexity.
std::vector<KlResult> kl_divergences(Span<Engine* const> engines, Engine& base, const EvalChunks& chunks,
                                     const EvalProgress& progress = {});

// Base logits in llama-perplexity's own file (--kl-divergence-base), so that either program reads the other's.
PerplexityResult save_base(Engine& engine, const EvalChunks& chunks, const std::string& path,
                           const EvalProgress& progress = {});
// Both throw Error on a damaged file. The file does not say whether chunks begin with BOS: the second takes it from the
// text's first token, which is BOS exactly when the tokenizer adds one.
EvalChunks read_base_chunks(const std::string& path, const Tokenizer& tokenizer);
KlResult kl_divergence(Engine& engine, const std::string& base_path, const EvalProgress& progress = {});
bool is_saved_base(const std::string& path);  // magic "_logits_"

}  // namespace qat
