// Panels of activations in 8 bits against unpacked codes, over simd_vnni.h: four columns of a row of weights, unsigned
// and the same in all lanes, times those of the lanes' rows of activations, added up in 32 bits at once.
#pragma once

#include "inference/code_unpack_avx2.h"
#include "inference/simd_vnni.h"

namespace qat {
namespace {

constexpr int64_t kScales = kCodeDepth / 16;  // room for a row's
// A tile: outputs, and vectors of rows. As many sums as hide each other's latency and leave room in the registers.
constexpr int kTileOutputs = kVector == 64 ? 8 : 4;
template <int kWidth>  // of a panel
constexpr int kVectors = kWidth > kVectorLanes ? 2 : 1;
static_assert(kCodePanelRows == 16 && kLanes == 8);
static_assert(kCodeOutputs % kTileOutputs == 0);

inline Ints four_codes(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return splat_int(bits);
}

// What rows of activations bring to a group of columns: their scales, and what the offset of the weights' codes adds.
struct GroupX {
  Floats scales, excess;
};

// Sums of n outputs with a panel, of a group of columns (integers) and of all (floats, or integers
// too). Members one inside the other, because GCC keeps them in registers.
template <int n, int kWidth>
struct Tile {
  Ints a, b;  // the second may be idle
  Tile<n - 1, kWidth> rest;

  void clear() {
    a = b = zero();
    rest.clear();
  }
  void add(const uint8_t* w, Ints x0, Ints x1) {
    const Ints codes = four_codes(w);
    a = dot(a, codes, x0);
    if (kVectors<kWidth> == 2) b = dot(b, codes, x1);
    rest.add(w + kCodeDepth, x0, x1);
  }
  void load(const int32_t* sums, int64_t stride) {
    a = load_lanes(sums, kWidth);
    if (kVectors<kWidth> == 2) b = load_lanes(sums + kVectorLanes, kWidth);
    rest.load(sums + stride, stride);
  }
  void store(int32_t* sums, int64_t stride) const {
    store_lanes(sums, kWidth, a);
    if (kVectors<kWidth> == 2) store_lanes(sums + kVectorLanes, kWidth, b);
    rest.store(sums + stride, stride);
  }
};
template <int kWidth>
struct Tile<0, kWidth> {
  void clear() {}
  void add(const uint8_t*, Ints, Ints) {}
  void load(const int32_t*, int64_t) {}
  void store(int32_t*, int64_t) const {}
};

// Sums of the same shape in floats.
template <int n, int kWidth>
struct FloatTile {
  Floats a, b;
  FloatTile<n - 1, kWidth> rest;

  void add(const Tile<n, kWidth>& sums, const GroupX& x0, const GroupX& x1, const float* w_scales) {
    const Floats w = splat(*w_scales);
    a = multiply_add(multiply_subtract(to_floats(sums.a), x0.scales, x0.excess), w, a);
    if (kVectors<kWidth> == 2) b = multiply_add(multiply_subtract(to_floats(sums.b), x1.scales, x1.excess), w, b);
    rest.add(sums.rest, x0, x1, w_scales + kScales);
  }
  void load(const float* sums, int64_t stride) {
    a = load_lanes(sums, kWidth);
    if (kVectors<kWidth> == 2) b = load_lanes(sums + kVectorLanes, kWidth);
    rest.load(sums + stride, stride);
  }
  void store(float* sums, int64_t stride) const {
    store_lanes(sums, kWidth, a);
    if (kVectors<kWidth> == 2) store_lanes(sums + kVectorLanes, kWidth, b);
    rest.store(sums + stride, stride);
  }
};
template <int kWidth>
struct FloatTile<0, kWidth> {
  void add(const Tile<0, kWidth>&, const GroupX&, const GroupX&, const float*) {}
  void load(const float*, int64_t) {}
  void store(float*, int64_t) const {}
};

// `steps` times four columns. Rows of a panel that are fewer than the lanes: those that are read beyond them belong to
// the next column and are not stored.
template <int kSteps, int n, int kWidth>
[[gnu::always_inline]] inline void add_columns(Tile<n, kWidth>* tile, int64_t steps, const int8_t* x,
                                               const uint8_t* w) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < (kSteps != 0 ? kSteps : steps); ++i, x += 4 * kWidth, w += 4) {
    const Ints x0 = load_lanes(reinterpret_cast<const int32_t*>(x), kWidth);
    tile->add(w, x0, kVectors<kWidth> == 2 ? load(x + kVector) : x0);
  }
}

template <int kWidth, int kGroupCols, int kOffset>
inline GroupX group_of(const CodePanel& x, int64_t k, int64_t r) {
  const float* sums = x.sums + k / 16 * kWidth + r;
  Floats sum = load_lanes(sums, kWidth);
  if (kGroupCols == 32) sum = add(sum, load_lanes(sums + kWidth, kWidth));
  return {load_lanes(x.scales + k / kCodeBlock * kWidth + r, kWidth), multiply(sum, splat(kOffset))};
}

template <int kWidth, int kGroupCols, int kOffset>
void multiply_groups(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                     float* sums, int64_t stride) {
  for (int64_t o = 0; o < outputs; o += kTileOutputs) {
    FloatTile<kTileOutputs, kWidth> all;
    all.load(sums, stride);
    for (int64_t k = 0; k < cols; k += kGroupCols) {
      Tile<kTileOutputs, kWidth> tile;
      tile.clear();
      add_columns<kGroupCols / 4>(&tile, 0, x.codes + k * kWidth, codes + k);
      const GroupX x0 = group_of<kWidth, kGroupCols, kOffset>(x, k, 0);
      const GroupX x1 = kVectors<kWidth> == 2 ? group_of<kWidth, kGroupCols, kOffset>(x, k, kVectorLanes) : x0;
      all.add(tile, x0, x1, scales + k / kGroupCols);
    }
    all.store(sums, stride);
    codes += kTileOutputs * kCodeDepth;
    scales += kTileOutputs * kScales;
    sums += kTileOutputs * stride;
  }
}

template <int kWidth>
void multiply_sums(const CodePanel& x, int64_t cols, const uint8_t* codes, int64_t outputs, int32_t* sums,
                   int64_t stride) {
  for (int64_t o = 0; o < outputs; o += kTileOutputs) {
    Tile<kTileOutputs, kWidth> tile;
    tile.load(sums, stride);
    add_columns<0>(&tile, (cols + 3) / 4, x.codes, codes);
    tile.store(sums, stride);
    codes += kTileOutputs * kCodeDepth;
    sums += kTileOutputs * stride;
  }
}

template <int kGroupCols, int kOffset>
void multiply_panel_blocks(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                           void* sums, int64_t stride) {
  auto* out = static_cast<float*>(sums);
  if (x.width == 16) return multiply_groups<16, kGroupCols, kOffset>(x, cols, codes, scales, outputs, out, stride);
  multiply_groups<8, kGroupCols, kOffset>(x, cols, codes, scales, outputs, out, stride);
}

inline void multiply_panel_channels(const CodePanel& x, int64_t cols, const uint8_t* codes, const float*,
                                    int64_t outputs, void* sums, int64_t stride) {
  auto* out = static_cast<int32_t*>(sums);
  if (x.width == 16) return multiply_sums<16>(x, cols, codes, outputs, out, stride);
  multiply_sums<8>(x, cols, codes, outputs, out, stride);
}

template <DType type, int kOffset, void (*unpack)(const uint8_t*, int64_t, uint8_t*, float*), int kGroupCols>
constexpr CodePanelKernel kBlockPanel = {
    type, kIsa, kGroupCols, 1, kOffset, unpack, multiply_panel_blocks<kGroupCols, kOffset>};
template <DType type, int kOffset, void (*unpack)(const uint8_t*, int64_t, uint8_t*, float*)>
constexpr CodePanelKernel kChannelPanel = {type, kIsa, 0, 1, kOffset, unpack, multiply_panel_channels};

}  // namespace
}  // namespace qat
