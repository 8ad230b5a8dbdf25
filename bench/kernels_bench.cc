// Speed of every row of the engine's tables of kernels, on one thread, and on all where memory is what counts. Each is
// held against its oracle before it is timed.
//   read/THREADS          memory read, nothing done with it: what dot/ can reach at most
//   dot/TYPE/ISA/THREADS  one row of 8-bit activations with a matrix of 512 MB, which no cache holds: GB/s of weights
//   cached_dot/TYPE/ISA   the same with 128 kB, which the second level holds: what the instructions cost
//   panel/TYPE/ISA        512 rows of 8-bit activations with 2048 rows of weights: multiply-adds per second
//   attention/..., cached_attention/...: see attention_bench.cc
// build: cmake -B build -DQAT_BENCH=ON && cmake --build build --target kernels_bench
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>

#include "bench/attention_bench.h"
#include "format/channel_grid.h"
#include "format/grid.h"
#include "inference/bench.h"
#include "inference/huge_pages.h"
#include "inference/matmul.h"

namespace qat {
namespace {

constexpr int64_t kCols = 2048;
constexpr int64_t kMemoryBytes = int64_t{1} << 29;  // of 128 MB, read again and again, servers' caches keep a part

// Random codes: every bit pattern is one; after a thousand rows they come again. Scales of blocks are set to 1 / 64.
struct RandomMatrix {
  RandomMatrix(DType type, int64_t rows)
      : bytes(row_bytes(type, kCols) * static_cast<size_t>(rows)), scales(rows, 0.25f) {
    std::mt19937 random(1);
    const size_t first = std::min(bytes.size(), row_bytes(type, kCols) * 1000);
    for (size_t i = 0; i < first; ++i) bytes[i] = static_cast<uint8_t>(random());
    const size_t block = dtype_info(type).block_bytes, at = type == DType::Q6_K ? 208 : 0;
    for (size_t i = 0; code_bits(type) == 0 && i < first; i += block) {
      bytes[i + at] = 0;
      bytes[i + at + 1] = 0x24;
    }
    for (size_t i = first; i < bytes.size(); i += first)
      std::copy_n(bytes.begin(), std::min(first, bytes.size() - i), bytes.begin() + static_cast<std::ptrdiff_t>(i));
    matrix = {type, rows, kCols, bytes.data()};
    if (code_bits(type) == 0) return;
    matrix.scales = reinterpret_cast<const uint8_t*>(scales.data());
    matrix.input_scale = 1.0f / 32;
  }
  HugeVector<uint8_t> bytes;
  std::vector<float> scales;
  Matrix matrix;
};

std::vector<float> random_floats(int64_t count) {
  std::mt19937 random(2);
  std::vector<float> x(static_cast<size_t>(count));
  for (float& v : x) v = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
  return x;
}

// Fast against the reference, which meets the same weights with unrounded activations (the static grid apart).
void verify(Isa isa, const Matrix& matrix, const std::vector<float>& x, int64_t rows) {
  ThreadPool pool(1);
  Matrix some = matrix;
  some.rows = 24;
  std::vector<float> fast(static_cast<size_t>(rows * some.rows)), reference(fast.size());
  for (const bool is_fast : {true, false}) {
    MatmulInput input;
    input.set(x.data(), rows, kCols);
    matmul({is_fast ? isa : Isa::scalar, is_fast}, pool, input, some, is_fast ? fast.data() : reference.data());
  }
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < fast.size(); ++i) {
    error += std::pow(static_cast<double>(fast[i]) - static_cast<double>(reference[i]), 2);
    size += std::pow(static_cast<double>(reference[i]), 2);
  }
  if (error <= 1e-4 * size) return;
  std::fprintf(stderr, "%s %s: relative error %g\n", dtype_name(matrix.dtype), isa_name(isa), std::sqrt(error / size));
  std::exit(1);
}

void run(benchmark::State& state, Isa isa, DType type, int64_t outputs, int64_t rows, int threads) {
  const RandomMatrix w(type, outputs);
  const std::vector<float> x = random_floats(rows * kCols);
  verify(isa, w.matrix, x, rows);
  std::vector<float> y(static_cast<size_t>(rows * outputs));
  ThreadPool pool(threads);
  MatmulInput input;
  for (auto _ : state) {
    input.set(x.data(), rows, kCols);
    matmul({isa, true}, pool, input, w.matrix, y.data());
    benchmark::ClobberMemory();
  }
  using benchmark::Counter;
  const double steps = static_cast<double>(state.iterations());
  state.counters["weights"] = Counter(steps * static_cast<double>(w.bytes.size()), Counter::kIsRate, Counter::kIs1000);
  state.counters["multiply-adds"] =
      Counter(steps * static_cast<double>(rows * outputs * kCols), Counter::kIsRate, Counter::kIs1000);
}

void read_memory(benchmark::State& state, int threads) {
  ThreadPool pool(threads);
  for (auto _ : state)
    state.SetIterationTime(static_cast<double>(kMemoryBytes) / 1e9 /
                           median(ReadBandwidth(kMemoryBytes).measure(pool, 3)));
  state.counters["memory"] = benchmark::Counter(static_cast<double>(state.iterations() * kMemoryBytes),
                                                benchmark::Counter::kIsRate, benchmark::Counter::kIs1000);
}

void add(const char* what, Isa isa, DType type, int64_t rows, int64_t bytes = kMemoryBytes, int threads = 1) {
  if (!isa_supported(isa)) return;
  std::string name = std::string(what) + "/" + dtype_name(type) + "/" + isa_name(isa);
  if (rows == 1) name += "/" + std::to_string(threads);
  const int64_t outputs = rows == 1 ? bytes / static_cast<int64_t>(row_bytes(type, kCols)) : 2048;
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) { run(state, isa, type, outputs, rows, threads); })
      ->Unit(benchmark::kMicrosecond)
      ->UseRealTime();
}

}  // namespace
}  // namespace qat

int main(int argc, char** argv) {
  using namespace qat;
  std::vector<int> thread_counts = {1};
  if (const unsigned all = std::thread::hardware_concurrency(); all > 1) thread_counts.push_back(static_cast<int>(all));
  const auto add_dots = [&](Isa isa, DType type) {
    for (const int threads : thread_counts) add("dot", isa, type, 1, kMemoryBytes, threads);
    add("cached_dot", isa, type, 1, 128000);
  };
  for (const int threads : thread_counts) {
    benchmark::RegisterBenchmark(("read/" + std::to_string(threads)).c_str(), read_memory, threads)
        ->Unit(benchmark::kMicrosecond)
        ->UseManualTime();
  }
  for (const BlockKernel& kernel : block_kernels()) add_dots(kernel.isa, kernel.type);
  for (const ChannelKernel& kernel : channel_kernels())
    if (kernel.isa != Isa::scalar) add_dots(kernel.isa, kernel.type);
  for (const CodePanelKernel& kernel : code_panel_kernels()) add("panel", kernel.isa, kernel.type, 512);
  add_attention_benchmarks(thread_counts);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
