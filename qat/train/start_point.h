// A quantized checkpoint that a run begins at: [quantization] init = "DIR".
#pragma once

#include <map>
#include <memory>
#include <string>

#include "format/checkpoint.h"

namespace qat {

// Throws Error unless it is a quantized checkpoint of a model of `model`'s shape with the types of `resolved`, naming
// the tensor that differs.
std::unique_ptr<QuantizedCheckpoint> open_start_point(const std::string& directory, const FloatCheckpoint& model,
                                                      const std::map<std::string, PlanEntry>& resolved);

}  // namespace qat
