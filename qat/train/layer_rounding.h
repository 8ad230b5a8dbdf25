// Rounding of one decoder layer by the error of its output: codes and scales of its Q4_0 linears are moved until what
// the layer makes of the quantized model's stream is near to what the float layer makes of the float model's. SignRound
// (Cheng et al., arXiv 2309.05516), algorithm 1; what differs is said in qat/train/README.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "qat/train/layer_stream.h"

namespace qat {

struct RoundingOptions {
  int64_t steps = 200;
  int64_t batch = 8;       // sequences per step
  double lr = 0.005;       // of the offsets, in levels; falls to 0 in a line
  double scale_lr = 1e-3;  // of the logarithms of scales; likewise
  uint64_t seed = 1;       // of the order of sequences
  int64_t threads = 1;     // as set_threads() returned them
};

// Mean over tokens of |y - y'|^2 / |y|^2, y: the float layer's output. Relative to each token, since the next layer's
// norm sees it so, and since a few tokens (the first of a sequence) would otherwise be all that counts.
struct RoundingErrors {
  double before = 0.0, after = 0.0;  // over all sequences
};

// The tensors of a layer as files hold them: rows in the GGUF layout of their grids, by canonical name.
using LayerRows = std::map<std::string, std::vector<uint8_t>>;

// weights: the layer's tensors as floats; grids: of each of them. rows: where to begin; changed are the linears on
// Q4_0. target: (sequences, length, hidden), of the float layer; stream: the quantized one, which has entered the
// layer. step(i, loss): called after each; false stops it, and rows stay as they were. Returns false when stopped.
bool round_layer(const std::vector<TensorInfo>& layer, const TensorsByRole& weights,
                 const std::map<std::string, DType>& grids, const torch::Tensor& target, const LayerStream& stream,
                 const RoundingOptions& options, const std::function<bool(int64_t step, double loss)>& step,
                 LayerRows* rows, RoundingErrors* errors);

// The floats that they mean.
TensorsByRole decode_layer(const std::vector<TensorInfo>& layer, const std::map<std::string, DType>& grids,
                           const LayerRows& rows);

}  // namespace qat
