// What each instruction set's translation units define; kernels.cc gathers them. The AVX2 files may use no inline
// function of any header (the linker could give its AVX2 body to everyone), hence plain arrays.
#pragma once

#include "inference/kernels.h"

namespace qat {

constexpr int kRunnableTypes = 7;
extern const RowKernel kScalarRowKernels[kRunnableTypes];
constexpr int kChannelTypes = 3;
extern const ChannelKernel kScalarChannelKernels[kChannelTypes];
extern const ChannelKernel kAvx2ChannelKernels[kChannelTypes];
extern const VectorKernels kScalarVectorKernels;
extern const RowKernel kAvx2RowKernels[kRunnableTypes];
extern const PanelKernel kAvx2PanelKernel;
constexpr int kBlockTypes = 4;
extern const BlockKernel kAvx2BlockKernels[kBlockTypes];
extern const CodePanelKernel kAvx2CodePanelKernels[kBlockTypes + kChannelTypes];
extern const CodeKernels kAvx2CodeKernels;
extern const VectorKernels kAvx2VectorKernels;

}  // namespace qat
