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
  mse,   // Q4_0: scale searched (both signs) for least squared error, weighted by importance when given; other grids
         // keep their own rule
  gptq,  // linears of layers on Q4_0 and Q8_0 (the mobile schema: on any of its grids): each column makes up for the
         // errors of those before it, by what a text makes of the inputs (export/gptq.h); the rest as mse
};

// Mean square of each input feature of a linear, by canonical tensor name: what llama.cpp calls an importance matrix.
using Importance = std::map<std::string, std::vector<float>>;

constexpr int64_t kLeastCalibrationTokens = 512;

struct PtqOptions {
  PtqMethod method = PtqMethod::reference;
  const Importance* importance = nullptr;
  // gptq: token sequences as the model is to read them (with BOS, where it wants one), each from an empty cache,
  // together at least kLeastCalibrationTokens.
  std::vector<std::vector<int32_t>> calibration;
  int threads = 0;  // of the runs over them; 0: all processors
};

// Throws Error unless there are kLeastCalibrationTokens; without any it says: `what` a calibration text.
void check_calibration(const std::vector<std::vector<int32_t>>& calibration, const std::string& what);

using PtqProgress = std::function<void(int64_t done, int64_t total)>;  // weights; gptq: work

// The Q4_0 block with the least sum of w[j] * (x[j] - value(j))^2 over 32 weights (w: not negative, nullptr means 1).
// All scales of either sign are tried exactly: as the scale shrinks, codes change one at a time, and between two
// changes the best scale is a least-squares fit. The scale is rounded to float16 before the error is taken. Never worse
// than encode_q4_0.
BlockQ4_0 search_q4_0(const float* x, const float* w);

// Rows of a tensor in the GGUF layout of its grid, as they come: tensors in table order, each from its first row on.
using QuantizedRows = std::function<void(const TensorInfo& info, const uint8_t* blocks, int64_t rows)>;

// Quantizes every tensor of a checkpoint and keeps nothing. The result does not depend on the number of threads. Throws
// Error as quantize_checkpoint.
void quantize_tensors(const FloatCheckpoint& checkpoint, const std::map<std::string, PlanEntry>& resolved,
                      const PtqOptions& options, const QuantizedRows& rows, const PtqProgress& progress = {});

// Rows [row, row + count) of a matrix on a grid, as quantize_checkpoint rounds what gptq leaves alone (its own linears
// too: as mse). Throws Error as it does.
void encode_checkpoint_rows(const FloatCheckpoint& checkpoint, const TensorInfo& info, DType grid,
                            const PtqOptions& options, int64_t row, int64_t count, uint8_t* out);

// Reads an HF directory, writes a quantized checkpoint. The result does not depend on the number of threads (all
// processors). Throws Error for a weight that is not finite or too large for its grid, naming tensor, row and column.
void quantize_checkpoint(const std::string& hf_directory, const Plan& plan, const PtqOptions& options,
                         const std::string& out, const PtqProgress& progress = {});

}  // namespace qat
