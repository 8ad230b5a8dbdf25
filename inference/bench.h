// How fast an engine runs, beside how fast this machine reads memory: decoding one token reads all of a model's weights
// and a sequence's cache, so memory bounds it.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "inference/engine.h"
#include "inference/huge_pages.h"
#include "inference/isa.h"
#include "inference/thread_pool.h"

namespace qat {

// How fast the pool's threads together read memory.
class ReadBandwidth {
 public:
  // Of a buffer of so many bytes, at least a megabyte. It is memory that is measured only when that is much more than
  // every cache has. The buffer lives as long as this: a virtual machine may give memory that is freed back to its host
  // seconds later, which holds up whatever is timed then.
  explicit ReadBandwidth(int64_t bytes);
  // GB/s (1e9 bytes) of each of `passes` over the buffer, by the faster of two ways.
  std::vector<double> measure(ThreadPool& pool, int64_t passes) const;

 private:
  int64_t pieces_;
  HugeVector<uint64_t> words_;
};

double median(std::vector<double> values);  // of at least one

// What one decoded token reads. Not counted: norms, activations, and anything read twice.
struct DecodeBytes {
  int64_t weights = 0;  // each matrix with its scales; of embedding tables one row (a tied one is the head, whole)
  int64_t cache = 0;    // K and V of the positions that each layer sees, its own included; layers that share K and V
                        // read their owner's again
  int64_t total() const { return weights + cache; }
};
// Of `tokens` tokens after `context` positions, the mean, with a cache as these options make it.
DecodeBytes decode_bytes(const Weights& weights, const EngineOptions& options, int64_t context, int64_t tokens);

struct BenchOptions {
  int64_t prompt = 512;                   // tokens of a prefill, from an empty cache; >= 1
  int64_t tokens = 64;                    // decoded one by one, after each of the contexts; >= 1
  std::vector<int64_t> contexts = {512};  // positions in the cache before decoding; at least one, each >= 0
  int64_t repeat = 5;                     // >= 1
  int64_t bandwidth_bytes = int64_t{1} << 29;
};

// Repetitions of one piece of work.
struct Speed {
  int64_t tokens = 0;           // of each
  std::vector<double> seconds;  // in the order in which they ran
  // Tokens per second.
  double median() const;
  double slowest() const;
  double fastest() const;
};

struct BenchResult {
  Speed prefill;
  std::vector<Speed> decode;    // after each context
  double read_bandwidth = 0.0;  // GB/s of the engine's threads: the median of passes between the repetitions
  int64_t peak_rss_bytes = 0;   // of the process, without the buffer of the bandwidth
  int threads = 0;
  Isa isa = Isa::scalar;
};

using BenchProgress = std::function<void(int64_t done, int64_t total)>;  // tokens; may throw

// How fast `speed` is beside `other`, of the same repetitions: the median of each one's ratio.
double median_ratio(const Speed& speed, const Speed& other);

// Prefill (only the last token's logits), decode (logits of each, after one context and the next) and reading memory by
// turns, once unmeasured and then `repeat` times. A context other than the prompt's length is filled once, before.
// The ids are random, the same in every run: what a model would answer must not decide how fast it is. The length that
// the model was made for is no limit.
BenchResult run_benchmark(Engine& engine, const BenchOptions& options, const BenchProgress& progress = {});

}  // namespace qat
