// The grids: which numbers a quantized tensor can hold. The one definition that training, PTQ, export and the
// engine share. Specification table: format/README.md. Compiled with -ffp-contract=off: a fused multiply-add
// in encode would move codes.
//
// A grid is named by its storage type. F32, F16 and BF16 are grids too (round to nearest even), so a plan can
// send any tensor anywhere and "what training saw is what the file holds" needs no special case.
#pragma once

#include <cstdint>
#include <vector>

#include "format/dtype.h"

namespace qat {

constexpr int kBlockSize = 32;    // weights that share a scale in Q4_0 and Q8_0
constexpr int kBlockQ2_0 = 64;    // weights of a Q2_0 block
constexpr int kSuperBlock = 256;  // weights of a Q6_K block: 16 groups of 16

// 32 weights, value(j) = d * (code(j) - 8); low nibble of byte j is element j, high nibble element j + 16.
struct BlockQ4_0 {
  uint16_t d;      // scale, float16 bits; may be negative
  uint8_t qs[16];  // codes 0..15
};
static_assert(sizeof(BlockQ4_0) == 18);

// 32 weights, value(j) = d * code(j).
struct BlockQ8_0 {
  uint16_t d;     // scale, float16 bits
  int8_t qs[32];  // codes -127..127
};
static_assert(sizeof(BlockQ8_0) == 34);

// 256 weights in 16 groups of 16: value = d * scales[group] * (code - 32), code 0..63.
struct BlockQ6_K {
  uint8_t ql[128];    // low 4 bits of the codes
  uint8_t qh[64];     // high 2 bits
  int8_t scales[16];  // per group
  uint16_t d;         // super-block scale, float16 bits
};
static_assert(sizeof(BlockQ6_K) == 210);

// 64 weights, value(j) = d * (code(j) - 1); element j in byte j / 4 at bits 2 * (j mod 4).
struct BlockQ2_0 {
  uint16_t d;      // scale, float16 bits; may be negative
  uint8_t qs[16];  // codes 0..3
};
static_assert(sizeof(BlockQ2_0) == 18);

// True for types that encode_rows and decode_rows take.
bool is_grid(DType type);
// True for the grids whose values are code * scale (Q2_0, Q4_0, Q8_0, Q6_K); false for F32, F16, BF16.
bool has_codes(DType type);

// Rounds float rows (row-major, rows x cols) onto the grid by its reference rule (the one `llama-quantize`
// uses without an importance matrix) and writes them in the GGUF layout, row_bytes(grid, cols) per row.
// cols must be a multiple of the block size; x must be finite (encode_rows does not check).
void encode_rows(DType grid, const float* x, int64_t rows, int64_t cols, uint8_t* out);

// The floats that the stored rows mean.
void decode_rows(DType grid, const uint8_t* data, int64_t rows, int64_t cols, float* out);

// out = decode(encode(x)), row by row, with no buffer of blocks; x and out may be the same memory.
void fake_quantize_rows(DType grid, const float* x, int64_t rows, int64_t cols, float* out);

// One Q4_0 block with a scale somebody else chose (searched, learned): code = nearest level to x/d, ties up,
// clamped to 0..15. d is first rounded to float16: codes belong to the scale that is stored. d = 0 gives codes 8.
BlockQ4_0 encode_q4_0_with_scale(const float* x, float d);
// The reference rule: d = m / -8 where m is the first x of largest magnitude; codes from the unrounded d.
BlockQ4_0 encode_q4_0(const float* x);
BlockQ8_0 encode_q8_0(const float* x);
BlockQ6_K encode_q6_k(const float* x);  // ggml's search over 19 candidate scales per group
// A search of its own over 26 candidates: ggml's rule, the largest magnitude, leaves a block three levels of which most
// weights get one.
BlockQ2_0 encode_q2_0(const float* x);
// 64 codes -2..1 of a channel-wise row (format/channel_grid.h) with their scale, which float16 must hold exactly
// (checked): d = -scale and code = 1 - v mean v * scale.
BlockQ2_0 pack_q2_0(const int8_t* codes, float scale);
void decode_block(const BlockQ2_0& block, float* out);
void decode_block(const BlockQ4_0& block, float* out);
void decode_block(const BlockQ8_0& block, float* out);
void decode_block(const BlockQ6_K& block, float* out);
// The 256 signed codes (-32..31) of a Q6_K block in element order, and back into ql and qh.
void unpack_q6_k_codes(const BlockQ6_K& block, int8_t* codes);
void pack_q6_k_codes(const int8_t* codes, BlockQ6_K* block);

// Rows of a coded grid in plain form: what a quantized checkpoint stores and what people want to look at.
struct CodedRows {
  DType grid = DType::Q4_0;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<int8_t> codes;       // rows * cols signed levels: Q2_0 -1..2, Q4_0 -8..7, Q8_0 -127..127, Q6_K -32..31
  std::vector<uint16_t> scales;    // rows * cols / block size, float16 bits
  std::vector<int8_t> sub_scales;  // Q6_K only: rows * cols / 16
};

// Blocks <-> plain codes and scales, both directions without loss.
CodedRows unpack_rows(DType grid, const uint8_t* data, int64_t rows, int64_t cols);
void pack_rows(const CodedRows& coded, uint8_t* out);

// Codes of 4 bits, two per byte, element k of a row in byte k/2 at bits 4*(k%2), stored as code + 8. This is how the
// quantized checkpoint, the mobile schema and compressed-tensors all store int4. A row of odd length is padded with
// code 0.
void pack_int4(const int8_t* codes, int64_t rows, int64_t cols, uint8_t* out);  // out: rows * ceil(cols/2)
void unpack_int4(const uint8_t* data, int64_t rows, int64_t cols, int8_t* codes);

}  // namespace qat
