// The forward pass over any set of (sequence, position) rows, and what Engine keeps. Internal to inference/.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "inference/engine.h"
#include "inference/matmul.h"
#include "inference/thread_pool.h"

namespace qat {

// A token at a position of a sequence. Rows of one sequence stand in order of position; sequences may be mixed.
struct BatchRow {
  int32_t token = 0;
  int64_t position = 0;
  KvCache* cache = nullptr;
};

// Rows that attend together: `count` of them from `first` on, consecutive positions of one sequence.
struct RowGroup {
  int64_t first = 0, count = 0;
};

// Memory that a pass needs, reused by the next. One per thread of passes.
struct Workspace {
  std::vector<BatchRow> rows;
  std::vector<RowGroup> groups;
  HugeVector<float> hidden, normed,
      branch;                        // [rows, hidden]: the residual stream; a norm of it; what an attention or MLP adds
  HugeVector<float> q, k, v, heads;  // [rows, heads * head_dim] (k, v: kv_heads): projections, attention's result
  HugeVector<float> gate, up;        // [rows, ffn]
  HugeVector<float> per_layer, per_layer_gate;  // [rows, layers * ple], [rows, ple]
  HugeVector<float> cos_sin[2];                 // full, sliding: per row head_dim / 2 cosines, then as many sines
  HugeVector<uint8_t> table_rows;               // per worker: a row of an embedding table, as stored
  HugeVector<float> attention;                  // per worker: scores, decoded keys or values, a stretch's result
  HugeVector<float> stretches;           // [stretches, rows, heads * head_dim]: results, where threads share a row
  std::vector<SoftmaxSum> softmax_sums;  // of attention's results
  MatmulInput input, inner;              // of the projections out of the residual stream; of those back into it
};

class Transformer {
 public:
  Transformer(Weights weights, const EngineOptions& options);
  const ModelConfig& config() const { return weights_.config; }
  Isa isa() const { return isa_; }
  const std::vector<CacheScales>& cache_grids() const { return cache_grids_; }  // per layer
  DType cache_type() const { return cache_type_; }                              // of what has no static grid

  // One pass over ws.rows (1..kMaxBatchRows; it consumes them), whose K and V are written to their caches at their
  // positions; cache lengths are the caller's. logits [rows - first_logit, vocab] of the rows from first_logit on,
  // which may be none.
  void run(ThreadPool& pool, Workspace& ws, int64_t first_logit, float* logits) const;

  // The same in steps, for who runs many sequences through one layer before the next (inference/layer_run.h).
  // embed() fills ws.hidden and ws.per_layer for ws.rows; run_layer() takes ws.hidden through one layer, all rows.
  void embed(ThreadPool& pool, Workspace& ws) const;
  // head() makes logits [rows, vocab] of it. ws.rows, hidden and per_layer remain.
  void run_layer(ThreadPool& pool, Workspace& ws, size_t layer) const;
  void head(ThreadPool& pool, Workspace& ws, float* logits) const;
  Weights& weights() { return weights_; }  // to be exchanged between runs, by others of the same shape

  ActivationHook activation_hook;
  // Called before each layer with its index and the residual stream [rows, hidden], which it may change.
  std::function<void(size_t layer, float* hidden)> residual_hook;

 private:
  struct Pass;  // a run in progress
  // Which linear an activation belongs to.
  struct Linear {
    std::string name;
    int layer = -1;
  };
  struct Linears {
    Linear q, k, v, o, gate, up, down, ple_gate, ple_projection;
  };

  Weights weights_;
  Isa isa_;
  bool round_activations_;
  DType cache_type_;
  std::vector<CacheScales> cache_grids_;
  std::vector<float>
      frequencies_[2];            // of full and of sliding layers, as in Workspace::cos_sin; empty when there is none
  std::vector<Linears> linears_;  // per layer
  size_t last_kv_layer_ = 0;      // no layer after it writes K and V
  Linear ple_model_projection_, output_;
};

// Throws Error for a token or a position that the model or the cache does not have.
void check_row(const ModelConfig& config, int32_t token, const KvCache& cache, int64_t position);

struct Engine::Impl {
  Impl(Weights weights, const EngineOptions& options);
  Transformer transformer;
  ThreadPool pool;
  Workspace workspace;
};

}  // namespace qat
