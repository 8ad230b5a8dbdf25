#include "format/mobile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "format/channel_grid.h"
#include "format/checkpoint_internal.h"
#include "format/error.h"

namespace qat {
namespace {

using Json = nlohmann::ordered_json;  // the order of rules decides

constexpr const char* kWeight = ".weight";
constexpr const char* kCacheWidths[] = {"0", "2", "4", "8"};

// "model.norm.weight" without ".weight".
std::string module_of(const std::string& name) { return name.substr(0, name.size() - std::string(kWeight).size()); }

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string shown(const Json& value) { return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace)); }

const Json* find(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

int read_bits(const Json& object, int fallback, const std::string& place) {
  const Json* value = find(object, "num_bits");
  if (value == nullptr) return fallback;
  for (const int bits : {2, 4, 8})
    if (*value == bits) return bits;
  fail(place, ": num_bits: expected 2, 4 or 8, found ", shown(*value));
}

// The names a file in this schema may have for tensors of the model, whatever is quantized.
std::set<std::string> expected_mobile_names(const ModelConfig& config) {
  std::set<std::string> names;
  for (const std::string& name : expected_names(config)) {
    names.insert(name);
    if (!ends_with(name, kWeight)) continue;
    const std::string module = module_of(name);
    for (const char* part : {".weight_scale", ".input_activation_scale", ".output_activation_scale",
                             ".embedding_quantized", ".embedding_scale"})
      names.insert(module + part);
    if (!ends_with(module, "self_attn.q_proj")) continue;
    const std::string attention = module.substr(0, module.size() - std::string("q_proj").size());
    names.insert(attention + "k_cache_scale");
    names.insert(attention + "v_cache_scale");
  }
  return names;
}

MobileQuantization read_quantization(const std::string& directory) {
  const std::string path = directory + "/config.json";
  return mobile_quantization_from_json(read_file(path, kMaxConfigBytes), path);
}

}  // namespace

float scale_at(Span<const uint8_t> scales, int64_t index) {
  float scale;
  std::memcpy(&scale, scales.data() + 4 * index, sizeof scale);
  return scale;
}

int64_t mobile_scales_per_row(const ModelConfig& config, const TensorInfo& info) {
  return info.role == Role::ple_embedding ? static_cast<int64_t>(config.layers.size()) : 1;
}

bool is_mobile_config(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return false;
  const Json* block = find(json, "quantization_config");
  if (block == nullptr || !block->is_object()) return false;
  const Json* method = find(*block, "quant_method");
  return method != nullptr && *method == "gemma";
}

MobileQuantization mobile_quantization_from_json(const std::string& text, const std::string& origin) {
  if (!is_mobile_config(text)) fail(origin, ": expected a quantization_config with \"quant_method\": \"gemma\"");
  const Json json = Json::parse(text);
  const Json& block = json.at("quantization_config");
  const std::string place = origin + ": quantization_config";
  MobileQuantization quantization;
  quantization.bits = read_bits(block, 4, place);
  if (const Json* value = find(block, "quantize_embeddings")) {
    if (!value->is_boolean()) fail(place, ": quantize_embeddings: expected true or false, found ", shown(*value));
    quantization.embeddings = value->get<bool>();
  }
  if (const Json* rules = find(block, "module_quant_configs")) {
    const std::string rules_place = place + ": module_quant_configs";
    if (!rules->is_object()) fail(rules_place, ": expected an object, found ", shown(*rules));
    for (const auto& [pattern, options] : rules->items()) {
      if (!options.is_object())
        fail(rules_place, ": ", printable(pattern), ": expected an object, found ", shown(options));
      quantization.rules.push_back(
          {pattern, read_bits(options, quantization.bits, rules_place + ": " + printable(pattern))});
    }
  }
  const Json* names = find(block, "modules_to_not_convert");
  const auto wrong = [&](const std::string& found) {
    fail(place, ": modules_to_not_convert: expected a list of names, found ", found);
  };
  if (names == nullptr) wrong("none");
  if (!names->is_array()) wrong(shown(*names));
  for (const Json& name : *names) {
    if (!name.is_string()) wrong(shown(*names));
    quantization.not_converted.push_back(name.get<std::string>());
  }
  return quantization;
}

MobileWidths::MobileWidths(const MobileQuantization& quantization, const std::string& origin)
    : quantization_(quantization) {
  const std::string place = origin + ": quantization_config: ";
  for (const MobileQuantization::Rule& rule : quantization.rules)
    rules_.emplace_back(rule.pattern, place + "module_quant_configs");
  for (const std::string& name : quantization.not_converted)
    not_converted_.emplace_back(name, place + "modules_to_not_convert");
}

int MobileWidths::bits(const std::string& module, TensorKind kind) const {
  if (kind != TensorKind::linear && !(kind == TensorKind::embedding && quantization_.embeddings)) return 0;
  for (size_t i = 0; i < not_converted_.size(); ++i)
    if (ends_with(module, quantization_.not_converted[i]) || not_converted_[i].find(module) == size_t{0}) return 0;
  int bits = quantization_.bits;
  size_t leftmost = module.size() + 1;
  for (size_t i = 0; i < rules_.size(); ++i) {
    const size_t at = rules_[i].find(module).value_or(leftmost);
    if (at >= leftmost) continue;
    leftmost = at;
    bits = quantization_.rules[i].bits;
  }
  return bits;
}

MobileCheckpoint::MobileCheckpoint(const std::string& directory)
    : directory_(directory),
      config_(model_config_from_hf(directory, &notices_)),
      table_(tensor_table(config_)),
      quantization_(read_quantization(directory)),
      file_(std::make_unique<Safetensors>(directory)) {
  file_->advise_huge_pages();  // before scales are checked
  const MobileWidths widths(quantization_, directory + "/config.json");
  for (const TensorInfo& info : table_) by_name_.emplace(info.name, find_tensor(widths, info));
  read_cache_scales();
  note_ignored(*file_, expected_mobile_names(config_), &notices_);
}

const MobileTensor& MobileCheckpoint::tensor(const TensorInfo& info) const {
  const auto it = by_name_.find(info.name);
  QAT_CHECK(it != by_name_.end());
  return it->second;
}

std::vector<float> MobileCheckpoint::read(const TensorInfo& info) const {
  const MobileTensor& found = tensor(info);
  QAT_CHECK(code_bits(found.dtype) == 0);
  return to_floats(TensorView{info.name, found.dtype, info.shape, found.data}, directory_);
}

const TensorView& MobileCheckpoint::expect(const std::string& name, DType dtype,
                                           const std::vector<int64_t>& shape) const {
  const TensorView* view = file_->find(name);
  if (view == nullptr)
    fail(directory_, ": expected tensor ", name, " ", dtype_name(dtype), " ", shape_text(shape), ", found none");
  if (view->dtype != dtype || view->shape != shape)
    fail(directory_, ": tensor ", name, ": expected ", dtype_name(dtype), " ", shape_text(shape), ", found ",
         dtype_name(view->dtype), " ", shape_text(view->shape));
  return *view;
}

// The tensor under whatever prefix the file uses; the module's name with that prefix decides its width.
MobileTensor MobileCheckpoint::find_tensor(const MobileWidths& widths, const TensorInfo& info) const {
  for (const std::string& name : hf_name_candidates(info.name)) {
    const bool module = info.kind == TensorKind::linear || info.kind == TensorKind::embedding;
    const TensorView* view = file_->find(name);
    if (view == nullptr && !(module && file_->find(module_of(name) + ".embedding_quantized") != nullptr)) continue;
    if (const int bits = module ? widths.bits(module_of(name), info.kind) : 0)
      return quantized(info, module_of(name), bits);
    if (view == nullptr) break;  // packed, where the config says that it is not
    if (!is_float(view->dtype) || view->shape != info.shape)
      fail(directory_, ": tensor ", printable(name), ": expected F32, F16, BF16 or F64 ", shape_text(info.shape),
           ", found ", dtype_name(view->dtype), " ", shape_text(view->shape));
    MobileTensor tensor;
    tensor.dtype = view->dtype;
    tensor.data = view->bytes;
    return tensor;
  }
  fail(directory_, ": expected tensor ", info.name, " of shape ", shape_text(info.shape), ", found none");
}

MobileTensor MobileCheckpoint::quantized(const TensorInfo& info, const std::string& module, int bits) const {
  const bool embedding = info.kind == TensorKind::embedding;
  const int64_t rows = info.shape[0], cols = info.shape[1];
  MobileTensor tensor;
  tensor.dtype = code_type(bits);
  const int64_t stride = static_cast<int64_t>(row_bytes(tensor.dtype, cols));
  tensor.data =
      expect(module + (embedding ? ".embedding_quantized" : kWeight), bits == 8 ? DType::I8 : DType::U8, {rows, stride})
          .bytes;

  const std::string name = module + (embedding ? ".embedding_scale" : ".weight_scale");
  const TensorView* found = embedding ? file_->find(name) : nullptr;
  tensor.scales_per_row = found != nullptr && found->shape.size() == 2 ? found->shape[1] : 1;
  if (tensor.scales_per_row < 1 || cols % tensor.scales_per_row != 0)
    fail(directory_, ": tensor ", name, ": expected a count of columns that divides ", cols, ", found shape ",
         shape_text(found->shape));
  tensor.scales = expect(name, DType::F32, {rows, tensor.scales_per_row}).bytes;
  for (int64_t i = 0; i < rows * tensor.scales_per_row; ++i) {
    const float scale = scale_at(tensor.scales, i);
    if (!(scale > 0.0f) || std::isinf(scale))
      fail(directory_, ": tensor ", name, ": row ", i / tensor.scales_per_row,
           ": expected a finite scale above 0, found ", scale);
  }
  if (embedding) return tensor;
  tensor.input_scale = static_scale(module + ".input_activation_scale");
  tensor.output_scale = static_scale(module + ".output_activation_scale");
  return tensor;
}

float MobileCheckpoint::static_scale(const std::string& name) const {
  const float scale = scale_at(expect(name, DType::F32, {}).bytes, 0);
  if (!(scale >= 0.0f) || std::isinf(scale))
    fail(directory_, ": tensor ", name, ": expected a finite scale, 0 or above, found ", scale);
  return scale;
}

void MobileCheckpoint::read_cache_scales() {
  cache_scales_.resize(config_.layers.size());
  read_cache_bits();
  for (const TensorInfo& info : table_) {
    if (info.role != Role::k) continue;
    for (const std::string& name : hf_name_candidates(info.name)) {
      const std::string attention = name.substr(0, name.size() - std::string("k_proj.weight").size());
      CacheScales& scales = cache_scales_[static_cast<size_t>(info.layer)];
      if (file_->find(attention + "k_cache_scale")) scales.k = static_scale(attention + "k_cache_scale");
      if (file_->find(attention + "v_cache_scale")) scales.v = static_scale(attention + "v_cache_scale");
    }
  }
}

// "8,8,4,0" for four layers.
void MobileCheckpoint::read_cache_bits() {
  const auto found = file_->metadata().find(kCacheBits);
  if (found == file_->metadata().end()) return;
  std::istringstream text(found->second);
  std::string number;
  size_t layer = 0;
  bool good = true;
  for (; good && std::getline(text, number, ','); ++layer) {
    const auto known = std::find(std::begin(kCacheWidths), std::end(kCacheWidths), number);
    good = layer < cache_scales_.size() && known != std::end(kCacheWidths);
    if (good) cache_scales_[layer].bits = std::stoi(number);
  }
  if (!good || layer != cache_scales_.size())
    fail(directory_, ": metadata ", kCacheBits, ": expected 0, 2, 4 or 8 for each of ", cache_scales_.size(),
         " layers, found \"", printable(found->second), "\"");
}

}  // namespace qat
