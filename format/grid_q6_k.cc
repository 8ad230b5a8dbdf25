// Q6_K: layout of the codes, and ggml's search for the scales (quantize_row_q6_K_ref).
#include "format/grid.h"

#include <cmath>

#include "format/number.h"

namespace qat {
namespace {

// Position in the block of (half, k, l): element 128*half + 32*k + l, k = 0..3, l = 0..31.
// Its low bits: ql[64*half + l + 32*(k & 1)], low nibble for k < 2, else high. Its high bits: qh[32*half + l], bits 2k.

}  // namespace

void unpack_q6_k_codes(const BlockQ6_K& block, int8_t* codes) {
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 4; ++k)
      for (int l = 0; l < 32; ++l) {
        const int low = (block.ql[64 * half + l + 32 * (k & 1)] >> (k < 2 ? 0 : 4)) & 15;
        const int high = (block.qh[32 * half + l] >> (2 * k)) & 3;
        codes[128 * half + 32 * k + l] = static_cast<int8_t>((low | (high << 4)) - 32);
      }
}

void pack_q6_k_codes(const int8_t* codes, BlockQ6_K* block) {
  for (uint8_t& b : block->ql) b = 0;
  for (uint8_t& b : block->qh) b = 0;
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 4; ++k)
      for (int l = 0; l < 32; ++l) {
        const int code = codes[128 * half + 32 * k + l] + 32;
        uint8_t& low = block->ql[64 * half + l + 32 * (k & 1)];
        uint8_t& high = block->qh[32 * half + l];
        low = static_cast<uint8_t>(low | ((code & 15) << (k < 2 ? 0 : 4)));
        high = static_cast<uint8_t>(high | ((code >> 4) << (2 * k)));
      }
}

void decode_block(const BlockQ6_K& block, float* out) {
  int8_t codes[kSuperBlock];
  unpack_q6_k_codes(block, codes);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < kSuperBlock; ++i) out[i] = d * static_cast<float>(block.scales[i / 16]) * static_cast<float>(codes[i]);
}

BlockQ6_K encode_q6_k(const float* x);

}  // namespace qat
