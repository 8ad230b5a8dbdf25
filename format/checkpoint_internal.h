// What the readers of Hugging Face directories share. Internal to format/.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "format/safetensors.h"
#include "format/tensor_table.h"

namespace qat {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;  // of a config.json

bool is_float(DType type);  // F32, F16, BF16, F64

// Names that are no surprise in a float checkpoint of this shape: the table's, and those the model has no use for,
// which are what the table would have if nothing were shared (the head of a tied model, K and V of layers that attend
// to another layer's).
std::set<std::string> expected_names(const ModelConfig& config);
// Adds notices that count the file's other tensors.
void note_ignored(const Safetensors& file, const std::set<std::string>& expected, std::vector<std::string>* notices);

// Whether a config.json (of any content) says that its checkpoint is in the mobile schema.
bool is_mobile_config(const std::string& json);

}  // namespace qat
