// What a model makes of texts before it is quantized: sequences to run, and which inputs of each linear are large.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export/ptq.h"
#include "qat/cli/options.h"

namespace qat {

constexpr int64_t kCalibrationContext = 512;  // tokens of a sequence, BOS included

// The texts' tokens, at most `limit` (< 0: all), in sequences of up to kCalibrationContext, each with BOS in front
// where the tokenizer adds one.
std::vector<std::vector<int32_t>> calibration_sequences(const Tokenizer& tokenizer,
                                                        const std::vector<std::string>& texts, int64_t limit);

// Runs the model and takes the mean square of each input feature of each linear.
Importance collect_importance(Engine& engine, const std::vector<std::vector<int32_t>>& sequences);

}  // namespace qat
