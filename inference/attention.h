// Attention of a few rows of activations: softmax(scale * Q K^T) V, each over its own range of positions.
#pragma once

#include <cstdint>

#include "inference/kernels.h"
#include "inference/kv_cache.h"

namespace qat {

// Positions that are unpacked at a time, for all heads that share them: they stay in the first level of the cache. Of
// floats as they are stored a multiple is taken.
constexpr int64_t kAttentionBlock = 16;

// Rows that are computed together: what is decoded of the cache serves them all.
constexpr int64_t kAttentionRows = 8;

// A sequence is attended to by stretches of so many positions, each with a softmax of its own, and what they come to is
// put together: threads can share a lone row, and scores of a long context need little memory. Where stretches begin
// depends on the position alone, so that a row's sums are cut up alike whoever attends.
constexpr int64_t kAttentionStretch = 2048;

// Consecutive positions of a sequence, each with the query heads that share one head of keys and values. The result of
// a row does not depend on the others.
struct AttentionHeads {
  const float* q = nullptr;  // [rows, q_stride], of which heads * head_dim are used
  int64_t rows = 1, q_stride = 0;
  int64_t heads = 0, head_dim = 0;
  const CacheRows *k = nullptr, *v = nullptr;
  int64_t kv_head = 0;
  int64_t position = 0;  // of the first row; row r sees the last `window` positions up to position + r
  int64_t window = INT64_MAX;
  int64_t begin = 0, end = INT64_MAX;  // of these only the ones from `begin` on and before `end`
  float scale = 1.0f;
  float* scores = nullptr;     // scratch: rows * heads * attention_span(position, rows, window) floats
  float* decoded = nullptr;    // scratch [kAttentionBlock, head_dim]
  float* coded = nullptr;      // scratch: coded_floats(rows * heads, head_dim), where the keys are in groups
  float* out = nullptr;        // as q
  float* part = nullptr;       // scratch as out, where there is more than a stretch
  SoftmaxSum* sums = nullptr;  // of out [rows, heads]; then scratch for as many, those of part
};
// From one head's scores to the next one's: the positions of a stretch that some row sees, up to whole lines of the
// cache, since a vector that lies across two costs two loads.
inline int64_t attention_span(int64_t position, int64_t rows, int64_t window) {
  const int64_t seen = position + rows - (position + 1 > window ? position + 1 - window : 0);
  return ((seen < kAttentionStretch ? seen : kAttentionStretch) + 15) / 16 * 16;
}
// Room for queries in 8 bits, their scales and sums, and the other sums that CodeKernels::encode_blocks makes.
inline int64_t coded_floats(int64_t queries, int64_t head_dim) {
  return queries * (head_dim / 4 + head_dim / kCodeBlock * 2) + head_dim / kCodeBlock * 3;
}
void attend(Isa isa, const AttentionHeads& a);

// The same by stretches [first, end) of a's positions, in any order and by any thread: `out` and `sums` are that
// stretch's; of a row that sees nothing of it `out` is not written, and the sum is 0. Then merge_stretch() all but the
// first in their order.
struct Stretches {
  int64_t first, end;
};
Stretches stretches_of(const AttentionHeads& a);
void attend_stretch(Isa isa, const AttentionHeads& a, int64_t stretch);
// Puts what a later stretch came to, laid out as they are, to a.out and a.sums.
void merge_stretch(const AttentionHeads& a, const float* part, const SoftmaxSum* part_sums);

}  // namespace qat
