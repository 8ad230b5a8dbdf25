// Keys and values of the positions seen so far, as floats or as codes on a layer's static grids.
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
  // scale > 0: codes of 2, 4 or 8 bits (format/channel_grid.h), packed. Otherwise floats, of 16 bits where bits is 16.
  CacheRows(int64_t heads, int64_t head_dim, int64_t slots, int bits, float scale);

  void store(int64_t position, const float* row);  // rounds to nearest, ties to even
  // What is stored of a position, head_dim numbers of type() times scale(). The next position's is stride() bytes
  // further on, for run(position) positions.
  const uint8_t* stored(int64_t position, int64_t head) const;
  DType type() const { return bits_ == 0 ? DType::F32 : bits_ == 16 ? DType::F16 : code_type(bits_); }
  float scale() const { return bits_ == 0 || bits_ == 16 ? 1.0f : scale_; }
  int64_t stride() const { return static_cast<int64_t>(head_bytes_); }
  int64_t run(int64_t position) const { return slots_ - position % slots_; }
  // out [count, head_dim]: those numbers of consecutive positions as floats, without the scale. F16 and codes.
  void decode(Isa isa, int64_t position, int64_t head, int64_t count, float* out) const;
  size_t bytes() const { return codes_.size(); }

 private:
  int64_t heads_ = 0, head_dim_ = 0, slots_ = 0;
  int bits_ = 0;  // of codes; 16: half floats, 0: floats
  float scale_ = 0.0f;
  size_t head_bytes_ = 0;
  HugeVector<uint8_t> codes_;  // floats, too
};

// Of one sequence. Sliding layers keep their window and one pass of rows, however long the sequence.
class KvCache {
 public:
  // As an engine's model wants it. `capacity` in positions.
  KvCache(const Engine& engine, int64_t capacity);
  // Of floats, for models whose cache has no static grid (that is checked when the cache is used).
  KvCache(const ModelConfig& config, int64_t capacity) : KvCache(config, {}, capacity) {}
  // grids: per layer, or none for floats. half: layers without a grid keep float16.
  KvCache(const ModelConfig& config, const std::vector<CacheScales>& grids, int64_t capacity, bool half = false);

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

// True when some layer's keys or values are on a grid.
bool has_grids(const std::vector<CacheScales>& grids);

}  // namespace qat
