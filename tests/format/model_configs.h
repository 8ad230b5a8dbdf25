// config.json of real models (what matters of them), ways to change one, and equality of models.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "format/model_config.h"

namespace qat {

extern const char* const kGemma4E2B;   // text only
extern const char* const kGemma4E4B;   // text only
extern const char* const kGemma4_12B;  // unified, with towers
extern const char* const kGemma4_31B;  // text only
extern const char* const kGemma3_1B;   // text only, the spelling of transformers 4.50
extern const char* const kGemma3_4B;   // multimodal, the first release's file: defaults are left out
extern const char* const kLlama32_1B;  // the spelling of transformers 4.45

// The file with some keys of the text model set and some removed.
std::string patched(const std::string& config, const std::map<std::string, nlohmann::json>& set,
                    const std::vector<std::string>& remove = {});

// All that decides what a model computes; not its name, and not how its rotary embedding is spelled. A GGUF file has
// numbers in float32 and adds 1 to Gemma 3's norms.
void expect_same_model(const ModelConfig& a, const ModelConfig& b);

}  // namespace qat
