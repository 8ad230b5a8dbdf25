// Rows of kernels_bench that attend to a cache.
#pragma once

#include <benchmark/benchmark.h>

#include <vector>

namespace qat {

void add_attention_benchmarks(const std::vector<int>& thread_counts);

}  // namespace qat
