// A small Gemma 4 model with a byte tokenizer, and text, written by the tests themselves.
#pragma once

#include <filesystem>
#include <string>

#include "fakequant/libtorch.h"
#include "format/file_io.h"
#include "format/safetensors.h"
#include "format/tensor_table.h"
#include "format/tokenizer.h"

namespace qat {

// Per-layer embeddings, shared KV, sliding and global layers; every row a multiple of 32.
inline void write_tiny_model(const std::string& directory) {
  std::filesystem::create_directories(directory);
  write_file(directory + "/config.json", R"({
    "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "dtype": "bfloat16", "vocab_size": 260,
    "vocab_size_per_layer_input": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 64, "hidden_size_per_layer_input": 32,
    "num_kv_shared_layers": 2, "use_double_wide_mlp": true, "attention_k_eq_v": false, "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
                        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
    "rms_norm_eps": 1e-06, "final_logit_softcapping": 30.0, "tie_word_embeddings": true, "max_position_embeddings": 512,
    "hidden_activation": "gelu_pytorch_tanh", "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0})");
  write_file(directory + "/tokenizer.json", byte_tokenizer_json());
  write_file(
      directory + "/tokenizer_config.json",
      R"({"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", "add_bos_token": true})");
  const std::vector<TensorInfo> table = tensor_table(model_config_from_hf(directory));
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : table) specs.push_back({info.name, DType::F32, info.shape});
  SafetensorsWriter file(directory + "/model.safetensors", specs);
  torch::manual_seed(11);
  for (const TensorInfo& info : table) {
    const torch::Tensor w = info.kind == TensorKind::norm     ? torch::rand(info.shape) + 0.5
                            : info.kind == TensorKind::scalar ? torch::full(info.shape, 0.7)
                                                              : torch::randn(info.shape) * 0.1;
    file.append(w.data_ptr<float>(), static_cast<size_t>(w.numel()) * 4);
  }
  file.commit();
}

inline std::string tiny_text(int words) {
  std::string text;
  for (int i = 0; i < words; ++i)
    text += (i * i) % 7 == 0 ? "the cat sat.\n" : (i % 3 == 0 ? "a dog ran " : "over the mat ");
  return text;
}

}  // namespace qat
