#include "qat/cli/summary.h"

#include <xxhash.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "format/checkpoint.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/gguf.h"
#include "format/mobile.h"
#include "format/safetensors.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

uint64_t element_count(const std::vector<int64_t>& shape) {
  uint64_t count = 1;
  for (const int64_t d : shape) count *= static_cast<uint64_t>(d);
  return count;
}

// Metadata values as text: arrays show their first elements and their length.
struct ValueText {
  static std::string one(const std::string& value) { return value; }
  static std::string one(bool value) { return value ? "true" : "false"; }
  template <class T>
  static std::string one(T value) {
    if constexpr (std::is_floating_point_v<T>) {
      char text[32];
      std::snprintf(text, sizeof text, "%.7g", static_cast<double>(value));
      return text;
    } else {
      return std::to_string(value);
    }
  }
  template <class T>
  std::string operator()(const T& value) const {
    return one(value);
  }
  template <class T>
  std::string operator()(const std::vector<T>& list) const {
    constexpr size_t kShown = 8;
    std::string text = "[";
    for (size_t i = 0; i < std::min(list.size(), kShown); ++i)
      text += (i == 0 ? "" : ", ") + one(static_cast<T>(list[i]));
    return list.size() > kShown ? text + ", ...] (" + std::to_string(list.size()) + ")" : text + "]";
  }
};

void summarize_gguf(ModelSummary& summary) {
  const GgufFile file(summary.path);
  summary.kind = "gguf";
  for (const auto& [key, value] : file.metadata()) summary.metadata.emplace_back(key, std::visit(ValueText{}, value));
  for (const GgufTensor& t : file.tensors()) {
    summary.tensors.push_back({t.name, t.dtype, t.shape, element_count(t.shape), t.bytes.size()});
  }
  try {
    summary.config = model_config_from_gguf(file);
  } catch (const Error& error) {
    summary.notices.emplace_back(error.what());
  }
}

void summarize_safetensors(ModelSummary& summary) {
  const Safetensors file(summary.path);
  for (const auto& [key, value] : file.metadata()) summary.metadata.emplace_back(key, value);
  for (const TensorView& t : file.tensors()) {
    summary.tensors.push_back({t.name, t.dtype, t.shape, element_count(t.shape), t.bytes.size()});
  }
}

void summarize_hf(ModelSummary& summary) {
  summarize_safetensors(summary);
  summary.kind = "hf_directory";
  try {
    summary.config = model_config_from_hf(summary.path, &summary.notices);
  } catch (const Error& error) {
    summary.notices.emplace_back(error.what());
  }
}

void summarize_quantized(ModelSummary& summary) {
  const QuantizedCheckpoint checkpoint(summary.path);
  summary.kind = "quantized_checkpoint";
  summary.config = checkpoint.config();
  for (const TensorInfo& info : checkpoint.table()) {
    const DType grid = checkpoint.grid(info);
    const uint64_t weights = element_count(info.shape);
    const int64_t cols = info.shape.empty() ? 1 : info.shape.back();
    const uint64_t bytes = weights / static_cast<uint64_t>(cols) * row_bytes(grid, cols);
    summary.tensors.push_back({info.name, grid, info.shape, weights, bytes});
  }
}

void summarize_mobile(ModelSummary& summary) {
  const MobileCheckpoint checkpoint(summary.path);
  summary.kind = "mobile";
  summary.config = checkpoint.config();
  summary.notices = checkpoint.notices();
  for (const TensorInfo& info : checkpoint.table()) {
    const MobileTensor& tensor = checkpoint.tensor(info);
    summary.tensors.push_back({info.name, tensor.dtype, info.shape, element_count(info.shape),
                               tensor.data.size() + tensor.scales.size(), tensor.input_scale, tensor.output_scale});
    if (info.role != Role::k) continue;
    const CacheScales scales = checkpoint.cache_scales(info.layer);
    const bool quantized = scales.k > 0.0f || scales.v > 0.0f;
    summary.caches.push_back({info.layer, quantized ? scales.bits : 0, scales.k, scales.v});
  }
  const Safetensors file(summary.path);
  for (const auto& [key, value] : file.metadata()) summary.metadata.emplace_back(key, value);
}

bool begins_with_gguf_magic(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return false;
  char magic[4] = {};
  const size_t got = std::fread(magic, 1, sizeof magic, file);
  std::fclose(file);
  return got == sizeof magic && std::equal(magic, magic + 4, "GGUF");
}

}  // namespace

Totals ModelSummary::totals() const {
  Totals sum;
  for (const TensorSummary& t : tensors) sum = {sum.tensors + 1, sum.weights + t.weights, sum.bytes + t.bytes};
  return sum;
}

std::map<std::string, Totals> ModelSummary::totals_by_type() const {
  std::map<std::string, Totals> types;
  for (const TensorSummary& t : tensors) {
    Totals& sum = types[dtype_name(t.dtype)];
    sum = {sum.tensors + 1, sum.weights + t.weights, sum.bytes + t.bytes};
  }
  return types;
}

ModelSummary summarize(const std::string& path) {
  ModelSummary summary;
  summary.path = path;
  summary.file_bytes = model_size_bytes(path);
  if (!fs::is_directory(path)) {
    if (begins_with_gguf_magic(path)) {
      summarize_gguf(summary);
    } else {
      summary.kind = "safetensors";
      summarize_safetensors(summary);
    }
  } else if (fs::exists(fs::path(path) / "qat_plan.json")) {
    summarize_quantized(summary);
  } else if (fs::exists(fs::path(path) / "config.json")) {
    if (detect_model_kind(path) == ModelKind::mobile) summarize_mobile(summary);
    else summarize_hf(summary);
  } else {
    summary.kind = "safetensors";
    summarize_safetensors(summary);
  }
  return summary;
}

std::string printable(const std::string& text, size_t limit) {
  std::string out;
  for (size_t i = 0; i < std::min(text.size(), limit); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != 0x7f) {
      out += text[i];
      continue;
    }
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\x%02x", byte);
    out += byte == '\n' ? "\\n" : escape;
  }
  if (text.size() <= limit) return out;
  while (!out.empty() && (out.back() & 0xc0) == 0x80) out.pop_back();  // not in the middle of a character
  if (!out.empty() && (out.back() & 0x80) != 0) out.pop_back();
  return out + "... (" + std::to_string(text.size()) + " bytes)";
}

std::vector<std::string> weight_files(const std::string& path) {
  if (!fs::exists(path)) fail(path, ": no such file or directory");
  if (!fs::is_directory(path)) return {path};
  const fs::path single = fs::path(path) / "model.safetensors", index = fs::path(path) / "model.safetensors.index.json";
  if (fs::exists(single)) return {single.string()};
  if (!fs::exists(index))
    fail(path, ": expected model.safetensors or model.safetensors.index.json in the directory, found neither");
  const auto json = nlohmann::json::parse(read_file(index.string()), nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    fail(index.string(), ": expected a JSON object with \"weight_map\"");
  }
  std::set<std::string> names;
  for (const auto& shard : json["weight_map"]) {
    if (!shard.is_string()) fail(index.string(), ": weight_map: expected file names, found ", shard.dump());
    names.insert(shard.get<std::string>());
  }
  std::vector<std::string> files;
  for (const std::string& name : names) files.push_back((fs::path(path) / name).string());
  return files;
}

uint64_t model_size_bytes(const std::string& path) {
  uint64_t bytes = 0;
  for (const std::string& file : weight_files(path)) bytes += MappedFile(file).bytes().size();
  return bytes;
}

std::string model_hash(const std::string& path) {
  std::vector<std::string> files = weight_files(path);
  for (const char* name :
       {"config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "qat_plan.json"}) {
    const fs::path file = fs::path(path) / name;
    if (fs::exists(file)) files.push_back(file.string());
  }
  XXH3_state_t* state = XXH3_createState();
  QAT_CHECK(state != nullptr && XXH3_64bits_reset(state) == XXH_OK);
  for (const std::string& name : files) {
    const MappedFile file(name);
    const uint64_t size = file.bytes().size();
    XXH3_64bits_update(state, &size, sizeof size);
    XXH3_64bits_update(state, file.bytes().data(), file.bytes().size());
  }
  const XXH64_hash_t hash = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  char text[20];
  std::snprintf(text, sizeof text, "%016" PRIx64, static_cast<uint64_t>(hash));
  return text;
}

}  // namespace qat
