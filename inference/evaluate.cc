#include "inference/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <fstream>

#include "format/error.h"
#include "inference/logits_base.h"
#include "inference/metrics.h"
#include "inference/transformer.h"

namespace qat {
namespace {

constexpr int64_t kScoredAtOnce = 256;  // rows of logits in memory, per engine

// Rows of one chunk: row i of the logits predicts the token at position first + i + 1. Filled by forward() over [begin,
// end).
struct Block {
  int64_t begin = 0, first = 0, end = 0;
  int64_t rows() const { return end - first; }
};

// The blocks that score a chunk: the first takes the unscored half along, and none has more than kScoredAtOnce rows.
std::vector<Block> blocks_of(int64_t context) {
  std::vector<Block> blocks;
  for (int64_t begin = 0; begin < context - 1;) {
    const int64_t first = std::max(begin, context / 2);
    blocks.push_back({begin, first, std::min(first + kScoredAtOnce, context - 1)});
    begin = blocks.back().end;
  }
  return blocks;
}

int64_t scored_per_chunk(int64_t context) { return context - 1 - context / 2; }

// An engine that goes through the chunks. `logits` holds the block read last; readers that take turns may share it.
class Reader {
 public:
  Reader(Engine& engine, const EvalChunks& chunks, std::vector<float>& logits)
      : engine_(engine),
        chunks_(chunks),
        cache_(engine, chunks.context),
        vocab_(engine.config().vocab),
        logits_(logits) {
    logits_.resize(static_cast<size_t>(kScoredAtOnce * vocab_));
  }

  void read(int64_t chunk, const Block& block) {
    if (block.begin == 0) {
      cache_.clear();
      const auto begin = chunks_.tokens.begin() + chunk * chunks_.context;
      tokens_.assign(begin, begin + chunks_.context);
      if (chunks_.add_bos) tokens_[0] = chunks_.bos_id;
    }
    const Span<const int32_t> all(tokens_);
    const size_t count = static_cast<size_t>(block.end - block.begin);
    engine_.forward(all.subspan(static_cast<size_t>(block.begin), count), cache_,
                    static_cast<size_t>(block.first - block.begin), logits_.data());
  }
  float* row(int64_t i) { return logits_.data() + i * vocab_; }
  int64_t vocab() const { return vocab_; }
  // The text's token that row i of a block predicts.
  int32_t next_token(int64_t chunk, const Block& block, int64_t i) const {
    return chunks_.tokens[static_cast<size_t>(chunk * chunks_.context + block.first + i + 1)];
  }
  const VectorKernels& kernels() const { return vector_kernels(engine_.impl().transformer.isa()); }

  // body(row, worker) for the rows of a block, over the engine's threads.
  template <class Body>
  void for_rows(const Block& block, const Body& body) {
    engine_.impl().pool.parallel_for(block.rows(), 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) body(i, worker);
    });
  }
  int workers() const { return engine_.impl().pool.size(); }

 private:
  Engine& engine_;
  const EvalChunks& chunks_;
  KvCache cache_;
  int64_t vocab_;
  std::vector<float>& logits_;
  std::vector<int32_t> tokens_;  // of the current chunk, with BOS in front
};

// score(chunk, block), then progress with the perplexity so far.
template <class Score, class Ppl>
void for_blocks(const EvalChunks& chunks, const EvalProgress& progress, const Score& score, const Ppl& ppl_so_far) {
  const std::vector<Block> blocks = blocks_of(chunks.context);
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    for (const Block& block : blocks) score(chunk, block);
    if (progress) progress(chunk + 1, chunks.count(), ppl_so_far());
  }
}

double nll_of(const float* logits, float lse, int32_t token) { return static_cast<double>(lse - logits[token]); }

}  // namespace

EvalChunks make_chunks(const Tokenizer& tokenizer, const std::string& text, const std::string& origin, int64_t context,
                       int64_t max_chunks) {
  if (context < 4) fail("context of ", context, " tokens: expected 4 or more");
  EvalChunks chunks;
  chunks.context = context;
  chunks.add_bos = tokenizer.add_bos();
  chunks.bos_id = tokenizer.bos_id();
  chunks.tokens = tokenizer.encode_with_bos(text, /*parse_special=*/false);
  const int64_t found = static_cast<int64_t>(chunks.tokens.size());
  if (found < 2 * context)
    fail(origin, ": expected at least ", 2 * context, " tokens (twice the context of ", context, "), found ", found);
  const int64_t count = max_chunks < 0 ? found / context : std::min(max_chunks, found / context);
  chunks.tokens.resize(static_cast<size_t>(count * context));
  return chunks;
}

PerplexityResult perplexity(Engine& engine, const EvalChunks& chunks, const EvalProgress& progress) {
  std::vector<float> logits;
  Reader reader(engine, chunks, logits);
  PerplexityMeter meter;
  std::vector<double> nlls(static_cast<size_t>(kScoredAtOnce));
  const auto score = [&](int64_t chunk, const Block& block) {
    reader.read(chunk, block);
    reader.for_rows(block, [&](int64_t i, int) {
      const float lse = log_sum_exp(reader.kernels(), reader.row(i), reader.vocab());
      nlls[static_cast<size_t>(i)] = nll_of(reader.row(i), lse, reader.next_token(chunk, block, i));
    });
    for (int64_t i = 0; i < block.rows(); ++i) meter.add(nlls[static_cast<size_t>(i)]);
  };
  for_blocks(chunks, progress, score, [&] { return meter.result().perplexity.value; });
  return meter.result();
}

PerplexityResult save_base(Engine& engine, const EvalChunks& chunks, const std::string& path,
                           const EvalProgress& progress) {
  std::vector<float> logits;
  Reader reader(engine, chunks, logits);
  LogitsBaseWriter writer(path, chunks, reader.vocab());
  PerplexityMeter meter;
  std::vector<double> nlls(static_cast<size_t>(kScoredAtOnce));
  std::vector<uint16_t> rows;
  const int64_t words = base_row_words(reader.vocab());
  const auto score = [&](int64_t chunk, const Block& block) {
    reader.read(chunk, block);
    rows.resize(static_cast<size_t>(block.rows() * words));
    reader.for_rows(block, [&](int64_t i, int) {
      const float lse = encode_base_row(reader.kernels(), reader.row(i), reader.vocab(), rows.data() + i * words);
      nlls[static_cast<size_t>(i)] = nll_of(reader.row(i), lse, reader.next_token(chunk, block, i));
    });
    writer.append(rows);
    for (int64_t i = 0; i < block.rows(); ++i) meter.add(nlls[static_cast<size_t>(i)]);
  };
  for_blocks(chunks, progress, score, [&] { return meter.result().perplexity.value; });
  writer.commit();
  return meter.result();
}

std::vector<KlResult> kl_divergences(Span<Engine* const> engines, Engine& base, const EvalChunks& chunks,
                                     const EvalProgress& progress) {
  for (const Engine* engine : engines) QAT_CHECK(engine->config().vocab == base.config().vocab);
  std::vector<float> logits, base_logits;
  Reader base_reader(base, chunks, base_logits);
  std::deque<Reader> readers;
  for (Engine* engine : engines) readers.emplace_back(*engine, chunks, logits);
  std::vector<KlMeter> meters(engines.size());
  std::vector<TokenComparison> tokens(static_cast<size_t>(kScoredAtOnce));
  const auto score = [&](int64_t chunk, const Block& block) {
    base_reader.read(chunk, block);
    for (size_t model = 0; model < engines.size(); ++model) {
      Reader& reader = readers[model];
      reader.read(chunk, block);
      reader.for_rows(block, [&](int64_t i, int) {
        const float base_lse = log_sum_exp(reader.kernels(), base_reader.row(i), reader.vocab());
        tokens[static_cast<size_t>(i)] = compare_rows(reader.kernels(), base_reader.row(i), base_lse, reader.row(i),
                                                      reader.vocab(), reader.next_token(chunk, block, i));
      });
      for (int64_t i = 0; i < block.rows(); ++i) meters[model].add(tokens[static_cast<size_t>(i)]);
    }
  };
  for_blocks(chunks, progress, score, [&] { return meters.front().running_ppl(); });
  std::vector<KlResult> results;
  for (const KlMeter& meter : meters) results.push_back(meter.result());
  return results;
}

KlResult kl_divergence(Engine& engine, Engine& base, const EvalChunks& chunks, const EvalProgress& progress) {
  Engine* const engines[] = {&engine};
  return kl_divergences({engines, 1}, base, chunks, progress).front();
}

bool is_saved_base(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[8] = {};
  return file.read(magic, sizeof magic) && std::memcmp(magic, "_logits_", sizeof magic) == 0;
}

EvalChunks read_base_chunks(const std::string& path, const Tokenizer& tokenizer) {
  EvalChunks chunks = LogitsBase(path).chunks();
  chunks.add_bos = tokenizer.add_bos();
  chunks.bos_id = tokenizer.bos_id();
  return chunks;
}

KlResult kl_divergence(Engine& engine, const std::string& base_path, const EvalProgress& progress) {
  const LogitsBase base(base_path);
  if (base.vocab() != engine.config().vocab)
    fail(base_path, ": logits of a vocabulary of ", base.vocab(), " tokens, but the model has ", engine.config().vocab);
  EvalChunks chunks = base.chunks();
  chunks.bos_id = static_cast<int32_t>(engine.config().bos_id);
  chunks.add_bos = chunks.tokens.front() == chunks.bos_id;
  std::vector<float> logits;
  Reader reader(engine, chunks, logits);
  KlMeter meter;
  std::vector<TokenComparison> tokens(static_cast<size_t>(kScoredAtOnce));
  std::vector<float> base_rows(static_cast<size_t>(reader.workers() * base.vocab()));  // one per worker
  const auto score = [&](int64_t chunk, const Block& block) {
    reader.read(chunk, block);
    const int64_t first_row = chunk * scored_per_chunk(chunks.context) + block.first - chunks.context / 2;
    reader.for_rows(block, [&](int64_t i, int worker) {
      float* log_probs = base_rows.data() + worker * base.vocab();
      base.read_row(first_row + i, log_probs);
      tokens[static_cast<size_t>(i)] = compare_rows(reader.kernels(), log_probs, 0.0f, reader.row(i), reader.vocab(),
                                                    reader.next_token(chunk, block, i));
    });
    for (int64_t i = 0; i < block.rows(); ++i) meter.add(tokens[static_cast<size_t>(i)]);
  };
  for_blocks(chunks, progress, score, [&] { return meter.running_ppl(); });
  return meter.result();
}

}  // namespace qat
