#include "inference/attention.h"

#include <algorithm>

namespace qat {
namespace {

// Codes that meet more rows than these (heads counted) are unpacked once; fewer, as they are met.
constexpr int64_t kFewRows = 8;
constexpr int64_t kAhead = 4096;  // bytes

struct Range {
  int64_t first, end;
};
Range seen_by(const AttentionHeads& a, int64_t row) {
  const int64_t end = a.position + row + 1;
  return {end > a.window ? end - a.window : 0, end};
}

struct Source {
  const CacheRows* cache;
  const CacheKernel* kernel;
  bool is_decoded;  // to floats first
  float scale;      // of what the kernel makes of them
};
Source source_of(Isa isa, const AttentionHeads& a, const CacheRows& cache) {
  const DType type = cache.type();
  const CacheKernel* kernel = find_cache_kernel(type, isa);
  const bool is_decoded = kernel == nullptr || (code_bits(type) != 0 && a.rows * a.heads > kFewRows) ||
                          (type != DType::F32 && a.head_dim % 8 != 0);
  if (is_decoded) kernel = find_cache_kernel(DType::F32, isa);
  return {&cache, kernel, is_decoded, cache.scale() / kernel->unit};
}

// use(rows, the position of the first of them) for all positions that some row of activations sees, in blocks that
// begin at multiples of kAttentionBlock, wherever the rows begin, so that sums are cut up alike for each.
template <class Use>
void for_blocks(Isa isa, const AttentionHeads& a, const Source& source, const Use& use) {
  const int64_t end = a.position + a.rows;
  for (int64_t position = seen_by(a, 0).first, n = 0; position < end; position += n) {
    n = std::min({end - position, kAttentionBlock - position % kAttentionBlock, source.cache->run(position)});
    CachedRows rows = {source.cache->stored(position, a.kv_head), source.cache->stride(), n, a.head_dim};
    // While this block is attended to, memory brings what comes after the next.
    const uint8_t* ahead = rows.data + std::max(kAhead, n * rows.stride);
    for (int64_t byte = 0; byte < n * rows.stride; byte += 64) __builtin_prefetch(ahead + byte);
    if (source.is_decoded) {
      source.cache->decode(isa, position, a.kv_head, n, a.decoded);
      rows.data = reinterpret_cast<const uint8_t*>(a.decoded);
      rows.stride = a.head_dim * static_cast<int64_t>(sizeof(float));
    }
    use(rows, position);
  }
}

// use(row, those of the positions that it sees, the first of them).
template <class Use>
void for_rows(const AttentionHeads& a, const CachedRows& rows, int64_t first, const Use& use) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const Range seen = seen_by(a, r);
    const int64_t from = std::max(first, seen.first), to = std::min(first + rows.count, seen.end);
    if (from < to)
      use(r, CachedRows{rows.data + (from - first) * rows.stride, rows.stride, to - from, rows.cols}, from);
  }
}

}  // namespace

void attend(Isa isa, const AttentionHeads& a) {
  const Source k = source_of(isa, a, *a.k), v = source_of(isa, a, *a.v);
  const VectorKernels& ops = vector_kernels(isa);
  const int64_t origin = seen_by(a, 0).first, span = a.position + a.rows - origin;
  const auto scores = [&](int64_t row, int64_t head, int64_t position) {
    return a.scores + (row * a.heads + head) * span + position - origin;
  };
  for_blocks(isa, a, k, [&](const CachedRows& block, int64_t first) {
    for_rows(a, block, first, [&](int64_t r, const CachedRows& keys, int64_t position) {
      k.kernel->scores(a.q + r * a.q_stride, a.head_dim, a.heads, keys, a.scale * k.scale, scores(r, 0, position),
                       span);
    });
  });
  for (int64_t r = 0; r < a.rows; ++r) {
    const Range seen = seen_by(a, r);
    for (int64_t h = 0; h < a.heads; ++h) ops.softmax(scores(r, h, seen.first), seen.end - seen.first);
  }
  for_blocks(isa, a, v, [&](const CachedRows& block, int64_t first) {
    for_rows(a, block, first, [&](int64_t r, const CachedRows& values, int64_t position) {
      const bool add = position > seen_by(a, r).first;
      v.kernel->mix(scores(r, 0, position), span, a.heads, values, add, a.out + r * a.q_stride, a.head_dim);
    });
  });
  for (int64_t r = 0; r < a.rows && v.scale != 1.0f; ++r)
    for (int64_t i = 0; i < a.heads * a.head_dim; ++i) a.out[r * a.q_stride + i] *= v.scale;
}

}  // namespace qat
