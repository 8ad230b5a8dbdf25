// Vectors of 128 bits on any processor: SSE2 on x86-64, ARM's vectors without dot products on arm64, elsewhere what the
// compiler makes of them.
#include "inference/block_128.h"
#include "inference/channel_128.h"
#include "inference/code_panel_128.h"
#include "inference/panel_128.h"
#include "inference/row_128.h"
#include "inference/vector_128.h"

namespace qat {

const IsaKernels kPortableKernels = {Isa::portable,
                                     kRowKernels<Isa::portable>,
                                     kChannelKernels<Isa::portable>,
                                     &kVectorKernels<Isa::portable>,
                                     &kCacheKernel<Isa::portable>,
                                     1,
                                     &kKeyKernel<Isa::portable>,
                                     kBlockKernels<Isa::portable>,
                                     kCodePanelKernels<Isa::portable>,
                                     &kCodeKernels<Isa::portable>,
                                     &kPanelKernel<Isa::portable>};

}  // namespace qat
