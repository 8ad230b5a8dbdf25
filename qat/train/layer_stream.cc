#include "qat/train/layer_stream.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "format/error.h"

namespace qat {

int64_t rows_of(const TensorInfo& info) { return info.shape.size() == 2 ? info.shape[0] : 1; }

std::vector<uint8_t> read_stored(const TensorInfo& info, const StoredRows& from, int64_t row, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count) * row_bytes(from.grid, info.shape.back()));
  from.read(row, count, bytes.data());
  return bytes;
}

torch::Tensor decode_stored(const TensorInfo& info, DType grid, const std::vector<uint8_t>& rows) {
  const int64_t cols = info.shape.back();
  const auto count = static_cast<int64_t>(rows.size() / row_bytes(grid, cols));
  torch::Tensor values = torch::empty({count, cols});
  at::parallel_for(0, count, std::max<int64_t>(1, 65536 / cols), [&](int64_t begin, int64_t end) {
    decode_rows(grid, rows.data() + static_cast<size_t>(begin) * row_bytes(grid, cols), end - begin, cols,
                values.data_ptr<float>() + begin * cols);
  });
  return info.shape.size() == 2 ? values : values.view(info.shape);
}

torch::Tensor LayerStream::Table::columns(int64_t first, int64_t count) const {
  const int64_t cols = info.shape.back();
  const size_t stride = row_bytes(grid, cols);
  const auto rows_here = static_cast<int64_t>(rows.size() / stride);
  torch::Tensor part = torch::empty({rows_here, count});
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t i = 0; i < rows_here; ++i) {
    decode_rows(grid, rows.data() + static_cast<size_t>(i) * stride, 1, cols, row.data());
    std::copy_n(row.data() + first, count, part.data_ptr<float>() + i * count);
  }
  return part;
}

LayerStream::LayerStream(const ModelConfig& config, const std::vector<TensorInfo>& table, const torch::Tensor& ids,
                         const TensorSource& source)
    : config_(config), table_(table), source_(source), positions_(make_positions(config, ids.size(1), torch::kCPU)) {
  const torch::NoGradGuard no_grad;
  const torch::Tensor flat = ids.contiguous();
  const std::set<int64_t> occurring(flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel());
  const std::vector<int64_t> tokens(occurring.begin(), occurring.end());
  ids_ = torch::empty_like(flat);
  std::transform(flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel(), ids_.data_ptr<int64_t>(),
                 [&](int64_t id) { return std::lower_bound(tokens.begin(), tokens.end(), id) - tokens.begin(); });
  const TensorInfo& embedding = *find_tensor_info(table, Role::token_embedding);
  const Table rows = take_rows(embedding, source, tokens);
  const torch::Tensor columns = rows.columns(0, config.hidden);
  hidden_ = torch::empty({ids.size(0), ids.size(1), config.hidden});
  in_pieces([&](int64_t begin, int64_t count) {
    hidden_.narrow(0, begin, count).copy_(embed_rows(columns, ids_.narrow(0, begin, count), config.embedding_scale));
  });
  if (config.ple == 0) return;
  embedded_ = hidden_.clone();
  ple_table_ = take_rows(*find_tensor_info(table, Role::ple_embedding), source, tokens);
}

void LayerStream::in_pieces(const std::function<void(int64_t begin, int64_t count)>& piece) const {
  constexpr int64_t kSequences = 8;
  for (int64_t begin = 0; begin < ids_.size(0); begin += kSequences)
    piece(begin, std::min(kSequences, ids_.size(0) - begin));
}

LayerStream::Table LayerStream::take_rows(const TensorInfo& info, const TensorSource& source,
                                          const std::vector<int64_t>& tokens) const {
  const StoredRows stored = source(info);
  const size_t stride = row_bytes(stored.grid, info.shape.back());
  Table rows{info, stored.grid, std::vector<uint8_t>(tokens.size() * stride)};
  for (size_t i = 0; i < tokens.size(); ++i) stored.read(tokens[i], 1, rows.rows.data() + i * stride);
  return rows;
}

void LayerStream::enter(size_t layer) {
  layer_ = layer;
  if (config_.ple == 0) return;
  const torch::NoGradGuard no_grad;
  const TensorInfo& projection = *find_tensor_info(table_, Role::ple_model_projection);
  const TensorInfo& norm = *find_tensor_info(table_, Role::ple_projection_norm);
  const auto first = static_cast<int64_t>(layer) * config_.ple;
  const StoredRows rows = source_(projection), norm_rows = source_(norm);
  const torch::Tensor columns = ple_table_.columns(first, config_.ple);
  const torch::Tensor weight = decode_stored(projection, rows.grid, read_stored(projection, rows, first, config_.ple));
  const torch::Tensor norm_weight = decode_stored(norm, norm_rows.grid, read_stored(norm, norm_rows, 0, 1));
  if (!ple_.defined()) ple_ = torch::empty({ids_.size(0), ids_.size(1), config_.ple});
  in_pieces([&](int64_t begin, int64_t count) {
    ple_.narrow(0, begin, count)
        .copy_(per_layer_input(config_, columns, weight, norm_weight, ids_.narrow(0, begin, count),
                               embedded_.narrow(0, begin, count)));
  });
}

LayerInput LayerStream::input(const torch::Tensor& rows) const {
  const torch::NoGradGuard no_grad;
  const auto taken = [&](const torch::Tensor& x) { return x.defined() ? x.index_select(0, rows) : x; };
  LayerInput in{taken(hidden_), taken(ple_), {}, {}};
  const auto found = kept_.find(static_cast<size_t>(config_.layers[layer_].kv_source));
  if (found != kept_.end() && found->first != layer_) {
    in.k = taken(found->second.k);
    in.v = taken(found->second.v);
  }
  return in;
}

LayerOutput LayerStream::run(const LayerInput& in, const TensorsByRole& weights) const {
  return decoder_layer(config_, layer_, weights, positions_, in.h, in.ple, in.k, in.v);
}

bool LayerStream::is_read_later(size_t layer) const {
  for (size_t i = layer + 1; i < config_.layers.size(); ++i)
    if (config_.layers[i].kv_source == static_cast<int64_t>(layer)) return true;
  return false;
}

void LayerStream::advance(const TensorsByRole& weights, int64_t batch) {
  const torch::NoGradGuard no_grad;
  const bool keeps = is_read_later(layer_);
  KeyValue kept;
  for (int64_t begin = 0; begin < sequences(); begin += batch) {
    const int64_t count = std::min(batch, sequences() - begin);
    const LayerOutput out = run(input(torch::arange(begin, begin + count)), weights);
    hidden_.narrow(0, begin, count).copy_(out.h);
    if (!keeps) continue;
    if (!kept.k.defined()) {
      std::vector<int64_t> shape = out.k.sizes().vec();
      shape[0] = sequences();
      kept = {torch::empty(shape), torch::empty(shape)};
    }
    kept.k.narrow(0, begin, count).copy_(out.k);
    kept.v.narrow(0, begin, count).copy_(out.v);
  }
  if (keeps) kept_[layer_] = kept;
}

}  // namespace qat
