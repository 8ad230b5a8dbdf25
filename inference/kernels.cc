#include "inference/kernels.h"

#include <array>
#include <vector>

#include "format/error.h"
#include "inference/kernels_isa.h"

namespace qat {
namespace {

#if defined(__x86_64__)
const IsaKernels kAvx2Kernels = {
    Isa::avx2,       kAvx2RowKernels,   kAvx2ChannelKernels,   &kAvx2VectorKernels, kAvx2CacheKernels, kAvx2CacheTypes,
    &kAvx2KeyKernel, kAvx2BlockKernels, kAvx2CodePanelKernels, &kAvx2CodeKernels,   &kAvx2PanelKernel};

// AVX2's with other products of codes. The table of packed codes has AVX2's functions of floats in it: it is made here
// because a file with an instruction set's own flags may run nothing before that set is known to be there.
using ChannelTable = std::array<ChannelKernel, kChannelTypes>;
ChannelTable with_floats(const ChannelKernel* products) {
  ChannelTable table;
  for (size_t i = 0; i < table.size(); ++i) {
    const ChannelKernel &floats = kAvx2ChannelKernels[i], &codes = products[i];
    QAT_CHECK(floats.type == codes.type);
    table[i] = {codes.type, codes.isa, floats.decode, floats.dot, codes.multiply, codes.arrange};
  }
  return table;
}

IsaKernels over_avx2(Isa isa, const BlockKernel* blocks, const ChannelTable& channels, const CodePanelKernel* panels) {
  IsaKernels kernels = kAvx2Kernels;
  kernels.isa = isa;
  kernels.blocks = blocks;
  kernels.channels = channels.data();
  kernels.code_panels = panels;
  return kernels;
}

IsaKernels avx512_kernels() {
  static const ChannelTable channels = with_floats(kAvx512ChannelKernels);
  static const VectorKernels vectors = [] {
    VectorKernels table = kAvx2VectorKernels;
    table.isa = Isa::avx512;
    table.softmax = softmax_avx512;
    return table;
  }();
  static const CodeKernels codes = {Isa::avx512, kAvx2CodeKernels.encode_blocks, kAvx2CodeKernels.encode_static,
                                    kAvx512Panels.store_floats, kAvx512Panels.store_sums};
  static const PanelKernel panel = {Isa::avx512, kAvx512Panels.rows, kAvx2PanelKernel.pack, kAvx512Panels.multiply};
  IsaKernels kernels = over_avx2(Isa::avx512, kAvx512BlockKernels, channels, kAvx512CodePanelKernels);
  kernels.vectors = &vectors;
  kernels.caches = kAvx512CacheKernels;
  kernels.keys = &kAvx512KeyKernel;
  kernels.codes = &codes;
  kernels.panel = &panel;
  return kernels;
}
#endif

// Slowest first, as built_isas() has them.
std::vector<IsaKernels> gather() {
  std::vector<IsaKernels> all;
  all.push_back({Isa::scalar, kScalarRowKernels, kScalarChannelKernels, &kScalarVectorKernels, &kScalarCacheKernel, 1,
                 &kScalarKeyKernel, nullptr, nullptr, nullptr, nullptr});
  all.push_back(kPortableKernels);
#if defined(__x86_64__)
  static const ChannelTable vnni = with_floats(kAvxVnniChannelKernels);
  all.push_back(kAvx2Kernels);
  all.push_back(over_avx2(Isa::avxvnni, kAvxVnniBlockKernels, vnni, kAvxVnniCodePanelKernels));
  all.push_back(avx512_kernels());
#elif defined(__aarch64__)
  all.push_back(kNeonKernels);
  IsaKernels i8mm = kNeonKernels;
  i8mm.isa = Isa::i8mm;
  i8mm.code_panels = kI8mmCodePanelKernels;
  all.push_back(i8mm);
#endif
  return all;
}

const std::vector<IsaKernels>& all_kernels() {
  static const std::vector<IsaKernels> all = gather();
  return all;
}

const IsaKernels& kernels_of(Isa isa) {
  for (const IsaKernels& kernels : all_kernels())
    if (kernels.isa == isa) return kernels;
  QAT_CHECK(!"an instruction set of this build");
  return all_kernels().front();
}

template <class Kernel>
const Kernel* find(const Kernel* kernels, int count, DType type) {
  for (int i = 0; kernels != nullptr && i < count; ++i)
    if (kernels[i].type == type) return &kernels[i];
  return nullptr;
}

// Every row of one of the tables, once.
template <class Kernel>
std::vector<Kernel> list(const Kernel* IsaKernels::*table, int count) {
  std::vector<Kernel> rows;
  for (const IsaKernels& kernels : all_kernels())
    for (int i = 0; kernels.*table != nullptr && i < count; ++i)
      if ((kernels.*table)[i].isa == kernels.isa) rows.push_back((kernels.*table)[i]);
  return rows;
}

}  // namespace

Span<const RowKernel> row_kernels() {
  static const std::vector<RowKernel> table = list(&IsaKernels::rows, kRunnableTypes);
  return table;
}

const RowKernel* find_row_kernel(DType type, Isa isa) { return find(kernels_of(isa).rows, kRunnableTypes, type); }

bool runs_type(DType type) { return find_row_kernel(type, Isa::scalar) != nullptr; }

const char* runnable_types() { return "F32, F16, BF16, Q2_0, Q4_0, Q8_0, Q6_K"; }

Span<const ChannelKernel> channel_kernels() {
  static const std::vector<ChannelKernel> table = list(&IsaKernels::channels, kChannelTypes);
  return table;
}

const ChannelKernel* find_channel_kernel(DType type, Isa isa) {
  return find(kernels_of(isa).channels, kChannelTypes, type);
}

Span<const BlockKernel> block_kernels() {
  static const std::vector<BlockKernel> table = list(&IsaKernels::blocks, kBlockTypes);
  return table;
}

const BlockKernel* find_block_kernel(DType type, Isa isa) { return find(kernels_of(isa).blocks, kBlockTypes, type); }

Span<const CodePanelKernel> code_panel_kernels() {
  static const std::vector<CodePanelKernel> table = list(&IsaKernels::code_panels, kBlockTypes + kChannelTypes);
  return table;
}

const CodePanelKernel* find_code_panel_kernel(DType type, Isa isa) {
  return find(kernels_of(isa).code_panels, kBlockTypes + kChannelTypes, type);
}

const CodeKernels* find_code_kernels(Isa isa) { return kernels_of(isa).codes; }

const PanelKernel* find_panel_kernel(Isa isa) { return kernels_of(isa).panel; }

Span<const CacheKernel> cache_kernels() {
  static const std::vector<CacheKernel> table = [] {
    std::vector<CacheKernel> rows;
    for (const IsaKernels& kernels : all_kernels())
      if (kernels.caches->isa == kernels.isa)
        rows.insert(rows.end(), kernels.caches, kernels.caches + kernels.cache_types);
    return rows;
  }();
  return table;
}

const CacheKernel* find_cache_kernel(DType type, Isa isa) {
  const IsaKernels& kernels = kernels_of(isa);
  return find(kernels.caches, kernels.cache_types, type);
}

Span<const KeyKernel> key_kernels() {
  static const std::vector<KeyKernel> table = list(&IsaKernels::keys, 1);
  return table;
}

const KeyKernel* find_key_kernel(Isa isa) { return kernels_of(isa).keys; }

const VectorKernels& vector_kernels(Isa isa) { return *kernels_of(isa).vectors; }

}  // namespace qat
