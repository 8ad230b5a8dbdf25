#include "inference/kernels.h"

#include <vector>

#include "format/error.h"
#include "inference/kernels_isa.h"

namespace qat {
namespace {

std::vector<RowKernel> gather_row_kernels() {
  std::vector<RowKernel> table(kScalarRowKernels, kScalarRowKernels + kRunnableTypes);
#if defined(__x86_64__)
  table.insert(table.end(), kAvx2RowKernels, kAvx2RowKernels + kRunnableTypes);
#endif
  return table;
}

std::vector<ChannelKernel> gather_channel_kernels() {
  std::vector<ChannelKernel> table(kScalarChannelKernels, kScalarChannelKernels + kChannelTypes);
#if defined(__x86_64__)
  table.insert(table.end(), kAvx2ChannelKernels, kAvx2ChannelKernels + kChannelTypes);
#endif
  return table;
}

template <class Kernel>
const Kernel* find(Span<const Kernel> table, DType type, Isa isa) {
  for (const Kernel& kernel : table)
    if (kernel.type == type && kernel.isa == isa) return &kernel;
  return nullptr;
}

}  // namespace

Span<const RowKernel> row_kernels() {
  static const std::vector<RowKernel> table = gather_row_kernels();
  return table;
}

const RowKernel* find_row_kernel(DType type, Isa isa) { return find(row_kernels(), type, isa); }

bool runs_type(DType type) { return find_row_kernel(type, Isa::scalar) != nullptr; }

const char* runnable_types() { return "F32, F16, BF16, Q2_0, Q4_0, Q8_0, Q6_K"; }

Span<const ChannelKernel> channel_kernels() {
  static const std::vector<ChannelKernel> table = gather_channel_kernels();
  return table;
}

const ChannelKernel* find_channel_kernel(DType type, Isa isa) { return find(channel_kernels(), type, isa); }

Span<const BlockKernel> block_kernels() {
#if defined(__x86_64__)
  return {kAvx2BlockKernels, kBlockTypes};
#else
  return {};
#endif
}

const BlockKernel* find_block_kernel(DType type, Isa isa) { return find(block_kernels(), type, isa); }

Span<const CodePanelKernel> code_panel_kernels() {
#if defined(__x86_64__)
  return {kAvx2CodePanelKernels, kBlockTypes + kChannelTypes};
#else
  return {};
#endif
}

const CodePanelKernel* find_code_panel_kernel(DType type, Isa isa) { return find(code_panel_kernels(), type, isa); }

const CodeKernels* find_code_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx2) return &kAvx2CodeKernels;
#endif
  QAT_CHECK(isa == Isa::scalar);
  return nullptr;
}

const PanelKernel* find_panel_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx2) return &kAvx2PanelKernel;
#endif
  QAT_CHECK(isa == Isa::scalar);
  return nullptr;
}

const VectorKernels& vector_kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx2) return kAvx2VectorKernels;
#endif
  QAT_CHECK(isa == Isa::scalar);
  return kScalarVectorKernels;
}

}  // namespace qat
