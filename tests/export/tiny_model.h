// A small HF directory of any architecture, written by a test: random weights, a byte tokenizer.
#pragma once

#include <cstdint>
#include <string>

#include "format/checkpoint.h"
#include "tests/test_paths.h"

namespace qat {

// Configs of the shapes that matter to export: 64 wide, so that Q4_0 rows are whole and Q6_K rows are not.
std::string llama_json(bool tied, int64_t ffn = 96, int64_t vocab = 260,
                       const std::string& rope = R"("rope_type": "default")");
std::string gemma3_json();
std::string gemma4_json();         // like E2B: per-layer embeddings, two shared layers, double-wide MLP, two head sizes
std::string gemma4_k_eq_v_json();  // like 31B: K = V on global layers, fewer K/V heads there

// config.json, model.safetensors (every tensor of the table in `dtype`, values in about +-0.1), tokenizer.json.
void write_tiny_model(const std::string& directory, const std::string& config, DType dtype, uint64_t seed = 1);
// The same, but one element of one tensor (canonical name) is `value`.
void write_tiny_model_with(const std::string& directory, const std::string& config, DType dtype,
                           const std::string& tensor, int64_t element, float value);

std::string file_bytes(const std::string& path);
void add_file(const std::string& path, const std::string& contents);

}  // namespace qat
