// A small directory in the mobile schema, quantized from a float model that a test wrote.
#pragma once

#include <string>
#include <vector>

#include "export/mobile_export.h"

namespace qat {

// What a tiny model becomes: 4 bits; 2 in the MLPs of the upper half of the layers, the embedding and the head; 8 in
// the per-layer gates. Scales by search; the per-layer table has one for each layer.
int tiny_mobile_bits(const TensorInfo& info, size_t layers);

struct TinyMobile {
  std::vector<TensorInfo> table;
  std::vector<MobileSpec> specs;           // with scales and codes' types, no activation scales
  std::vector<std::vector<uint8_t>> data;  // rows as stored
  std::vector<std::vector<float>> values;  // what they mean
  std::vector<CacheScales> cache_scales;
};
// Quantizes an HF directory with a tied head.
TinyMobile quantize_tiny_mobile(const std::string& hf_directory);
void write_tiny_mobile(const TinyMobile& model, const std::string& hf_directory, const std::string& out,
                       const MobileQuantization& quantization);
void write_tiny_mobile(const TinyMobile& model, const std::string& hf_directory, const std::string& out);

}  // namespace qat
