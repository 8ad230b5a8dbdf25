// Post-training quantization into the mobile schema (format/mobile.h): scales of weights by search, static scales of
// activations and of the KV cache from what a text causes in the model with those weights.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "export/ptq.h"
#include "format/observer.h"

namespace qat {

struct MobilePtqOptions {
  // mse: least squared error, weighted by importance when given. reference: the largest magnitude of a row reaches the
  // highest code, the rule without a search. gptq: linears of layers by the errors of their outputs on the calibration
  // text, the rest as mse.
  PtqMethod method = PtqMethod::mse;
  const Importance* importance = nullptr;
  Calibration observer = Calibration::least_squares;
  // Token sequences as the model is to read them (with BOS, where it wants one), each from an empty cache. Together at
  // least kLeastCalibrationTokens, unless the plan has neither static activations nor a quantized cache and the method
  // is not gptq.
  std::vector<std::vector<int32_t>> calibration;
  int threads = 0;  // of the calibration; 0: all processors
};

// stage: "scales" (gptq: "layers"), "codes", "activations" or "files", one after the other.
using MobilePtqProgress = std::function<void(const char* stage, int64_t done, int64_t total)>;

// True when `plan` (a mobile one) needs calibration.
bool needs_calibration(const Plan& plan);

// Reads an HF directory, writes one in the mobile schema (plan.mobile is required). The head of a tied model is
// a copy of the embedding's codes and scales. Scales are storable
// (format/channel_grid.h); those that the schema ties (k with v, gate with up) are equal. Constant memory but for the
// scales (gptq: one layer's, export/gptq_layers.h); a temporary copy lies beside `out` while activations are
// calibrated. The result does not depend on the number of threads. Throws Error: bad plan, too few tokens, a weight
// that is not finite or too large for its grid.
void quantize_mobile(const std::string& hf_directory, const Plan& plan, const MobilePtqOptions& options,
                     const std::string& out, const MobilePtqProgress& progress = {});

}  // namespace qat
