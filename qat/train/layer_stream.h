// The residual stream of many sequences on its way through a model, a layer at a time, all of them before the next
// layer: memory holds the weights of one layer, the stream, and K and V of layers that others read.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "qat/train/layer.h"

namespace qat {

// Rows of a tensor, as stored on a grid: read(row, count, out) writes count * row_bytes(grid, cols) bytes (1-D tensors:
// one row).
struct StoredRows {
  DType grid = DType::F32;
  std::function<void(int64_t row, int64_t count, uint8_t* out)> read;
};
using TensorSource = std::function<StoredRows(const TensorInfo& info)>;

int64_t rows_of(const TensorInfo& info);
// Rows [row, row + count) of a tensor as bytes, and as floats: (count, cols).
std::vector<uint8_t> read_stored(const TensorInfo& info, const StoredRows& from, int64_t row, int64_t count);
torch::Tensor decode_stored(const TensorInfo& info, DType grid, const std::vector<uint8_t>& rows);

// What a layer reads of some sequences; undefined: as decoder_layer() has it.
struct LayerInput {
  torch::Tensor h, ple, k, v;
};

class LayerStream {
 public:
  // ids: (sequences, length) int64, on the CPU, below the vocabulary. Of the tables only rows of ids that occur are
  // read. Memory: 2 * numel(ids) * hidden floats with per-layer embeddings, else half of it; numel(ids) * ple; K and V.
  LayerStream(const ModelConfig& config, const std::vector<TensorInfo>& table, const torch::Tensor& ids,
              const TensorSource& source);

  int64_t sequences() const { return ids_.size(0); }
  const torch::Tensor& hidden() const { return hidden_; }  // (sequences, length, hidden)
  // Before a layer is run or its input taken.
  void enter(size_t layer);
  // rows: (n) int64.
  LayerInput input(const torch::Tensor& rows) const;
  // The layer entered, of its input, with these weights.
  LayerOutput run(const LayerInput& input, const TensorsByRole& weights) const;
  // Runs it over all sequences, `batch` at a time; the next layer reads the result.
  void advance(const TensorsByRole& weights, int64_t batch);

 private:
  // The rows of a table that occur, as they are stored.
  struct Table {
    TensorInfo info;
    DType grid = DType::F32;
    std::vector<uint8_t> rows;
    torch::Tensor columns(int64_t first, int64_t count) const;  // (rows, count), floats
  };
  struct KeyValue {
    torch::Tensor k, v;  // (sequences, length, kv_heads, head_dim)
  };
  Table take_rows(const TensorInfo& info, const TensorSource& source, const std::vector<int64_t>& tokens) const;
  bool is_read_later(size_t layer) const;
  // Over all sequences: what is made on the way to a stream is not held for all of them at once.
  void in_pieces(const std::function<void(int64_t begin, int64_t count)>& piece) const;

  const ModelConfig& config_;
  const std::vector<TensorInfo>& table_;
  TensorSource source_;
  torch::Tensor ids_;  // as indices of the rows that occur
  Positions positions_;
  torch::Tensor hidden_, embedded_, ple_;
  Table ple_table_;
  std::map<size_t, KeyValue> kept_;  // by the layer that made them
  size_t layer_ = 0;
};

}  // namespace qat
