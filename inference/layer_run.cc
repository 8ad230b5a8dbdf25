#include "inference/layer_run.h"

#include <algorithm>

#include "format/error.h"

namespace qat {
namespace {

constexpr int64_t kHeadRows = 64;  // whose logits are in memory at a time

}  // namespace

LayerRun::LayerRun(Weights weights, const EngineOptions& options, const std::vector<std::vector<int32_t>>& sequences)
    : transformer_(std::move(weights), options), pool_(options.threads) {
  caches_.reserve(sequences.size());  // rows point at them
  // A layer writes a whole sequence before a later one reads it: no position may overwrite another.
  ModelConfig without_window = config();
  without_window.sliding_window = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    const auto length = static_cast<int64_t>(sequence.size());
    if (length == 0) continue;
    KvCache& cache =
        caches_.emplace_back(without_window, transformer_.cache_grids(), length, transformer_.cache_type());
    for (int64_t i = 0; i < length; ++i) {
      check_row(config(), sequence[static_cast<size_t>(i)], cache, i);
      if (i % kMaxBatchRows == 0) streams_.emplace_back();
      streams_.back().rows.push_back({sequence[static_cast<size_t>(i)], i, &cache});
    }
    tokens_ += length;
  }
}

void LayerRun::embed() {
  for (Stream& stream : streams_) {
    const auto rows = static_cast<int64_t>(stream.rows.size());
    workspace_.rows = stream.rows;
    transformer_.embed(pool_, workspace_);
    const auto take = [&](const HugeVector<float>& from, int64_t width, HugeVector<float>& to) {
      to.assign(from.begin(), from.begin() + rows * width);
    };
    take(workspace_.hidden, config().hidden, stream.hidden);
    take(workspace_.per_layer, static_cast<int64_t>(config().layers.size()) * config().ple, stream.per_layer);
  }
}

void LayerRun::run_layer(size_t layer, bool keep, const std::function<void(int64_t)>& progress) {
  int64_t done = 0;
  for (Stream& stream : streams_) {
    workspace_.rows = stream.rows;
    workspace_.hidden = stream.hidden;
    workspace_.per_layer.swap(stream.per_layer);
    transformer_.run_layer(pool_, workspace_, layer);
    workspace_.per_layer.swap(stream.per_layer);
    if (keep) workspace_.hidden.swap(stream.hidden);
    if (progress) progress(done += static_cast<int64_t>(stream.rows.size()));
  }
}

void LayerRun::save_stream() {
  for (Stream& stream : streams_) stream.saved = stream.hidden;
}

void LayerRun::restore_stream() {
  for (Stream& stream : streams_) stream.hidden = stream.saved;
}

void LayerRun::head(const std::function<void(int64_t, int64_t, const float*)>& take) {
  logits_.resize(static_cast<size_t>(kHeadRows * config().vocab));
  int64_t first = 0;
  for (const Stream& stream : streams_) {
    const auto count = static_cast<int64_t>(stream.rows.size());
    for (int64_t begin = 0; begin < count; begin += kHeadRows) {
      const int64_t rows = std::min(kHeadRows, count - begin);
      workspace_.rows.assign(stream.rows.begin() + begin, stream.rows.begin() + begin + rows);
      const auto hidden = stream.hidden.begin() + begin * config().hidden;
      workspace_.hidden.assign(hidden, hidden + rows * config().hidden);
      transformer_.head(pool_, workspace_, logits_.data());
      take(first, rows, logits_.data());
      first += rows;
    }
  }
}

}  // namespace qat
