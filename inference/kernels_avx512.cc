// Products of codes with AVX-512 (F, BW, DQ, VL, VNNI). Compiled with its flags: see kernels_isa.h for what must not be
// used here.
#include "inference/block_vnni.h"
#include "inference/channel_vnni.h"
#include "inference/code_panel_vnni.h"

namespace qat {

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
    kChannelPanel<DType::I2, 2, unpacking::unpack_i2>,
    kChannelPanel<DType::I4, 8, unpacking::unpack_i4>,
    kChannelPanel<DType::I8, 128, unpacking::unpack_i8<1>>,
};

}  // namespace qat
