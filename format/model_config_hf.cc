// ModelConfig from a Hugging Face config.json, as transformers reads it, in its spellings from 4.x to 5.x.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "format/checkpoint_internal.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/model_config.h"

namespace qat {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();

std::string shown(const Json& value) {
  const std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

// An object of the file with the path to it, for messages. A key that is null counts as absent, as in transformers.
class Object {
 public:
  Object(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
    if (!json.is_object()) fail(place_, ": expected a JSON object, found ", shown(json));
  }

  const Json* find(const char* key) const {
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  bool has(const char* key) const { return find(key) != nullptr; }
  bool contains(const char* key) const { return json_.contains(key); }  // null counts
  const Json& json() const { return json_; }
  const std::string& place() const { return place_; }
  Object object(const char* key) const { return Object(need(key), place_ + ": " + key); }

  int64_t integer(const char* key) const { return to_integer(need(key), key); }
  int64_t integer(const char* key, int64_t fallback) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : to_integer(*value, key);
  }
  double number(const char* key) const { return to_number(need(key), key); }
  double number(const char* key, double fallback) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : to_number(*value, key);
  }
  bool boolean(const char* key, bool fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) wrong(key, "true or false", *value);
    return value->get<bool>();
  }
  std::string string(const char* key) const { return to_string(need(key), key); }
  std::string string(const char* key, const char* fallback) const {
    const Json* value = find(key);
    return value == nullptr ? fallback : to_string(*value, key);
  }

  [[noreturn]] void wrong(const char* key, const std::string& expected, const Json& found) const {
    fail(place_, ": ", key, ": expected ", expected, ", found ", shown(found));
  }

  int64_t to_integer(const Json& value, const char* key) const {
    // 64 bits unsigned do not fit; get() would wrap around.
    const bool fits =
        value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{kMaxInt});
    if (!fits) wrong(key, "an integer", value);
    return value.get<int64_t>();
  }

 private:
  const Json& need(const char* key) const {
    const Json* value = find(key);
    if (value == nullptr) fail(place_, ": ", key, ": expected a value, found none");
    return *value;
  }
  double to_number(const Json& value, const char* key) const {
    if (!value.is_number()) wrong(key, "a number", value);
    return value.get<double>();
  }
  std::string to_string(const Json& value, const char* key) const {
    if (!value.is_string()) wrong(key, "a string", value);
    return value.get<std::string>();
  }

  const Json& json_;
  std::string place_;
};

struct Supported {
  const char* model_type;
  Arch arch;
  bool wrapper;  // multimodal: the text model is under text_config
};

constexpr Supported kSupported[] = {
    {"llama", Arch::llama, false},          {"gemma3_text", Arch::gemma3, false},
    {"gemma3", Arch::gemma3, true},         {"gemma4_text", Arch::gemma4, false},
    {"gemma4", Arch::gemma4, true},         {"gemma4_unified_text", Arch::gemma4, false},
    {"gemma4_unified", Arch::gemma4, true},
};

const Supported& supported(const Object& object) {
  const std::string type = object.string("model_type");
  std::string names;
  for (const Supported& row : kSupported) {
    if (type == row.model_type) return row;
    names += std::string(names.empty() ? "" : ", ") + row.model_type;
  }
  if (type == "gemma4_assistant" || type == "gemma4_unified_assistant")
    fail(object.place(), ": model_type ", type, " is not supported yet: drafter");
  fail(object.place(), ": model_type: expected one of ", names, ", found ", type);
}

// What would change the forward pass and is not implemented.
void refuse_unsupported(const Object& text, Arch arch) {
  const auto refuse = [&](const std::string& what) { fail(text.place(), ": not supported yet: ", what); };
  if (text.boolean("enable_moe_block", false) || text.integer("num_experts", 0) > 0 ||
      text.integer("num_local_experts", 0) > 0)
    refuse("mixture of experts");
  if (text.boolean("attention_bias", false)) refuse("attention_bias");
  if (text.boolean("mlp_bias", false)) refuse("mlp_bias");
  if (text.has("attn_logit_softcapping")) refuse("attn_logit_softcapping");
  if (const Json* mode = text.find("use_bidirectional_attention"))
    if (*mode != false && *mode != "vision") refuse("use_bidirectional_attention " + shown(*mode));
  const char* const expected = arch == Arch::llama ? "silu" : "gelu_pytorch_tanh";
  const char* const key = text.has("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string found = text.string(key, expected);
  if (found != expected) refuse(std::string(key) + " " + found + " (only " + expected + ")");
}

// One set of rotary parameters; `type` has the old name too.
RopeConfig read_rope(const Object& object, double default_theta) {
  RopeConfig rope;
  rope.theta = object.number("rope_theta", default_theta);
  const std::string type = object.string("rope_type", object.string("type", "default").c_str());
  if (type == "linear") {
    rope.linear_factor = object.number("factor");
  } else if (type == "proportional") {
    rope.linear_factor = object.number("factor", 1.0);
    rope.partial = object.number("partial_rotary_factor", 1.0);
  } else if (type == "llama3") {
    rope.llama3 = true;
    rope.factor = object.number("factor");
    rope.low_freq_factor = object.number("low_freq_factor");
    rope.high_freq_factor = object.number("high_freq_factor");
    rope.original_context = object.integer("original_max_position_embeddings");
  } else if (type != "default") {
    fail(object.place(), ": rope_type: expected default, linear, llama3 or proportional, found ", type);
  }
  if (type != "proportional" && object.number("partial_rotary_factor", 1.0) != 1.0)
    fail(object.place(), ": partial_rotary_factor: expected 1 with rope_type ", type, ", found ",
         object.number("partial_rotary_factor"));
  return rope;
}

// Llama: rope_parameters, or the older rope_theta and rope_scaling.
RopeConfig llama_rope(const Object& text) {
  if (text.number("partial_rotary_factor", 1.0) != 1.0)
    fail(text.place(), ": partial_rotary_factor is not supported for llama");
  const double theta = text.number("rope_theta", 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"})
    if (text.has(key)) return read_rope(text.object(key), theta);
  RopeConfig rope;
  rope.theta = theta;
  return rope;
}

// Gemma: rope_parameters per layer type; Gemma 3 also has the older rope_theta, rope_local_base_freq and rope_scaling
// (which is about the full layers).
void gemma_rope(const Object& text, ModelConfig* c) {
  const bool gemma4 = c->arch == Arch::gemma4;
  c->rope_full.theta = gemma4 ? 1e6 : text.number("rope_theta", 1e6);
  c->rope_sliding.theta = gemma4 ? 1e4 : text.number("rope_local_base_freq", 1e4);
  if (!text.has("rope_parameters")) {
    if (gemma4) c->rope_full.partial = 0.25;
    if (!gemma4 && text.has("rope_scaling")) c->rope_full = read_rope(text.object("rope_scaling"), c->rope_full.theta);
    return;
  }
  const Object parameters = text.object("rope_parameters");
  if (!parameters.has("full_attention") && !parameters.has("sliding_attention") && !parameters.json().empty())
    parameters.wrong("full_attention", "rotary parameters per layer type", parameters.json());
  if (parameters.has("full_attention"))
    c->rope_full = read_rope(parameters.object("full_attention"), c->rope_full.theta);
  if (parameters.has("sliding_attention"))
    c->rope_sliding = read_rope(parameters.object("sliding_attention"), c->rope_sliding.theta);
}

// Which layers slide: layer_types, else a period (every period-th layer is full).
void read_layer_types(const Object& text, ModelConfig* c, std::vector<std::string>* notices) {
  const int64_t count = static_cast<int64_t>(c->layers.size());
  if (const Json* types = text.find("layer_types")) {
    if (!types->is_array() || types->size() != c->layers.size())
      text.wrong("layer_types", "a list of " + std::to_string(count) + " layer types", *types);
    for (size_t i = 0; i < c->layers.size(); ++i) {
      const Json& type = (*types)[i];
      if (type != "sliding_attention" && type != "full_attention")
        text.wrong("layer_types", "sliding_attention or full_attention", type);
      c->layers[i].sliding = type == "sliding_attention";
    }
  } else {
    const int64_t period = text.integer("sliding_window_pattern", text.integer("_sliding_window_pattern", 6));
    if (period < 1) fail(text.place(), ": sliding_window_pattern: expected at least 1, found ", period);
    for (int64_t i = 0; i < count; ++i) c->layers[static_cast<size_t>(i)].sliding = (i + 1) % period != 0;
  }
  if (c->arch == Arch::gemma4 && c->layers.back().sliding) {
    c->layers.back().sliding = false;
    if (notices != nullptr)
      notices->push_back(text.place() + ": the last layer is made full_attention, as Gemma 4 requires");
  }
}

// Newer transformers keep what differs between layers as {"5": {"head_dim": 512, "num_key_value_heads": 1}}.
void apply_per_layer_config(const Object& text, ModelConfig* c) {
  if (!text.has("per_layer_config")) return;
  const Object all = text.object("per_layer_config");
  for (const auto& [index, json] : all.json().items()) {
    const Object entry(json, all.place() + ": " + index);
    const bool digits =
        !index.empty() && index.size() <= 4 && index.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stoul(index) >= c->layers.size())
      fail(all.place(), ": expected layer numbers below ", c->layers.size(), ", found \"", index.substr(0, 60), "\"");
    LayerConfig& layer = c->layers[std::stoul(index)];
    for (const auto& [key, value] : json.items()) {
      if (key == "head_dim") layer.head_dim = entry.to_integer(value, "head_dim");
      else if (key == "num_key_value_heads") layer.kv_heads = entry.to_integer(value, "num_key_value_heads");
      else fail(entry.place(), ": expected head_dim or num_key_value_heads, found ", key);
    }
  }
}

void read_gemma4_layers(const Object& text, ModelConfig* c) {
  const int64_t layers = static_cast<int64_t>(c->layers.size());
  c->kv_shared_layers = text.integer("num_kv_shared_layers", 0);
  if (c->kv_shared_layers < 0 || c->kv_shared_layers >= layers)
    fail(text.place(), ": num_kv_shared_layers: expected 0 to ", layers - 1, ", found ", c->kv_shared_layers);
  const int64_t first_shared = layers - c->kv_shared_layers;
  const bool double_wide = text.boolean("use_double_wide_mlp", false), k_eq_v = text.boolean("attention_k_eq_v", false);
  const int64_t ffn = text.integer("intermediate_size"), dim = text.integer("head_dim", 256);
  // Gone from files that say it per layer instead.
  const int64_t global_dim = text.integer("global_head_dim", text.has("per_layer_config") ? dim : 512);
  const int64_t kv_heads = text.integer("num_key_value_heads"),
                global_kv = text.integer("num_global_key_value_heads", kv_heads);
  if (ffn > kMaxInt / 2) fail(text.place(), ": intermediate_size: out of range: ", ffn);
  for (int64_t i = 0; i < layers; ++i) {
    LayerConfig& layer = c->layers[static_cast<size_t>(i)];
    layer.k_eq_v = k_eq_v && !layer.sliding;
    layer.head_dim = layer.sliding ? dim : global_dim;
    layer.kv_heads = layer.k_eq_v ? global_kv : kv_heads;
    layer.ffn = double_wide && i >= first_shared && first_shared > 0 ? 2 * ffn : ffn;
  }
  apply_per_layer_config(text, c);
}

void read_plain_layers(const Object& text, ModelConfig* c) {
  const bool llama = c->arch == Arch::llama;
  const int64_t dim = text.integer("head_dim", llama ? c->hidden / c->heads : 256);
  const int64_t kv_heads = text.integer("num_key_value_heads", llama ? c->heads : 4),
                ffn = text.integer("intermediate_size");
  for (LayerConfig& layer : c->layers) {
    layer.head_dim = dim;
    layer.kv_heads = kv_heads;
    layer.ffn = ffn;
  }
}

// 0, which finish_model_config refuses, for what has no such root.
double inverse_root(double x) { return x > 0 ? 1.0 / std::sqrt(x) : 0.0; }

// An id or a list of ids, added to those that are there.
void add_ids(const Object& object, const char* key, std::vector<int64_t>* ids) {
  const Json* value = object.find(key);
  if (value == nullptr) return;
  const auto add = [&](const Json& id) {
    const int64_t n = object.to_integer(id, key);
    if (std::find(ids->begin(), ids->end(), n) == ids->end()) ids->push_back(n);
  };
  if (!value->is_array()) return add(*value);
  for (const Json& id : *value) add(id);
}

void read_tokens(const Object& top, const Object& text, ModelConfig* c) {
  const int64_t bos = c->arch == Arch::llama ? 1 : 2, pad = c->arch == Arch::llama ? -1 : 0;
  const Object& owner = top.contains("bos_token_id") ? top : text;
  c->bos_id = owner.contains("bos_token_id") ? owner.integer("bos_token_id", -1) : bos;
  c->pad_id = text.contains("pad_token_id") ? text.integer("pad_token_id", -1) : pad;
  add_ids(top, "eos_token_id", &c->eos_ids);
  if (c->eos_ids.empty()) add_ids(text, "eos_token_id", &c->eos_ids);
  if (c->eos_ids.empty() && !text.contains("eos_token_id")) c->eos_ids = {c->arch == Arch::llama ? 2 : 1};
}

// Numbers of the whole model. Heads, hidden size and layer count are checked here, before anything is divided or
// allocated by them; finish_model_config checks the rest.
void read_sizes(const Object& top, const Object& text, ModelConfig* c) {
  const bool llama = c->arch == Arch::llama, gemma3 = c->arch == Arch::gemma3;
  c->hidden = text.integer("hidden_size");
  // Early Gemma 3 files leave out what equals transformers' defaults.
  c->heads = gemma3 ? text.integer("num_attention_heads", 8) : text.integer("num_attention_heads");
  c->vocab = gemma3 ? text.integer("vocab_size", 262208) : text.integer("vocab_size");
  c->context = text.integer("max_position_embeddings", llama ? 2048 : 131072);
  c->eps = text.number("rms_norm_eps", 1e-6);
  c->softcap = llama ? 0.0 : text.number("final_logit_softcapping", 0.0);
  c->tied = top.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", !llama));
  c->norm_plus_one = gemma3;
  const int64_t layers = text.integer("num_hidden_layers");
  if (c->heads < 1) fail(text.place(), ": num_attention_heads: expected at least 1, found ", c->heads);
  if (c->hidden < 1) fail(text.place(), ": hidden_size: expected at least 1, found ", c->hidden);
  if (layers < 1 || layers > 4096) fail(text.place(), ": num_hidden_layers: expected 1 to 4096, found ", layers);
  if (llama && !text.has("head_dim") && c->hidden % c->heads != 0)
    fail(text.place(), ": hidden_size: expected a multiple of num_attention_heads (", c->heads, "), found ", c->hidden);
  c->layers.resize(static_cast<size_t>(layers));
  if (!llama) c->embedding_scale = std::sqrt(static_cast<double>(c->hidden));
}

void read_per_layer_embeddings(const Object& text, bool unified, ModelConfig* c) {
  const int64_t fallback = unified ? 0 : 256;
  c->ple = text.contains("hidden_size_per_layer_input") ? text.integer("hidden_size_per_layer_input", 0) : fallback;
  c->ple_vocab = c->ple > 0 ? text.integer("vocab_size_per_layer_input", 262144) : 0;
}

// Other weights than floats, or those of the mobile schema, which has its own reader.
void refuse_quantized(const Object& object) {
  if (!object.has("quantization_config")) return;
  const std::string method = object.object("quantization_config").string("quant_method", "an unnamed method");
  if (method == "gemma") return;
  fail(object.place(), ": expected float weights, found a checkpoint already quantized by ", method);
}

ModelConfig read_config(const Object& top, const std::string& origin, std::vector<std::string>* notices) {
  const Supported& row = supported(top);
  const Object text = row.wrapper ? top.object("text_config") : top;
  refuse_quantized(top);
  refuse_quantized(text);
  refuse_unsupported(text, row.arch);

  ModelConfig c;
  c.arch = row.arch;
  read_sizes(top, text, &c);
  if (c.arch == Arch::llama) {
    read_plain_layers(text, &c);
    c.rope_full = llama_rope(text);
    c.attention_scale = inverse_root(static_cast<double>(c.layers[0].head_dim));
  } else {
    c.sliding_window = text.integer("sliding_window", c.arch == Arch::gemma3 ? 4096 : 512);
    read_layer_types(text, &c, notices);
    gemma_rope(text, &c);
  }
  if (c.arch == Arch::gemma3) {
    read_plain_layers(text, &c);
    c.attention_scale = inverse_root(text.number("query_pre_attn_scalar", 256));
  }
  if (c.arch == Arch::gemma4) {
    read_gemma4_layers(text, &c);
    read_per_layer_embeddings(text, text.string("model_type", row.model_type).find("unified") != std::string::npos, &c);
  }
  read_tokens(top, text, &c);
  finish_model_config(&c, origin);
  if (notices != nullptr)
    for (const char* tower : {"vision_config", "audio_config"})
      if (row.wrapper && top.has(tower))
        notices->push_back(origin + ": " + tower + " is ignored: only the text part is used");
  return c;
}

Json parse(const std::string& text, const std::string& origin) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    fail(origin, ": byte ", error.byte, ": expected valid JSON, found something else");
  } catch (const Json::exception& error) {
    fail(origin, ": expected valid JSON, found: ", printable(error.what()));
  }
}

}  // namespace

ModelConfig model_config_from_json(const std::string& json, const std::string& origin,
                                   std::vector<std::string>* notices) {
  const Json root = parse(json, origin);
  return read_config(Object(root, origin), origin, notices);
}

ModelConfig model_config_from_hf(const std::string& directory, std::vector<std::string>* notices) {
  const std::string path = directory + "/config.json";
  ModelConfig config = model_config_from_json(read_file(path, kMaxConfigBytes), path, notices);
  config.name = std::filesystem::weakly_canonical(directory).filename().string();
  // Chat models list more ways to stop here.
  const std::string generation = directory + "/generation_config.json";
  if (std::filesystem::exists(generation)) {
    const Json root = parse(read_file(generation, kMaxConfigBytes), generation);
    add_ids(Object(root, generation), "eos_token_id", &config.eos_ids);
  }
  return config;
}

}  // namespace qat
