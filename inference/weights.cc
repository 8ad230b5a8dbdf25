// load_weights: from the four kinds of MODEL to the one struct the forward pass reads.
#include <algorithm>
#include <functional>

#include "format/channel_grid.h"
#include "format/checkpoint.h"
#include "format/file_io.h"
#include "format/gguf.h"
#include "format/grid.h"
#include "format/mobile.h"
#include "inference/engine.h"
#include "inference/huge_pages.h"
#include "inference/kernels.h"

namespace qat {
namespace {

// Gives the tensors of one file or directory; the first two check type and shape and throw Error. file_of: what mapped
// bytes were mapped from; empty where all is in memory.
struct TensorSource {
  std::function<Matrix(const TensorInfo&)> matrix;
  std::function<std::vector<float>(const TensorInfo&)> vector;
  std::function<const MappedFile*(const uint8_t* bytes)> file_of;
};

void check_type(DType type, const std::string& file, const std::string& tensor) {
  if (!runs_type(type))
    fail(file, ": tensor ", tensor, " is ", dtype_name(type), ", which the engine does not run (it runs ",
         runnable_types(), ")");
}

std::vector<float>* norm_of(Weights& w, const TensorInfo& info) {
  LayerWeights* layer = info.layer < 0 ? nullptr : &w.layers[static_cast<size_t>(info.layer)];
  switch (info.role) {
    case Role::output_norm: return &w.output_norm;
    case Role::ple_projection_norm: return &w.ple_projection_norm;
    case Role::attention_norm: return &layer->attention_norm;
    case Role::q_norm: return &layer->q_norm;
    case Role::k_norm: return &layer->k_norm;
    case Role::post_attention_norm: return &layer->post_attention_norm;
    case Role::ffn_norm: return &layer->ffn_norm;
    case Role::post_ffn_norm: return &layer->post_ffn_norm;
    case Role::post_ple_norm: return &layer->post_ple_norm;
    default: return nullptr;
  }
}

// Of a table only a row per token is read, unless it is the head too. What was looked at when the file was checked may
// leave memory.
void will_read_rows(Matrix& table, const TensorSource& source) {
  if (!table) return;
  table.file = source.file_of(table.data);
  if (table.file != nullptr) release_pages(table.data, table.data_bytes());
  if (table.scales == nullptr) return;
  table.scale_file = source.file_of(table.scales);
  if (table.scale_file != nullptr) release_pages(table.scales, table.scale_bytes());
}

void take_tensors(Weights& w, const std::vector<TensorInfo>& table, const TensorSource& source) {
  w.layers.resize(w.config.layers.size());
  for (const TensorInfo& info : table) {
    if (Matrix* matrix = find_matrix(w, info)) {
      *matrix = source.matrix(info);
    } else if (std::vector<float>* norm = norm_of(w, info)) {
      *norm = source.vector(info);
      if (w.config.norm_plus_one)
        for (float& x : *norm) x += 1.0f;
    } else {
      QAT_CHECK(info.role == Role::layer_scalar);
      w.layers[static_cast<size_t>(info.layer)].scalar = source.vector(info).at(0);
    }
  }
  if (w.config.tied) w.output = w.embedding;
  if (!source.file_of) return;
  will_read_rows(w.ple_embedding, source);
  if (w.output.data != w.embedding.data) will_read_rows(w.embedding, source);
}

Weights from_gguf(const std::string& path) {
  const auto file = std::make_shared<GgufFile>(path);
  advise_huge_pages(file->file().bytes().data(), file->file().bytes().size());
  Weights w;
  w.config = model_config_from_gguf(*file);
  w.rope_interleaved = w.config.arch == Arch::llama;
  const auto checked = [&](const TensorInfo& info) -> const GgufTensor& {
    const GgufTensor& tensor = file->tensor(info.gguf);
    if (tensor.shape != info.shape)
      fail(path, ": tensor ", info.gguf, ": expected shape ", shape_text(info.shape), ", found ",
           shape_text(tensor.shape));
    check_type(tensor.dtype, path, info.gguf);
    return tensor;
  };
  take_tensors(w, tensor_table(w.config),
               {[&](const TensorInfo& info) {
                  const GgufTensor& tensor = checked(info);
                  return Matrix{tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.bytes.data()};
                },
                [&](const TensorInfo& info) {
                  const GgufTensor& tensor = checked(info);
                  std::vector<float> values(static_cast<size_t>(info.shape[0]));
                  decode_rows(tensor.dtype, tensor.bytes.data(), 1, info.shape[0], values.data());
                  return values;
                },
                [&](const uint8_t*) { return &file->file(); }});
  w.owners.push_back(file);
  return w;
}

Weights from_hf(const std::string& path) {
  const auto checkpoint = std::make_shared<FloatCheckpoint>(path);  // checks names, shapes and types
  Weights w;
  w.config = checkpoint->config();
  take_tensors(w, checkpoint->table(),
               {[&](const TensorInfo& info) {
                  const TensorView& tensor = checkpoint->tensor(info);
                  check_type(tensor.dtype, path, tensor.name);
                  return Matrix{tensor.dtype, info.shape[0], info.shape[1], tensor.bytes.data()};
                },
                [&](const TensorInfo& info) { return checkpoint->read(info); },
                [&](const uint8_t* bytes) { return checkpoint->file_of(bytes); }});
  w.owners.push_back(checkpoint);
  return w;
}

Weights from_mobile(const std::string& path) {
  const auto checkpoint = std::make_shared<MobileCheckpoint>(path);  // checks names, shapes, types and scales
  Weights w;
  w.config = checkpoint->config();
  take_tensors(w, checkpoint->table(),
               {[&](const TensorInfo& info) {
                  const MobileTensor& tensor = checkpoint->tensor(info);
                  Matrix matrix = {tensor.dtype, info.shape[0], info.shape[1], tensor.data.data()};
                  if (code_bits(tensor.dtype) == 0) {
                    check_type(tensor.dtype, path, info.name);
                    return matrix;
                  }
                  matrix.scales = tensor.scales.data();
                  matrix.scales_per_row = tensor.scales_per_row;
                  matrix.input_scale = tensor.input_scale;
                  matrix.output_scale = tensor.output_scale;
                  return matrix;
                },
                [&](const TensorInfo& info) { return checkpoint->read(info); },
                [&](const uint8_t* bytes) { return checkpoint->file_of(bytes); }});
  for (size_t i = 0; i < w.layers.size(); ++i) w.layers[i].cache = checkpoint->cache_scales(static_cast<int>(i));
  w.owners.push_back(checkpoint);
  return w;
}

Weights from_quantized(const std::string& path) {
  const QuantizedCheckpoint checkpoint(path);
  Weights w;
  w.config = checkpoint.config();
  take_tensors(w, checkpoint.table(),
               {[&](const TensorInfo& info) {
                  const DType grid = checkpoint.grid(info);
                  check_type(grid, path, info.name);
                  const auto blocks = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(info.shape[0]) *
                                                                             row_bytes(grid, info.shape[1]));
                  checkpoint.read_blocks(info, 0, info.shape[0], blocks->data());
                  w.owners.push_back(blocks);
                  return Matrix{grid, info.shape[0], info.shape[1], blocks->data()};
                },
                [&](const TensorInfo& info) {
                  const DType grid = checkpoint.grid(info);
                  check_type(grid, path, info.name);
                  std::vector<uint8_t> blocks(row_bytes(grid, info.shape[0]));
                  checkpoint.read_blocks(info, 0, 1, blocks.data());
                  std::vector<float> values(static_cast<size_t>(info.shape[0]));
                  decode_rows(grid, blocks.data(), 1, info.shape[0], values.data());
                  return values;
                },
                nullptr});
  return w;
}

// What every token reads whole, in the order of their addresses.
std::vector<Matrix*> matrices_of(Weights& w) {
  std::vector<Matrix*> matrices = {&w.output, &w.ple_model_projection};
  for (LayerWeights& l : w.layers)
    for (Matrix* m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down, &l.ple_gate, &l.ple_projection})
      matrices.push_back(m);
  matrices.erase(std::remove_if(matrices.begin(), matrices.end(), [](const Matrix* m) { return !*m; }), matrices.end());
  std::sort(matrices.begin(), matrices.end(),
            [](const Matrix* a, const Matrix* b) { return std::less<>()(a->data, b->data); });
  return matrices;
}

size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }  // of cache

// Calls run(begin, size) for each run of bytes that they are in a file: one or a few between the tables, with the norms
// that lie among them, for pages of megabytes want no gaps.
template <class Run>
void for_each_run(Weights& w, const Run& run) {
  constexpr std::ptrdiff_t kLargestGap = 1 << 20;
  const uint8_t *begin = nullptr, *end = nullptr;
  for (const Matrix* m : matrices_of(w)) {
    if (begin == nullptr || m->data - end > kLargestGap) {
      run(begin, static_cast<size_t>(end - begin));
      begin = m->data;
    }
    end = m->data + m->data_bytes();
  }
  run(begin, static_cast<size_t>(end - begin));
}

// Goes through `total` bytes in parts of 64 MB, and says how far it is.
class Parts {
 public:
  Parts(size_t total, const LoadProgress& progress) : total_(static_cast<int64_t>(total)), progress_(progress) {
    if (progress_) progress_(0, total_);
  }
  template <class Use>
  void take(const uint8_t* begin, size_t size, const Use& use) {
    constexpr size_t kPart = 64 << 20;
    for (size_t at = 0; at < size; at += kPart) {
      const size_t n = std::min(kPart, size - at);
      use(begin + at, n);
      done_ += static_cast<int64_t>(n);
      if (progress_) progress_(done_, total_);
    }
  }

 private:
  int64_t done_ = 0, total_;
  const LoadProgress& progress_;
};

Weights mapped(Weights w) {
  w.is_mapped = true;
  return w;
}

}  // namespace

Matrix* find_matrix(Weights& w, const TensorInfo& info) {
  LayerWeights* layer = info.layer < 0 ? nullptr : &w.layers[static_cast<size_t>(info.layer)];
  switch (info.role) {
    case Role::token_embedding: return &w.embedding;
    case Role::output: return &w.output;
    case Role::ple_embedding: return &w.ple_embedding;
    case Role::ple_model_projection: return &w.ple_model_projection;
    case Role::q: return &layer->q;
    case Role::k: return &layer->k;
    case Role::v: return &layer->v;
    case Role::o: return &layer->o;
    case Role::gate: return &layer->gate;
    case Role::up: return &layer->up;
    case Role::down: return &layer->down;
    case Role::ple_gate: return &layer->ple_gate;
    case Role::ple_projection: return &layer->ple_projection;
    default: return nullptr;
  }
}

Weights load_weights(const std::string& path) {
  switch (detect_model_kind(path)) {
    case ModelKind::gguf: return mapped(from_gguf(path));
    case ModelKind::hf_directory: return mapped(from_hf(path));
    case ModelKind::mobile: return mapped(from_mobile(path));
    case ModelKind::quantized_checkpoint: return from_quantized(path);
  }
  QAT_CHECK(false);
  return {};
}

void populate(const Weights& weights, const LoadProgress& progress) {
  if (!weights.is_mapped) return;           // a quantized checkpoint's rows were repacked into memory
  auto& w = const_cast<Weights&>(weights);  // which changes none of them
  size_t total = 0;
  for_each_run(w, [&](const uint8_t*, size_t size) { total += size; });
  Parts parts(total, progress);
  for_each_run(w, [&](const uint8_t* begin, size_t size) { parts.take(begin, size, populate_pages); });
}

void copy_into_memory(Weights& weights, const LoadProgress& progress) {
  if (!weights.is_mapped) return;
  weights.is_mapped = false;
  const std::vector<Matrix*> matrices = matrices_of(weights);
  size_t size = 0, bytes = 0;
  for (const Matrix* m : matrices) size += whole_lines(m->data_bytes()), bytes += m->data_bytes();
  const auto memory = std::make_shared<HugeVector<uint8_t>>();
  memory->reserve(size);  // and not resized to, which would write it twice
  Parts parts(bytes, progress);
  for (Matrix* m : matrices) {
    const uint8_t* from = m->data;
    m->data = memory->data() + memory->size();
    parts.take(from, m->data_bytes(), [&](const uint8_t* part, size_t n) {
      memory->insert(memory->end(), part, part + n);
      release_pages(part, n);  // so that no more than a part is in memory twice
    });
    memory->resize(whole_lines(memory->size()));
  }
  weights.owners.push_back(memory);
  if (weights.config.tied) weights.embedding.data = weights.output.data;
}

const Matrix* find_matrix(const Weights& weights, const TensorInfo& info) {
  return find_matrix(const_cast<Weights&>(weights), info);  // which changes nothing
}

const std::vector<float>* find_norm(const Weights& weights, const TensorInfo& info) {
  return norm_of(const_cast<Weights&>(weights), info);
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& path) {
  if (detect_model_kind(path) == ModelKind::gguf) return tokenizer_from_gguf(GgufFile(path));
  return tokenizer_from_hf(path, model_config_from_hf(path).vocab);
}

}  // namespace qat
