// Where Q4_0 training begins: the codes and scales that post-training quantization finds, or a quantized checkpoint's.
#pragma once

#include <string>
#include <vector>

#include "qat/recipe.h"
#include "qat/train/model.h"

namespace qat {

// Moves the scales of blocks on Q4_0 to those that recipe.init finds for `checkpoint`, and with "gptq" or a directory
// the masters as near to their weights as they come without leaving its codes. calibration ("gptq"): token sequences as
// PtqOptions has them. Shows progress. Throws Error: too little calibration text; a directory that holds no quantized
// checkpoint of this model and plan.
void initialize_blocks(Model& model, const FloatCheckpoint& checkpoint,
                       const std::map<std::string, PlanEntry>& resolved, const Recipe& recipe,
                       std::vector<std::vector<int32_t>> calibration);

}  // namespace qat
