// How loops of products are cut up for a pool of threads. Internal to inference/.
#pragma once

#include <algorithm>
#include <cstdint>

#include "inference/thread_pool.h"

namespace qat {

constexpr int64_t kWorthAThread = 1 << 15;  // multiply-adds of floats below which a loop is not worth sharing

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Items per piece, multiples of `step`: at the least what is worth a thread, at the most what gives every thread some
// pieces.
inline ThreadPool::Pieces pieces_of(int64_t items, int64_t work_per_item, int64_t step, int workers) {
  const int64_t least = round_up(std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work_per_item)), step);
  return {std::max(least, round_up(items / (4 * workers), step)), least};
}
// The same where all pieces are alike.
inline int64_t piece_of(int64_t items, int64_t work_per_item, int64_t step, int workers) {
  return pieces_of(items, work_per_item, step, workers).most;
}

}  // namespace qat
