// What both readers share: ranges, KV sharing, and the rotary frequencies.
#include "format/model_config.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace qat {
namespace {

constexpr float kTwoPi = 6.2831853f;
constexpr float kNoRotation = 1e30f;  // llama.cpp's divisor for pairs that do not rotate

// Bounds far beyond any model, close enough that products of three sizes fit 64 bits.
constexpr int64_t kMaxHidden = int64_t{1} << 20, kMaxLayers = 4096, kMaxHeads = 4096, kMaxHeadDim = 1 << 16;
constexpr int64_t kMaxFfn = int64_t{1} << 24, kMaxVocab = int64_t{1} << 24, kMaxPositions = int64_t{1} << 31;

class Checker {
 public:
  explicit Checker(const std::string& origin) : origin_(origin) {}

  void range(const std::string& what, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high) fail(origin_, ": ", what, ": expected ", low, " to ", high, ", found ", value);
  }
  // 0 < value < infinity
  void positive(const std::string& what, double value) const {
    if (!(value > 0 && std::isfinite(value))) fail(origin_, ": ", what, ": expected a positive number, found ", value);
  }
  void rope(const std::string& what, const RopeConfig& rope) const {
    positive(what + " theta", rope.theta);
    positive(what + " factor", rope.linear_factor);
    if (!(rope.partial > 0 && rope.partial <= 1))
      fail(origin_, ": ", what, " partial_rotary_factor: expected more than 0, at most 1, found ", rope.partial);
    if (!rope.llama3) return;
    positive(what + " factor", rope.factor);
    positive(what + " low_freq_factor", rope.low_freq_factor);
    if (!(rope.high_freq_factor > rope.low_freq_factor && std::isfinite(rope.high_freq_factor)))
      fail(origin_, ": ", what, " high_freq_factor: expected more than low_freq_factor (", rope.low_freq_factor,
           "), found ", rope.high_freq_factor);
    range(what + " original_max_position_embeddings", rope.original_context, 1, kMaxPositions);
  }

 private:
  const std::string& origin_;
};

void check_layer(const Checker& check, const ModelConfig& c, size_t index, const std::string& origin) {
  const LayerConfig& layer = c.layers[index];
  const std::string place = "layer " + std::to_string(index);
  check.range(place + ": head size", layer.head_dim, 2, kMaxHeadDim);
  if (layer.head_dim % 2 != 0)
    fail(origin, ": ", place, ": head size: expected an even number, found ", layer.head_dim);
  check.range(place + ": key-value heads", layer.kv_heads, 1, c.heads);
  if (c.heads % layer.kv_heads != 0)
    fail(origin, ": ", place, ": expected the ", c.heads,
         " query heads to be a multiple of the key-value heads, found ", layer.kv_heads);
  check.range(place + ": feed-forward width", layer.ffn, 1, kMaxFfn);
  const RopeConfig& rope = layer.sliding ? c.rope_sliding : c.rope_full;
  if (!rope.divisors.empty() && rope.divisors.size() != static_cast<size_t>(layer.head_dim / 2))
    fail(origin, ": rope_freqs.weight: expected ", layer.head_dim / 2, " values (half of the head size of ", place,
         "), found ", rope.divisors.size());
}

// Layers from `first` on attend to the keys and values of the last layer before it that has their type.
void share_kv(ModelConfig* c, const std::string& origin) {
  const int64_t layers = static_cast<int64_t>(c->layers.size()), first = layers - c->kv_shared_layers;
  int64_t last_of_type[2] = {-1, -1};
  for (int64_t i = 0; i < layers; ++i) {
    LayerConfig& layer = c->layers[static_cast<size_t>(i)];
    if (i < first) {
      layer.kv_source = last_of_type[layer.sliding] = i;
      continue;
    }
    layer.kv_source = last_of_type[layer.sliding];
    if (layer.kv_source < 0)
      fail(origin, ": layer ", i, " shares keys and values, but no ", layer.sliding ? "sliding" : "full",
           "-attention layer before layer ", first, " has any");
    const LayerConfig& source = c->layers[static_cast<size_t>(layer.kv_source)];
    if (source.head_dim != layer.head_dim || source.kv_heads != layer.kv_heads)
      fail(origin, ": layer ", i, " shares the keys and values of layer ", layer.kv_source, ": expected ",
           source.kv_heads, " heads of ", source.head_dim, ", found ", layer.kv_heads, " of ", layer.head_dim);
  }
}

// Pairs of the head that rotate; the product is cut to a whole number, as transformers and llama.cpp's converter do.
size_t rotating_pairs(const RopeConfig& rope, int64_t head_dim) {
  return static_cast<size_t>(rope.partial * static_cast<double>(head_dim) / 2);
}

// theta^(-2i / head_dim). The power is rounded to float before its reciprocal is taken, as PyTorch does it: the last
// bit of a frequency is visible in the logits of a long sequence.
float base_frequency(const RopeConfig& rope, size_t i, int64_t head_dim) {
  const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
  return 1.0f / static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
}

// Llama 3: the share of the unscaled frequency in the mixture with the one divided by `factor`: 1 for short waves, 0
// for long ones. In float, in the order of operations of transformers and of llama.cpp's converter, so that the results
// have their bits.
float llama3_share(const RopeConfig& rope, float frequency) {
  const double context = static_cast<double>(rope.original_context);
  const float wavelength = (1.0f / frequency) * kTwoPi;
  if (wavelength < static_cast<float>(context / rope.high_freq_factor)) return 1.0f;
  if (wavelength > static_cast<float>(context / rope.low_freq_factor)) return 0.0f;
  const float waves = (1.0f / wavelength) * static_cast<float>(context);
  return (waves - static_cast<float>(rope.low_freq_factor)) /
         static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
}

}  // namespace

const char* arch_name(Arch arch) {
  switch (arch) {
    case Arch::llama: return "llama";
    case Arch::gemma3: return "gemma3";
    case Arch::gemma4: break;
  }
  return "gemma4";
}

void finish_model_config(ModelConfig* config, const std::string& origin) {
  const Checker check(origin);
  check.range("hidden size", config->hidden, 1, kMaxHidden);
  check.range("layers", static_cast<int64_t>(config->layers.size()), 1, kMaxLayers);
  check.range("attention heads", config->heads, 1, kMaxHeads);
  check.range("vocabulary size", config->vocab, 1, kMaxVocab);
  check.range("context length", config->context, 1, kMaxPositions);
  check.range("per-layer embedding width", config->ple, 0, kMaxHeadDim);
  if (config->ple > 0) check.range("per-layer embedding vocabulary", config->ple_vocab, 1, kMaxVocab);
  check.range("layers that share keys and values", config->kv_shared_layers, 0,
              static_cast<int64_t>(config->layers.size()) - 1);
  check.positive("norm epsilon", config->eps);
  if (config->softcap != 0) check.positive("final logit softcapping", config->softcap);
  check.positive("attention scale", config->attention_scale);
  check.rope("sliding-attention rope", config->rope_sliding);
  check.rope("full-attention rope", config->rope_full);
  for (size_t i = 0; i < config->layers.size(); ++i) check_layer(check, *config, i, origin);
  const bool any_sliding =
      std::any_of(config->layers.begin(), config->layers.end(), [](const LayerConfig& layer) { return layer.sliding; });
  if (any_sliding) check.range("sliding window", config->sliding_window, 1, kMaxPositions);
  share_kv(config, origin);
}

std::vector<float> rope_frequencies(const ModelConfig& config, const LayerConfig& layer) {
  const RopeConfig& rope = layer.sliding ? config.rope_sliding : config.rope_full;
  std::vector<float> frequencies(static_cast<size_t>(layer.head_dim / 2), 0.0f);
  QAT_CHECK(rope.divisors.empty() || rope.divisors.size() == frequencies.size());
  for (size_t i = 0; i < rotating_pairs(rope, layer.head_dim); ++i) {
    float frequency = base_frequency(rope, i, layer.head_dim);
    if (!rope.divisors.empty()) {
      frequency = rope.divisors[i] >= kNoRotation ? 0.0f : frequency / rope.divisors[i];
    } else if (rope.llama3) {
      const float share = llama3_share(rope, frequency);
      frequency = (1.0f - share) * frequency / static_cast<float>(rope.factor) + share * frequency;
    }
    frequencies[i] = frequency / static_cast<float>(rope.linear_factor);
  }
  return frequencies;
}

std::vector<float> rope_divisors(const ModelConfig& config) {
  const RopeConfig& rope = config.rope_full;
  if (!rope.divisors.empty()) return rope.divisors;
  // llama.cpp's Gemma 4 wants the tensor always.
  if (!rope.llama3 && rope.partial == 1.0 && config.arch != Arch::gemma4) return {};
  const auto full =
      std::find_if(config.layers.begin(), config.layers.end(), [](const LayerConfig& l) { return !l.sliding; });
  if (full == config.layers.end()) return {};
  std::vector<float> divisors(static_cast<size_t>(full->head_dim / 2), kNoRotation);
  const float factor = static_cast<float>(rope.factor);
  for (size_t i = 0; i < rotating_pairs(rope, full->head_dim); ++i) {
    const float share = rope.llama3 ? llama3_share(rope, base_frequency(rope, i, full->head_dim)) : 1.0f;
    divisors[i] = share == 0.0f ? factor : 1.0f / ((1.0f - share) / factor + share);
  }
  return divisors;
}

}  // namespace qat
