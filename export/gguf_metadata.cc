#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "export/gguf_export.h"
#include "format/error.h"
#include "format/tokenizer.h"

namespace qat {
namespace {

using Json = nlohmann::json;

constexpr uint32_t kQuantizationVersion = 2;  // GGML_QNT_VERSION: layout of the quantized blocks
constexpr size_t kGemma3Period = 6;  // llama.cpp takes every sixth Gemma 3 layer as global; no key says otherwise

uint32_t u32(int64_t value) {
  QAT_CHECK(value >= 0 && value <= std::numeric_limits<uint32_t>::max());
  return static_cast<uint32_t>(value);
}

// "594K", "1.2M": at least two digits, as gguf-py labels sizes.
std::string size_label(int64_t parameters) {
  const double count = static_cast<double>(parameters);
  double scaled = count * 1e-3;
  char suffix = 'K';
  if (count > 1e12) scaled = count * 1e-12, suffix = 'T';
  else if (count > 1e9) scaled = count * 1e-9, suffix = 'B';
  else if (count > 1e6) scaled = count * 1e-6, suffix = 'M';
  const double rounded = std::nearbyint(scaled);
  const int decimals = rounded >= 10 ? 0 : rounded >= 1 ? 1 : 2;
  char text[64];
  std::snprintf(text, sizeof text, "%.*f%c", decimals, scaled, suffix);
  return text;
}

int64_t parameter_count(const ModelConfig& config) {
  int64_t count = static_cast<int64_t>(rope_divisors(config).size());
  for (const TensorInfo& info : tensor_table(config)) {
    int64_t size = 1;
    for (const int64_t extent : info.shape) size *= extent;
    count += size;
  }
  return count;
}

// A file of JSON that a model directory may or may not have: an empty object when it has not.
Json optional_json(const std::string& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  Json json = Json::parse(read_file(path), nullptr, false);
  if (!json.is_object()) fail(path, ": expected a JSON object, found something else");
  return json;
}

// Collects keys; those of an architecture get its name in front.
class MetadataBuilder {
 public:
  MetadataBuilder(const ModelConfig& config, const std::string& directory) : config_(config), directory_(directory) {}

  GgufMetadata build(uint32_t file_type) {
    add_general(file_type);
    add_shape();
    add_rope();
    if (config_.arch == Arch::llama) add_llama();
    if (config_.arch == Arch::gemma3) add_gemma3();
    if (config_.arch == Arch::gemma4) add_gemma4();
    for (auto& entry : tokenizer_from_hf(directory_, config_.vocab)->to_gguf(arch_name(config_.arch)))
      metadata_.push_back(std::move(entry));
    add_suppressed_tokens();
    return std::move(metadata_);
  }

 private:
  void add(const std::string& key, GgufValue value) { metadata_.emplace_back(key, std::move(value)); }
  void add_arch(const std::string& key, GgufValue value) {
    add(arch_name(config_.arch) + ("." + key), std::move(value));
  }

  std::string generation_path() const { return directory_ + "/generation_config.json"; }

  void add_general(uint32_t file_type) {
    add("general.architecture", std::string(arch_name(config_.arch)));
    add("general.type", std::string("model"));
    add_sampling();
    add("general.name", config_.name);
    add("general.size_label", size_label(parameter_count(config_)));
    add("general.file_type", file_type);
    add("general.quantization_version", kQuantizationVersion);
  }

  // What the model's makers recommend for sampling: llama.cpp takes it as its defaults.
  void add_sampling() {
    const std::string path = generation_path();
    const Json json = optional_json(path);
    const auto number = [&](const char* key) {
      const auto found = json.find(key);
      if (found == json.end() || found->is_null()) return Json();
      if (!found->is_number()) fail(path, ": ", key, ": expected a number, found ", found->dump());
      return *found;
    };
    if (const Json top_k = number("top_k"); top_k.is_number()) {
      const double value = top_k.get<double>();
      if (value != std::floor(value) || std::fabs(value) > std::numeric_limits<int32_t>::max())
        fail(path, ": top_k: expected a whole number of 32 bits, found ", top_k.dump());
      add("general.sampling.top_k", static_cast<int32_t>(value));
    }
    if (const Json x = number("top_p"); x.is_number()) add("general.sampling.top_p", x.get<float>());
    if (const Json x = number("min_p"); x.is_number()) add("general.sampling.min_p", x.get<float>());
    if (const Json x = number("temperature"); x.is_number()) add("general.sampling.temp", x.get<float>());
    if (const Json x = number("repetition_penalty"); x.is_number())
      add("general.sampling.penalty_repeat", x.get<float>());
  }

  // A number that layers may disagree on: one value when they do not, else an array of all layers'.
  void add_per_layer(const std::string& key, int64_t LayerConfig::*field) {
    std::vector<int32_t> values;
    bool same = true;
    for (const LayerConfig& layer : config_.layers) {
      values.push_back(static_cast<int32_t>(u32(layer.*field)));
      same = same && values.back() == values.front();
    }
    if (same) add_arch(key, static_cast<uint32_t>(values.front()));
    else add_arch(key, std::move(values));
  }

  void add_shape() {
    QAT_CHECK(!config_.layers.empty());
    add_arch("block_count", u32(static_cast<int64_t>(config_.layers.size())));
    add_arch("context_length", u32(config_.context));
    add_arch("embedding_length", u32(config_.hidden));
    add_per_layer("feed_forward_length", &LayerConfig::ffn);
    add_arch("attention.head_count", u32(config_.heads));
    add_per_layer("attention.head_count_kv", &LayerConfig::kv_heads);
    add_arch("attention.layer_norm_rms_epsilon", static_cast<float>(config_.eps));
    const uint32_t head_dim = u32(main_layer().head_dim);
    add_arch("attention.key_length", head_dim);
    add_arch("attention.value_length", head_dim);
  }

  // A layer of the global kind; unsuffixed keys describe it. (A model of sliding layers only has none: then any.)
  const LayerConfig& main_layer() const { return layer_of_kind(false); }
  const LayerConfig& layer_of_kind(bool sliding) const {
    for (const LayerConfig& layer : config_.layers)
      if (layer.sliding == sliding) return layer;
    return config_.layers.front();
  }

  void add_rope() {
    add_arch("rope.freq_base", static_cast<float>(config_.rope_full.theta));
    if (config_.arch != Arch::llama) add_arch("rope.freq_base_swa", static_cast<float>(config_.rope_sliding.theta));
    if (config_.rope_full.linear_factor != 1.0) {
      add_arch("rope.scaling.type", std::string("linear"));
      add_arch("rope.scaling.factor", static_cast<float>(config_.rope_full.linear_factor));
    }
  }

  void add_llama() {
    add_arch("vocab_size", u32(config_.vocab));
    add_arch("rope.dimension_count", u32(main_layer().head_dim));
  }

  void add_gemma3() {
    if (config_.softcap != 0.0) add_arch("final_logit_softcapping", static_cast<float>(config_.softcap));
    add_arch("attention.sliding_window", u32(config_.sliding_window));
    for (size_t i = 0; i < config_.layers.size(); ++i) {
      const bool sliding = (i + 1) % kGemma3Period != 0;
      if (config_.layers[i].sliding != sliding)
        fail(directory_, "/config.json: layer_types: llama.cpp runs layer ", i, " of a gemma3 model as ",
             sliding ? "sliding_attention" : "full_attention", ", found ",
             sliding ? "full_attention" : "sliding_attention");
    }
  }

  void add_gemma4() {
    if (config_.softcap != 0.0) add_arch("final_logit_softcapping", static_cast<float>(config_.softcap));
    add_arch("attention.sliding_window", u32(config_.sliding_window));
    std::vector<bool> sliding;
    for (const LayerConfig& layer : config_.layers) sliding.push_back(layer.sliding);
    add_arch("attention.sliding_window_pattern", std::move(sliding));
    add_arch("attention.shared_kv_layers", u32(config_.kv_shared_layers));
    add_arch("embedding_length_per_layer_input", u32(config_.ple));
    const uint32_t sliding_dim = u32(layer_of_kind(true).head_dim);
    add_arch("attention.key_length_swa", sliding_dim);
    add_arch("attention.value_length_swa", sliding_dim);
    add_arch("rope.dimension_count", u32(main_layer().head_dim));  // pairs that stand still: rope_freqs.weight
    add_arch("rope.dimension_count_swa", sliding_dim);
  }

  // Tokens that the unified models must never say (they stand for images and sounds).
  void add_suppressed_tokens() {
    if (optional_json(directory_ + "/config.json").value("model_type", Json()) != "gemma4_unified") return;
    const Json tokens = optional_json(generation_path()).value("suppress_tokens", Json());
    if (!tokens.is_array()) return;
    std::vector<int32_t> ids;
    for (const Json& id : tokens) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(config_.vocab))
        fail(generation_path(), ": suppress_tokens: expected token ids below ", config_.vocab, ", found ", id.dump());
      ids.push_back(id.get<int32_t>());
    }
    add("tokenizer.ggml.suppress_tokens", std::move(ids));
  }

  const ModelConfig& config_;
  const std::string directory_;
  GgufMetadata metadata_;
};

}  // namespace

GgufMetadata gguf_metadata(const ModelConfig& config, const std::string& model_directory, uint32_t file_type) {
  return MetadataBuilder(config, model_directory).build(file_type);
}

uint32_t gguf_file_type(DType type) {
  switch (type) {
    case DType::F32: return 0;
    case DType::F16: return 1;
    case DType::Q4_0: return 2;
    case DType::Q8_0: return 7;
    case DType::Q6_K: return 18;
    case DType::Q2_0: return 41;
    default: break;
  }
  QAT_CHECK(type == DType::BF16);
  return 32;
}

}  // namespace qat
