#include "inference/attention.h"

#include <algorithm>

namespace qat {
namespace {

struct Range {
  int64_t first, end;
};
Range seen_by(const AttentionHeads& a, int64_t row) {
  const int64_t end = a.position + row + 1;
  return {end > a.window ? end - a.window : 0, end};
}

// use(floats of the positions, the first of them) for all that some row sees: as they are stored, or decoded in blocks
// that begin at multiples of kAttentionBlock, wherever the rows begin, so that sums are cut up alike for each.
template <class Use>
void for_blocks(Isa isa, const AttentionHeads& a, const CacheRows& cache, const Use& use) {
  const int64_t end = a.position + a.rows;
  for (int64_t position = seen_by(a, 0).first, n = 0; position < end; position += n) {
    if (const float* stored = cache.floats(position, a.kv_head)) {
      n = std::min(end - position, cache.run(position));
      use(FloatRows{stored, cache.stride(), n, a.head_dim}, position);
      continue;
    }
    n = std::min(end - position, kAttentionBlock - position % kAttentionBlock);
    cache.decode(isa, position, a.kv_head, n, a.decoded);
    use(FloatRows{a.decoded, a.head_dim, n, a.head_dim}, position);
  }
}

// use(row, those of the positions that it sees, the first of them).
template <class Use>
void for_rows(const AttentionHeads& a, const FloatRows& rows, int64_t first, const Use& use) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const Range seen = seen_by(a, r);
    const int64_t from = std::max(first, seen.first), to = std::min(first + rows.count, seen.end);
    if (from >= to) continue;
    use(r, FloatRows{rows.data + (from - first) * rows.stride, rows.stride, to - from, rows.cols}, from);
  }
}

}  // namespace

void attend(Isa isa, const AttentionHeads& a) {
  const VectorKernels& ops = vector_kernels(isa);
  const int64_t origin = seen_by(a, 0).first, span = a.position + a.rows - origin;
  const auto scores = [&](int64_t row, int64_t head, int64_t position) {
    return a.scores + (row * a.heads + head) * span + position - origin;
  };
  for_blocks(isa, a, *a.k, [&](const FloatRows& block, int64_t first) {
    for_rows(a, block, first, [&](int64_t r, const FloatRows& keys, int64_t position) {
      ops.scores(a.q + r * a.q_stride, a.head_dim, a.heads, keys, a.scale, scores(r, 0, position), span);
    });
  });
  for (int64_t r = 0; r < a.rows; ++r) {
    const Range seen = seen_by(a, r);
    for (int64_t h = 0; h < a.heads; ++h) ops.softmax(scores(r, h, seen.first), seen.end - seen.first);
  }
  for_blocks(isa, a, *a.v, [&](const FloatRows& block, int64_t first) {
    for_rows(a, block, first, [&](int64_t r, const FloatRows& values, int64_t position) {
      const bool add = position > seen_by(a, r).first;
      ops.mix(scores(r, 0, position), span, a.heads, values, add, a.out + r * a.q_stride, a.head_dim);
    });
  });
}

}  // namespace qat
