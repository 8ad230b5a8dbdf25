// ARM's vectors with dot products of bytes (FEAT_DotProd). Compiled with its flags: see kernels_isa.h for what must not
// be used here.
#include "inference/block_128.h"
#include "inference/channel_128.h"
#include "inference/code_panel_128.h"
#include "inference/panel_128.h"
#include "inference/row_128.h"
#include "inference/vector_128.h"

namespace qat {

const IsaKernels kNeonKernels = {Isa::neon,
                                 kRowKernels<Isa::neon>,
                                 kChannelKernels<Isa::neon>,
                                 &kVectorKernels<Isa::neon>,
                                 &kCacheKernel<Isa::neon>,
                                 1,
                                 &kKeyKernel<Isa::neon>,
                                 kBlockKernels<Isa::neon>,
                                 kCodePanelKernels<Isa::neon>,
                                 &kCodeKernels<Isa::neon>,
                                 &kPanelKernel<Isa::neon>};

}  // namespace qat
