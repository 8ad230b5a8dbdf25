#include "inference/kv_cache.h"

#include <algorithm>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/grid.h"
#include "inference/kernels.h"
#include "inference/transformer.h"

namespace qat {

CacheRows::CacheRows(int64_t heads, int64_t head_dim, int64_t slots, int bits, float scale)
    : heads_(heads), head_dim_(head_dim), slots_(slots), bits_(scale > 0.0f || bits == 16 ? bits : 0), scale_(scale) {
  head_bytes_ = row_bytes(type(), head_dim);
  codes_.resize(static_cast<size_t>(slots * heads) * head_bytes_);
}

const uint8_t* CacheRows::stored(int64_t position, int64_t head) const {
  return codes_.data() + static_cast<size_t>(head * slots_ + position % slots_) * head_bytes_;
}

void CacheRows::store(int64_t position, const float* row) {
  int8_t codes[256];
  constexpr int64_t kPiece = sizeof codes;  // whole bytes at every width
  for (int64_t head = 0; head < heads_; ++head, row += head_dim_) {
    uint8_t* out = codes_.data() + (stored(position, head) - codes_.data());
    if (code_bits(type()) == 0) {
      encode_rows(type(), row, 1, head_dim_, out);
      continue;
    }
    for (int64_t i = 0; i < head_dim_; i += kPiece) {
      const int64_t n = std::min(kPiece, head_dim_ - i);
      encode_channel(bits_, row + i, n, scale_, codes);
      pack_codes(bits_, codes, 1, n, out + i * bits_ / 8);
    }
  }
}

void CacheRows::decode(Isa isa, int64_t position, int64_t head, int64_t count, float* out) const {
  for (int64_t n = 0; count > 0; position += n, count -= n, out += n * head_dim_) {
    // Rows that fill whole bytes lie without gaps, until the ring begins anew.
    n = code_bits(type()) * head_dim_ % 8 == 0 ? std::min(count, run(position)) : 1;
    if (code_bits(type()) == 0) find_row_kernel(type(), isa)->decode(stored(position, head), n * head_dim_, out);
    else find_channel_kernel(type(), isa)->decode(stored(position, head), n * head_dim_, 1.0f, out);
  }
}

KvCache::KvCache(const Engine& engine, int64_t capacity)
    : KvCache(engine.config(), engine.impl().transformer.cache_grids(), capacity,
              engine.impl().transformer.half_cache()) {}

KvCache::KvCache(const ModelConfig& config, const std::vector<CacheScales>& grids, int64_t capacity, bool half)
    : capacity_(capacity), has_grids_(qat::has_grids(grids)) {
  QAT_CHECK(capacity > 0 && (grids.empty() || grids.size() == config.layers.size()));
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    k_.emplace_back();
    v_.emplace_back();
    if (layer.kv_source != static_cast<int64_t>(i)) continue;
    const bool windowed = layer.sliding && config.sliding_window > 0;
    const int64_t slots = windowed ? std::min(capacity, config.sliding_window + kMaxBatchRows - 1) : capacity;
    const CacheScales grid = grids.empty() ? CacheScales() : grids[i];
    const auto rows = [&](float scale) {
      return CacheRows(layer.kv_heads, layer.head_dim, slots, half && scale == 0.0f ? 16 : grid.bits, scale);
    };
    k_[i] = rows(grid.k);
    v_[i] = rows(grid.v);
  }
}

size_t KvCache::bytes() const {
  size_t total = 0;
  for (size_t i = 0; i < k_.size(); ++i) total += k_[i].bytes() + v_[i].bytes();
  return total;
}

bool has_grids(const std::vector<CacheScales>& grids) {
  return std::any_of(grids.begin(), grids.end(),
                     [](const CacheScales& g) { return g.bits != 0 && (g.k > 0.0f || g.v > 0.0f); });
}

}  // namespace qat
