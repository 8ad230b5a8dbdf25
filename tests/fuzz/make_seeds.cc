// Writes the seeds of the fuzz targets: DIRECTORY/TARGET/NAME, small valid files of every kind that the parsers know.
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "export/gguf_export.h"
#include "format/plan.h"
#include "format/safetensors.h"
#include "format/tokenizer.h"

namespace qat {
namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::string>& configs() {
  static const std::map<std::string, std::string> kConfigs = {
      {"llama",
       R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 260,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
        "bos_token_id": 2, "eos_token_id": [1, 3], "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}})"},
      {"gemma3", R"({"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                        "sliding_attention", "full_attention"], "sliding_window": 16, "query_pre_attn_scalar": 4,
        "vocab_size": 260, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": true, "bos_token_id": 2, "eos_token_id": 1, "rope_parameters": {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}})"},
      {"gemma4", R"({"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "hidden_size": 8,
        "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 260, "intermediate_size": 8, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "global_head_dim": 8, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"], "sliding_window": 16,
        "vocab_size": 260, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": true, "use_double_wide_mlp": true, "final_logit_softcapping": 30.0, "attention_k_eq_v": false,
        "enable_moe_block": false, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "rope_parameters": {
        "full_attention": {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}})"}};
  return kConfigs;
}

// A byte-level vocabulary (GPT-2, Llama 3, Qwen): three letters, the space, the line break, two merges.
constexpr const char* kByteLevelTokenizer = R"({"version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [{"id": 7, "content": "<bos>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
    "fuse_unk": false, "byte_fallback": false,
    "vocab": {"a": 0, "b": 1, "c": 2, "\u0120": 3, "\u010a": 4, "ab": 5, "\u0120ab": 6}, "merges": ["a b", "\u0120 ab"]}})";

// Protocol buffers, as far as a SentencePiece model needs them.
std::string varint_field(int field, uint32_t value) {
  std::string out;
  for (uint32_t v : {static_cast<uint32_t>(field << 3), value}) {
    for (; v >= 0x80; v >>= 7) out += static_cast<char>(v | 0x80);
    out += static_cast<char>(v);
  }
  return out;
}
std::string bytes_field(int field, const std::string& bytes) {
  std::string out = varint_field(field, static_cast<uint32_t>(bytes.size()));
  out[0] = static_cast<char>(out[0] | 2);
  return out + bytes;
}
std::string float_field(int field, float value) {
  return std::string(1, static_cast<char>((field << 3) | 5)) + std::string(reinterpret_cast<const char*>(&value), 4);
}

std::string sentencepiece_model() {
  const struct {
    const char* text;
    float score;
    uint32_t type;
  } kPieces[] = {{"<unk>", 0, 2},
                 {"<s>", 0, 3},
                 {"</s>", 0, 3},
                 {"<0x0A>", 0, 6},
                 {"<0xFF>", 0, 6},
                 {"ab", -1, 1},
                 {"\xe2\x96\x81"
                  "ab",
                  -2, 1},
                 {"\xe2\x96\x81", -3, 1},
                 {"a", -4, 1},
                 {"b", -5, 1},
                 {"<bos>", 0, 4}};
  std::string model;
  for (const auto& piece : kPieces)
    model += bytes_field(1, bytes_field(1, piece.text) + float_field(2, piece.score) + varint_field(3, piece.type));
  // The field number 35 of byte_fallback takes two bytes of tag, which varint_field writes: 35 << 3 = 280.
  model += bytes_field(2, varint_field(3, 2) + varint_field(35, 1));
  return model +
         bytes_field(3, bytes_field(1, "identity") + varint_field(3, 1) + varint_field(4, 0) + varint_field(5, 1));
}

void write_seed(const std::string& directory, const std::string& target, const std::string& name,
                const std::string& bytes) {
  fs::create_directories(directory + "/" + target);
  write_file(directory + "/" + target + "/" + name, bytes);
}

void write_gguf(const std::string& directory, const std::string& arch) {
  const std::string hf = directory + "/hf";
  fs::create_directories(hf);
  write_file(hf + "/config.json", configs().at(arch));
  write_file(hf + "/tokenizer.json", byte_tokenizer_json());
  const ModelConfig config = model_config_from_hf(hf);
  std::vector<GgufTensorSpec> specs;
  for (const TensorInfo& info : tensor_table(config)) specs.push_back({info.gguf, DType::F16, info.shape});
  fs::create_directories(directory + "/gguf");
  GgufWriter writer(directory + "/gguf/" + arch, gguf_metadata(config, hf, gguf_file_type(DType::F16)), specs);
  for (const GgufTensorSpec& spec : specs) {
    const std::string zeros(*tensor_bytes(spec.dtype, spec.shape), '\0');
    writer.append(zeros.data(), zeros.size());
  }
  writer.commit();
  fs::remove_all(hf);
}

// Small files get more of a fuzzer's attention: the tokenizer alone.
void write_vocabulary_gguf(const std::string& directory, const std::string& name, const Tokenizer& tokenizer) {
  GgufMetadata metadata = {{"general.architecture", std::string("llama")}};
  for (auto& pair : tokenizer.to_gguf("llama")) metadata.push_back(std::move(pair));
  GgufWriter(directory + "/gguf/" + name, metadata, {}).commit();
}

void write_seeds(const std::string& directory) {
  fs::create_directories(directory + "/safetensors");
  SafetensorsWriter writer(directory + "/safetensors/two",
                           {{"a", DType::F32, {2, 2}}, {"b", DType::BF16, {3}}, {"c", DType::I8, {}}});
  writer.append(std::string(23, 'x').data(), 23);
  writer.commit();
  write_seed(directory, "shard_index", "two",
             R"({"metadata":{"total_size":2},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  for (const auto& [arch, config] : configs()) {
    write_seed(directory, "model_config", arch, config);
    write_gguf(directory, arch);
  }
  write_seed(directory, "mobile_config", "rules", R"({"quantization_config": {"quant_method": "gemma", "num_bits": 4,
    "quantize_embeddings": true, "module_quant_configs": {"(embed_tokens|lm_head)$": {"num_bits": 2},
    "layers\.(1|2)\.mlp": {"num_bits": 8}}, "modules_to_not_convert": [".*per_layer_model_projection$"]}})");
  const std::vector<TensorInfo> table = tensor_table(model_config_from_json(configs().at("llama"), "seed"));
  const Plan plan = plan_from_name("q4_0");
  write_seed(directory, "plan", "q4_0", plan_to_json(plan, resolve_plan(plan, table, {})));
  write_seed(directory, "tokenizer_json", "bytes", byte_tokenizer_json());
  write_seed(directory, "tokenizer_json", "byte_level", kByteLevelTokenizer);
  const std::string model = sentencepiece_model();
  write_seed(directory, "sentencepiece", "small", model);
  const Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(model.data()), model.size());
  write_vocabulary_gguf(directory, "sentencepiece", *tokenizer_from_sentencepiece_bytes(bytes, "seed", 0));
  write_vocabulary_gguf(directory, "byte_level", *tokenizer_from_json_text(kByteLevelTokenizer, "seed", 0));
}

}  // namespace
}  // namespace qat

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds DIRECTORY\n");
    return 2;
  }
  qat::write_seeds(argv[1]);
  return 0;
}
