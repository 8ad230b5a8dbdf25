// Speed of attention over a cache, which is kernels_bench's row
//   attention/TYPE/ISA/THREADS         layers of 8 heads of 64 numbers, four queries to each, at 4096 positions; so
//                                      many that no cache of the processor holds their 512 MB
//   cached_attention/TYPE/ISA          one head of 512 positions again and again: what the instructions cost
// GB/s of keys and values; each is held against floats before it is timed.
#include "bench/attention_bench.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "inference/attention.h"
#include "inference/bench.h"
#include "inference/thread_pool.h"

namespace qat {
namespace {

constexpr int64_t kHeadDim = 64, kKvHeads = 8, kGroup = 4;
constexpr int64_t kPositions = 4096, kMemoryBytes = int64_t{1} << 29;

struct CacheOfOneType {
  std::vector<CacheRows> k, v;  // per layer
};

CacheOfOneType make_cache(DType type, int64_t layers, int64_t positions) {
  LayerConfig layer;
  layer.kv_heads = kKvHeads;
  layer.head_dim = kHeadDim;
  const int bits = code_bits(type);
  const float scale = bits == 0 ? 0.0f : 1.0f / static_cast<float>(1 << (bits - 1));
  CacheOfOneType cache;
  std::mt19937 random(1);
  std::vector<float> row(kKvHeads * kHeadDim);
  for (const Cached what : {Cached::keys, Cached::values}) {
    CacheRows rows = cache_rows(layer, what, bits, scale, type, positions);
    for (int64_t p = 0; p < positions; ++p) {
      for (float& x : row) x = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
      rows.store(p, row.data());
    }
    (what == Cached::keys ? cache.k : cache.v).assign(static_cast<size_t>(layers), rows);
  }
  return cache;
}

// What one thread attends with: its scratch, and queries and results of a head's four.
struct Attender {
  explicit Attender(int64_t positions)
      : scores(static_cast<size_t>(kGroup * attention_span(positions - 1, 1, positions))) {
    std::mt19937 random(2);
    for (float& x : q) x = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
    heads.q = q.data();
    heads.q_stride = kGroup * kHeadDim;
    heads.heads = kGroup;
    heads.head_dim = kHeadDim;
    heads.position = positions - 1;
    heads.scale = 0.125f;
    heads.scores = scores.data();
    heads.decoded = decoded.data();
    heads.coded = coded.data();
    heads.out = out.data();
    heads.part = part.data();
    heads.sums = sums.data();
  }
  const HugeVector<float>& attend_to(Isa isa, const CacheOfOneType& cache, int64_t layer, int64_t head) {
    heads.k = &cache.k[static_cast<size_t>(layer)];
    heads.v = &cache.v[static_cast<size_t>(layer)];
    heads.kv_head = head;
    attend(isa, heads);
    return out;
  }

  HugeVector<float> scores;
  HugeVector<float> q = HugeVector<float>(kGroup * kHeadDim), out = q, part = q;
  std::vector<SoftmaxSum> sums = std::vector<SoftmaxSum>(2 * kGroup);
  HugeVector<float> decoded = HugeVector<float>(kAttentionBlock * kHeadDim);
  HugeVector<float> coded = HugeVector<float>(static_cast<size_t>(coded_floats(kGroup, kHeadDim)));
  AttentionHeads heads;
};

// Against plain loops over what the cache holds. Grouped keys meet queries in 8 bits.
void verify(Isa isa, DType type) {
  constexpr int64_t kFew = 100;
  const CacheOfOneType cache = make_cache(type, 1, kFew);
  Attender fast(kFew), plain(kFew);
  const HugeVector<float>&x = fast.attend_to(isa, cache, 0, 1), &y = plain.attend_to(Isa::scalar, cache, 0, 1);
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
    size += std::pow(static_cast<double>(y[i]), 2);
  }
  if (error <= 1e-8 * size) return;
  std::fprintf(stderr, "attention %s %s: relative error %g\n", dtype_name(type), isa_name(isa),
               std::sqrt(error / size));
  std::exit(1);
}

void run(benchmark::State& state, Isa isa, DType type, int64_t layers, int64_t positions, int threads) {
  verify(isa, type);
  const CacheOfOneType cache = make_cache(type, layers, positions);
  const int64_t heads = layers > 1 ? kKvHeads : 1, calls = layers > 1 ? layers * heads : 64;
  std::vector<Attender> attenders;
  attenders.reserve(static_cast<size_t>(threads));  // none may move: they point into themselves
  for (int i = 0; i < threads; ++i) attenders.emplace_back(positions);
  ThreadPool pool(threads);
  for (auto _ : state)
    pool.parallel_for(calls, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i)
        attenders[static_cast<size_t>(worker)].attend_to(isa, cache, i / heads % layers, i % heads);
    });
  const size_t head_bytes = (cache.k[0].bytes() + cache.v[0].bytes()) / kKvHeads;
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * calls * static_cast<int64_t>(head_bytes));
}

}  // namespace

void add_attention_benchmarks(const std::vector<int>& thread_counts) {
  for (const CacheKernel& kernel : cache_kernels()) {
    const Isa isa = kernel.isa;
    const DType type = kernel.type;
    if (isa == Isa::scalar || !isa_supported(isa)) continue;
    const std::string name = std::string("attention/") + dtype_name(type) + "/" + isa_name(isa);
    const auto layer = static_cast<int64_t>(row_bytes(type, kHeadDim)) * kKvHeads * kPositions * 2;  // bytes
    const int64_t layers = kMemoryBytes / layer;
    for (const int threads : thread_counts)
      benchmark::RegisterBenchmark((name + "/" + std::to_string(threads)).c_str(),
                                   [=](benchmark::State& state) { run(state, isa, type, layers, kPositions, threads); })
          ->Unit(benchmark::kMicrosecond)
          ->UseRealTime();
    benchmark::RegisterBenchmark(("cached_" + name).c_str(),
                                 [=](benchmark::State& state) { run(state, isa, type, 1, 512, 1); })
        ->Unit(benchmark::kMicrosecond)
        ->UseRealTime();
  }
}

}  // namespace qat
