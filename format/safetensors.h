// The safetensors container: u64 little-endian header length, JSON header, tensor bytes.
// https://github.com/huggingface/safetensors (format section of its README)
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "format/dtype.h"
#include "format/file_io.h"

namespace qat {

// A tensor in a mapped file: row-major, little-endian. Valid while its container lives.
struct TensorView {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;  // outermost first, as HF and torch print it; empty = scalar
  Span<const uint8_t> bytes;

  int64_t count() const {  // elements
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

std::string shape_text(const std::vector<int64_t>& shape);  // "[64, 172]"

// One file, or a directory holding model.safetensors or model.safetensors.index.json with its shards.
// Everything in the header is checked at open: sizes, overlap, overflow, dtype, count x size = bytes. Views are then
// safe.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path);  // throws Error

  const std::string& path() const { return path_; }
  const std::vector<TensorView>& tensors() const { return tensors_; }  // sorted by name
  const TensorView* find(const std::string& name) const;               // nullptr when absent
  const TensorView& at(const std::string& name) const;                 // throws Error naming the file
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  void advise_huge_pages() const;                         // of all files (format/file_io.h)
  const MappedFile* file_of(const uint8_t* bytes) const;  // that a tensor's bytes are mapped from; nullptr: none

 private:
  void open_one(const std::string& file);
  void open_shards(const std::string& index);
  std::string path_;
  std::vector<MappedFile> files_;
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Floats of a F32, F16, BF16 or F64 tensor (copied). Throws Error for other dtypes.
std::vector<float> to_floats(const TensorView& tensor, const std::string& file);
// Elements [offset, offset + count) only, for tensors that should not be converted whole.
void to_floats(const TensorView& tensor, int64_t offset, int64_t count, float* out, const std::string& file);
std::vector<int64_t> to_ints(const TensorView& tensor, const std::string& file);  // I64, I32, U8, ...

struct TensorSpec {
  std::string name;
  DType dtype = DType::F32;
  std::vector<int64_t> shape;
};

// Streams a file: the header first, then append() the bytes of each tensor in the order of specs (in as many pieces as
// convenient), then commit(). commit() fails a check if bytes are missing. The header is padded so that data starts at
// a multiple of 8.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, const std::vector<TensorSpec>& specs,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  void append(const void* data, size_t size);
  void commit();

 private:
  AtomicFile file_;
  uint64_t remaining_ = 0;
};

}  // namespace qat
