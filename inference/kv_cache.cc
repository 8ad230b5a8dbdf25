#include "inference/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/grid.h"
#include "inference/kernels.h"
#include "inference/transformer.h"

namespace qat {
namespace {

// Whoever attends to what is not finite shall see it: all of the block is NaN.
BlockQ8_0 cached_block(const float* x) {
  if (!std::all_of(x, x + kBlockSize, [](float v) { return std::isfinite(v); })) return {0x7e00, {}};
  return encode_q8_0(x);
}

}  // namespace

CacheRows::CacheRows(int64_t heads, int64_t head_dim, int64_t slots, DType type, float scale)
    : heads_(heads), head_dim_(head_dim), slots_(slots), type_(type), scale_(scale) {
  QAT_CHECK(head_dim % dtype_info(type).block_size == 0 || code_bits(type) != 0);
  is_paired_ = type == DType::I4 && head_dim % kPairedCodes == 0;
  head_bytes_ = row_bytes(type, head_dim);
  codes_.resize(static_cast<size_t>(slots * heads) * head_bytes_);
}

CacheRows CacheRows::in_groups(int64_t heads, int64_t head_dim, int64_t slots) {
  CacheRows rows(heads, head_dim, (slots + kKeyGroup - 1) / kKeyGroup * kKeyGroup, DType::Q8_0);
  QAT_CHECK(static_cast<int64_t>(rows.head_bytes_) * kKeyGroup == key_group_bytes(head_dim));
  rows.is_grouped_ = true;
  return rows;
}

size_t CacheRows::offset(int64_t position, int64_t head) const {
  const int64_t slot = position % slots_, first = is_grouped_ ? slot / kKeyGroup * kKeyGroup : slot;
  return static_cast<size_t>(head * slots_ + first) * head_bytes_;
}

void CacheRows::store(int64_t position, const float* row) {
  for (int64_t head = 0; head < heads_; ++head, row += head_dim_) {
    if (is_grouped_) {
      store_key(position, head, row);
      continue;
    }
    uint8_t* out = codes_.data() + offset(position, head);
    if (type_ == DType::Q8_0) {
      for (int64_t i = 0; i < head_dim_; i += kBlockSize, out += sizeof(BlockQ8_0)) {
        const BlockQ8_0 block = cached_block(row + i);
        std::memcpy(out, &block, sizeof block);
      }
    } else if (code_bits(type_) == 0) {
      encode_rows(type_, row, 1, head_dim_, out);
    } else {
      store_codes(row, out);
    }
  }
}

void CacheRows::store_codes(const float* row, uint8_t* out) const {
  int8_t codes[256];
  constexpr int64_t kPiece = sizeof codes;  // whole bytes at every width, and whole groups of pairs
  const int bits = code_bits(type_);
  for (int64_t i = 0; i < head_dim_; i += kPiece, out += kPiece * bits / 8) {
    const int64_t n = std::min(kPiece, head_dim_ - i);
    encode_channel(bits, row + i, n, scale_, codes);
    if (!is_paired_) {
      pack_codes(bits, codes, 1, n, out);
      continue;
    }
    for (int64_t k = 0; k < n / 2; ++k) {
      const int8_t* lower = codes + k / 16 * kPairedCodes + k % 16;
      out[k] = static_cast<uint8_t>((lower[0] & 15) | lower[kPairedCodes / 2] * 16);
    }
  }
}

CacheRows::KeyPlace CacheRows::key_place(int64_t position, int64_t head) const {
  const int64_t place = position % kKeyGroup, scales = head_dim_ / kBlockSize * 2 * kKeyGroup;
  const size_t group = offset(position, head);
  return {group + static_cast<size_t>(2 * place), group + static_cast<size_t>(scales + 4 * place)};
}

void CacheRows::store_key(int64_t position, int64_t head, const float* row) {
  const KeyPlace place = key_place(position, head);
  uint8_t *scales = codes_.data() + place.scales, *codes = codes_.data() + place.codes;
  for (int64_t i = 0; i < head_dim_; i += kBlockSize, scales += 2 * kKeyGroup) {
    const BlockQ8_0 block = cached_block(row + i);
    std::memcpy(scales, &block.d, sizeof block.d);
    for (int64_t k = 0; k < kBlockSize; k += 4, codes += 4 * kKeyGroup) std::memcpy(codes, block.qs + k, 4);
  }
}

void CacheRows::decode_key(int64_t position, int64_t head, float* out) const {
  const KeyPlace place = key_place(position, head);
  const uint8_t *scales = codes_.data() + place.scales, *codes = codes_.data() + place.codes;
  for (int64_t i = 0; i < head_dim_; i += kBlockSize, scales += 2 * kKeyGroup) {
    BlockQ8_0 block;
    std::memcpy(&block.d, scales, sizeof block.d);
    for (int64_t k = 0; k < kBlockSize; k += 4, codes += 4 * kKeyGroup) std::memcpy(block.qs + k, codes, 4);
    decode_block(block, out + i);
  }
}

void CacheRows::decode(Isa isa, int64_t position, int64_t head, int64_t count, float* out) const {
  for (int64_t n = 0; count > 0; position += n, count -= n, out += n * head_dim_) {
    if (is_grouped_) {
      decode_key(position, head, out);
      n = 1;
      continue;
    }
    // Rows that fill whole bytes lie without gaps, until the ring begins anew.
    n = code_bits(type_) * head_dim_ % 8 == 0 ? std::min(count, run(position)) : 1;
    if (is_paired_) vector_kernels(isa).decode_pairs(stored(position, head), n * head_dim_, out);
    else if (code_bits(type_) == 0) find_row_kernel(type_, isa)->decode(stored(position, head), n * head_dim_, out);
    else find_channel_kernel(type_, isa)->decode(stored(position, head), n * head_dim_, 1.0f, out);
  }
}

KvCache::KvCache(const Engine& engine, int64_t capacity)
    : KvCache(engine.config(), engine.impl().transformer.cache_grids(), capacity,
              engine.impl().transformer.cache_type()) {}

KvCache::KvCache(const ModelConfig& config, const std::vector<CacheScales>& grids, int64_t capacity, DType type)
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
    check(layer, grid, type);
    k_[i] = cache_rows(layer, Cached::keys, grid.bits, grid.k, type, slots);
    v_[i] = cache_rows(layer, Cached::values, grid.bits, grid.v, type, slots);
  }
}

size_t KvCache::bytes() const {
  size_t total = 0;
  for (size_t i = 0; i < k_.size(); ++i) total += k_[i].bytes() + v_[i].bytes();
  return total;
}

void KvCache::check(const LayerConfig& layer, const CacheScales& grid, DType type) {
  const int block = dtype_info(type).block_size;
  const bool on_grids = grid.bits != 0 && grid.k > 0.0f && grid.v > 0.0f;
  if (!on_grids && layer.head_dim % block != 0)
    fail("KV cache of ", dtype_name(type), ": heads of ", layer.head_dim, " numbers are not whole blocks of ", block,
         "; use another type of cache (--kv-cache file)");
}

CacheRows cache_rows(const LayerConfig& layer, Cached what, int bits, float scale, DType type, int64_t slots) {
  if (bits != 0 && scale > 0.0f) return {layer.kv_heads, layer.head_dim, slots, code_type(bits), scale};
  if (type == DType::Q8_0 && what == Cached::keys) return CacheRows::in_groups(layer.kv_heads, layer.head_dim, slots);
  return {layer.kv_heads, layer.head_dim, slots, type};
}

bool has_grids(const std::vector<CacheScales>& grids) {
  return std::any_of(grids.begin(), grids.end(),
                     [](const CacheScales& g) { return g.bits != 0 && (g.k > 0.0f || g.v > 0.0f); });
}

}  // namespace qat
