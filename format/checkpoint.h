// Float checkpoints (HF directories) and quantized checkpoints (ours), each a directory of plain files.
//
// A quantized checkpoint holds: config.json, generation_config.json and the tokenizer files, copied; qat_plan.json
// (plan_to_json); model.safetensors with, per tensor T of the table (canonical names):
//   coded grids: T.codes (I8 [out, in]; for 4-bit grids U8 [out, in/2], pack_int4), T.scales (F16 [out, in/block]),
//                Q6_K also T.sub_scales (I8 [out, in/16]);
//   float grids: T itself in that dtype.
// PTQ and QAT write the same thing; export only repacks it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "format/plan.h"
#include "format/safetensors.h"

namespace qat {

// An HF directory: config + tensors found under whatever prefix, shapes checked against the table at open.
class FloatCheckpoint {
 public:
  explicit FloatCheckpoint(const std::string& directory);  // throws Error: missing tensor, wrong shape or dtype
  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<TensorInfo>& table() const { return table_; }
  const std::vector<std::string>& notices() const { return notices_; }  // towers dropped, unknown tensors ignored
  const TensorView& tensor(const TensorInfo& info) const;
  DType dtype(const TensorInfo& info) const { return tensor(info).dtype; }
  const MappedFile* file_of(const uint8_t* bytes) const { return file_->file_of(bytes); }
  // Rows [row, row + count) as float32 (1-D tensors: one row). count < 0: to the end.
  void read_rows(const TensorInfo& info, int64_t row, int64_t count, float* out) const;
  std::vector<float> read(const TensorInfo& info) const;
  std::map<std::string, DType> dtypes() const;  // by canonical name, for resolve_plan; F64, no grid, counts as F32

 private:
  std::string directory_;
  std::vector<std::string> notices_;  // before config_, whose reading adds to it
  ModelConfig config_;
  std::vector<TensorInfo> table_;
  std::unique_ptr<Safetensors> file_;
  std::map<std::string, TensorView> by_name_;  // canonical name; cut to the table's shape
};

class QuantizedCheckpoint {
 public:
  explicit QuantizedCheckpoint(const std::string& directory);
  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<TensorInfo>& table() const { return table_; }
  DType grid(const TensorInfo& info) const;
  // The rows in the GGUF layout of the tensor's grid (row_bytes(grid, cols) each). count < 0: to the end.
  void read_blocks(const TensorInfo& info, int64_t row, int64_t count, uint8_t* out) const;
  std::string plan_json() const;

 private:
  std::string directory_;
  ModelConfig config_;
  std::vector<TensorInfo> table_;
  std::map<std::string, DType> grids_;
  std::unique_ptr<Safetensors> file_;
};

// Writes a quantized checkpoint, tensor by tensor in table order, rows in order, as blocks of the grid (GGUF layout).
// `source_directory` gives config and tokenizer files. Replaces an existing quantized checkpoint; throws Error when
// `directory` exists and holds something else.
class QuantizedCheckpointWriter {
 public:
  QuantizedCheckpointWriter(const std::string& directory, const std::string& source_directory,
                            const std::vector<TensorInfo>& table, const Plan& plan,
                            const std::map<std::string, PlanEntry>& resolved);
  ~QuantizedCheckpointWriter();
  void append_rows(const TensorInfo& info, const uint8_t* blocks, int64_t rows);
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Files of an HF directory that travel with a model: config.json, generation_config.json, tokenizer*, chat templates.
void copy_model_files(const std::string& from, const std::string& to);

enum class ModelKind { gguf, hf_directory, mobile, quantized_checkpoint };  // mobile: format/mobile.h
// Told apart by content (magic bytes; qat_plan.json; quantization_config). Throws Error saying what was looked for.
ModelKind detect_model_kind(const std::string& path);

}  // namespace qat
