// Products of codes with AVX-512 (F, BW, DQ, VL, VNNI). Compiled with its flags: see kernels_isa.h for what must not be
// used here.
#include "inference/block_vnni.h"
#include "inference/channel_vnni.h"
#include "inference/code_panel_vnni.h"

namespace qat {
namespace {

// Rows of packed codes, 64 at a time: each byte, alone in a lane of 16 bits (or 32), beside itself shifted until its
// second code begins a byte (and the others).
void unpack_i4(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  for (; cols >= 64; cols -= 64, row += 32, codes += 64) {
    const Ints bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
    store(codes, both(_mm512_or_si512(bytes, _mm512_slli_epi16(bytes, 4)), splat_byte(15)));
  }
  if (cols > 0) unpacking::unpack_i4(row, cols, codes, scales);
}

void unpack_i2(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  for (; cols >= 64; cols -= 64, row += 16, codes += 64) {
    const Ints bytes = _mm512_cvtepu8_epi32(load16(row));
    const Ints pairs = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    store(codes, both(_mm512_or_si512(pairs, _mm512_slli_epi32(pairs, 6)), splat_byte(3)));
  }
  if (cols > 0) unpacking::unpack_i2(row, cols, codes, scales);
}

}  // namespace

const BlockKernel kAvx512BlockKernels[kBlockTypes] = {
    kBlockKernel<DType::Q2_0, Q2_0>,
    kBlockKernel<DType::Q4_0, Q4_0>,
    kBlockKernel<DType::Q8_0, Q8_0>,
    {DType::Q6_K, kIsa, multiply_q6_k, nullptr},
};

const ChannelKernel kAvx512ChannelKernels[kChannelTypes] = {
    kChannelKernel<DType::I2, 2>,
    kChannelKernel<DType::I4, 4>,
    kChannelKernel<DType::I8, 8>,
};

const CodePanelKernel kAvx512CodePanelKernels[kBlockTypes + kChannelTypes] = {
    kBlockPanel<DType::Q2_0, 1, unpacking::unpack_q2_0, 32>,
    kBlockPanel<DType::Q4_0, 8, unpacking::unpack_q4_0, 32>,
    kBlockPanel<DType::Q8_0, 128, unpacking::unpack_q8_0<1>, 32>,
    kBlockPanel<DType::Q6_K, 32, unpacking::unpack_q6_k<1>, 16>,
    kChannelPanel<DType::I2, 2, unpack_i2>,
    kChannelPanel<DType::I4, 8, unpack_i4>,
    kChannelPanel<DType::I8, 128, unpacking::unpack_i8<1>>,
};

}  // namespace qat
