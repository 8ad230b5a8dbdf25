#include "inference/generate.h"

#include <algorithm>

#include "format/error.h"
#include "inference/transformer.h"

namespace qat {
namespace {

// Sequences that decode together. A small model is in every core's cache: each thread goes through it with a group of
// its own, a panel wide. Of a big one the weights come from memory: all threads share one pass, with more rows to pay
// for it.
constexpr int64_t kSmallGroup = 24, kBigGroup = 96;
constexpr int64_t kBigModel = int64_t{16} << 20;  // weights

// Those that every token meets.
int64_t weight_count(const ModelConfig& config) {
  int64_t count = 0;
  for (const TensorInfo& info : tensor_table(config)) {
    int64_t size = 1;
    for (const int64_t d : info.shape) size *= d;
    if (info.kind != TensorKind::embedding) count += size;
  }
  return count + (config.tied ? config.vocab * config.hidden : 0);
}

// What it takes to write a group of sequences.
struct GroupWriter {
  GroupWriter(const Transformer& model, const Tokenizer& words, int64_t sequence_length, int64_t group,
              ThreadPool* shared)
      : transformer(model),
        tokenizer(words),
        length(sequence_length),
        own_pool(shared != nullptr ? nullptr : std::make_unique<ThreadPool>(1)),
        pool(shared != nullptr ? *shared : *own_pool),
        logits(static_cast<size_t>(group * model.config().vocab)) {
    for (int64_t i = 0; i < group; ++i) caches.emplace_back(model.config(), model.cache_grids(), length);
  }

  // Rows of the pass that follows: the last token of each sequence. A lone sequence is doubled, so that it takes the
  // path that it would have taken in company and gives the same bits.
  void fill_rows(const std::vector<std::vector<int32_t>>& sequences, int64_t position) {
    workspace.rows.clear();
    for (size_t i = 0; i < sequences.size(); ++i) workspace.rows.push_back({sequences[i].back(), position, &caches[i]});
    if (sequences.size() == 1) workspace.rows.push_back({sequences[0].back(), position, &caches[1]});
  }

  std::vector<std::vector<int32_t>> write(int64_t first, int64_t count, uint64_t seed) {
    std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(count), {tokenizer.bos_id()});
    std::vector<Sampler> samplers;
    for (int64_t i = 0; i < count; ++i)
      samplers.emplace_back(SamplingOptions{1.0f, 0, 1.0f, seed + static_cast<uint64_t>(first + i)});
    const size_t vocab = static_cast<size_t>(transformer.config().vocab);
    for (int64_t position = 0; position + 1 < length; ++position) {
      fill_rows(sequences, position);
      transformer.run(pool, workspace, 0, logits.data());
      for (size_t i = 0; i < sequences.size(); ++i) {
        const bool ended = tokenizer.is_end_of_generation(sequences[i].back());
        const int32_t sampled = samplers[i].sample({logits.data() + i * vocab, vocab});
        sequences[i].push_back(ended ? tokenizer.bos_id() : sampled);
      }
    }
    return sequences;
  }

  const Transformer& transformer;
  const Tokenizer& tokenizer;
  const int64_t length;
  const std::unique_ptr<ThreadPool> own_pool;
  ThreadPool& pool;
  Workspace workspace;
  std::vector<KvCache> caches;
  std::vector<float> logits;
};

}  // namespace

void generate(Engine& engine, const Tokenizer& tokenizer, Span<const int32_t> prompt, int64_t tokens,
              const SamplingOptions& options, const std::function<void(int32_t)>& on_token) {
  if (prompt.empty()) fail("generate: expected a prompt of at least one token");
  const size_t vocab = static_cast<size_t>(engine.config().vocab);
  KvCache cache(engine, static_cast<int64_t>(prompt.size()) + tokens);
  std::vector<float> logits(vocab);
  Sampler sampler(options);
  engine.forward(prompt, cache, prompt.size() - 1, logits.data());
  for (int64_t i = 0; i < tokens; ++i) {
    const int32_t id = sampler.sample(logits);
    if (tokenizer.is_end_of_generation(id)) return;
    on_token(id);
    if (i + 1 < tokens) engine.forward({&id, 1}, cache, 0, logits.data());
  }
}

std::vector<std::vector<int32_t>> sample_sequences(Engine& engine, const Tokenizer& tokenizer, int64_t count,
                                                   int64_t length, uint64_t seed,
                                                   const std::function<void(int64_t done)>& progress) {
  QAT_CHECK(count >= 0 && length >= 1);
  const Transformer& transformer = engine.impl().transformer;
  const int32_t bos = tokenizer.bos_id();
  if (bos < 0 || bos >= transformer.config().vocab) fail("the tokenizer has no BOS token to begin a sequence with");
  ThreadPool& pool = engine.impl().pool;
  const bool big = weight_count(transformer.config()) > kBigModel;
  const int64_t group = big ? kBigGroup : kSmallGroup;
  std::vector<std::unique_ptr<GroupWriter>> writers(big ? 1 : static_cast<size_t>(pool.size()));
  for (auto& writer : writers)
    writer = std::make_unique<GroupWriter>(transformer, tokenizer, length, group, big ? &pool : nullptr);

  std::vector<std::vector<int32_t>> sequences(static_cast<size_t>(count));
  const auto write_group = [&](GroupWriter& writer, int64_t first, int64_t end) {
    auto written = writer.write(first, std::min(group, end - first), seed);
    std::move(written.begin(), written.end(), sequences.begin() + first);
  };
  // A round gives each writer one group; between rounds the caller hears of it, in its own thread.
  const int64_t round = group * static_cast<int64_t>(writers.size());
  for (int64_t done = 0; done < count; done += round) {
    const int64_t end = std::min(count, done + round);
    if (big) {
      write_group(*writers[0], done, end);
    } else {
      pool.parallel_for((end - done + group - 1) / group, 1, [&](int64_t first, int64_t last, int worker) {
        for (int64_t i = first; i < last; ++i)
          write_group(*writers[static_cast<size_t>(worker)], done + i * group, end);
      });
    }
    if (progress) progress(end);
  }
  return sequences;
}

}  // namespace qat
