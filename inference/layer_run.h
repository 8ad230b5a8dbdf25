// A model run layer by layer over many sequences together, for who changes weights on the way: each layer reads what
// the one before it left, so that no more than one layer's weights need be in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "inference/transformer.h"

namespace qat {

class LayerRun {
 public:
  // Sequences as Engine::forward takes them, each from an empty cache. Memory: the residual stream, the per-layer
  // inputs and the KV caches of all tokens. Throws Error for a token that the model does not have.
  LayerRun(Weights weights, const EngineOptions& options, const std::vector<std::vector<int32_t>>& sequences);

  const ModelConfig& config() const { return transformer_.config(); }
  int64_t tokens() const { return tokens_; }
  Weights& weights() { return transformer_.weights(); }  // to be exchanged between the runs below
  ThreadPool& pool() { return pool_; }                   // idle while an activation hook is called
  Isa isa() const { return transformer_.isa(); }
  void set_activation_hook(ActivationHook hook) { transformer_.activation_hook = std::move(hook); }

  // First: what layer 0 reads.
  void embed();
  // Runs a layer over all sequences. With `keep` the next layer reads its result; without, nothing changes but what the
  // hook saw (K and V too are written again by the run that keeps).
  void run_layer(size_t layer, bool keep, const std::function<void(int64_t tokens_done)>& progress);

  // The residual stream as it is now, to come back to after runs that kept theirs. K and V of the layers run since
  // remain changed; whoever runs on from here writes them again.
  void save_stream();
  void restore_stream();
  // After the last layer: logits [rows, vocab] of rows from `first` on (counted over all sequences), a part at a time.
  void head(const std::function<void(int64_t first, int64_t rows, const float* logits)>& take);

 private:
  // Rows of one sequence that pass together.
  struct Stream {
    std::vector<BatchRow> rows;
    HugeVector<float> hidden, per_layer;  // as in Workspace
    HugeVector<float> saved;              // hidden, once
  };
  Transformer transformer_;
  ThreadPool pool_;
  Workspace workspace_;
  std::vector<KvCache> caches_;  // one per sequence
  std::vector<Stream> streams_;
  std::vector<float> logits_;
  int64_t tokens_ = 0;
};

}  // namespace qat
