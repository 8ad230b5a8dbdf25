// The way through a model for gptq.h: layer by layer, each measured on what the layers before it make of a text as they
// are stored, quantized. Memory: one layer's weights and moments, and the residual stream of the text.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "export/gptq.h"
#include "format/tensor_table.h"
#include "inference/layer_run.h"

namespace qat {

// In units of work that take about as long as each other.
using GptqProgress = std::function<void(int64_t done, int64_t total)>;

// Calls in this order: install_table() for the embeddings; then for each layer measure(), moments() and install() of
// its linears, finish().
class GptqLayers {
 public:
  // threads: 0 means all processors; no result depends on it. Throws Error: a token that the model does not have, a
  // checkpoint that the engine does not run.
  GptqLayers(const std::string& hf_directory, const std::vector<std::vector<int32_t>>& sequences, int threads,
             GptqProgress progress);

  // From here on a table has the rows that encode(row, data, scales [scales_per_row]) gives; asked for are those of
  // tokens that occur.
  using EncodeRow = std::function<void(int64_t row, uint8_t* data, float* scales)>;
  void install_table(const TensorInfo& info, DType type, int64_t scales_per_row, const EncodeRow& encode);

  // Runs the layer as it was and takes the moments of its linears' inputs.
  void measure(int layer);
  // nullptr for what is no linear of the layer that was measured.
  const InputMoments* moments(const TensorInfo& info) const;
  // From here on the linear is `rows` as stored in the type, with a scale per row if that is channel-wise.
  void install(const TensorInfo& info, DType type, std::vector<uint8_t> rows, std::vector<float> scales = {});
  // Weights that were rounded without moments: they count too.
  void count_weights(int64_t weights);
  // Runs the layer as it is now: the next one, if there is one, reads what it makes.
  void finish(int layer);

 private:
  struct Stored {
    std::unique_ptr<uint8_t[]> data;
    std::vector<uint8_t> rows;
    std::vector<float> scales;
  };
  void replace(const TensorInfo& info, DType type, const uint8_t* data, const float* scales, int64_t scales_per_row);
  void report(double work);

  LayerRun run_;
  std::vector<TensorInfo> table_;
  std::vector<int32_t> tokens_;           // those that occur, sorted
  std::map<Role, InputMoments> moments_;  // by the role of the first linear that reads them
  std::vector<Stored> tables_, layer_;    // what weights point at
  GptqProgress progress_;
  double done_ = 0.0, total_ = 0.0;
};

}  // namespace qat
