// A model as a GGUF file that llama.cpp loads: metadata as its converter writes it, tensors repacked without rounding.
// Differences from convert_hf_to_gguf.py that are meant: export/README.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "format/checkpoint.h"

namespace qat {

// The metadata of the file: general.*, the architecture's keys, the tokenizer's (same keys and values as
// convert_hf_to_gguf.py wherever llama.cpp reads them). `model_directory` holds config.json's companions: the
// tokenizer, generation_config.json, the chat template. Throws Error when llama.cpp could not run the model from such a
// file.
GgufMetadata gguf_metadata(const ModelConfig& config, const std::string& model_directory, uint32_t file_type);

// llama.cpp's number for "mostly this type" (general.file_type).
uint32_t gguf_file_type(DType type);

using ExportProgress = std::function<void(uint64_t bytes_done, uint64_t bytes)>;

// From a quantized checkpoint: every tensor keeps its codes and scales. Never rounds.
// Notes: Gemma 3 norms are written as 1 + w; Llama q and k rows are permuted to the interleaved order;
// rope_freqs.weight is generated; 1-D tensors are widened to F32, as llama.cpp needs them.
void export_gguf(const std::string& quantized_checkpoint, const std::string& out, const ExportProgress& progress = {});

// Bytes of the file that export_gguf writes of a checkpoint quantized to these types (of matrices, by canonical name),
// but for the length of its directory's name, which is general.name.
uint64_t gguf_bytes(const FloatCheckpoint& checkpoint, const std::map<std::string, DType>& types);

// From a directory in the mobile schema: int2 rows as Q2_0, int4 as Q4_0, int8 as Q8_0; where such blocks do not divide
// what shares a scale, in the next type that holds the same values (Q2_0, Q4_0, F16). Never rounds: throws Error for a
// scale or weight that the type cannot hold exactly, naming tensor and row. The head is left out when it is a copy of
// the embedding. GGUF has no place for activation and KV scales.
void export_gguf_mobile(const std::string& mobile_directory, const std::string& out,
                        const ExportProgress& progress = {});

// From an HF directory, unquantized: matrices in `float_type` (F32, F16, BF16), 1-D tensors F32. Equal to
// convert_hf_to_gguf.py --outtype. Throws Error for a weight that F16 cannot hold.
void export_gguf_float(const std::string& hf_directory, DType float_type, const std::string& out,
                       const ExportProgress& progress = {});

}  // namespace qat
