#include "inference/engine.h"

#include <algorithm>

#include "format/error.h"
#include "inference/transformer.h"

namespace qat {
void check_row(const ModelConfig& config, int32_t token, const KvCache& cache, int64_t position) {
  if (token < 0 || token >= config.vocab)
    fail("token id ", token, " is outside the model's vocabulary of ", config.vocab);
  if (config.ple > 0 && token >= config.ple_vocab)
    fail("token id ", token, " is outside the model's per-layer vocabulary of ", config.ple_vocab);
  if (position >= cache.capacity())
    fail("the sequence is longer than its KV cache of ", cache.capacity(), " positions");
}

Isa isa_of(const EngineOptions& options) { return options.reference ? Isa::scalar : select_isa(); }

DType cache_type_of(const EngineOptions& o) {
  const bool in_floats = o.float_activations || isa_of(o) == Isa::scalar;
  return in_floats && o.cache_type == DType::F16 ? DType::F32 : o.cache_type;
}

namespace {

Weights in_place(Weights weights, const EngineOptions& options) {
  if (options.copy_weights) copy_into_memory(weights, options.load_progress);
  else populate(weights, options.load_progress);
  return weights;
}

}  // namespace

Engine::Impl::Impl(Weights weights, const EngineOptions& options)
    : transformer(in_place(std::move(weights), options), options), pool(options.threads) {}

Engine::Engine(Weights weights, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(std::move(weights), options)) {}

Engine::~Engine() = default;

const ModelConfig& Engine::config() const { return impl_->transformer.config(); }

void Engine::set_activation_hook(ActivationHook hook) { impl_->transformer.activation_hook = std::move(hook); }

void Engine::forward(Span<const int32_t> tokens, KvCache& cache, size_t first_logit, float* logits) {
  QAT_CHECK(first_logit <= tokens.size());
  const ModelConfig& c = config();
  const int64_t start = cache.length();
  for (size_t i = 0; i < tokens.size(); ++i) check_row(c, tokens[i], cache, start + static_cast<int64_t>(i));
  std::vector<BatchRow>& rows = impl_->workspace.rows;
  for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
    end = std::min(tokens.size(), begin + static_cast<size_t>(kMaxBatchRows));
    rows.clear();
    for (size_t i = begin; i < end; ++i) rows.push_back({tokens[i], start + static_cast<int64_t>(i), &cache});
    const size_t first = std::min(end, std::max(begin, first_logit));
    float* out = first < end ? logits + (first - first_logit) * static_cast<size_t>(c.vocab) : nullptr;
    impl_->transformer.run(impl_->pool, impl_->workspace, static_cast<int64_t>(first - begin), out);
  }
  cache.set_length(start + static_cast<int64_t>(tokens.size()));
}

void Engine::decode_batch(Span<const int32_t> tokens, Span<KvCache*> caches, float* logits) {
  QAT_CHECK(tokens.size() == caches.size());
  const ModelConfig& c = config();
  for (size_t i = 0; i < tokens.size(); ++i) check_row(c, tokens[i], *caches[i], caches[i]->length());
  std::vector<BatchRow>& rows = impl_->workspace.rows;
  for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
    end = std::min(tokens.size(), begin + static_cast<size_t>(kMaxBatchRows));
    rows.clear();
    for (size_t i = begin; i < end; ++i) rows.push_back({tokens[i], caches[i]->length(), caches[i]});
    impl_->transformer.run(impl_->pool, impl_->workspace, 0, logits + begin * static_cast<size_t>(c.vocab));
  }
  for (KvCache* cache : caches) cache->set_length(cache->length() + 1);
}

}  // namespace qat
