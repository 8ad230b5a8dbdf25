// ModelConfig from GGUF metadata, as llama.cpp's loader reads it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/error.h"
#include "format/model_config.h"

namespace qat {
namespace {

constexpr int64_t kGemma3Period = 6;        // llama.cpp: every sixth layer of gemma3 is full, whatever the file says
constexpr int64_t kGemma3LayersOf27B = 62;  // whose attention scale is that of hidden / heads

Arch arch_of(const GgufFile& file) {
  const std::string name = file.get_string("general.architecture");
  for (const Arch arch : {Arch::llama, Arch::gemma3, Arch::gemma4})
    if (name == arch_name(arch)) return arch;
  if (name == "gemma4-assistant") fail(file.path(), ": architecture ", name, " is not supported yet: drafter");
  fail(file.path(), ": general.architecture: expected llama, gemma3 or gemma4, found ", name);
}

// A value per layer from a scalar or an array.
std::vector<int64_t> per_layer(const GgufFile& file, const std::string& key, size_t layers) {
  std::vector<int64_t> values = file.get_ints(key);
  if (values.size() == 1) values.resize(layers, values[0]);
  if (values.size() != layers)
    fail(file.path(), ": ", key, ": expected one value or one per layer (", layers, "), found ", values.size());
  return values;
}

int64_t uniform(const GgufFile& file, const std::string& key, size_t layers) {
  const std::vector<int64_t> values = per_layer(file, key, layers);
  for (const int64_t v : values)
    if (v != values[0])
      fail(file.path(), ": ", key, ": expected the same value for all layers, found ", values[0], " and ", v);
  return values[0];
}

int64_t rows_of(const GgufFile& file, const std::string& name) {
  const GgufTensor& tensor = file.tensor(name);
  if (tensor.shape.size() != 2)
    fail(file.path(), ": tensor ", name, ": expected 2 dimensions, found ", tensor.shape.size());
  return tensor.shape[0];
}

class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file), arch_(arch_of(file)) {}

  ModelConfig read() {
    refuse();
    ModelConfig c;
    c.arch = arch_;
    c.name = file_.find("general.name") != nullptr ? file_.get_string("general.name") : "";
    c.hidden = integer("embedding_length");
    c.context = integer("context_length");
    c.eps = file_.get_float(key("attention.layer_norm_rms_epsilon"));
    c.softcap = arch_ == Arch::llama ? 0.0 : file_.get_float(key("final_logit_softcapping"), 0.0);
    c.vocab = rows_of(file_, "token_embd.weight");
    c.tied = file_.find_tensor("output.weight") == nullptr;
    c.embedding_scale = arch_ == Arch::llama ? 1.0 : std::sqrt(static_cast<double>(c.hidden));
    const int64_t layers = integer("block_count");
    // Before anything is allocated by it.
    if (layers < 1 || layers > 4096)
      fail(file_.path(), ": ", key("block_count"), ": expected 1 to 4096, found ", layers);
    c.layers.resize(static_cast<size_t>(layers));
    c.heads = uniform(file_, key("attention.head_count"), c.layers.size());
    if (c.heads < 1) fail(file_.path(), ": ", key("attention.head_count"), ": expected at least 1, found ", c.heads);
    read_layers(&c);
    read_rope(&c);
    read_tokens(&c);
    c.attention_scale = attention_scale(c);
    finish_model_config(&c, file_.path());
    check_rope_width(c);
    return c;
  }

 private:
  std::string key(const std::string& suffix) const { return std::string(arch_name(arch_)) + "." + suffix; }
  int64_t integer(const std::string& suffix) const { return file_.get_int(key(suffix)); }

  void refuse() const {
    if (file_.get_int(key("expert_count"), 0) > 0) fail(file_.path(), ": not supported yet: mixture of experts");
    if (file_.get_int("split.count", 1) > 1)
      fail(file_.path(), ": one part of a split model; join the parts with llama-gguf-split --merge first");
    for (const char* bias : {"blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_output.bias", "blk.0.ffn_up.bias"})
      if (file_.find_tensor(bias) != nullptr) fail(file_.path(), ": tensor ", bias, ": biases are not supported yet");
    if (!file_.get_bool(key("attention.causal"), true))
      fail(file_.path(), ": bidirectional attention is not supported");
  }

  void read_layers(ModelConfig* c) const {
    const size_t count = c->layers.size();
    const std::vector<int64_t> ffn = per_layer(file_, key("feed_forward_length"), count);
    const std::vector<int64_t> kv_heads = file_.find(key("attention.head_count_kv")) != nullptr
                                              ? per_layer(file_, key("attention.head_count_kv"), count)
                                              : std::vector<int64_t>(count, c->heads);
    const std::vector<bool> sliding = sliding_layers(count);
    const int64_t full_dim = head_dim("", arch_ == Arch::gemma4 ? 0 : c->hidden / c->heads);
    const int64_t sliding_dim = arch_ == Arch::gemma4 ? head_dim("_swa", 0) : full_dim;
    if (arch_ == Arch::gemma4) {
      c->kv_shared_layers = file_.get_int(key("attention.shared_kv_layers"), 0);
      c->ple = file_.get_int(key("embedding_length_per_layer_input"), 0);
      if (c->ple > 0) c->ple_vocab = rows_of(file_, "per_layer_token_embd.weight");
    }
    c->sliding_window = arch_ == Arch::llama ? 0 : file_.get_int(key("attention.sliding_window"), 0);
    for (size_t i = 0; i < count; ++i) {
      LayerConfig& layer = c->layers[i];
      layer.sliding = sliding[i];
      layer.head_dim = sliding[i] ? sliding_dim : full_dim;
      layer.kv_heads = kv_heads[i];
      layer.ffn = ffn[i];
      const std::string block = "blk." + std::to_string(i) + ".";
      layer.k_eq_v = arch_ == Arch::gemma4 && file_.find_tensor(block + "attn_k.weight") != nullptr &&
                     file_.find_tensor(block + "attn_v.weight") == nullptr;
    }
  }

  int64_t head_dim(const std::string& suffix, int64_t fallback) const {
    const std::string name = key("attention.key_length" + suffix);
    const int64_t length = fallback > 0 ? file_.get_int(name, fallback) : file_.get_int(name);
    const int64_t value_length = file_.get_int(key("attention.value_length" + suffix), length);
    if (value_length != length)
      fail(file_.path(), ": ", key("attention.value_length" + suffix), ": expected ", length,
           " (the key length), found ", value_length);
    return length;
  }

  std::vector<bool> sliding_layers(size_t count) const {
    std::vector<bool> sliding(count, false);
    if (arch_ == Arch::gemma4) {
      const std::vector<int64_t> pattern = per_layer(file_, key("attention.sliding_window_pattern"), count);
      for (size_t i = 0; i < count; ++i) sliding[i] = pattern[i] != 0;
    } else if (arch_ == Arch::gemma3 && file_.get_int(key("attention.sliding_window"), 0) > 0) {
      // Either a list or a period; the converter writes neither.
      const std::string name = key("attention.sliding_window_pattern");
      const std::vector<int64_t> pattern =
          file_.find(name) != nullptr ? file_.get_ints(name) : std::vector<int64_t>{kGemma3Period};
      if (pattern.size() != 1 && pattern.size() != count)
        fail(file_.path(), ": ", name, ": expected a period or one value per layer (", count, "), found ",
             pattern.size(), " values");
      for (size_t i = 0; i < count; ++i)
        sliding[i] =
            pattern.size() == 1 ? pattern[0] > 0 && static_cast<int64_t>(i + 1) % pattern[0] != 0 : pattern[i] != 0;
    }
    return sliding;
  }

  void read_rope(ModelConfig* c) const {
    c->rope_full.theta = file_.get_float(key("rope.freq_base"), 10000.0);
    c->rope_sliding.theta =
        file_.get_float(key("rope.freq_base_swa"), arch_ == Arch::gemma3 ? 10000.0 : c->rope_full.theta);
    const std::string type =
        file_.find(key("rope.scaling.type")) != nullptr ? file_.get_string(key("rope.scaling.type")) : "linear";
    const double factor = file_.get_float(key("rope.scaling.factor"), 0.0);
    if (type == "linear") c->rope_full.linear_factor = factor == 0.0 ? 1.0 : factor;
    else if (type != "none")
      fail(file_.path(), ": ", key("rope.scaling.type"), ": expected linear or none, found ", type);
    if (const GgufTensor* tensor = file_.find_tensor("rope_freqs.weight")) c->rope_full.divisors = divisors(*tensor);
  }

  std::vector<float> divisors(const GgufTensor& tensor) const {
    if (tensor.dtype != DType::F32 || tensor.shape.size() != 1)
      fail(file_.path(), ": tensor ", tensor.name, ": expected F32 with 1 dimension, found ", dtype_name(tensor.dtype),
           " with ", tensor.shape.size());
    std::vector<float> values(tensor.bytes.size() / sizeof(float));
    std::memcpy(values.data(), tensor.bytes.data(), values.size() * sizeof(float));
    for (const float v : values)
      if (!(v > 0 && std::isfinite(v)))
        fail(file_.path(), ": tensor ", tensor.name, ": expected positive numbers, found ", v);
    return values;
  }

  // Rotary embeddings of part of the head exist in GGUF only as rope_freqs.weight.
  void check_rope_width(const ModelConfig& c) const {
    for (const LayerConfig& layer : c.layers) {
      const std::string name =
          key(layer.sliding && arch_ == Arch::gemma4 ? "rope.dimension_count_swa" : "rope.dimension_count");
      const int64_t width = file_.get_int(name, layer.head_dim);
      if (width != layer.head_dim)
        fail(file_.path(), ": ", name, ": expected the head size ", layer.head_dim, ", found ", width);
    }
  }

  void read_tokens(ModelConfig* c) const {
    c->bos_id = file_.get_int("tokenizer.ggml.bos_token_id", -1);
    c->pad_id = file_.get_int("tokenizer.ggml.padding_token_id", -1);
    for (const char* name : {"eos", "eot", "eom"}) {
      const int64_t id = file_.get_int(std::string("tokenizer.ggml.") + name + "_token_id", -1);
      if (id >= 0 && std::find(c->eos_ids.begin(), c->eos_ids.end(), id) == c->eos_ids.end()) c->eos_ids.push_back(id);
    }
  }

  double attention_scale(const ModelConfig& c) const {
    if (arch_ == Arch::gemma4) return 1.0;
    if (arch_ == Arch::gemma3 && static_cast<int64_t>(c.layers.size()) == kGemma3LayersOf27B)
      return 1.0 / std::sqrt(static_cast<double>(c.hidden / c.heads));
    return 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(c.layers[0].head_dim, 1)));
  }

  const GgufFile& file_;
  const Arch arch_;
};

}  // namespace

ModelConfig model_config_from_gguf(const GgufFile& file) { return Reader(file).read(); }

}  // namespace qat
