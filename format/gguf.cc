#include "format/gguf.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <unordered_set>

#include "format/error.h"

namespace qat {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint32_t kDefaultAlignment = 32;
constexpr uint32_t kArrayType = 9;
constexpr uint64_t kMaxNameBytes = 1024;  // of keys and tensor names; ggml allows 64 for tensors
constexpr uint32_t kMaxDims = 4;
// The least a key/value and a tensor info take: counts beyond what the file can hold are refused before anything is
// reserved.
constexpr uint64_t kMinKeyValueBytes = 8 + 4 + 1, kMinTensorInfoBytes = 8 + 4 + 4 + 8;

// GgufValue's alternatives are the scalar types in the order of their ids (with the id of "array" left out), then
// vectors of them.
constexpr size_t kScalarTypes = 12;
constexpr const char* kTypeNames[kScalarTypes] = {"uint8",   "int8", "uint16", "int16",  "uint32", "int32",
                                                  "float32", "bool", "string", "uint64", "int64",  "float64"};
uint32_t type_id(size_t alternative) {
  const auto scalar = static_cast<uint32_t>(alternative % kScalarTypes);
  return scalar < kArrayType ? scalar : scalar + 1;
}
std::string type_name(const GgufValue& value) {
  const char* scalar = kTypeNames[value.index() % kScalarTypes];
  return value.index() < kScalarTypes ? scalar : std::string("an array of ") + scalar;
}

uint64_t align_up(uint64_t position, uint64_t alignment) { return (position + alignment - 1) / alignment * alignment; }

// Reads the header front to back; no read goes past the end of the file.
class Cursor {
 public:
  Cursor(const std::string& file, Span<const uint8_t> bytes) : file_(file), bytes_(bytes) {}

  const std::string& file() const { return file_; }
  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }

  template <class T>
  T read(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }
  std::string read_string(const std::string& what, uint64_t longest = std::numeric_limits<uint64_t>::max()) {
    const auto size = read<uint64_t>(what);
    if (size > longest)
      fail(file_, ": ", what, ": expected a string of at most ", longest, " bytes, found length ", size);
    return std::string(reinterpret_cast<const char*>(take(size, what)), size);
  }
  // A number of things of at least `least` bytes each.
  uint64_t read_count(uint64_t least, const std::string& what) {
    const auto count = read<uint64_t>(what);
    if (count > remaining() / least)
      fail(file_, ": ", what, ": expected at most ", remaining() / least, " in the ", remaining(),
           " bytes left, found ", count);
    return count;
  }

 private:
  const uint8_t* take(uint64_t size, const std::string& what) {
    if (size > remaining())
      fail(file_, ": ", what, " at byte ", position_, ": expected ", size, " bytes, found the end of the file after ",
           remaining());
    const uint8_t* data = bytes_.data() + position_;
    position_ += size;
    return data;
  }

  const std::string& file_;
  Span<const uint8_t> bytes_;
  uint64_t position_ = 0;
};

template <class T>
T read_scalar(Cursor& cursor, const std::string& what) {
  if constexpr (std::is_same_v<T, std::string>) {
    return cursor.read_string(what);
  } else if constexpr (std::is_same_v<T, bool>) {
    const auto byte = cursor.read<uint8_t>(what);
    if (byte > 1) fail(cursor.file(), ": ", what, ": expected a bool of 0 or 1, found ", static_cast<int>(byte));
    return byte == 1;
  } else {
    return cursor.read<T>(what);
  }
}

template <class T>
GgufValue read_as(Cursor& cursor, bool array, const std::string& what) {
  if (!array) return GgufValue(std::in_place_type<T>, read_scalar<T>(cursor, what));
  const uint64_t count = cursor.read_count(std::is_same_v<T, std::string> ? 8 : sizeof(T), what + ": array length");
  std::vector<T> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) values.push_back(read_scalar<T>(cursor, what));
  return GgufValue(std::in_place_type<std::vector<T>>, std::move(values));
}

GgufValue read_value(Cursor& cursor, const std::string& what) {
  uint32_t type = cursor.read<uint32_t>(what);
  const bool array = type == kArrayType;
  if (array) type = cursor.read<uint32_t>(what);
  switch (type) {
    case 0: return read_as<uint8_t>(cursor, array, what);
    case 1: return read_as<int8_t>(cursor, array, what);
    case 2: return read_as<uint16_t>(cursor, array, what);
    case 3: return read_as<int16_t>(cursor, array, what);
    case 4: return read_as<uint32_t>(cursor, array, what);
    case 5: return read_as<int32_t>(cursor, array, what);
    case 6: return read_as<float>(cursor, array, what);
    case 7: return read_as<bool>(cursor, array, what);
    case 8: return read_as<std::string>(cursor, array, what);
    case kArrayType: fail(cursor.file(), ": ", what, ": arrays of arrays are not supported");
    case 10: return read_as<uint64_t>(cursor, array, what);
    case 11: return read_as<int64_t>(cursor, array, what);
    case 12: return read_as<double>(cursor, array, what);
    default: fail(cursor.file(), ": ", what, ": expected a value type from 0 to 12, found ", type);
  }
}

GgufMetadata read_metadata(Cursor& cursor, uint64_t count) {
  GgufMetadata metadata;
  metadata.reserve(count);
  std::unordered_set<std::string> seen;
  for (uint64_t i = 0; i < count; ++i) {
    std::string key = cursor.read_string("key " + std::to_string(i), kMaxNameBytes);
    const std::string what = "key " + printable(key);
    if (!seen.insert(key).second) fail(cursor.file(), ": ", what, " appears twice");
    metadata.emplace_back(std::move(key), read_value(cursor, what));
  }
  return metadata;
}

struct TensorPlace {
  GgufTensor tensor;  // bytes are filled in once the data section is known
  uint64_t offset = 0, size = 0;
};

TensorPlace read_tensor_info(Cursor& cursor, uint64_t index) {
  TensorPlace place;
  GgufTensor& tensor = place.tensor;
  tensor.name = cursor.read_string("name of tensor " + std::to_string(index), kMaxNameBytes);
  const std::string what = "tensor " + printable(tensor.name), where = cursor.file() + ": " + what;
  const auto dims = cursor.read<uint32_t>(what);
  if (dims > kMaxDims) fail(where, ": expected at most ", kMaxDims, " dimensions, found ", dims);
  for (uint32_t d = 0; d < dims; ++d) {
    const auto size = cursor.read<uint64_t>(what);
    if (size == 0 || size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      fail(where, ": expected sizes from 1 to 2^63 - 1, found ", size);
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
  }
  const auto type = cursor.read<uint32_t>(what);
  const DTypeInfo* info = find_dtype_by_ggml_id(type);
  if (info == nullptr) fail(where, ": type ", type, " is not known");
  tensor.dtype = info->id;
  const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  if (cols % info->block_size != 0)
    fail(where, ": expected rows of a multiple of ", info->block_size, " elements for ", info->name, ", found ", cols);
  const auto bytes = tensor_bytes(tensor.dtype, tensor.shape);
  if (!bytes) fail(where, ": its size in bytes overflows");
  place.size = *bytes;
  place.offset = cursor.read<uint64_t>(what);
  return place;
}

uint32_t read_alignment(const GgufValue* value, const std::string& file) {
  if (value == nullptr) return kDefaultAlignment;
  const auto* alignment = std::get_if<uint32_t>(value);
  if (alignment == nullptr) fail(file, ": key general.alignment: expected uint32, found ", type_name(*value));
  if (*alignment == 0 || (*alignment & (*alignment - 1)) != 0)
    fail(file, ": key general.alignment: expected a power of two, found ", *alignment);
  return *alignment;
}

// The file ends with the last tensor (and its padding), and no two tensors share bytes.
void check_layout(std::vector<TensorPlace*> places, uint64_t data_size, uint64_t alignment, const std::string& file) {
  std::sort(places.begin(), places.end(),
            [](const TensorPlace* a, const TensorPlace* b) { return a->offset < b->offset; });
  uint64_t end = 0;
  for (const TensorPlace* place : places) {
    const std::string where = file + ": tensor " + printable(place->tensor.name);
    if (place->offset % alignment != 0)
      fail(where, ": expected an offset that is a multiple of ", alignment, ", found ", place->offset);
    if (place->offset > data_size || place->size > data_size - place->offset)
      fail(where, ": expected its ", place->size, " bytes at offset ", place->offset, ", found only ", data_size,
           " bytes of data");
    if (place->offset < end)
      fail(where, ": its data at offset ", place->offset, " overlaps another tensor that ends at ", end);
    end = place->offset + place->size;
  }
  if (data_size > align_up(end, alignment))
    fail(file, ": expected the file to end after the last tensor, found ", data_size - end, " more bytes");
}

void check_magic_and_version(Cursor& cursor) {
  const auto magic = cursor.read<uint32_t>("magic");
  if (std::memcmp(&magic, "GGUF", 4) != 0)
    fail(cursor.file(), ": expected a file that begins with \"GGUF\", found another format");
  const auto version = cursor.read<uint32_t>("version");
  if (version != 0 && (version & 0xffff) == 0)
    fail(cursor.file(), ": expected a little-endian GGUF file, found a big-endian one");
  if (version != 2 && version != kVersion) fail(cursor.file(), ": expected GGUF version 2 or 3, found ", version);
}

template <class T>
constexpr bool is_integer = std::is_integral_v<T> && !std::is_same_v<T, bool>;

// The value as int64, when it is an integer that fits.
template <class T>
bool convert_int(const T& value, int64_t* out) {
  if constexpr (is_integer<T>) {
    if constexpr (std::is_same_v<T, uint64_t>)
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return false;
    *out = static_cast<int64_t>(value);
    return true;
  }
  return false;
}

[[noreturn]] void fail_type(const std::string& file, const std::string& key, const char* expected,
                            const GgufValue& found) {
  fail(file, ": key ", printable(key), ": expected ", expected, ", found ", type_name(found));
}

const GgufValue& require(const GgufFile& file, const std::string& key) {
  const GgufValue* value = file.find(key);
  if (value == nullptr) fail(file.path(), ": expected key ", printable(key), ", found none");
  return *value;
}

template <class T>
void put(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
void put_scalar(std::string* out, const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    put<uint64_t>(out, value.size());
    *out += value;
  } else if constexpr (std::is_same_v<T, bool>) {
    put<uint8_t>(out, value ? 1 : 0);
  } else {
    put(out, value);
  }
}

template <class T>
void put_payload(std::string* out, uint32_t type, const T& value) {
  put(out, type);
  put_scalar(out, value);
}

template <class T>
void put_payload(std::string* out, uint32_t type, const std::vector<T>& values) {
  put(out, kArrayType);
  put(out, type);
  put<uint64_t>(out, values.size());
  for (const T& value : values) put_scalar(out, value);
}

}  // namespace

GgufFile::GgufFile(const std::string& path) : file_(path) {
  Cursor cursor(file_.path(), file_.bytes());
  check_magic_and_version(cursor);
  const uint64_t tensor_count = cursor.read_count(kMinTensorInfoBytes, "tensor count");
  const uint64_t key_count = cursor.read_count(kMinKeyValueBytes, "key count");
  metadata_ = read_metadata(cursor, key_count);
  if (get_int("split.count", 1) > 1)
    fail(path, ": this is one part of a split model; join the parts first (llama-gguf-split --merge)");

  std::vector<TensorPlace> places;
  std::unordered_set<std::string> seen;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    places.push_back(read_tensor_info(cursor, i));
    const std::string& name = places.back().tensor.name;
    if (!seen.insert(name).second) fail(path, ": tensor ", printable(name), " appears twice");
  }
  const uint64_t alignment = read_alignment(find("general.alignment"), path);
  // A file without tensors (a vocabulary) may end before the padding.
  const uint64_t data_start = std::min<uint64_t>(align_up(cursor.position(), alignment), file_.bytes().size());
  const Span<const uint8_t> data = file_.bytes().subspan(data_start);
  std::vector<TensorPlace*> pointers;
  for (TensorPlace& place : places) pointers.push_back(&place);
  check_layout(pointers, data.size(), alignment, path);
  for (TensorPlace& place : places) {
    place.tensor.bytes = data.subspan(place.offset, place.size);
    tensors_.push_back(std::move(place.tensor));
  }
}

const GgufValue* GgufFile::find(const std::string& key) const {
  for (const auto& [name, value] : metadata_)
    if (name == key) return &value;
  return nullptr;
}

std::string GgufFile::get_string(const std::string& key) const {
  const GgufValue& value = require(*this, key);
  const auto* text = std::get_if<std::string>(&value);
  if (text == nullptr) fail_type(path(), key, "a string", value);
  return *text;
}

int64_t GgufFile::get_int(const std::string& key) const {
  const GgufValue& value = require(*this, key);
  int64_t out = 0;
  if (!std::visit([&](const auto& v) { return convert_int(v, &out); }, value))
    fail_type(path(), key, "an integer below 2^63", value);
  return out;
}

int64_t GgufFile::get_int(const std::string& key, int64_t fallback) const {
  return find(key) == nullptr ? fallback : get_int(key);
}

double GgufFile::get_float(const std::string& key) const {
  const GgufValue& value = require(*this, key);
  if (const auto* single = std::get_if<float>(&value)) return *single;
  if (const auto* twice = std::get_if<double>(&value)) return *twice;
  fail_type(path(), key, "a float", value);
}

double GgufFile::get_float(const std::string& key, double fallback) const {
  return find(key) == nullptr ? fallback : get_float(key);
}

bool GgufFile::get_bool(const std::string& key, bool fallback) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return fallback;
  const auto* flag = std::get_if<bool>(value);
  if (flag == nullptr) fail_type(path(), key, "a bool", *value);
  return *flag;
}

std::vector<int64_t> GgufFile::get_ints(const std::string& key) const {
  const GgufValue& value = require(*this, key);
  std::vector<int64_t> out;
  const auto take = [&](const auto& v) {
    using T = std::decay_t<decltype(v)>;
    if constexpr (std::is_same_v<T, bool>) {
      out.push_back(v ? 1 : 0);
      return true;
    } else {
      return convert_int(v, &out.emplace_back());
    }
  };
  const bool taken = std::visit(
      [&](const auto& v) {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return false;
        } else if constexpr (std::is_same_v<T, std::vector<bool>>) {
          for (const bool element : v) take(element);
          return true;
        } else if constexpr (std::is_arithmetic_v<T>) {
          return take(v);
        } else {
          return std::is_integral_v<typename T::value_type> && std::all_of(v.begin(), v.end(), take);
        }
      },
      value);
  if (!taken) fail_type(path(), key, "integers below 2^63", value);
  return out;
}

std::vector<float> GgufFile::get_floats(const std::string& key) const {
  const GgufValue& value = require(*this, key);
  if (const auto* v = std::get_if<float>(&value)) return {*v};
  if (const auto* v = std::get_if<double>(&value)) return {static_cast<float>(*v)};
  if (const auto* v = std::get_if<std::vector<float>>(&value)) return *v;
  if (const auto* v = std::get_if<std::vector<double>>(&value)) return std::vector<float>(v->begin(), v->end());
  fail_type(path(), key, "floats", value);
}

std::vector<std::string> GgufFile::get_strings(const std::string& key) const {
  const GgufValue& value = require(*this, key);
  if (const auto* v = std::get_if<std::string>(&value)) return {*v};
  if (const auto* v = std::get_if<std::vector<std::string>>(&value)) return *v;
  fail_type(path(), key, "strings", value);
}

const GgufTensor* GgufFile::find_tensor(const std::string& name) const {
  for (const GgufTensor& tensor : tensors_)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

const GgufTensor& GgufFile::tensor(const std::string& name) const {
  const GgufTensor* tensor = find_tensor(name);
  if (tensor == nullptr) fail(path(), ": expected tensor ", printable(name), ", found none");
  return *tensor;
}

namespace {

// What precedes the tensors; `end`: where the last of them ends, padding included, counted from there.
std::string header_of(const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& specs, uint64_t* end) {
  std::string header = "GGUF";
  put<uint32_t>(&header, kVersion);
  put<uint64_t>(&header, specs.size());
  put<uint64_t>(&header, metadata.size());
  std::unordered_set<std::string> keys;
  for (const auto& [key, value] : metadata) {
    QAT_CHECK(keys.insert(key).second && key != "general.alignment");
    put_scalar(&header, key);
    const uint32_t type = type_id(value.index());
    std::visit([&](const auto& v) { put_payload(&header, type, v); }, value);
  }
  *end = 0;
  for (const GgufTensorSpec& spec : specs) {
    const auto bytes = tensor_bytes(spec.dtype, spec.shape);
    QAT_CHECK(bytes && *bytes > 0 && spec.shape.size() <= kMaxDims && spec.name.size() < 64);  // ggml's limits
    QAT_CHECK(dtype_info(spec.dtype).ggml_id >= 0);
    put_scalar(&header, spec.name);
    put<uint32_t>(&header, static_cast<uint32_t>(spec.shape.size()));
    for (size_t d = spec.shape.size(); d-- > 0;) put<uint64_t>(&header, static_cast<uint64_t>(spec.shape[d]));
    put<uint32_t>(&header, static_cast<uint32_t>(dtype_info(spec.dtype).ggml_id));
    put<uint64_t>(&header, *end);
    *end = align_up(*end + *bytes, kDefaultAlignment);
  }
  header.resize(align_up(header.size(), kDefaultAlignment));
  return header;
}

}  // namespace

uint64_t gguf_file_bytes(const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& specs) {
  uint64_t end = 0;
  const std::string header = header_of(metadata, specs, &end);
  return header.size() + end;
}

GgufWriter::GgufWriter(const std::string& path, const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& specs)
    : file_(path) {
  uint64_t end = 0;
  const std::string header = header_of(metadata, specs, &end);
  for (const GgufTensorSpec& spec : specs) sizes_.push_back(*tensor_bytes(spec.dtype, spec.shape));
  file_.write(header.data(), header.size());
}

void GgufWriter::append(const void* data, size_t size) {
  if (size == 0) return;
  QAT_CHECK(current_ < sizes_.size() && size <= sizes_[current_] - written_);
  file_.write(data, size);
  written_ += size;
  if (written_ < sizes_[current_]) return;
  file_.write_zeros(align_up(written_, kDefaultAlignment) - written_);
  ++current_;
  written_ = 0;
}

void GgufWriter::commit() {
  QAT_CHECK(current_ == sizes_.size());
  file_.commit();
}

}  // namespace qat
