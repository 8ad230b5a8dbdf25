#include "inference/attention.h"

#include <algorithm>

namespace qat {
namespace {

// use(rows, j, n) for the positions, as floats in pieces of n from first + j on: as they are stored, or decoded.
template <class Use>
void for_blocks(Isa isa, const AttentionHeads& a, const CacheRows& cache, const Use& use) {
  for (int64_t j = 0, n = 0; j < a.count; j += n) {
    const int64_t position = a.first + j;
    if (const float* stored = cache.floats(position, a.kv_head)) {
      n = std::min(a.count - j, cache.run(position));
      use(FloatRows{stored, cache.stride(), n, a.head_dim}, j);
      continue;
    }
    n = std::min(a.count - j, kAttentionBlock);
    for (int64_t i = 0; i < n; ++i) cache.decode(isa, position + i, a.kv_head, a.decoded + i * a.head_dim);
    use(FloatRows{a.decoded, a.head_dim, n, a.head_dim}, j);
  }
}

}  // namespace

void attend(Isa isa, const AttentionHeads& a) {
  const VectorKernels& ops = vector_kernels(isa);
  for_blocks(isa, a, *a.k, [&](const FloatRows& keys, int64_t j) {
    for (int64_t h = 0; h < a.heads; ++h) ops.scores(a.q + h * a.head_dim, keys, a.scale, a.scores + h * a.count + j);
  });
  for (int64_t h = 0; h < a.heads; ++h) ops.softmax(a.scores + h * a.count, a.count);
  for_blocks(isa, a, *a.v, [&](const FloatRows& values, int64_t j) {
    for (int64_t h = 0; h < a.heads; ++h) ops.mix(a.scores + h * a.count + j, values, j > 0, a.out + h * a.head_dim);
  });
}

}  // namespace qat
