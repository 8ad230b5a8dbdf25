#include "qat/train/memory.h"

#include <dlfcn.h>
#include <torch/cuda.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <thread>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/mobile.h"
#include "qat/progress.h"
#include "qat/train/lora.h"
#include "qat/train/ops.h"
#include "qat/train/optimizer.h"
#include "qat/train/workers.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kFloat = 4;            // bytes
constexpr int64_t kFirstUse = 30 << 20;  // what LibTorch, OpenMP and OpenBLAS take when they are first used, measured

int64_t elements(const TensorInfo& info) {
  int64_t n = 1;
  for (const int64_t d : info.shape) n *= d;
  return n;
}

// --- Activations: floats per token ---

struct Parts {
  bool loops = true;      // the CPU's loops, which keep little for the backward pass, or tensor operations
  bool rounded = false;   // static activations: the rounding keeps its input, the product its output
  bool cached = false;    // a static KV cache
  int64_t positions = 0;  // that attention without a fused kernel keeps scores of; 0: none
};

// What q, k, v, their norms and rotations, attention and its output projection keep.
int64_t attention_floats(const ModelConfig& c, const LayerConfig& layer, bool owns_kv, const Parts& p) {
  const int64_t q = c.heads * layer.head_dim, kv = layer.kv_heads * layer.head_dim, extra = p.rounded ? 1 : 0;
  const int64_t kept_raw = c.qk_norm() || p.rounded ? 1 : 0, normed = c.qk_norm() && p.rounded ? 1 : 0;
  const int64_t of_norm = p.loops ? 0 : 1;  // tensor operations keep the normalized numbers too
  int64_t n = c.hidden * (1 + extra);       // what q reads
  n += q * (kept_raw + normed + 1) + (c.qk_norm() ? q * of_norm + c.heads : 0);
  if (owns_kv) {
    n += c.hidden * extra + kv * (kept_raw + normed + 1);
    n += kv * (c.v_norm() ? 2 + of_norm : 1) + kv * extra;
    n += p.cached ? 2 * kv : 0;
  }
  n += q * (1 + extra) + 2 * c.heads;                                      // attended, and its softmax's sums
  if (!p.loops) n += 3 * q + c.heads * p.positions;                        // keys and values repeated, scores
  const int64_t product = (c.sandwich_norms() ? 1 + of_norm : 0) + extra;  // kept where somebody needs it
  return n + c.hidden * product;
}

int64_t feed_forward_floats(const ModelConfig& c, const LayerConfig& layer, const Parts& p) {
  const int64_t extra = p.rounded ? 1 : 0, of_norm = p.loops ? 0 : 1;
  const int64_t product = (c.sandwich_norms() ? 1 + of_norm : 0) + extra;
  return c.hidden * (1 + extra) + layer.ffn * (3 + 3 * extra + of_norm) + c.hidden * product;
}

int64_t layer_floats(const ModelConfig& c, size_t index, const Parts& p) {
  const LayerConfig& layer = c.layers[index];
  const bool owns_kv = layer.kv_source == static_cast<int64_t>(index);
  const int64_t extra = p.rounded ? 1 : 0, of_norm = p.loops ? 0 : 1;
  int64_t n = attention_floats(c, layer, owns_kv, p) + feed_forward_floats(c, layer, p);
  n += 2 * c.hidden + (p.loops ? 0 : 2 * c.hidden);  // the residuals that norms read, and their normalized forms
  if (c.ple > 0) n += c.ple * (3 + 2 * extra + of_norm) + c.hidden * (2 + 2 * extra + of_norm);
  return n;
}

// What the backward pass of a layer has at once beyond what the forward pass kept.
int64_t backward_floats(const ModelConfig& c, const LayerConfig& layer, const Parts& p) {
  return 3 * layer.ffn * (p.rounded ? 2 : 1) + 3 * c.hidden;
}

// Floats per token at the peak: what is there all along, and what only the layer takes that is at work.
struct Kept {
  int64_t all_along = 0, at_work = 0;
};

Kept kept_floats(const ModelConfig& c, bool checkpointing, const Parts& p) {
  int64_t all = 0, widest = 0, between = 0;
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerConfig& layer = c.layers[i];
    const int64_t n = layer_floats(c, i, p), more = backward_floats(c, layer, p);
    all += n;
    widest = std::max(widest, n + more);
    const bool owns_kv = layer.kv_source == static_cast<int64_t>(i);
    between += c.hidden + (owns_kv ? 2 * layer.kv_heads * layer.head_dim : 0);
  }
  const int64_t layers = static_cast<int64_t>(c.layers.size());
  const int64_t ends = c.ple * layers * (p.loops ? 2 : 3) + 2 * c.hidden;
  // And what others left free and the allocator cannot use for tensors of other shapes, measured: of a layer that is
  // computed again, half as much once more; where all is kept, a tenth. Without it, runs took up to 18 % more than was
  // said: how the workers' tensors lie between each other differs from one run to the next.
  if (checkpointing) return {ends + between, widest + widest / 2};
  return {ends + all + all / 10, backward_floats(c, c.layers.back(), p)};
}

// --- Weights ---

struct Weights {
  int64_t trained = 0;  // elements that a worker has gradients of, scales included
  int64_t model = 0, optimizer = 0, leaves = 0, largest = 0;  // bytes
};

Weights weights_of(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& checkpoint) {
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, checkpoint.table(), checkpoint.dtypes());
  const auto moments = [&](int64_t n) {
    if (recipe.optimizer != "adamw8bit" || n < kLeastCoded) return 2 * kFloat * n;
    return 2 * n + 2 * kFloat * ((n + kMomentBlock - 1) / kMomentBlock);
  };
  const bool lora = recipe.lora_rank > 0;
  Weights w;
  for (const TensorInfo& info : checkpoint.table()) {
    const int64_t n = elements(info), cols = info.shape.back();
    const DType grid = plan.keep ? DType::F32 : resolved.at(info.name).grid;
    const int64_t scales = grid == DType::Q4_0    ? n / 32
                           : code_bits(grid) != 0 ? n / cols * mobile_scales_per_row(checkpoint.config(), info)
                                                  : 0;
    w.model += kFloat * (n + (grid == DType::F32 ? 0 : n) + 3 * scales);  // a scale, its sign, as the step uses it
    if (info.kind == TensorKind::scalar || (lora && !takes_adapter(info, grid))) continue;
    w.trained += n + scales;
    std::vector<int64_t> moved = {n, scales};
    if (lora) moved = {recipe.lora_rank * cols, recipe.lora_rank * (n / cols), scales};
    for (const int64_t m : moved) w.optimizer += moments(m) + (recipe.average > 0.0 ? kFloat * m : 0);
    if (lora) w.model += 2 * kFloat * recipe.lora_rank * (cols + n / cols);  // the adapter and its gradient
    w.leaves += kFloat * n;
    w.largest = std::max(w.largest, kFloat * n);
  }
  return w;
}

int64_t float_bytes(const FloatCheckpoint& checkpoint) {
  int64_t n = 0;
  for (const TensorInfo& info : checkpoint.table()) n += elements(info);
  return n * kFloat;
}

int64_t file_bytes(const FloatCheckpoint& checkpoint) {
  int64_t n = 0;
  for (const TensorInfo& info : checkpoint.table()) n += static_cast<int64_t>(checkpoint.tensor(info).bytes.size());
  return n;
}

// --- Data ---

// A token of text is some letters, the more the larger the vocabulary: 2.3 at 512, 4.5 at 262144.
double letters_per_token(int64_t vocab) { return std::log2(static_cast<double>(std::max<int64_t>(vocab, 4))) / 4.0; }

int64_t text_bytes(const std::string& entry) {
  std::error_code ignored;
  if (!fs::is_directory(entry, ignored)) {
    const auto size = fs::file_size(entry, ignored);
    return ignored ? 0 : static_cast<int64_t>(size);
  }
  int64_t bytes = 0;
  for (const auto& file : fs::recursive_directory_iterator(entry, ignored))
    if (file.is_regular_file(ignored)) bytes += static_cast<int64_t>(file.file_size(ignored));
  return bytes;
}

int64_t data_bytes(const Recipe& recipe, int64_t vocab) {
  double tokens = 0.0;
  for (const std::string& entry : recipe.data)
    tokens += entry == "teacher" ? static_cast<double>(recipe.teacher_tokens)
                                 : static_cast<double>(text_bytes(entry)) / letters_per_token(vocab);
  return static_cast<int64_t>(tokens * sizeof(int32_t));
}

// --- What is free ---

int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;  // "max": no number
}

// The number after `key` in lines of "key number".
int64_t number_after(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) == 0) return std::atoll(line.c_str() + key.size());
  }
  return -1;
}

// What one control group leaves: its limit less what cannot be given back. -1: no limit.
int64_t group_free(const std::string& group, const char* limit_file, const char* usage_file) {
  const int64_t limit = number_in(group + "/" + limit_file), used = number_in(group + "/" + usage_file);
  if (limit < 0 || used < 0 || limit > (int64_t{1} << 60)) return -1;
  const int64_t reclaimable = std::max<int64_t>(0, number_after(group + "/memory.stat", "inactive_file "));
  return std::max<int64_t>(0, limit - used + reclaimable);
}

// The least that the process's group and those around it leave; version 2 ("0::/a/b") and version 1 ("4:memory:/a/b").
int64_t groups_free(int64_t least) {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const bool unified = line.compare(0, 3, "0::") == 0;
    const size_t memory = line.find(":memory:");
    if (!unified && memory == std::string::npos) continue;
    const std::string root = unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    fs::path group = line.substr(unified ? 3 : memory + 8);
    for (;; group = group.parent_path()) {
      const std::string place = root + group.string();
      const int64_t free = unified ? group_free(place, "memory.max", "memory.current")
                                   : group_free(place, "memory.limit_in_bytes", "memory.usage_in_bytes");
      if (free >= 0) least = std::min(least, free);
      if (group.empty() || group == group.root_path()) break;
    }
  }
  return least;
}

// The CUDA runtime that LibTorch has loaded, if it has: without its headers, since most machines lack them.
int64_t cuda_free(torch::Device device) {
  using SetDevice = int (*)(int);
  using GetInfo = int (*)(size_t*, size_t*);
  const auto set = reinterpret_cast<SetDevice>(dlsym(RTLD_DEFAULT, "cudaSetDevice"));
  const auto info = reinterpret_cast<GetInfo>(dlsym(RTLD_DEFAULT, "cudaMemGetInfo"));
  size_t free = 0, total = 0;
  if (set == nullptr || info == nullptr || set(device.has_index() ? device.index() : 0) != 0) return -1;
  return info(&free, &total) == 0 ? static_cast<int64_t>(free) : -1;
}

std::string bytes(int64_t n) { return bytes_text(static_cast<uint64_t>(std::max<int64_t>(n, 0))); }

}  // namespace

MemoryNeed memory_need(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& model,
                       const FloatCheckpoint* teacher, int64_t threads, torch::Device device) {
  const ModelConfig& c = model.config();
  const Weights weights = weights_of(recipe, plan, model);
  MemoryNeed need;
  need.model = weights.model;
  need.optimizer = weights.optimizer;
  if (teacher != nullptr) need.teacher = float_bytes(*teacher);
  if (device.is_cpu()) {
    need.process = resident_bytes() + kFirstUse;
    need.data = data_bytes(recipe, c.vocab);
    need.model += file_bytes(model);
  }
  const int64_t workers = workers_for(threads, recipe.batch, weights.trained * kFloat, device);
  const int64_t tokens = recipe.batch * recipe.sequence, chunk = std::min(recipe.loss_chunk, tokens / workers);
  Parts parts;
  parts.loops = device.is_cpu() && uses_cpu_loops(torch::empty({1}));
  parts.rounded = plan.mobile && plan.activations;
  parts.cached = plan.mobile && (plan.kv_sliding_bits != 0 || plan.kv_global_bits != 0);
  parts.positions = parts.loops || kHasFusedAttention ? 0 : recipe.sequence;
  const int64_t logits = workers * chunk * c.vocab * ((teacher != nullptr ? 2 : 1) + (parts.loops ? 0 : 3));
  const bool lora = recipe.lora_rank > 0;
  const int64_t head_gradient = lora ? 0 : 2 * workers * c.vocab * c.hidden;
  // What the teacher's layers pass on, and how far the student's are from it.
  const int64_t states = recipe.hidden > 0.0 ? 2 * static_cast<int64_t>(c.layers.size()) * c.hidden : 0;
  const Kept kept = kept_floats(c, recipe.gradient_checkpointing, parts);
  const int64_t all_along = kept.all_along + 3 * c.hidden + states;
  // Logits are gone before the first layer goes back.
  const int64_t at_work = std::max(tokens * kept.at_work, logits);
  need.activations = kFloat * (tokens * all_along + at_work + head_gradient);
  // Adapters: the first worker's go on at once, and then a matrix, its sum, that sum rounded and its gradient exist.
  need.gradients =
      lora ? (workers - 1) * weights.leaves + 4 * weights.largest : workers * weights.leaves + weights.largest;
  return need;
}

// --- Layer by layer ---

namespace {

// Of the stream of all sequences through one of the two models: what LayerStream holds in the last layers.
int64_t stream_bytes(const ModelConfig& c, int64_t tokens, double bytes_per_table_weight) {
  std::set<int64_t> read_later;
  for (size_t i = 0; i < c.layers.size(); ++i)
    if (c.layers[i].kv_source != static_cast<int64_t>(i)) read_later.insert(c.layers[i].kv_source);
  int64_t floats = c.hidden * (c.ple > 0 ? 2 : 1) + c.ple;
  for (const int64_t source : read_later) {
    const LayerConfig& layer = c.layers[static_cast<size_t>(source)];
    floats += 2 * layer.kv_heads * layer.head_dim;
  }
  // Of the per-layer table the rows of tokens that occur.
  const double table = static_cast<double>(std::min(tokens, c.vocab)) * static_cast<double>(c.ple) *
                       static_cast<double>(c.layers.size()) * bytes_per_table_weight;
  return kFloat * tokens * floats + static_cast<int64_t>(table);
}

// Bytes of a weight in the per-layer table as the file has it, and on its grid.
std::pair<double, double> table_widths(const FloatCheckpoint& model, const std::map<std::string, PlanEntry>& resolved) {
  const TensorInfo* table = find_tensor_info(model.table(), Role::ple_embedding);
  if (table == nullptr) return {0.0, 0.0};
  const int64_t cols = table->shape.back();
  const auto width = [&](DType type) { return static_cast<double>(row_bytes(type, cols)) / static_cast<double>(cols); };
  return {width(model.dtype(*table)), width(resolved.at(table->name).grid)};
}

struct LayerWeights {
  int64_t all = 0, moving = 0;  // elements
  int64_t stored = 0;           // bytes, on their grids
};

LayerWeights weights_of_layer(const FloatCheckpoint& model, const std::map<std::string, PlanEntry>& resolved,
                              size_t layer) {
  LayerWeights n;
  for (const TensorInfo& info : model.table()) {
    if (info.layer != static_cast<int>(layer)) continue;
    const DType grid = resolved.at(info.name).grid;
    n.all += elements(info);
    n.stored += static_cast<int64_t>(row_bytes(grid, info.shape.back())) * (elements(info) / info.shape.back());
    if (info.kind == TensorKind::linear && grid == DType::Q4_0) n.moving += elements(info);
  }
  return n;
}

}  // namespace

MemoryNeed blockwise_memory_need(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& model, int64_t found,
                                 int64_t before, int64_t threads) {
  const ModelConfig& c = model.config();
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, model.table(), model.dtypes());
  MemoryNeed need;
  need.process = before + kFirstUse;
  need.data = static_cast<int64_t>(sizeof(int32_t)) * found * recipe.sequence;
  const int64_t sequences = std::min(recipe.calibration_sequences, found);
  const auto [floats, codes] = table_widths(model, resolved);
  need.streams =
      stream_bytes(c, sequences * recipe.sequence, floats) + stream_bytes(c, sequences * recipe.sequence, codes);
  const int64_t batch = std::min(recipe.batch, sequences);
  Parts parts;
  parts.loops = uses_cpu_loops(torch::empty({1}));
  parts.positions = parts.loops || kHasFusedAttention ? 0 : recipe.sequence;
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerWeights n = weights_of_layer(model, resolved, i);
    const int64_t workers = workers_for(threads, batch, n.moving * kFloat, torch::kCPU);
    // As floats and as they are multiplied by; of those that move the float again, its offset and two floats a block;
    // the stored rows now, at the start and at best.
    const int64_t held = 2 * kFloat * n.all + 2 * kFloat * n.moving + 2 * kFloat * (n.moving / 32) + 3 * n.stored;
    const int64_t gradients = workers * kFloat * n.moving;
    const int64_t ends = 5 * c.hidden;  // input, output, what it should be, their difference and its square
    const int64_t kept = layer_floats(c, i, parts) + backward_floats(c, c.layers[i], parts) + ends;
    const int64_t round = kFloat * batch * recipe.sequence * kept;
    if (held + gradients + round <= need.model + need.gradients + need.activations) continue;
    need.model = held;
    need.gradients = gradients;
    need.activations = round;
  }
  return need;
}

// --- What is said ---

int64_t resident_bytes() { return std::max<int64_t>(0, number_after("/proc/self/status", "VmRSS:")) * 1024; }

int64_t free_memory(torch::Device device) {
  if (!device.is_cpu()) return cuda_free(device);
  const int64_t available = number_after("/proc/meminfo", "MemAvailable:");  // kB
  const int64_t least = groups_free(available < 0 ? std::numeric_limits<int64_t>::max() : available * 1024);
  return least == std::numeric_limits<int64_t>::max() ? -1 : least + resident_bytes();
}

std::string memory_text(const MemoryNeed& need, int64_t free) {
  const std::pair<const char*, int64_t> parts[] = {
      {"model", need.model},
      {"optimizer", need.optimizer},
      {"gradients", need.gradients},
      {"activations", need.activations},
      {"streams", need.streams},
      {"teacher", need.teacher},
      {"LibTorch and data", need.process > 0 ? need.process + need.data : 0}};
  std::string text;
  for (const auto& [name, size] : parts) {
    if (size > 0) text += (text.empty() ? "" : ", ") + std::string(name) + " " + bytes(size);
  }
  text = "needs about " + bytes(need.total()) + " of memory (" + text + ")";
  return free < 0 ? text : text + "; " + bytes(free) + " are free";
}

void check_memory(const MemoryNeed& need, int64_t free, const Recipe& recipe) {
  if (free < 0 || need.total() <= free) return;
  std::string advice;
  const auto add = [&](const std::string& text) { advice += (advice.empty() ? "" : ", ") + text; };
  if (recipe.blockwise) {
    if (recipe.calibration_sequences > 16) add("fewer calibration_sequences");
    if (recipe.batch > 1) add("a smaller batch");
  } else {
    if (recipe.batch > 1) add("a smaller batch with a larger accumulate");
    if (!recipe.gradient_checkpointing) add("gradient_checkpointing = true");
    if (recipe.loss_chunk > 256) add("a smaller loss_chunk");
    if (recipe.optimizer == "adamw") add("optimizer = \"adamw8bit\"");
  }
  if (recipe.sequence > 256) add("a shorter sequence");
  if (!recipe.blockwise && recipe.lora_rank == 0 && recipe.plan != "none") add("lora_rank = 16");
  fail("this run ", memory_text(need, free), (advice.empty() ? "" : ": try ") + advice);
}

namespace {

void announce(const MemoryNeed& need, torch::Device device, const Recipe& recipe) {
  const int64_t free = free_memory(device);
  check_memory(need, free, recipe);
  std::fprintf(stderr, "%s\n", memory_text(need, free).c_str());
}

}  // namespace

void announce_memory(const Recipe& recipe, const Plan& plan) {
  const torch::Device device(recipe.device);
  const FloatCheckpoint model(recipe.model);
  const bool taught = distills(recipe), other = taught && !recipe.teacher.empty() && recipe.teacher != recipe.model;
  std::unique_ptr<FloatCheckpoint> teacher;
  if (other) teacher = std::make_unique<FloatCheckpoint>(recipe.teacher);
  const int64_t threads =
      recipe.threads > 0 ? recipe.threads : std::max<int64_t>(1, std::thread::hardware_concurrency());
  const FloatCheckpoint* teaching = other ? teacher.get() : taught ? &model : nullptr;
  announce(memory_need(recipe, plan, model, teaching, threads, device), device, recipe);
}

void announce_blockwise_memory(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& model, int64_t found,
                               int64_t before, int64_t threads) {
  announce(blockwise_memory_need(recipe, plan, model, found, before, threads), torch::kCPU, recipe);
}

std::string time_text(int64_t steps, int64_t done, double seconds) {
  return "about " + duration_text(seconds / static_cast<double>(done) * static_cast<double>(steps)) + " for " +
         std::to_string(steps) + " steps";
}

}  // namespace qat
