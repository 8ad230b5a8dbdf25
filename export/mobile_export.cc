#include "export/mobile_export.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "format/channel_grid.h"
#include "format/error.h"

namespace qat {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kConfig = "config.json";

int64_t rows_of(const TensorInfo& info) { return info.shape.size() == 2 ? info.shape[0] : 1; }

// "model.layers.3.mlp.up_proj.weight" without ".weight".
std::string module_of(const TensorInfo& info) { return info.name.substr(0, info.name.rfind('.')); }

bool is_module(const TensorInfo& info) { return info.kind == TensorKind::linear || info.kind == TensorKind::embedding; }

// A regular expression for the text itself.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '.') out += '\\';
    out += c;
  }
  return out;
}

std::string joined(const std::set<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : "|") + part;
  return parts.size() == 1 ? out : "(" + out + ")";
}

// The end of a module's name that is the same in every layer, escaped: "mlp\.up_proj"; "embed_tokens".
std::string tail_of(const TensorInfo& info) {
  const std::string prefix = info.layer < 0 ? "model." : "model.layers." + std::to_string(info.layer) + ".";
  const std::string module = module_of(info);
  return escaped(module.compare(0, prefix.size(), prefix) == 0 ? module.substr(prefix.size()) : module);
}

int most_common_bits(const std::vector<TensorInfo>& table, const std::vector<MobileSpec>& specs) {
  std::map<int, int> counts = {{4, 0}};
  for (size_t i = 0; i < table.size(); ++i)
    if (const int bits = code_bits(specs[i].dtype)) ++counts[bits];
  const auto fewer = [](const auto& a, const auto& b) { return a.second < b.second; };
  return std::max_element(counts.begin(), counts.end(), fewer)->first;
}

// Modules of one width that has to be named, by the layers that have them so.
using Group = std::pair<int, std::set<int>>;  // bits, layers (-1: outside)

void check_spec(const TensorInfo& info, const MobileSpec& spec, int bits_in_block) {
  const int bits = code_bits(spec.dtype);
  QAT_CHECK(bits == bits_in_block);
  if (bits == 0) {
    QAT_CHECK(spec.dtype == DType::F32 || spec.dtype == DType::F16 || spec.dtype == DType::BF16);
    return;
  }
  QAT_CHECK(is_module(info) && spec.scales_per_row > 0 && info.shape[1] % spec.scales_per_row == 0);
  QAT_CHECK(info.kind == TensorKind::embedding || spec.scales_per_row == 1);
  QAT_CHECK(static_cast<int64_t>(spec.scales.size()) == info.shape[0] * spec.scales_per_row);
  for (const float scale : spec.scales)
    if (!(scale > 0.0f) || std::isinf(scale)) fail(info.name, ": expected finite scales above 0, found ", scale);
  for (const float scale : {spec.input_scale, spec.output_scale})
    if (!(scale >= 0.0f) || std::isinf(scale))
      fail(info.name, ": expected finite activation scales, 0 or above, found ", scale);
}

// The scales of a tensor as the file has them, with their values.
struct NamedScales {
  TensorSpec spec;
  std::vector<float> values;
};

void add_scales(const TensorInfo& info, const MobileSpec& spec, std::vector<NamedScales>* out) {
  if (code_bits(spec.dtype) == 0) return;
  const std::string module = module_of(info);
  const bool embedding = info.kind == TensorKind::embedding;
  out->push_back(
      {{module + (embedding ? ".embedding_scale" : ".weight_scale"), DType::F32, {info.shape[0], spec.scales_per_row}},
       spec.scales});
  if (embedding) return;
  out->push_back({{module + ".input_activation_scale", DType::F32, {}}, {spec.input_scale}});
  out->push_back({{module + ".output_activation_scale", DType::F32, {}}, {spec.output_scale}});
}

void add_cache_scales(const TensorInfo& info, const CacheScales& scales, std::vector<NamedScales>* out) {
  const std::string module = module_of(info);
  const std::string attention = module.substr(0, module.rfind('.'));
  if (scales.k > 0.0f) out->push_back({{attention + ".k_cache_scale", DType::F32, {}}, {scales.k}});
  if (scales.v > 0.0f) out->push_back({{attention + ".v_cache_scale", DType::F32, {}}, {scales.v}});
}

// Widths of the KV cache, where they are not the 8 bits that a file without them means; "format" is what transformers
// looks for.
std::map<std::string, std::string> metadata_of(const std::vector<CacheScales>& cache_scales) {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::string bits;
  bool any = false;
  for (const CacheScales& scales : cache_scales) {
    const bool quantized = scales.k > 0.0f || scales.v > 0.0f;
    bits += (bits.empty() ? "" : ",") + std::to_string(quantized ? scales.bits : 0);
    any |= quantized && scales.bits != 8;
  }
  if (any) metadata[kCacheBits] = bits;
  return metadata;
}

TensorSpec stored(const TensorInfo& info, DType dtype) {
  const int bits = code_bits(dtype);
  if (bits == 0) return {info.name, dtype, info.shape};
  const int64_t stride = static_cast<int64_t>(row_bytes(dtype, info.shape[1]));
  return {module_of(info) + (info.kind == TensorKind::embedding ? ".embedding_quantized" : ".weight"),
          bits == 8 ? DType::I8 : DType::U8,
          {info.shape[0], stride}};
}

// Where a checkpoint has a tensor of mobile_table(): the head of a tied one is its embedding.
const TensorInfo& stored_as(const MobileCheckpoint& checkpoint, const TensorInfo& info) {
  const bool tied_head = info.role == Role::output && checkpoint.config().tied;
  const TensorInfo* found =
      find_tensor_info(checkpoint.table(), tied_head ? Role::token_embedding : info.role, info.layer);
  QAT_CHECK(found != nullptr);
  return *found;
}

// Only what this program would have written may be replaced.
const std::string& replaceable(const std::string& directory) {
  std::error_code ignored;
  if (fs::exists(directory + "/" + kConfig, ignored) && detect_model_kind(directory) != ModelKind::mobile)
    fail(directory, ": expected a new directory, an empty one or one in the mobile schema, found another model");
  return directory;
}

}  // namespace

std::vector<TensorInfo> mobile_table(ModelConfig config) {
  config.tied = false;
  return tensor_table(config);
}

MobileQuantization describe_widths(const std::vector<TensorInfo>& table, const std::vector<MobileSpec>& specs) {
  QAT_CHECK(table.size() == specs.size());
  MobileQuantization quantization;
  quantization.bits = most_common_bits(table, specs);
  std::map<std::string, std::map<int, std::set<int>>> layers;  // tail -> bits -> layers
  for (size_t i = 0; i < table.size(); ++i) {
    if (!is_module(table[i])) continue;
    const int bits = code_bits(specs[i].dtype);
    layers[tail_of(table[i])][bits].insert(table[i].layer);
    quantization.embeddings |= bits > 0 && table[i].kind == TensorKind::embedding;
  }
  std::map<Group, std::set<std::string>> groups;  // -> tails
  for (const auto& [tail, by_bits] : layers) {
    for (const auto& [bits, members] : by_bits) {
      if (bits == quantization.bits) continue;
      // A module that is the same everywhere needs no list of layers.
      const bool everywhere = by_bits.size() == 1 && *members.begin() >= 0;
      groups[{bits, everywhere ? std::set<int>() : members}].insert(tail);
    }
  }
  for (const auto& [group, tails] : groups) {
    const auto& [bits, members] = group;
    std::set<std::string> numbers;
    for (const int layer : members) numbers.insert(std::to_string(layer));
    std::string pattern = joined(tails) + "$";
    if (members.empty()) pattern = "layers\\.\\d+\\." + pattern;
    else if (*members.begin() >= 0) pattern = "layers\\." + joined(numbers) + "\\." + pattern;
    else pattern = "\\b" + pattern;
    if (bits > 0) quantization.rules.push_back({pattern, bits});
    else quantization.not_converted.push_back(".*" + pattern);
  }
  return quantization;
}

std::string mobile_config(const std::string& source_json, const MobileQuantization& quantization,
                          const std::string& origin) {
  Json config = Json::parse(source_json, nullptr, false);
  if (!config.is_object()) fail(origin, ": expected a JSON object, found something else");
  if (config.contains("text_config")) {
    const Json whole = config;
    config = whole.at("text_config");
    if (!config.is_object()) fail(origin, ": text_config: expected a JSON object, found something else");
    for (const char* key :
         {"dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"})
      if (!config.contains(key) && whole.contains(key)) config[key] = whole.at(key);
    const std::string type = whole.value("model_type", "");
    config["model_type"] = type + "_text";
    const std::map<std::string, const char*> architectures = {{"gemma3", "Gemma3ForCausalLM"},
                                                              {"gemma4", "Gemma4ForCausalLM"},
                                                              {"gemma4_unified", "Gemma4UnifiedForCausalLM"}};
    const auto found = architectures.find(type);
    if (found == architectures.end())
      fail(origin, ": model_type: expected a multimodal model with a text part that is known, found ", printable(type));
    config["architectures"] = {found->second};
  }
  config["tie_word_embeddings"] = false;
  Json block = {{"quant_method", "gemma"},
                {"num_bits", quantization.bits},
                {"quantize_embeddings", quantization.embeddings},
                {"module_quant_configs", Json::object()},
                {"modules_to_not_convert", quantization.not_converted}};
  for (const MobileQuantization::Rule& rule : quantization.rules)
    block["module_quant_configs"][rule.pattern] = {{"num_bits", rule.bits}};
  config["quantization_config"] = block;
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

struct MobileWriter::State {
  explicit State(const std::string& path) : directory(replaceable(path), kConfig) {}
  AtomicDirectory directory;
  std::vector<TensorInfo> table;
  std::vector<DType> types;
  std::vector<size_t> order;
  std::unique_ptr<SafetensorsWriter> file;
  size_t current = 0;     // in order, being written
  int64_t rows_done = 0;  // of it
};

MobileWriter::MobileWriter(const std::string& directory, const std::string& source_directory,
                           const std::vector<TensorInfo>& table, const std::vector<MobileSpec>& specs,
                           const std::vector<CacheScales>& cache_scales, const MobileQuantization& quantization)
    : state_(std::make_unique<State>(directory)) {
  QAT_CHECK(table.size() == specs.size());
  State& s = *state_;
  s.table = table;
  const std::string out = s.directory.path();
  copy_model_files(source_directory, out);
  const std::string source = source_directory + "/" + kConfig;
  write_file(out + "/" + kConfig, mobile_config(read_file(source), quantization, source));

  const MobileWidths widths(quantization, source);
  std::vector<NamedScales> scales;
  for (size_t i = 0; i < table.size(); ++i) {
    check_spec(table[i], specs[i], is_module(table[i]) ? widths.bits(module_of(table[i]), table[i].kind) : 0);
    s.types.push_back(specs[i].dtype);
    s.order.push_back(i);
    add_scales(table[i], specs[i], &scales);
    if (table[i].role != Role::k) continue;
    QAT_CHECK(static_cast<size_t>(table[i].layer) < cache_scales.size());
    add_cache_scales(table[i], cache_scales[static_cast<size_t>(table[i].layer)], &scales);
  }
  const auto width = [&](size_t i) { return code_bits(s.types[i]) != 0 ? 1 : dtype_info(s.types[i]).block_bytes; };
  std::stable_sort(s.order.begin(), s.order.end(), [&](size_t a, size_t b) { return width(a) > width(b); });

  std::vector<TensorSpec> stored_specs;
  for (const NamedScales& named : scales) stored_specs.push_back(named.spec);
  for (const size_t i : s.order) stored_specs.push_back(stored(table[i], s.types[i]));
  s.file = std::make_unique<SafetensorsWriter>(out + "/model.safetensors", stored_specs, metadata_of(cache_scales));
  for (const NamedScales& named : scales) s.file->append(named.values.data(), named.values.size() * sizeof(float));
}

MobileWriter::~MobileWriter() = default;

const std::vector<size_t>& MobileWriter::order() const { return state_->order; }

void MobileWriter::append_rows(size_t index, const uint8_t* data, int64_t rows) {
  State& s = *state_;
  QAT_CHECK(s.current < s.order.size() && index == s.order[s.current]);
  const TensorInfo& info = s.table[index];
  QAT_CHECK(rows >= 0 && rows <= rows_of(info) - s.rows_done);
  s.file->append(data, static_cast<size_t>(rows) * row_bytes(s.types[index], info.shape.back()));
  s.rows_done += rows;
  if (s.rows_done < rows_of(info)) return;
  s.rows_done = 0;
  ++s.current;
}

void MobileWriter::commit() {
  QAT_CHECK(state_->current == state_->order.size());
  state_->file->commit();
  state_->directory.commit();
}

std::vector<MobileSpec> mobile_specs(const MobileCheckpoint& checkpoint) {
  std::vector<MobileSpec> specs;
  for (const TensorInfo& info : mobile_table(checkpoint.config())) {
    const MobileTensor& tensor = checkpoint.tensor(stored_as(checkpoint, info));
    MobileSpec spec;
    spec.dtype = tensor.dtype;
    if (tensor.dtype == DType::F64)
      fail(checkpoint.directory(), ": tensor ", info.name, ": expected F32, F16 or BF16, found F64");
    spec.scales_per_row = std::max<int64_t>(1, tensor.scales_per_row);
    spec.scales.resize(tensor.scales.size() / sizeof(float));
    for (size_t i = 0; i < spec.scales.size(); ++i) spec.scales[i] = scale_at(tensor.scales, static_cast<int64_t>(i));
    spec.input_scale = tensor.input_scale;
    spec.output_scale = tensor.output_scale;
    specs.push_back(std::move(spec));
  }
  return specs;
}

std::vector<CacheScales> cache_scales_of(const MobileCheckpoint& checkpoint) {
  std::vector<CacheScales> scales;
  for (size_t layer = 0; layer < checkpoint.config().layers.size(); ++layer)
    scales.push_back(checkpoint.cache_scales(static_cast<int>(layer)));
  return scales;
}

void copy_mobile(const MobileCheckpoint& checkpoint, const std::vector<MobileSpec>& specs,
                 const std::vector<CacheScales>& cache_scales, const std::string& out, const MobileProgress& progress) {
  constexpr size_t kSlabBytes = size_t{4} << 20;  // between two reports
  const std::vector<TensorInfo> table = mobile_table(checkpoint.config());
  MobileWriter writer(out, checkpoint.directory(), table, specs, cache_scales, describe_widths(table, specs));
  uint64_t total = 0, done = 0;
  for (const TensorInfo& info : table) total += checkpoint.tensor(stored_as(checkpoint, info)).data.size();
  for (const size_t i : writer.order()) {
    const Span<const uint8_t> data = checkpoint.tensor(stored_as(checkpoint, table[i])).data;
    const int64_t rows = rows_of(table[i]);
    const size_t stride = data.size() / static_cast<size_t>(rows);
    const int64_t slab = std::max<int64_t>(1, static_cast<int64_t>(kSlabBytes / stride));
    for (int64_t row = 0; row < rows; row += slab) {
      const int64_t count = std::min(slab, rows - row);
      writer.append_rows(i, data.data() + static_cast<size_t>(row) * stride, count);
      done += static_cast<uint64_t>(count) * stride;
      if (progress) progress(done, total);
    }
  }
  writer.commit();
}

void export_mobile(const std::string& mobile_directory, const std::string& out, const MobileProgress& progress) {
  const MobileCheckpoint checkpoint(mobile_directory);
  copy_mobile(checkpoint, mobile_specs(checkpoint), cache_scales_of(checkpoint), out, progress);
}

}  // namespace qat
