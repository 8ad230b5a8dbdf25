// Keys and values of the positions seen so far: floats, blocks of Q8_0, or codes on a layer's static grids.
#pragma once

#include <cstdint>
#include <vector>

#include "format/channel_grid.h"
#include "format/mobile.h"
#include "format/model_config.h"
#include "inference/huge_pages.h"
#include "inference/isa.h"

namespace qat {

class Engine;

constexpr int64_t kMaxBatchRows = 512;  // rows per forward pass: bounds the memory of a workspace

// The keys, or the values, of one layer: per position [heads, head_dim], kept head by head, since attention reads one
// head's positions after the other. A ring: a position overwrites the one `slots` before it.
class CacheRows {
 public:
  CacheRows() = default;  // of a layer that reads another's
  // F32, F16, Q8_0 (head_dim is a multiple of 32), or I2, I4, I8: codes (format/channel_grid.h) of that scale, packed;
  // of 4 bits in pairs (inference/kernels.h) where head_dim is a multiple of kPairedCodes.
  CacheRows(int64_t heads, int64_t head_dim, int64_t slots, DType type, float scale = 1.0f);
  // Keys in Q8_0, in groups of positions as KeyKernel (inference/kernels.h) wants them.
  static CacheRows in_groups(int64_t heads, int64_t head_dim, int64_t slots);

  // Rounds as the type's encoder does; a block of Q8_0 with something in it that is not finite becomes NaN.
  void store(int64_t position, const float* row);
  bool is_grouped() const { return is_grouped_; }
  // What is stored of a position, head_dim numbers of type() times scale(); the next position's is stride() bytes
  // further on, for run(position) positions. Keys in groups: the group that the position is in, which begins at a
  // multiple of kKeyGroup.
  const uint8_t* stored(int64_t position, int64_t head) const { return codes_.data() + offset(position, head); }
  DType type() const { return type_; }
  float scale() const { return scale_; }  // 1 but of codes
  int64_t stride() const { return static_cast<int64_t>(head_bytes_); }
  int64_t run(int64_t position) const { return slots_ - position % slots_; }
  // out [count, head_dim]: those numbers of consecutive positions as floats, without the scale. All but F32.
  void decode(Isa isa, int64_t position, int64_t head, int64_t count, float* out) const;
  size_t bytes() const { return codes_.size(); }

 private:
  struct KeyPlace {  // where in codes_ its first scale and its first four codes are
    size_t scales, codes;
  };
  KeyPlace key_place(int64_t position, int64_t head) const;
  size_t offset(int64_t position, int64_t head) const;
  void store_key(int64_t position, int64_t head, const float* row);
  void store_codes(const float* row, uint8_t* out) const;
  void decode_key(int64_t position, int64_t head, float* out) const;

  int64_t heads_ = 0, head_dim_ = 0, slots_ = 0;
  DType type_ = DType::F32;
  bool is_grouped_ = false, is_paired_ = false;
  float scale_ = 1.0f;
  size_t head_bytes_ = 0;      // of a position, of one head
  HugeVector<uint8_t> codes_;  // floats, too
};

// Of one sequence. Sliding layers keep their window and one pass of rows, however long the sequence.
class KvCache {
 public:
  // As an engine's model wants it. `capacity` in positions.
  KvCache(const Engine& engine, int64_t capacity);
  // Of floats, for models whose cache has no static grid (that is checked when the cache is used).
  KvCache(const ModelConfig& config, int64_t capacity) : KvCache(config, {}, capacity) {}
  // grids: per layer, or none. `type` is what there is of keys or values without a grid: F32, F16 or Q8_0. Throws
  // Error: Q8_0, and a head is not whole blocks.
  KvCache(const ModelConfig& config, const std::vector<CacheScales>& grids, int64_t capacity, DType type = DType::F32);

  // Throws Error where a layer cannot be kept so, as the constructors do.
  static void check(const LayerConfig& layer, const CacheScales& grid, DType type);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  size_t bytes() const;
  void clear() { length_ = 0; }

  // For the forward pass: rows of a layer that owns its K and V, and the count of positions once all layers have
  // theirs.
  CacheRows& k(size_t layer) { return k_[layer]; }
  CacheRows& v(size_t layer) { return v_[layer]; }
  bool has_grids() const { return has_grids_; }
  void set_length(int64_t length) { length_ = length; }

 private:
  int64_t capacity_ = 0, length_ = 0;
  bool has_grids_ = false;
  std::vector<CacheRows> k_, v_;  // per layer
};

// One layer's keys, or values: on a static grid of `bits` and `scale` where the scale is not 0, else as `type`.
enum class Cached { keys, values };
CacheRows cache_rows(const LayerConfig& layer, Cached what, int bits, float scale, DType type, int64_t slots);

// True when some layer's keys or values are on a grid.
bool has_grids(const std::vector<CacheScales>& grids);

}  // namespace qat
