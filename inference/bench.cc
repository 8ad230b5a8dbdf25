#include "inference/bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "format/error.h"
#include "inference/huge_pages.h"
#include "inference/transformer.h"

namespace qat {
namespace {

// --- Memory ---

constexpr int64_t kPieceWords = int64_t{1} << 17;  // a megabyte: what a thread takes at a time

// Eight sums that do not wait for each other.
void add_line(const uint64_t* words, uint64_t (&sums)[8]) {
  for (int64_t j = 0; j < 8; ++j) sums[j] += words[j];
}

// What a processor reads fastest by depends on it. Four streams keep more loads under way than one: 24 GB/s for one
// thread of a server where a single stream has 16, and as much as with wider registers or more streams.
uint64_t sum_streams(const uint64_t* words) {
  constexpr int64_t kStreams = 4, kStream = kPieceWords / kStreams;
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < kStream; i += 8)
    for (int64_t stream = 0; stream < kStreams; ++stream) add_line(words + stream * kStream + i, sums);
  return std::accumulate(std::begin(sums), std::end(sums), uint64_t{0});
}
// One stream, asked for 4 kB ahead, and one line of each page 16 kB ahead: 60 GB/s for two threads of Zen 5 in a
// virtual machine where it has 43 without that line (simd_vnni.h).
uint64_t sum_pages(const uint64_t* words) {
  constexpr int64_t kAhead = 512, kPage = 512, kPageAhead = 2048;  // words
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < kPieceWords; i += 8) {
    __builtin_prefetch(words + i + kAhead);
    if (i % kPage == 0) __builtin_prefetch(words + i + kPageAhead, 0, 2);
    add_line(words + i, sums);
  }
  return std::accumulate(std::begin(sums), std::end(sums), uint64_t{0});
}

template <class Work>
double seconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

// --- Bytes of a token ---

int64_t one_row(const Matrix& m) { return m ? static_cast<int64_t>(stored_row_bytes(m)) : 0; }
int64_t all_rows(const Matrix& m) { return m.rows * one_row(m); }

int64_t weight_bytes(const Weights& w) {
  int64_t total = one_row(w.ple_embedding) + all_rows(w.ple_model_projection);
  if (w.output.data != w.embedding.data) total += one_row(w.embedding);
  for (const LayerWeights& l : w.layers)
    for (const Matrix* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down, &l.ple_gate, &l.ple_projection})
      total += all_rows(*m);
  return total + all_rows(w.output);
}

// K and V of one position, as the cache stores them.
int64_t position_bytes(const LayerConfig& layer, const CacheScales& grid, DType type) {
  const auto bytes = [&](Cached what, float scale) {
    return cache_rows(layer, what, grid.bits, scale, type, kKeyGroup).bytes() / kKeyGroup;
  };
  return static_cast<int64_t>(bytes(Cached::keys, grid.k) + bytes(Cached::values, grid.v));
}

// Sum over the tokens at positions context ... context + tokens - 1 of how many positions each sees.
int64_t positions_seen(int64_t context, int64_t tokens, int64_t window) {
  int64_t total = 0;
  for (int64_t i = 0; i < tokens; ++i) total += std::min(context + i + 1, window);
  return total;
}

int64_t cache_bytes(const Weights& w, bool float_cache, DType cache_type, int64_t context, int64_t tokens) {
  const ModelConfig& c = w.config;
  int64_t total = 0;
  for (const LayerConfig& layer : c.layers) {
    const auto owner = static_cast<size_t>(layer.kv_source);
    const CacheScales grid = float_cache ? CacheScales() : w.layers[owner].cache;
    const int64_t window = layer.sliding && c.sliding_window > 0 ? c.sliding_window : INT64_MAX;
    total += position_bytes(c.layers[owner], grid, cache_type) * positions_seen(context, tokens, window);
  }
  return total / tokens;
}

// --- Runs ---

std::vector<int32_t> random_ids(const ModelConfig& config, int64_t count) {
  const int64_t vocab = config.ple > 0 ? std::min(config.vocab, config.ple_vocab) : config.vocab;
  std::mt19937_64 random(1);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return ids;
}

// Passes, timed one by one: what happens between them does not count.
struct Runs {
  Engine& engine;
  const BenchProgress& progress;
  int64_t total;  // tokens
  std::vector<int32_t> ids;
  int64_t done = 0;
  std::vector<float> logits = std::vector<float>(static_cast<size_t>(engine.config().vocab));

  // Seconds of a pass over the next `count` tokens, with the logits of the last one or none.
  double pass(KvCache& cache, int64_t count, bool with_logits) {
    const Span<const int32_t> tokens(ids.data() + cache.length(), static_cast<size_t>(count));
    const size_t first_logit = tokens.size() - (with_logits ? 1 : 0);
    const double seconds = seconds_of([&] { engine.forward(tokens, cache, first_logit, logits.data()); });
    done += count;
    if (progress) progress(done, total);
    return seconds;
  }

  double prefill(KvCache& cache, int64_t count, bool with_logits) {
    cache.clear();
    double seconds = 0.0;
    while (cache.length() < count) {
      const int64_t rows = std::min(kMaxBatchRows, count - cache.length());
      seconds += pass(cache, rows, with_logits && cache.length() + rows == count);
    }
    return seconds;
  }

  // After the cache's first `context` positions. Of those a sliding layer may have lost some to tokens decoded before:
  // it then meets these in their place, which takes as long.
  double decode(KvCache& cache, int64_t context, int64_t count) {
    cache.set_length(context);
    double seconds = 0.0;
    for (int64_t i = 0; i < count; ++i) seconds += pass(cache, 1, true);
    return seconds;
  }
};

}  // namespace

ReadBandwidth::ReadBandwidth(int64_t bytes) : pieces_(bytes / (kPieceWords * static_cast<int64_t>(sizeof(uint64_t)))) {
  QAT_CHECK(pieces_ > 0);
  words_.assign(static_cast<size_t>(pieces_ * kPieceWords), 1);  // written to: pages never written are all the same one
}

std::vector<double> ReadBandwidth::measure(ThreadPool& pool, int64_t passes) const {
  QAT_CHECK(passes > 0);
  std::vector<double> speeds(static_cast<size_t>(passes), 0.0);
  for (double& speed : speeds)
    for (const auto sum_piece : {sum_streams, sum_pages}) {
      std::atomic<uint64_t> sum{0};
      const double seconds = seconds_of([&] {
        pool.parallel_for(pieces_, 1, [&](int64_t begin, int64_t end, int) {
          for (int64_t piece = begin; piece < end; ++piece) sum += sum_piece(words_.data() + piece * kPieceWords);
        });
      });
      QAT_CHECK(sum == words_.size());  // every word was read, in every pass
      speed = std::max(speed, static_cast<double>(words_.size() * sizeof(uint64_t)) / seconds / 1e9);
    }
  return speeds;
}

DecodeBytes decode_bytes(const Weights& weights, const EngineOptions& options, int64_t context, int64_t tokens) {
  QAT_CHECK(context >= 0 && tokens > 0);
  return {weight_bytes(weights), cache_bytes(weights, options.float_cache, cache_type_of(options), context, tokens)};
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}
double Speed::median() const { return static_cast<double>(tokens) / qat::median(seconds); }
double Speed::slowest() const {
  return static_cast<double>(tokens) / *std::max_element(seconds.begin(), seconds.end());
}
double Speed::fastest() const {
  return static_cast<double>(tokens) / *std::min_element(seconds.begin(), seconds.end());
}

double median_ratio(const Speed& speed, const Speed& other) {
  QAT_CHECK(speed.seconds.size() == other.seconds.size());
  const double tokens = static_cast<double>(speed.tokens) / static_cast<double>(other.tokens);
  std::vector<double> ratios;
  for (size_t i = 0; i < speed.seconds.size(); ++i) ratios.push_back(tokens * other.seconds[i] / speed.seconds[i]);
  return median(std::move(ratios));
}

BenchResult run_benchmark(Engine& engine, const BenchOptions& options, const BenchProgress& progress) {
  const std::vector<int64_t>& contexts = options.contexts;
  QAT_CHECK(options.prompt > 0 && options.tokens > 0 && options.repeat > 0 && !contexts.empty());
  const int64_t rounds = options.repeat + 1, longest = *std::max_element(contexts.begin(), contexts.end());
  Runs runs = {engine, progress, rounds * options.prompt,
               random_ids(engine.config(), std::max(options.prompt, longest + options.tokens))};
  for (const int64_t context : contexts) {
    QAT_CHECK(context >= 0);
    runs.total += rounds * options.tokens + (context != options.prompt ? context : 0);
  }
  KvCache prompt(engine, options.prompt + options.tokens);     // and of a context of that length
  std::vector<std::unique_ptr<KvCache>> own(contexts.size());  // of contexts that are not the prompt
  for (size_t i = 0; i < contexts.size(); ++i) {
    if (contexts[i] == options.prompt) continue;
    own[i] = std::make_unique<KvCache>(engine, contexts[i] + options.tokens);
    runs.prefill(*own[i], contexts[i], false);
  }
  constexpr int64_t kReads = 4;
  std::unique_ptr<ReadBandwidth> memory;
  std::vector<double> bandwidths;
  BenchResult result;
  result.prefill.tokens = options.prompt;
  result.decode.resize(contexts.size());
  for (int64_t round = 0; round < rounds; ++round) {
    const bool counts = round > 0;  // the first round brings the model into memory
    const double prefill = runs.prefill(prompt, options.prompt, true);
    if (counts) result.prefill.seconds.push_back(prefill);
    for (size_t i = 0; i < contexts.size(); ++i) {
      const double decode = runs.decode(own[i] ? *own[i] : prompt, contexts[i], options.tokens);
      result.decode[i].tokens = options.tokens;
      if (counts) result.decode[i].seconds.push_back(decode);
    }
    if (!counts) {
      result.peak_rss_bytes = peak_rss_bytes();
      memory = std::make_unique<ReadBandwidth>(options.bandwidth_bytes);
      continue;
    }
    const std::vector<double> reads = memory->measure(engine.impl().pool, kReads);
    bandwidths.insert(bandwidths.end(), reads.begin(), reads.end());
  }
  result.read_bandwidth = median(bandwidths);
  result.threads = engine.impl().pool.size();
  result.isa = engine.impl().transformer.isa();
  return result;
}

}  // namespace qat
