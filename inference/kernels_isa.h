// What each instruction set's translation units define; kernels.cc gathers them. Files that are compiled with flags of
// their own may use no inline function of any header (the linker could give its body, which needs those flags, to
// everyone), hence plain arrays; simd_128.h and the other *_128.h give what they define internal linkage.
#pragma once

#include "inference/kernels.h"

namespace qat {

constexpr int kRunnableTypes = 7;
constexpr int kChannelTypes = 3;
constexpr int kBlockTypes = 4;

extern const RowKernel kScalarRowKernels[kRunnableTypes];
extern const ChannelKernel kScalarChannelKernels[kChannelTypes];
extern const VectorKernels kScalarVectorKernels;
extern const CacheKernel kScalarCacheKernel;  // of F32, as all ISAs have it
extern const KeyKernel kScalarKeyKernel;

extern const RowKernel kAvx2RowKernels[kRunnableTypes];
extern const ChannelKernel kAvx2ChannelKernels[kChannelTypes];
extern const BlockKernel kAvx2BlockKernels[kBlockTypes];
extern const CodePanelKernel kAvx2CodePanelKernels[kBlockTypes + kChannelTypes];
extern const CodeKernels kAvx2CodeKernels;
extern const PanelKernel kAvx2PanelKernel;
extern const VectorKernels kAvx2VectorKernels;
constexpr int kAvx2CacheTypes = 6;
extern const CacheKernel kAvx2CacheKernels[kAvx2CacheTypes];
extern const KeyKernel kAvx2KeyKernel;

// Products of codes with VNNI, and AVX-512's attention and panels; the rest is AVX2's, also what a row leaves nullptr.
extern const BlockKernel kAvxVnniBlockKernels[kBlockTypes];
extern const ChannelKernel kAvxVnniChannelKernels[kChannelTypes];
extern const CodePanelKernel kAvxVnniCodePanelKernels[kBlockTypes + kChannelTypes];
extern const BlockKernel kAvx512BlockKernels[kBlockTypes];
extern const ChannelKernel kAvx512ChannelKernels[kChannelTypes];
extern const CodePanelKernel kAvx512CodePanelKernels[kBlockTypes + kChannelTypes];
extern const CacheKernel kAvx512CacheKernels[kAvx2CacheTypes];
extern const KeyKernel kAvx512KeyKernel;
SoftmaxSum softmax_avx512(float* x, int64_t n, const void* next);
struct Avx512Panels {
  decltype(CodeKernels::store_floats) store_floats;
  decltype(CodeKernels::store_sums) store_sums;
  int64_t rows;
  decltype(PanelKernel::multiply) multiply;
};
extern const Avx512Panels kAvx512Panels;

// All that an instruction set has, arrays as long as those above. The last four are nullptr for the reference, which
// meets floats only. An instruction set may take over another's kernels, which then bear the other's name.
struct IsaKernels {
  Isa isa;
  const RowKernel* rows;
  const ChannelKernel* channels;
  const VectorKernels* vectors;
  const CacheKernel* caches;
  int cache_types;
  const KeyKernel* keys;
  const BlockKernel* blocks;
  const CodePanelKernel* code_panels;
  const CodeKernels* codes;
  const PanelKernel* panel;
};
extern const IsaKernels kPortableKernels;
extern const IsaKernels kNeonKernels;
extern const CodePanelKernel* const kI8mmCodePanelKernels;  // the rest is NEON's

}  // namespace qat
