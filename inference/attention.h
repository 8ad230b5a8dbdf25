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
  float scale = 1.0f;
  float* scores = nullptr;   // scratch: rows * heads * attention_span(position, rows, window) floats
  float* decoded = nullptr;  // scratch [kAttentionBlock, head_dim]
  float* coded = nullptr;    // scratch: coded_floats(rows * heads, head_dim), where the keys are in groups
  float* out = nullptr;      // as q
};
// From one head's scores to the next one's: the positions that some row sees, from the first on, up to whole lines of
// the cache, since a vector that lies across two costs two loads.
inline int64_t attention_span(int64_t position, int64_t rows, int64_t window) {
  const int64_t seen = position + rows - (position + 1 > window ? position + 1 - window : 0);
  return (seen + 15) / 16 * 16;
}
// Room for queries in 8 bits, their scales and sums, and the other sums that CodeKernels::encode_blocks makes.
inline int64_t coded_floats(int64_t queries, int64_t head_dim) {
  return queries * (head_dim / 4 + head_dim / kCodeBlock * 2) + head_dim / kCodeBlock * 3;
}
void attend(Isa isa, const AttentionHeads& a);

}  // namespace qat
