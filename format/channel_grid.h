// The channel-wise grids of 2, 4 and 8 bits, with which the mobile schema stores weights: value = code * scale, codes
// -2..1, -8..7 or -128..127, one positive float32 scale for a whole row (the per-layer embedding: for each layer's part
// of a row). And the static grid of 8 bits per tensor, on which it rounds activations. Both round to nearest, ties to
// even: activations that are products of two grids land on ties often. Specification: format/README.md.
//
// `bits` is 2, 4 or 8 everywhere (checked). Values must be finite; nobody looks.
#pragma once

#include <cstdint>

#include "format/dtype.h"

namespace qat {

constexpr int lowest_code(int bits) { return -(1 << (bits - 1)); }
constexpr int highest_code(int bits) { return (1 << (bits - 1)) - 1; }

// I2, I4 or I8: the type of stored codes, and back. code_bits is 0 for every other type.
DType code_type(int bits);
int code_bits(DType type);

// code = round(x / scale), clamped; scale > 0.
void encode_channel(int bits, const float* x, int64_t n, float scale, int8_t* codes);
void decode_channel(const int8_t* codes, int64_t n, float scale, float* out);
// decode(encode(x)); x and out may be the same memory.
void fake_quantize_channel(int bits, const float* x, int64_t n, float scale, float* out);

// Codes as stored, rows of row_bytes(code_type(bits), cols): element k of a row in byte k / P at bits b * (k mod P),
// P = 8 / b, as code + 2^(b-1) (4 bits: pack_int4); rows are padded with code 0. 8 bits: plain signed bytes.
void pack_codes(int bits, const int8_t* codes, int64_t rows, int64_t cols, uint8_t* out);
void unpack_codes(int bits, const uint8_t* data, int64_t rows, int64_t cols, int8_t* codes);
// out = code * scale for elements [first, first + count) of a packed row.
void decode_packed(int bits, const uint8_t* row, int64_t first, int64_t count, float scale, float* out);

// Scales that every target holds exactly: normal in float16 (GGUF: Q4_0, Q8_0, Q2_0) with the mantissa of a bfloat16;
// they run from 2^-14 to 65280, 128 to the octave.
constexpr float kLeastStorableScale = 0x1p-14f, kLargestStorableScale = 65280.0f;
// The nearest one, ties to an even mantissa; the least for what is not positive.
float storable_scale(float scale);
// The storable scale with the least sum of w * (x - value)^2 over a row (w: importance, not negative; nullptr means 1,
// and so does all zeros). Short rows (below 256) and 8 bits: exact. Long ones, on which the error is smooth: of the
// scales around the best of every eighth. The first, largest, scale on ties; the least for a row of zeros.
float search_scale(int bits, const float* x, const float* importance, int64_t n);

// Activations, per tensor: out = clamp(round(x / scale), -128, 127) * scale; a scale of 0 is off (out = x). NaN stays
// NaN. x and out may be the same memory.
void round_activations(const float* x, int64_t n, float scale, float* out);

}  // namespace qat
