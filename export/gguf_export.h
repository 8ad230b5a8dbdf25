// A model as a GGUF file that llama.cpp loads: metadata as its converter writes it, tensors repacked without rounding.
#pragma once

#include <functional>
#include <string>

#include "format/checkpoint.h"

namespace qat {

// The metadata of the file: general.*, the architecture's keys, the tokenizer's (same keys and values as
// convert_hf_to_gguf.py wherever llama.cpp reads them).
GgufMetadata gguf_metadata(const ModelConfig& config, const std::string& model_directory, uint32_t file_type, bool quantized);

using ExportProgress = std::function<void(uint64_t bytes_done, uint64_t bytes)>;

// From a quantized checkpoint: every tensor keeps its codes and scales. Never rounds.
// Notes: Gemma 3 norms are written as 1 + w; Llama q and k rows are permuted to the interleaved order; rope_freqs.weight is generated.
void export_gguf(const std::string& quantized_checkpoint, const std::string& out, const ExportProgress& progress = {});

// From an HF directory, unquantized: matrices in `float_type` (F32, F16, BF16), 1-D tensors F32. Equal to
// convert_hf_to_gguf.py --outtype.
void export_gguf_float(const std::string& hf_directory, DType float_type, const std::string& out, const ExportProgress& progress = {});

}  // namespace qat
