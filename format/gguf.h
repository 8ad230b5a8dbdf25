// The GGUF v3 container (ggml docs/gguf.md): metadata key/values, tensor infos, aligned tensor data. Little-endian.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "format/dtype.h"
#include "format/file_io.h"

namespace qat {

// Arrays keep the element type of the file. Metadata order is kept.
using GgufValue =
    std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, float, bool, std::string, uint64_t, int64_t,
                 double, std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>, std::vector<int16_t>,
                 std::vector<uint32_t>, std::vector<int32_t>, std::vector<float>, std::vector<bool>,
                 std::vector<std::string>, std::vector<uint64_t>, std::vector<int64_t>, std::vector<double>>;
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufTensor {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // outermost first (the reverse of the file's dims): a matrix is [out, in]
  Span<const uint8_t> bytes;
};

// A mapped GGUF file; every size and offset is checked at open, so tensor views are safe.
class GgufFile {
 public:
  explicit GgufFile(const std::string& path);  // throws Error

  const std::string& path() const { return file_.path(); }
  const MappedFile& file() const { return file_; }
  const GgufMetadata& metadata() const { return metadata_; }
  const GgufValue* find(const std::string& key) const;  // nullptr when absent

  // Typed access; integers of any width convert when the value fits. Throw Error naming file, key, expected, found.
  std::string get_string(const std::string& key) const;
  int64_t get_int(const std::string& key) const;
  int64_t get_int(const std::string& key, int64_t fallback) const;
  double get_float(const std::string& key) const;
  double get_float(const std::string& key, double fallback) const;
  bool get_bool(const std::string& key, bool fallback) const;
  // Arrays; a scalar where an array may stand is returned as a vector of one.
  std::vector<int64_t> get_ints(const std::string& key) const;  // also from a bool array, as 0/1
  std::vector<float> get_floats(const std::string& key) const;
  std::vector<std::string> get_strings(const std::string& key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in file order
  const GgufTensor* find_tensor(const std::string& name) const;
  const GgufTensor& tensor(const std::string& name) const;  // throws Error

 private:
  MappedFile file_;
  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
};

// Streams a file: metadata and tensor infos first, then append() the bytes of each tensor in the order of specs (pieces
// are fine; padding is added), then commit(). Tensors use alignment 32.
struct GgufTensorSpec {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // outermost first
};
// Bytes of the whole file, before any of it is written.
uint64_t gguf_file_bytes(const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& specs);
class GgufWriter {
 public:
  GgufWriter(const std::string& path, const GgufMetadata& metadata, const std::vector<GgufTensorSpec>& specs);
  void append(const void* data, size_t size);
  void commit();

 private:
  AtomicFile file_;
  std::vector<uint64_t> sizes_;  // bytes of each tensor
  size_t current_ = 0;           // tensor being written
  uint64_t written_ = 0;         // bytes of it so far
};

}  // namespace qat
