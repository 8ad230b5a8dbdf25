#include "format/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "format/error.h"
#include "format/number.h"

namespace qat {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

// Looks through JSON before it is built: refuses duplicate keys (nlohmann keeps the last silently) and nesting deeper
// than the formats here need. (A parser callback could do both, but with one nlohmann takes time quadratic in the
// number of entries.)
class StrictJson : public nlohmann::json_sax<Json> {
 public:
  StrictJson(const std::string& file, size_t max_depth) : file_(file), max_depth_(max_depth) {}

  bool start_object(size_t) override { return enter(); }
  bool start_array(size_t) override { return enter(); }
  bool end_object() override { return leave(); }
  bool end_array() override { return leave(); }
  bool key(std::string& name) override {
    if (!open_.back().insert(name).second) fail(file_, ": JSON header: key \"", printable(name), "\" appears twice");
    return true;
  }
  bool parse_error(size_t, const std::string&, const Json::exception& e) override {
    fail(file_, ": JSON header: ", printable(e.what()));
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_unsigned(uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(Json::binary_t&) override { return true; }

 private:
  bool enter() {
    if (open_.size() == max_depth_) fail(file_, ": JSON header: expected at most ", max_depth_, " levels, found more");
    open_.emplace_back();
    return true;
  }
  bool leave() {
    open_.pop_back();
    return true;
  }

  const std::string& file_;
  const size_t max_depth_;
  std::vector<std::set<std::string>> open_;  // keys of the objects that are open; empty for arrays
};

Json parse_json(const char* begin, const char* end, const std::string& file) {
  StrictJson check(file, 3);
  Json::sax_parse(begin, end, &check);
  return Json::parse(begin, end);
}

// One tensor's entry of the header, checked against the size of the data section.
TensorView read_entry(const std::string& name, const Json& entry, Span<const uint8_t> data, const std::string& file) {
  const std::string where = file + ": tensor " + printable(name);
  if (!entry.is_object()) fail(where, ": expected a JSON object, found ", entry.type_name());
  for (const char* key : {"dtype", "shape", "data_offsets"})
    if (!entry.contains(key)) fail(where, ": expected a \"", key, "\", found none");

  const Json& dtype = entry["dtype"];
  if (!dtype.is_string()) fail(where, ": dtype: expected a string, found ", dtype.type_name());
  const DTypeInfo* info = find_dtype_by_safetensors_name(dtype.get_ref<const std::string&>());
  if (info == nullptr) fail(where, ": dtype \"", printable(dtype.get<std::string>()), "\" is not known");

  TensorView view;
  view.name = name;
  view.dtype = info->id;
  const Json& shape = entry["shape"];
  if (!shape.is_array()) fail(where, ": shape: expected an array, found ", shape.type_name());
  for (const Json& size : shape) {
    if (!size.is_number_unsigned() || size.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail(where, ": shape: expected sizes from 0 to 2^63 - 1, found ", printable(size.dump()));
    view.shape.push_back(size.get<int64_t>());
  }
  const auto bytes = tensor_bytes(view.dtype, view.shape);
  if (!bytes) fail(where, ": shape ", shape_text(view.shape), " of ", info->name, " overflows");

  const Json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned())
    fail(where, ": data_offsets: expected two sizes, found ", printable(offsets.dump()));
  const auto begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  if (begin > end || end > data.size())
    fail(where, ": data_offsets: expected a range within the ", data.size(), " bytes of data, found [", begin, ", ",
         end, "]");
  if (end - begin != *bytes)
    fail(where, ": shape ", shape_text(view.shape), " of ", info->name, " is ", *bytes, " bytes, data_offsets say ",
         end - begin);
  view.bytes = data.subspan(begin, end - begin);
  return view;
}

// The format has no holes, no overlaps and nothing after the last tensor; a file that has was cut, padded or tampered
// with.
void check_coverage(std::vector<const TensorView*> tensors, Span<const uint8_t> data, const std::string& file) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorView* a, const TensorView* b) {
    return std::make_pair(a->bytes.begin(), a->bytes.end()) < std::make_pair(b->bytes.begin(), b->bytes.end());
  });
  const uint8_t* expected = data.begin();
  for (const TensorView* tensor : tensors) {
    if (tensor->bytes.begin() != expected)
      fail(file, ": tensor ", printable(tensor->name), ": expected its data at offset ", expected - data.begin(),
           ", found ", tensor->bytes.begin() - data.begin(),
           tensor->bytes.begin() < expected ? " (overlap)" : " (hole)");
    expected = tensor->bytes.end();
  }
  if (expected != data.end())
    fail(file, ": expected the file to end after the last tensor, found ", data.end() - expected, " more bytes");
}

std::string header_text(const std::vector<TensorSpec>& specs, const std::map<std::string, std::string>& metadata,
                        uint64_t* total) {
  std::string header = "{\"__metadata__\":" + Json(metadata).dump();
  uint64_t offset = 0;
  for (const TensorSpec& spec : specs) {
    const DTypeInfo& info = dtype_info(spec.dtype);
    const auto bytes = tensor_bytes(spec.dtype, spec.shape);
    QAT_CHECK(info.safetensors != nullptr && bytes && spec.name != "__metadata__");
    const uint64_t end = offset + *bytes;
    QAT_CHECK(end >= offset);
    header += "," + Json(spec.name).dump() + ":{\"dtype\":\"" + info.safetensors +
              "\",\"shape\":" + Json(spec.shape).dump() + ",\"data_offsets\":[" + std::to_string(offset) + "," +
              std::to_string(end) + "]}";
    offset = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  QAT_CHECK(header.size() <= kMaxHeaderBytes);
  *total = offset;
  return header;
}

template <class T>
T load(const uint8_t* data, int64_t i) {
  T value;  // files promise no alignment
  std::memcpy(&value, data + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void append_ints(const TensorView& tensor, std::vector<int64_t>* out) {
  for (int64_t i = 0; i < tensor.count(); ++i) out->push_back(static_cast<int64_t>(load<T>(tensor.bytes.data(), i)));
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Safetensors::Safetensors(const std::string& path) : path_(path) {
  const std::string single = path + "/model.safetensors", index = path + "/model.safetensors.index.json";
  if (!std::filesystem::is_directory(path)) {
    open_one(path);
  } else if (std::filesystem::exists(single)) {
    open_one(single);
  } else if (std::filesystem::exists(index)) {
    open_shards(index);
  } else {
    fail(path, ": expected model.safetensors or model.safetensors.index.json in this directory, found neither");
  }
}

void Safetensors::open_shards(const std::string& index) {
  const std::string text = read_file(index, kMaxHeaderBytes);
  const Json json = parse_json(text.data(), text.data() + text.size(), index);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    fail(index, ": expected an object \"weight_map\", found none");
  std::set<std::string> shards;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    // A plain name in this directory: an index from elsewhere must not make us open other files, nor write control
    // characters to a terminal.
    const bool is_control =
        std::any_of(file.begin(), file.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
    if (file.empty() || file == "." || file == ".." || is_control || file.find_first_of("/\\") != std::string::npos)
      fail(index, ": tensor ", printable(name), ": expected the name of a file beside the index, found ",
           printable(shard.dump()));
    shards.insert(file);
  }
  for (const std::string& shard : shards) open_one(path_ + "/" + shard);
  for (const auto& [name, shard] : json["weight_map"].items())
    if (find(name) == nullptr)
      fail(path_, "/", printable(shard.get<std::string>()), ": expected tensor ", printable(name),
           " as the index says, found none");
}

void Safetensors::open_one(const std::string& path) {
  files_.emplace_back(path);
  const std::string& file = files_.back().path();
  const Span<const uint8_t> bytes = files_.back().bytes();
  if (bytes.size() < 8) fail(file, ": expected a safetensors header length of 8 bytes, found a file of ", bytes.size());
  const auto header_size = load<uint64_t>(bytes.data(), 0);
  if (header_size > kMaxHeaderBytes || header_size > bytes.size() - 8)
    fail(file, ": expected a safetensors header of at most ", std::min<uint64_t>(kMaxHeaderBytes, bytes.size() - 8),
         " bytes, found length ", header_size);
  const auto* header = reinterpret_cast<const char*>(bytes.data()) + 8;
  if (header_size == 0 || *header != '{')
    fail(file, ": expected a safetensors header that begins with {, found something else");
  const Json json = parse_json(header, header + header_size, file);
  const Span<const uint8_t> data = bytes.subspan(8 + header_size);

  std::vector<TensorView> views;
  for (const auto& [name, entry] : json.items()) {
    if (name != "__metadata__") {
      views.push_back(read_entry(name, entry, data, file));
      continue;
    }
    if (!entry.is_object()) fail(file, ": __metadata__: expected an object, found ", entry.type_name());
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string())
        fail(file, ": __metadata__: ", printable(key), ": expected a string, found ", value.type_name());
      metadata_[key] = value.get<std::string>();
    }
  }
  std::vector<const TensorView*> pointers;
  for (const TensorView& view : views) pointers.push_back(&view);
  check_coverage(pointers, data, file);

  for (TensorView& view : views) {
    if (find(view.name) != nullptr) fail(file, ": tensor ", printable(view.name), " is also in another shard");
  }
  tensors_.insert(tensors_.end(), std::make_move_iterator(views.begin()), std::make_move_iterator(views.end()));
  std::sort(tensors_.begin(), tensors_.end(), [](const TensorView& a, const TensorView& b) { return a.name < b.name; });
}

const TensorView* Safetensors::find(const std::string& name) const {
  const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const TensorView& view, const std::string& n) { return view.name < n; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

const TensorView& Safetensors::at(const std::string& name) const {
  const TensorView* view = find(name);
  if (view == nullptr) fail(path_, ": expected tensor ", printable(name), ", found none");
  return *view;
}

void Safetensors::advise_huge_pages() const {
  for (const MappedFile& file : files_) qat::advise_huge_pages(file.bytes().data(), file.bytes().size());
}

const MappedFile* Safetensors::file_of(const uint8_t* bytes) const {
  for (const MappedFile& file : files_)
    if (file.holds(bytes, 1)) return &file;
  return nullptr;
}

void to_floats(const TensorView& tensor, int64_t offset, int64_t count, float* out, const std::string& file) {
  QAT_CHECK(offset >= 0 && count >= 0 && offset <= tensor.count() && count <= tensor.count() - offset);
  const uint8_t* data = tensor.bytes.data();
  switch (tensor.dtype) {
    case DType::F32:
      if (count > 0) std::memcpy(out, data + offset * 4, static_cast<size_t>(count) * 4);
      break;
    case DType::F16:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(load<uint16_t>(data, offset + i));
      break;
    case DType::BF16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(load<uint16_t>(data, offset + i));
      break;
    case DType::F64:
      for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(load<double>(data, offset + i));
      break;
    default:
      fail(file, ": tensor ", printable(tensor.name), ": expected F32, F16, BF16 or F64, found ",
           dtype_name(tensor.dtype));
  }
}

std::vector<float> to_floats(const TensorView& tensor, const std::string& file) {
  std::vector<float> out(static_cast<size_t>(tensor.count()));
  to_floats(tensor, 0, tensor.count(), out.data(), file);
  return out;
}

std::vector<int64_t> to_ints(const TensorView& tensor, const std::string& file) {
  std::vector<int64_t> out;
  out.reserve(static_cast<size_t>(tensor.count()));
  switch (tensor.dtype) {
    case DType::I8: append_ints<int8_t>(tensor, &out); break;
    case DType::I16: append_ints<int16_t>(tensor, &out); break;
    case DType::I32: append_ints<int32_t>(tensor, &out); break;
    case DType::I64: append_ints<int64_t>(tensor, &out); break;
    case DType::BOOL:
    case DType::U8: append_ints<uint8_t>(tensor, &out); break;
    case DType::U16: append_ints<uint16_t>(tensor, &out); break;
    case DType::U32: append_ints<uint32_t>(tensor, &out); break;
    default:
      fail(file, ": tensor ", printable(tensor.name), ": expected integers of at most 63 bits, found ",
           dtype_name(tensor.dtype));
  }
  return out;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<TensorSpec>& specs,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path) {
  const std::string header = header_text(specs, metadata, &remaining_);
  const uint64_t size = header.size();
  file_.write(&size, sizeof size);
  file_.write(header.data(), header.size());
}

void SafetensorsWriter::append(const void* data, size_t size) {
  QAT_CHECK(size <= remaining_);
  file_.write(data, size);
  remaining_ -= size;
}

void SafetensorsWriter::commit() {
  QAT_CHECK(remaining_ == 0);
  file_.commit();
}

}  // namespace qat
