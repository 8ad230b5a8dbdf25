// Writes the mobile schema (format/mobile.h): codes, scales, activation scales and KV scales that somebody decided, as
// a Hugging Face directory that transformers loads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "format/mobile.h"

namespace qat {

// The tensors of a model in the schema: those of the model with a head of its own. (The schema's head is a copy of the
// embedding's codes and scales; that copy is the caller's.)
std::vector<TensorInfo> mobile_table(ModelConfig config);

// How one tensor of the table is stored; scales as in MobileTensor.
struct MobileSpec {
  DType dtype = DType::F32;                       // I2, I4, I8; or F32, F16, BF16, without scales
  std::vector<float> scales;                      // [rows, scales_per_row], finite and > 0
  int64_t scales_per_row = 1;                     // 1 for linears
  float input_scale = 0.0f, output_scale = 0.0f;  // linears with codes only
};

// The block of config.json that gives every tensor the width of its spec, in patterns that do not depend on their order
// (transformers sorts them when it saves) nor on the prefix of names.
MobileQuantization describe_widths(const std::vector<TensorInfo>& table, const std::vector<MobileSpec>& specs);

// Streams a directory: all scales at once, then the rows of each tensor in order(), then commit(). Memory holds the
// scales. Tokenizer and config come from `source_directory`; of a multimodal config only the text model remains. An
// existing directory is replaced if it is empty or in this schema.
class MobileWriter {
 public:
  // specs and table correspond. cache_scales: per layer, 0 where there is none. Throws Error.
  MobileWriter(const std::string& directory, const std::string& source_directory, const std::vector<TensorInfo>& table,
               const std::vector<MobileSpec>& specs, const std::vector<CacheScales>& cache_scales,
               const MobileQuantization& quantization);
  ~MobileWriter();
  // Indices into the table: wide elements first, so that every tensor is aligned in the file.
  const std::vector<size_t>& order() const;
  // rows of row_bytes(dtype, cols), packed codes or floats, of tensor table[index].
  void append_rows(size_t index, const uint8_t* data, int64_t rows);
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

using MobileProgress = std::function<void(uint64_t bytes_done, uint64_t bytes)>;

// How the tensors of a checkpoint are stored, for mobile_table(checkpoint.config()). Throws Error for a float type that
// the writer does not know (F64).
std::vector<MobileSpec> mobile_specs(const MobileCheckpoint& checkpoint);
std::vector<CacheScales> cache_scales_of(const MobileCheckpoint& checkpoint);  // per layer

// Writes a checkpoint's codes and weight scales again, with the activation scales of `specs` and these cache scales.
// Every tensor gets its canonical name, whatever prefix it had.
void copy_mobile(const MobileCheckpoint& checkpoint, const std::vector<MobileSpec>& specs,
                 const std::vector<CacheScales>& cache_scales, const std::string& out,
                 const MobileProgress& progress = {});

// The same with nothing changed: an export from one directory in the schema to another.
void export_mobile(const std::string& mobile_directory, const std::string& out, const MobileProgress& progress = {});

// config.json of a model in the schema, from that of the float model (or of one in the schema).
std::string mobile_config(const std::string& source_json, const MobileQuantization& quantization,
                          const std::string& origin);

}  // namespace qat
