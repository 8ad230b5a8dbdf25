// Runs a model on the CPU: any MODEL (GGUF file, HF directory, mobile directory, quantized checkpoint) by one forward
// pass.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "format/dtype.h"
#include "format/model_config.h"
#include "format/tensor_table.h"
#include "format/tokenizer.h"
#include "inference/kv_cache.h"

namespace qat {

class MappedFile;

// A matrix as stored: rows x cols, rows of row_bytes(dtype, cols). Points into a mapped file or into `Weights`' own
// memory.
struct Matrix {
  DType dtype = DType::F32;
  int64_t rows = 0, cols = 0;
  const uint8_t* data = nullptr;
  // Of the channel-wise grids (I2, I4, I8) only: float32 scales [rows, scales_per_row], at any address.
  const uint8_t* scales = nullptr;
  int64_t scales_per_row = 1;
  // Static 8-bit grids (format/channel_grid.h) that a product's input and output are rounded to; 0: not rounded.
  float input_scale = 0.0f, output_scale = 0.0f;
  // Of a table of which a pass reads single rows: the files that `data` and `scales` were mapped from, if they were.
  // Rows that still lie there are read, not looked at (MappedFile::read): whoever gives the matrix other data need not
  // know of this.
  const MappedFile* file = nullptr;
  const MappedFile* scale_file = nullptr;
  explicit operator bool() const { return data != nullptr; }
  size_t data_bytes() const { return static_cast<size_t>(rows) * row_bytes(dtype, cols); }
  size_t scale_bytes() const { return static_cast<size_t>(rows * scales_per_row) * sizeof(float); }
};

struct LayerWeights {
  std::vector<float> attention_norm, q_norm, k_norm, post_attention_norm, ffn_norm, post_ffn_norm, post_ple_norm;
  Matrix q, k, v, o, gate, up, down, ple_gate, ple_projection;  // k, v empty on KV-shared layers; v empty when K = V
  float scalar = 1.0f;
  CacheScales cache;  // of layers that own K and V
};

// Everything the forward pass reads, plus what keeps it alive. Norm weights are as multiplied (Gemma 3's 1 + w is
// applied). Llama GGUF files hold q and k rows interleaved; `rope_interleaved` says which pairing the rotary embedding
// must use.
struct Weights {
  ModelConfig config;
  bool rope_interleaved = false;
  Matrix embedding, ple_embedding, ple_model_projection, output;  // output = embedding when tied
  std::vector<float> output_norm, ple_projection_norm;
  std::vector<LayerWeights> layers;
  std::vector<std::shared_ptr<void>> owners;  // mapped files and repacked buffers
  bool is_mapped = false;                     // the matrices lie in mapped files
};

// Loads weights by content (detect_model_kind). Throws Error: tensor missing, wrong shape, a type the engine cannot
// run.
Weights load_weights(const std::string& path);
// Called as a part of what is read in is done, in bytes, at first with 0 of them.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;
// Reads what every token reads whole (all matrices but embedding tables), as load_weights left it, in where files are
// mapped (populate_pages).
void populate(const Weights& weights, const LoadProgress& progress = {});
// Moves the same from there to memory of its own in pages of megabytes. The page cache has it too, until the system
// wants that memory for something else.
void copy_into_memory(Weights& weights, const LoadProgress& progress = {});
// A tensor of the model's table as loaded; nullptr when it is none of that kind. A tied head is the embedding.
const Matrix* find_matrix(const Weights& weights, const TensorInfo& info);
Matrix* find_matrix(Weights& weights, const TensorInfo& info);
const std::vector<float>* find_norm(const Weights& weights, const TensorInfo& info);
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path);

struct EngineOptions {
  int threads = 0;         // 0: all processors
  bool reference = false;  // plain scalar loops over floats: the oracle; QAT_ISA=scalar has the loops too
  // The model's static grids for keys and values are not used: all are kept as cache_type, of which F32 is what
  // transformers computes.
  bool float_cache = false;
  // What keys and values without a static grid are kept as: F32, F16 (llama.cpp's default) or Q8_0 (its -ctk q8_0 -ctv
  // q8_0, without the rotation by a Hadamard matrix that it does first since 2026). Scalar loops and float_activations
  // keep floats where it is F16.
  DType cache_type = DType::F32;
  // Activations meet quantized weights as floats. Otherwise they are rounded to 8 bits, 32 to a scale, as llama.cpp
  // does. (A static grid for them belongs to the model and holds either way.)
  bool float_activations = false;
  bool copy_weights = false;             // copy_into_memory() instead of populate()
  LoadProgress load_progress = nullptr;  // of either
};

Isa isa_of(const EngineOptions& options);
DType cache_type_of(const EngineOptions& options);  // of what has no static grid

// What statistics of activations are made of, before any rounding to a static grid: what enters a linear, what leaves
// it, and what goes into the KV cache (normed, rotated).
enum class Activation { input, output, key, value };
struct Observed {
  Activation kind;
  const std::string& name;  // the linear's canonical name (a tied head's: the embedding's); key, value: k_proj's
  int layer;                // -1 outside layers
  int64_t rows, cols;       // of the head: the rows whose logits are asked for
  const float* data;        // [rows, cols]
};
using ActivationHook = std::function<void(const Observed&)>;

class Engine {
 public:
  Engine(Weights weights, const EngineOptions& options = {});
  ~Engine();
  const ModelConfig& config() const;

  // Appends tokens to the sequence in `cache` (positions cache.length()...) and returns in `logits` a row of vocab
  // floats for each token from index `first_logit` on: [tokens.size() - first_logit, vocab]. Ids must be in range and
  // the cache large enough (checked, throws Error). Reading an embedding can fail too (Error: the file was cut while
  // the model ran); a cache that was being written then is of no more use. One engine serves one caller at a time.
  void forward(Span<const int32_t> tokens, KvCache& cache, size_t first_logit, float* logits);

  // Several independent sequences, one token each (batched decode): logits [n, vocab]. The caches must be different
  // ones.
  void decode_batch(Span<const int32_t> tokens, Span<KvCache*> caches, float* logits);

  // Called with what passes through each linear and into each KV cache, of all rows, until it is set to nothing.
  void set_activation_hook(ActivationHook hook);

  struct Impl;
  Impl& impl() { return *impl_; }  // for this room (inference/transformer.h)
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace qat
