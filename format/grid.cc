#include "format/grid.h"

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "format/error.h"
#include "format/number.h"

namespace qat {
namespace {

float larger(float a, float b) { return a > b ? a : b; }
float smaller(float a, float b) { return a < b ? a : b; }

// The x of largest magnitude, with its sign; the first one when both signs have it; +0 when all are zero. Folding
// halves onto each other keeps the search in vectors.
float extreme_of(const float* x) {
  float high[16], low[16];
  for (int j = 0; j < 16; ++j) {
    high[j] = larger(x[j], x[j + 16]);
    low[j] = smaller(x[j], x[j + 16]);
  }
  for (int j = 0; j < 8; ++j) {
    high[j] = larger(high[j], high[j + 8]);
    low[j] = smaller(low[j], low[j + 8]);
  }
  for (int j = 0; j < 4; ++j) {
    high[j] = larger(high[j], high[j + 4]);
    low[j] = smaller(low[j], low[j + 4]);
  }
  const float most = larger(larger(larger(high[0], high[1]), larger(high[2], high[3])), 0.0f);
  const float least = smaller(smaller(smaller(low[0], low[1]), smaller(low[2], low[3])), 0.0f);
  if (most != -least) return most > -least ? most : least;
  for (int j = 0; j < kBlockSize; ++j)
    if (most > 0.0f && std::fabs(x[j]) == most) return x[j];
  return 0.0f;
}

// 1/d; 0 for a d of 0, and for one so small (below 2^-128) that 1/d is infinite: the block is stored as zeros either
// way.
float reciprocal(float d) {
  const float inverse = 1.0f / d;
  return std::fabs(inverse) <= FLT_MAX ? inverse : 0.0f;
}

// Nearest integer, ties away from zero, for |x| < 2^31: std::round without a call. The rest is exact; its double, cut
// to an integer, is the step that is missing.
int round_half_away(float x) {
  const int whole = static_cast<int>(x);
  const float rest = x - static_cast<float>(whole);
  return whole + static_cast<int>(rest + rest);
}

// Codes are the levels of x on the Q4_0 grid for an inverse scale: floor(x/d + 8.5), clamped to 0..15. Truncation of
// the positive sum rounds ties up, as ggml does; the clamp to 0 matters only for scales chosen elsewhere.
BlockQ4_0 pack_q4_0(const float* x, float inverse, uint16_t d) {
  uint8_t codes[kBlockSize];
  for (int j = 0; j < kBlockSize; ++j) {
    const float shifted = x[j] * inverse + 8.5f;
    codes[j] = static_cast<uint8_t>(static_cast<int>(smaller(larger(shifted, 0.0f), 15.0f)));
  }
  BlockQ4_0 block;
  block.d = d;
  for (int j = 0; j < 16; ++j) block.qs[j] = static_cast<uint8_t>(codes[j] | (codes[j + 16] << 4));
  return block;
}

// -1..2, ties up.
float q2_0_level(float x) { return std::floor(smaller(larger(x, -1.0f), 2.0f) + 0.5f); }

template <class Block>
Block load_block(const uint8_t* data) {
  Block block;
  std::memcpy(&block, data, sizeof block);
  return block;
}

template <class Block, class Encode>
void encode_blocks(const float* x, int64_t count, int block_size, uint8_t* out, Encode encode) {
  for (int64_t i = 0; i < count; ++i) {
    const Block block = encode(x + i * block_size);
    std::memcpy(out + i * static_cast<int64_t>(sizeof block), &block, sizeof block);
  }
}

template <class Block>
void decode_blocks(const uint8_t* data, int64_t count, int block_size, float* out) {
  for (int64_t i = 0; i < count; ++i)
    decode_block(load_block<Block>(data + i * static_cast<int64_t>(sizeof(Block))), out + i * block_size);
}

template <class Encode>
void fake_quantize_blocks(const float* x, int64_t count, int block_size, float* out, Encode encode) {
  for (int64_t i = 0; i < count; ++i) decode_block(encode(x + i * block_size), out + i * block_size);
}

// Codes of one block in element order.
void unpack_codes(const BlockQ4_0& block, int8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = static_cast<int8_t>((block.qs[j] & 15) - 8);
    codes[j + 16] = static_cast<int8_t>((block.qs[j] >> 4) - 8);
  }
}
void unpack_codes(const BlockQ2_0& block, int8_t* codes) {
  for (int j = 0; j < kBlockQ2_0; ++j) codes[j] = static_cast<int8_t>(((block.qs[j / 4] >> (2 * (j % 4))) & 3) - 1);
}
void unpack_codes(const BlockQ8_0& block, int8_t* codes) { std::memcpy(codes, block.qs, sizeof block.qs); }
void unpack_codes(const BlockQ6_K& block, int8_t* codes) { unpack_q6_k_codes(block, codes); }

void pack_codes(const int8_t* codes, BlockQ4_0* block) {
  for (int j = 0; j < 16; ++j) block->qs[j] = static_cast<uint8_t>((codes[j] + 8) | ((codes[j + 16] + 8) << 4));
}
void pack_codes(const int8_t* codes, BlockQ2_0* block) {
  for (int j = 0; j < kBlockQ2_0; ++j)
    block->qs[j / 4] = static_cast<uint8_t>(block->qs[j / 4] | ((codes[j] + 1) << (2 * (j % 4))));
}
void pack_codes(const int8_t* codes, BlockQ8_0* block) { std::memcpy(block->qs, codes, sizeof block->qs); }
void pack_codes(const int8_t* codes, BlockQ6_K* block) { pack_q6_k_codes(codes, block); }

template <class Block>
void unpack_blocks(const uint8_t* data, size_t block_size, CodedRows* coded) {
  for (size_t i = 0; i < coded->scales.size(); ++i) {
    const Block block = load_block<Block>(data + i * sizeof(Block));
    coded->scales[i] = block.d;
    unpack_codes(block, coded->codes.data() + i * block_size);
  }
}

template <class Block>
void pack_blocks(const CodedRows& coded, size_t block_size, uint8_t* out) {
  for (size_t i = 0; i < coded.scales.size(); ++i) {
    Block block = {};
    block.d = coded.scales[i];
    pack_codes(coded.codes.data() + i * block_size, &block);
    std::memcpy(out + i * sizeof block, &block, sizeof block);
  }
}

void store_u16(uint8_t* out, int64_t i, uint16_t v) { std::memcpy(out + 2 * i, &v, 2); }
uint16_t load_u16(const uint8_t* data, int64_t i) {
  uint16_t v;
  std::memcpy(&v, data + 2 * i, 2);
  return v;
}

}  // namespace

bool is_grid(DType type) { return type == DType::F32 || type == DType::F16 || type == DType::BF16 || has_codes(type); }

bool has_codes(DType type) {
  return type == DType::Q2_0 || type == DType::Q4_0 || type == DType::Q8_0 || type == DType::Q6_K;
}

BlockQ4_0 encode_q4_0(const float* x) {
  const float d = extreme_of(x) / -8.0f, inverse = reciprocal(d);
  BlockQ4_0 block = pack_q4_0(x, inverse, f32_to_f16(d));
  // All values are zero then, whatever the codes; these are the ones that ggml writes.
  if (d != 0.0f && inverse == 0.0f) std::memset(block.qs, 0, sizeof block.qs);
  return block;
}

BlockQ4_0 encode_q4_0_with_scale(const float* x, float d) {
  const uint16_t stored = f32_to_f16(d);
  const float used = f16_to_f32(stored);
  return pack_q4_0(x, reciprocal(used), stored);
}

void decode_block(const BlockQ4_0& block, float* out) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((block.qs[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((block.qs[j] >> 4) - 8);
  }
}

BlockQ2_0 pack_q2_0(const int8_t* codes, float scale) {
  BlockQ2_0 block = {};
  block.d = f32_to_f16(-scale);
  QAT_CHECK(f16_to_f32(block.d) == -scale);
  for (int j = 0; j < kBlockQ2_0; ++j) {
    QAT_CHECK(codes[j] >= -2 && codes[j] <= 1);
    block.qs[j / 4] = static_cast<uint8_t>(block.qs[j / 4] | ((1 - codes[j]) << (2 * (j % 4))));
  }
  return block;
}

void decode_block(const BlockQ2_0& block, float* out) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < kBlockQ2_0; ++j) out[j] = d * static_cast<float>(((block.qs[j / 4] >> (2 * (j % 4))) & 3) - 1);
}

BlockQ2_0 encode_q2_0(const float* x) {
  float largest = 0.0f;
  for (int j = 0; j < kBlockQ2_0; ++j) largest = larger(largest, std::fabs(x[j]));
  float best_gain = 0.0f, best = 0.0f;
  const float unit = reciprocal(largest);
  for (int k = 0; k < 26; ++k) {
    const float inverse = (k % 2 == 0 ? unit : -unit) * (1.0f + 0.25f * static_cast<float>(k / 2));
    float xl = 0.0f, ll = 0.0f;
    for (int j = 0; j < kBlockQ2_0; ++j) {
      const float level = q2_0_level(x[j] * inverse);
      xl += x[j] * level;
      ll += level * level;
    }
    // For these levels d = xl / ll leaves the least squared error: sum x^2 less this.
    if (ll == 0.0f || xl * xl <= best_gain * ll) continue;
    best_gain = xl * xl / ll;
    best = xl / ll;
  }
  BlockQ2_0 block = {};
  block.d = f32_to_f16(best);
  const float inverse = reciprocal(f16_to_f32(block.d));
  int8_t codes[kBlockQ2_0];
  for (int j = 0; j < kBlockQ2_0; ++j) codes[j] = static_cast<int8_t>(q2_0_level(x[j] * inverse));
  pack_codes(codes, &block);
  return block;
}

BlockQ8_0 encode_q8_0(const float* x) {
  const float d = std::fabs(extreme_of(x)) / 127.0f;
  const float inverse = reciprocal(d);
  BlockQ8_0 block;
  block.d = f32_to_f16(d);
  for (int j = 0; j < kBlockSize; ++j) block.qs[j] = static_cast<int8_t>(round_half_away(x[j] * inverse));
  return block;
}

void decode_block(const BlockQ8_0& block, float* out) {
  const float d = f16_to_f32(block.d);
  for (int j = 0; j < kBlockSize; ++j) out[j] = d * static_cast<float>(block.qs[j]);
}

void encode_rows(DType grid, const float* x, int64_t rows, int64_t cols, uint8_t* out) {
  QAT_CHECK(is_grid(grid));
  const int block_size = dtype_info(grid).block_size;
  QAT_CHECK(cols % block_size == 0);
  const int64_t count = rows * cols / block_size;
  switch (grid) {
    case DType::F32: std::memcpy(out, x, static_cast<size_t>(count) * 4); break;
    case DType::F16:
      for (int64_t i = 0; i < count; ++i) store_u16(out, i, f32_to_f16(x[i]));
      break;
    case DType::BF16:
      for (int64_t i = 0; i < count; ++i) store_u16(out, i, f32_to_bf16(x[i]));
      break;
    case DType::Q2_0: encode_blocks<BlockQ2_0>(x, count, block_size, out, encode_q2_0); break;
    case DType::Q4_0: encode_blocks<BlockQ4_0>(x, count, block_size, out, encode_q4_0); break;
    case DType::Q8_0: encode_blocks<BlockQ8_0>(x, count, block_size, out, encode_q8_0); break;
    default: encode_blocks<BlockQ6_K>(x, count, block_size, out, encode_q6_k); break;
  }
}

void decode_rows(DType grid, const uint8_t* data, int64_t rows, int64_t cols, float* out) {
  QAT_CHECK(is_grid(grid));
  const int block_size = dtype_info(grid).block_size;
  QAT_CHECK(cols % block_size == 0);
  const int64_t count = rows * cols / block_size;
  switch (grid) {
    case DType::F32: std::memcpy(out, data, static_cast<size_t>(count) * 4); break;
    case DType::F16:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(load_u16(data, i));
      break;
    case DType::BF16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(load_u16(data, i));
      break;
    case DType::Q2_0: decode_blocks<BlockQ2_0>(data, count, block_size, out); break;
    case DType::Q4_0: decode_blocks<BlockQ4_0>(data, count, block_size, out); break;
    case DType::Q8_0: decode_blocks<BlockQ8_0>(data, count, block_size, out); break;
    default: decode_blocks<BlockQ6_K>(data, count, block_size, out); break;
  }
}

void fake_quantize_rows(DType grid, const float* x, int64_t rows, int64_t cols, float* out) {
  QAT_CHECK(is_grid(grid));
  const int block_size = dtype_info(grid).block_size;
  QAT_CHECK(cols % block_size == 0);
  const int64_t count = rows * cols / block_size;
  switch (grid) {
    case DType::F32:
      if (out != x) std::memcpy(out, x, static_cast<size_t>(count) * 4);
      break;
    case DType::F16:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_f32(f32_to_f16(x[i]));
      break;
    case DType::BF16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(f32_to_bf16(x[i]));
      break;
    case DType::Q2_0: fake_quantize_blocks(x, count, block_size, out, encode_q2_0); break;
    case DType::Q4_0: fake_quantize_blocks(x, count, block_size, out, encode_q4_0); break;
    case DType::Q8_0: fake_quantize_blocks(x, count, block_size, out, encode_q8_0); break;
    default: fake_quantize_blocks(x, count, block_size, out, encode_q6_k); break;
  }
}

CodedRows unpack_rows(DType grid, const uint8_t* data, int64_t rows, int64_t cols) {
  QAT_CHECK(has_codes(grid) && cols % dtype_info(grid).block_size == 0);
  const size_t block_size = static_cast<size_t>(dtype_info(grid).block_size), count = static_cast<size_t>(rows * cols);
  CodedRows coded;
  coded.grid = grid;
  coded.rows = rows;
  coded.cols = cols;
  coded.codes.resize(count);
  coded.scales.resize(count / block_size);
  if (grid == DType::Q2_0) unpack_blocks<BlockQ2_0>(data, block_size, &coded);
  if (grid == DType::Q4_0) unpack_blocks<BlockQ4_0>(data, block_size, &coded);
  if (grid == DType::Q8_0) unpack_blocks<BlockQ8_0>(data, block_size, &coded);
  if (grid != DType::Q6_K) return coded;
  unpack_blocks<BlockQ6_K>(data, block_size, &coded);
  coded.sub_scales.resize(count / 16);
  for (size_t i = 0; i < coded.scales.size(); ++i)
    std::memcpy(coded.sub_scales.data() + 16 * i, data + i * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, scales), 16);
  return coded;
}

void pack_rows(const CodedRows& coded, uint8_t* out) {
  const size_t block_size = static_cast<size_t>(dtype_info(coded.grid).block_size);
  const size_t count = static_cast<size_t>(coded.rows * coded.cols);
  QAT_CHECK(has_codes(coded.grid) && static_cast<size_t>(coded.cols) % block_size == 0);
  QAT_CHECK(coded.codes.size() == count && coded.scales.size() == count / block_size);
  if (coded.grid == DType::Q2_0) pack_blocks<BlockQ2_0>(coded, block_size, out);
  if (coded.grid == DType::Q4_0) pack_blocks<BlockQ4_0>(coded, block_size, out);
  if (coded.grid == DType::Q8_0) pack_blocks<BlockQ8_0>(coded, block_size, out);
  if (coded.grid != DType::Q6_K) return;
  QAT_CHECK(coded.sub_scales.size() == count / 16);
  pack_blocks<BlockQ6_K>(coded, block_size, out);
  for (size_t i = 0; i < coded.scales.size(); ++i)
    std::memcpy(out + i * sizeof(BlockQ6_K) + offsetof(BlockQ6_K, scales), coded.sub_scales.data() + 16 * i, 16);
}

void pack_int4(const int8_t* codes, int64_t rows, int64_t cols, uint8_t* out) {
  const int64_t stride = (cols + 1) / 2;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < stride; ++b) {
      const int low = codes[r * cols + 2 * b] + 8;
      const int high = (2 * b + 1 < cols ? codes[r * cols + 2 * b + 1] : 0) + 8;
      out[r * stride + b] = static_cast<uint8_t>(low | (high << 4));
    }
  }
}

void unpack_int4(const uint8_t* data, int64_t rows, int64_t cols, int8_t* codes) {
  const int64_t stride = (cols + 1) / 2;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < cols; ++k)
      codes[r * cols + k] = static_cast<int8_t>(((data[r * stride + k / 2] >> (4 * (k % 2))) & 15) - 8);
}

}  // namespace qat
