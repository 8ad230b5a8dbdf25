// Post-training quantization: fills codes and scales without training, tensor by tensor in constant memory.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "format/checkpoint.h"

namespace qat {

enum class PtqMethod {
  reference,  // the grid's own rule: what llama-quantize does without an importance matrix
  mse,  // Q4_0: scale searched (both signs) for least squared error, weighted by importance when given; other grids
        // keep their own rule
};

// Mean square of each input feature of a linear, by canonical tensor name: what llama.cpp calls an importance matrix.
using Importance = std::map<std::string, std::vector<float>>;

struct PtqOptions {
  PtqMethod method = PtqMethod::reference;
  const Importance* importance = nullptr;
};

using PtqProgress = std::function<void(int64_t weights_done, int64_t weights)>;

// The Q4_0 block with the least sum of w[j] * (x[j] - value(j))^2 over 32 weights (w: not negative, nullptr means 1).
// All scales of either sign are tried exactly: as the scale shrinks, codes change one at a time, and between two
// changes the best scale is a least-squares fit. The scale is rounded to float16 before the error is taken. Never worse
// than encode_q4_0.
BlockQ4_0 search_q4_0(const float* x, const float* w);

// Reads an HF directory, writes a quantized checkpoint. The result does not depend on the number of threads (all
// processors). Throws Error for a weight that is not finite or too large for its grid, naming tensor, row and column.
void quantize_checkpoint(const std::string& hf_directory, const Plan& plan, const PtqOptions& options,
                         const std::string& out, const PtqProgress& progress = {});

}  // namespace qat
