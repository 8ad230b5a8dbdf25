#include "format/dtype.h"

#include <strings.h>

#include "format/error.h"

namespace qat {
namespace {

// Order follows the enum (checked by dtype_info).
constexpr DTypeInfo kTable[] = {
    {DType::F32, "F32", "F32", 0, 1, 4},
    {DType::F16, "F16", "F16", 1, 1, 2},
    {DType::BF16, "BF16", "BF16", 30, 1, 2},
    {DType::F64, "F64", "F64", 28, 1, 8},
    {DType::I8, "I8", "I8", 24, 1, 1},
    {DType::I16, "I16", "I16", 25, 1, 2},
    {DType::I32, "I32", "I32", 26, 1, 4},
    {DType::I64, "I64", "I64", 27, 1, 8},
    {DType::U8, "U8", "U8", -1, 1, 1},
    {DType::U16, "U16", "U16", -1, 1, 2},
    {DType::U32, "U32", "U32", -1, 1, 4},
    {DType::U64, "U64", "U64", -1, 1, 8},
    {DType::BOOL, "BOOL", "BOOL", -1, 1, 1},
    {DType::I2, "I2", nullptr, -1, 4, 1},
    {DType::I4, "I4", nullptr, -1, 2, 1},
    {DType::Q4_0, "Q4_0", nullptr, 2, 32, 18},
    {DType::Q4_1, "Q4_1", nullptr, 3, 32, 20},
    {DType::Q5_0, "Q5_0", nullptr, 6, 32, 22},
    {DType::Q5_1, "Q5_1", nullptr, 7, 32, 24},
    {DType::Q8_0, "Q8_0", nullptr, 8, 32, 34},
    {DType::Q2_0, "Q2_0", nullptr, 42, 64, 18},
    {DType::Q2_K, "Q2_K", nullptr, 10, 256, 84},
    {DType::Q3_K, "Q3_K", nullptr, 11, 256, 110},
    {DType::Q4_K, "Q4_K", nullptr, 12, 256, 144},
    {DType::Q5_K, "Q5_K", nullptr, 13, 256, 176},
    {DType::Q6_K, "Q6_K", nullptr, 14, 256, 210},
};

}  // namespace

Span<const DTypeInfo> dtype_table() { return {kTable, sizeof kTable / sizeof kTable[0]}; }

const DTypeInfo& dtype_info(DType type) {
  const DTypeInfo& row = kTable[static_cast<size_t>(type)];
  QAT_CHECK(row.id == type);
  return row;
}

const DTypeInfo* find_dtype_by_ggml_id(uint32_t id) {
  for (const DTypeInfo& row : kTable)
    if (row.ggml_id >= 0 && static_cast<uint32_t>(row.ggml_id) == id) return &row;
  return nullptr;
}

const DTypeInfo* find_dtype_by_safetensors_name(std::string_view name) {
  for (const DTypeInfo& row : kTable)
    if (row.safetensors != nullptr && name == row.safetensors) return &row;
  return nullptr;
}

const DTypeInfo* find_dtype_by_name(std::string_view name) {
  for (const DTypeInfo& row : kTable)
    if (strcasecmp(std::string(name).c_str(), row.name) == 0) return &row;
  return nullptr;
}

size_t row_bytes(DType type, int64_t cols) {
  const DTypeInfo& info = dtype_info(type);
  const bool padded = type == DType::I2 || type == DType::I4;
  QAT_CHECK(cols >= 0 && (padded || cols % info.block_size == 0));
  if (padded) cols += info.block_size - 1;
  return static_cast<size_t>(cols / info.block_size) * static_cast<size_t>(info.block_bytes);
}

std::optional<uint64_t> tensor_bytes(DType type, const std::vector<int64_t>& shape) {
  const DTypeInfo& info = dtype_info(type);
  // Every prefix product must fit, zeros or not: TensorView::count() multiplies in this order.
  int64_t count = 1;
  for (const int64_t size : shape)
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return std::nullopt;
  if ((shape.empty() ? 1 : shape.back()) % info.block_size != 0) return std::nullopt;
  int64_t bytes = 0;
  if (__builtin_mul_overflow(count / info.block_size, static_cast<int64_t>(info.block_bytes), &bytes))
    return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

}  // namespace qat
