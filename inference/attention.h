// Attention of one row of activations: softmax(scale * Q K^T) V over a range of positions.
#pragma once

#include <cstdint>

#include "inference/kernels.h"
#include "inference/kv_cache.h"

namespace qat {

// Positions whose codes are decoded at a time, for all heads that share them: 16 to 32 KiB, which stay in the first
// level of the cache.
constexpr int64_t kAttentionBlock = 16;

// Query heads that share one head of keys and values.
struct AttentionHeads {
  const float* q = nullptr;  // [heads, head_dim]
  int64_t heads = 0, head_dim = 0;
  const CacheRows *k = nullptr, *v = nullptr;
  int64_t kv_head = 0;
  int64_t first = 0, count = 0;  // positions [first, first + count), count >= 1
  float scale = 1.0f;
  float* scores = nullptr;   // scratch [heads, count]
  float* decoded = nullptr;  // scratch [kAttentionBlock, head_dim]
  float* out = nullptr;      // [heads, head_dim]
};
void attend(Isa isa, const AttentionHeads& a);

}  // namespace qat
