// Equalisation before rounding (cross-layer equalisation, AWQ): a linear's inputs are divided by a factor per channel,
// which what makes them takes over, and its columns are multiplied by it. The float model computes the same; important
// channels get finer steps of the grid.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export/ptq.h"

namespace qat {

// Linears that read the same activations, and the one tensor that makes these and can take over a factor per channel: a
// norm's weight, or rows of a linear that acts on them linearly.
struct EqualizedPair {
  TensorInfo producer;
  std::vector<TensorInfo> consumers;
  // Input channel c of the consumers comes from row (element) rows[c] of the producer: several channels share a row,
  // and so a factor, where query heads share a value head.
  std::vector<int64_t> rows;
};

// Norm before q, k, v; norm before gate, up; up before down; v before o, but where a weightless norm stands between
// (Gemma 4), which would undo the factor.
std::vector<EqualizedPair> equalized_pairs(const ModelConfig& config);

struct EqualizedError {
  double before = 0.0, after = 0.0;  // of the consumers' outputs by rounding, relative to the outputs: sum over pairs
  int pairs = 0, changed = 0;
};

// Writes HF_DIRECTORY to `out`, equalised for what `plan` makes of it by options.method. A pair's factors are
// E[x^2]^(alpha / 2) / max|w|^beta, of the alpha and beta with the least rounding error, weighted by `inputs`: the mean
// square of each linear's inputs. Tensors that change are written as F32. Throws Error as quantize_checkpoint does.
EqualizedError equalize_checkpoint(const std::string& hf_directory, const Plan& plan, const PtqOptions& options,
                                   const Importance& inputs, const std::string& out, const PtqProgress& progress = {});

}  // namespace qat
