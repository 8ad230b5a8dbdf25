// Sequences of token ids that a model wrote, as a safetensors file: input_ids I32 [count, length].
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "inference/engine.h"

namespace qat {

struct SampleRequest {
  int64_t count = 0, length = 0;  // sequences, tokens of each
  uint64_t seed = 0;
};

// Samples at temperature 1 and writes the file whole or not at all. Its metadata says what it was made from:
// model_hash, count, length, seed. Shows progress; Ctrl-C throws Interrupted.
void write_samples(const std::string& model, const SampleRequest& request, const EngineOptions& engine,
                   const std::string& out);

// True when `path` holds what write_samples would write for this model and request.
bool samples_match(const std::string& path, const std::string& model, const SampleRequest& request);

}  // namespace qat
