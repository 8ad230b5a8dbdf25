// The mobile schema of Gemma 4 ("wNa8o8"): weights on the channel-wise grids of 2, 4 and 8 bits, static 8-bit
// activations into and out of each linear, packed embedding tables; a Hugging Face directory whose config.json has
// quantization_config.quant_method "gemma". The loader to agree with is transformers' (integrations/gemma_quant.py).
//
// For a module M that is quantized (rows x cols, b bits; the type of packed codes is code_type(b)):
//   linear:    M.weight (U8, I8 for 8 bits; rows of row_bytes(type, cols)), M.weight_scale (F32 [rows, 1]),
//              M.input_activation_scale, M.output_activation_scale (F32 scalars, 0 = off)
//   embedding: M.embedding_quantized, M.embedding_scale (F32 [rows, 1]; the per-layer table [rows, layers])
// What is not quantized is M.weight in a float type. Attention modules of layers that own K and V may have
// k_cache_scale and v_cache_scale (F32 scalars), which transformers ignores.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "format/checkpoint.h"
#include "format/pattern.h"

namespace qat {

// What quantization_config says.
struct MobileQuantization {
  struct Rule {
    std::string pattern;  // regular expression, searched anywhere in a module's name
    int bits = 4;
  };
  int bits = 4;                            // where no rule matches
  bool embeddings = false;                 // tables are quantized too, not only linears
  std::vector<Rule> rules;                 // in the order of the file
  std::vector<std::string> not_converted;  // module names: the end of one, or a regular expression for its beginning
};

// Reads and checks the block of a config.json.
MobileQuantization mobile_quantization_from_json(const std::string& json, const std::string& origin);

// The bits of every module. Of several rules that match, the one that matches furthest to the left decides, the first
// of the file on ties: transformers joins them with "|".
class MobileWidths {
 public:
  MobileWidths(const MobileQuantization& quantization, const std::string& origin);  // throws Error: bad expression
  int bits(const std::string& module, TensorKind kind) const;                       // 0: not quantized

 private:
  MobileQuantization quantization_;
  std::vector<Pattern> rules_, not_converted_;
};

// A matrix or vector of the model as the file has it. Points into the mapped file.
struct MobileTensor {
  DType dtype = DType::F32;                       // I2, I4, I8: codes; or a float type
  Span<const uint8_t> data;                       // rows of row_bytes(dtype, cols)
  Span<const uint8_t> scales;                     // of codes: float32 [rows, scales_per_row], at any address
  int64_t scales_per_row = 0;                     // each is for cols / scales_per_row neighbouring elements
  float input_scale = 0.0f, output_scale = 0.0f;  // of activations; 0: off
};

// Scale `index` of MobileTensor::scales.
float scale_at(Span<const uint8_t> scales, int64_t index);

// Static grids of a layer's KV cache, per tensor; scale 0: float. The schema has no place for the width: this program
// writes it into the file's metadata ("qat.kv_cache_bits": one number per layer, "8,8,4,0"); without that it is 8.
struct CacheScales {
  float k = 0.0f, v = 0.0f;
  int bits = 8;
};

// How many scales a row of a quantized tensor has: 1, and in the per-layer table one for each layer.
int64_t mobile_scales_per_row(const ModelConfig& config, const TensorInfo& info);

constexpr const char* kCacheBits = "qat.kv_cache_bits";

class MobileCheckpoint {
 public:
  // Throws Error: a tensor is missing or has another type, shape or packed width than the config says; a scale is not
  // finite, or not positive (of activations and caches: negative).
  explicit MobileCheckpoint(const std::string& directory);
  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<TensorInfo>& table() const { return table_; }
  const std::vector<std::string>& notices() const { return notices_; }
  const MobileQuantization& quantization() const { return quantization_; }
  const MobileTensor& tensor(const TensorInfo& info) const;
  const MappedFile* file_of(const uint8_t* bytes) const { return file_->file_of(bytes); }
  std::vector<float> read(const TensorInfo& info) const;  // of float types
  CacheScales cache_scales(int layer) const { return cache_scales_[static_cast<size_t>(layer)]; }

 private:
  MobileTensor find_tensor(const MobileWidths& widths, const TensorInfo& info) const;
  MobileTensor quantized(const TensorInfo& info, const std::string& module, int bits) const;
  const TensorView& expect(const std::string& name, DType dtype, const std::vector<int64_t>& shape) const;
  float static_scale(const std::string& name) const;
  void read_cache_scales();
  void read_cache_bits();

  std::string directory_;
  std::vector<std::string> notices_;  // before config_, whose reading adds to it
  ModelConfig config_;
  std::vector<TensorInfo> table_;
  MobileQuantization quantization_;
  std::unique_ptr<Safetensors> file_;
  std::map<std::string, MobileTensor> by_name_;  // canonical name
  std::vector<CacheScales> cache_scales_;        // per layer
};

}  // namespace qat
