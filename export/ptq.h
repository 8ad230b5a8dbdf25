// Post-training quantization: fills codes and scales without training, tensor by tensor in constant memory.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "format/checkpoint.h"

namespace qat {

enum class PtqMethod {
  reference,  // the grid's own rule: what llama-quantize does without an importance matrix
  mse,        // Q4_0: scale searched (both signs) for least squared error, weighted by importance when given
};

// Mean square of each input feature of a linear, by canonical tensor name: what llama.cpp calls an importance matrix.
using Importance = std::map<std::string, std::vector<float>>;

struct PtqOptions {
  PtqMethod method = PtqMethod::reference;
  const Importance* importance = nullptr;
};

using PtqProgress = std::function<void(int64_t weights_done, int64_t weights)>;

// Best Q4_0 block for 32 weights under squared error weighted by w (nullptr: 1): candidate scales around the extreme of either
// sign, least-squares refit, scale rounded to float16 before the error is taken. Never worse than encode_q4_0 by that measure.
BlockQ4_0 search_q4_0(const float* x, const float* w);

// Reads an HF directory, writes a quantized checkpoint.
void quantize_checkpoint(const std::string& hf_directory, const Plan& plan, const PtqOptions& options, const std::string& out,
                         const PtqProgress& progress = {});

}  // namespace qat
