// What is in a model file or directory, without running it: sizes, types, configuration.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "format/dtype.h"
#include "format/model_config.h"

namespace qat {

struct TensorSummary {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;                     // outermost first
  uint64_t weights = 0;                           // elements
  uint64_t bytes = 0;                             // stored, scales included
  float input_scale = 0.0f, output_scale = 0.0f;  // mobile: static grids of activations; 0: none
};

// Static grid of a layer's K and V (mobile). Scale 0: float.
struct CacheSummary {
  int layer = 0, bits = 0;
  float k_scale = 0.0f, v_scale = 0.0f;
};

struct Totals {
  uint64_t tensors = 0, weights = 0, bytes = 0;
  double bits_per_weight() const {
    return weights == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
  }
};

struct ModelSummary {
  std::string path;
  std::string kind;                   // "gguf", "hf_directory", "mobile", "quantized_checkpoint", "safetensors"
  std::optional<ModelConfig> config;  // absent when the file holds no model that this program knows
  std::vector<std::string> notices;
  std::vector<TensorSummary>
      tensors;  // file order; for quantized checkpoints and mobile, the tensors that parts make up
  std::vector<std::pair<std::string, std::string>>
      metadata;                      // keys of a GGUF or safetensors file, values as text (long arrays cut)
  std::vector<CacheSummary> caches;  // mobile: of the layers that own K and V
  uint64_t file_bytes = 0;           // of the files that hold the weights, headers included

  Totals totals() const;
  std::map<std::string, Totals> totals_by_type() const;
};

ModelSummary summarize(const std::string& path);  // throws Error

// Text of a file as it may go to a terminal: control characters escaped, cut after `limit` bytes.
std::string printable(const std::string& text, size_t limit = 200);

// The files that hold the weights: the file itself, model.safetensors, or the shards that the index names.
std::vector<std::string> weight_files(const std::string& path);
uint64_t model_size_bytes(const std::string& path);
// A 64-bit hash (XXH3) of the weights, the configuration and the tokenizer, as 16 hexadecimal digits.
std::string model_hash(const std::string& path);

}  // namespace qat
