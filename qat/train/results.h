// What a finished run leaves: the trained model as files.
#pragma once

#include <string>

#include "format/checkpoint.h"
#include "qat/train/model.h"

namespace qat {

// The masters encoded on their grids: exactly the numbers that Model::forward_weights() multiplies by.
void write_quantized(const Model& model, const Plan& plan, const std::map<std::string, PlanEntry>& resolved,
                     const std::string& source_directory, const std::string& directory);

// A directory in the mobile schema (format/mobile.h), with the codes and scales of the last forward pass.
void write_mobile(const Model& model, const std::string& source_directory, const std::string& directory);

// An HF directory with the masters in float32, under the names the source uses; config and tokenizer are the source's.
void write_hf(const Model& model, const FloatCheckpoint& source, const std::string& directory);

// forward_weights() by canonical name, float32, as one safetensors file.
void write_forward_weights(const Model& model, const std::string& path);

}  // namespace qat
