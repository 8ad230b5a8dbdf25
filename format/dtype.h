// Element types of tensors in files: one table, looked up by everyone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "format/span.h"

namespace qat {

enum class DType : uint8_t {
  F32,
  F16,
  BF16,
  F64,
  I8,
  I16,
  I32,
  I64,
  U8,
  U16,
  U32,
  U64,
  BOOL,  // one element per block
  I2,
  I4,  // codes of the channel-wise grids (format/channel_grid.h), 4 and 2 to the byte, rows padded to whole bytes
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q8_0,
  Q2_0,  // ggml, 32 (Q2_0: 64) per block
  Q2_K,
  Q3_K,
  Q4_K,
  Q5_K,
  Q6_K,  // ggml, 256 per block
};

struct DTypeInfo {
  DType id;
  const char* name;         // as printed, and as ggml calls it
  const char* safetensors;  // name in a safetensors header, nullptr when that container has none
  int ggml_id;              // value of ggml_type in GGUF, -1 when ggml has none
  int block_size;           // elements per block, along a row
  int block_bytes;          // bytes per block
};

Span<const DTypeInfo> dtype_table();
const DTypeInfo& dtype_info(DType type);
const DTypeInfo* find_dtype_by_ggml_id(uint32_t id);                  // nullptr when unknown
const DTypeInfo* find_dtype_by_safetensors_name(std::string_view n);  // nullptr when unknown
const DTypeInfo* find_dtype_by_name(std::string_view name);           // case-insensitive: "q4_0"; nullptr when unknown

inline const char* dtype_name(DType type) { return dtype_info(type).name; }

// Bytes of a row of `cols` elements; cols must be a multiple of the block size (I2, I4: any, rounded up).
size_t row_bytes(DType type, int64_t cols);
// Bytes of a tensor whose shape came out of a file (outermost first; empty = scalar). Nothing when a size is negative,
// the last is no multiple of the block size, or any product overflows int64.
std::optional<uint64_t> tensor_bytes(DType type, const std::vector<int64_t>& shape);

}  // namespace qat
