// Panels of activations in 8 bits against unpacked codes, over simd_vnni.h: four columns of a row of weights, unsigned
// and the same in all lanes, times those of the lanes' rows of activations, added up in 32 bits at once.
#pragma once

#include <type_traits>

#include "inference/code_unpack_avx2.h"
#include "inference/simd_vnni.h"

namespace qat {
namespace {

constexpr int64_t kScales = kCodeDepth / 16;  // room for a row's
// A panel is two vectors of rows or one. What a step multiplies, a few outputs with both, are as many sums as hide each
// other's latency, and each code is brought to all lanes once for both.
constexpr int64_t kRows = 2 * kVectorLanes;
constexpr int kTileOutputs = kVector == 64 ? 8 : 4;
template <int kWidth>  // of a panel
constexpr bool kTwo = kWidth > kVectorLanes;
static_assert(kRows % kLanes == 0 && kCodeOutputs % kTileOutputs == 0);

inline Ints four_codes(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return splat_int(bits);
}

// The two vectors of a column, or of an output's sums; the second may be idle. Rows of a panel that are fewer than the
// lanes: those read beyond them belong to the next column, and are not stored.
template <int kWidth, class Number>
inline auto first_lanes(const Number* p) {
  return load_lanes(p, kWidth);
}
template <int kWidth, class Number>
inline auto second_lanes(const Number* p) {
  return kTwo<kWidth> ? load_lanes(p + kVectorLanes, kWidth - kVectorLanes) : load_lanes(p, kWidth);
}
template <int kWidth, class Number, class Vector>
inline void store_both(Number* p, Vector a, Vector b) {
  store_lanes(p, kWidth, a);
  if (kTwo<kWidth>) store_lanes(p + kVectorLanes, kWidth - kVectorLanes, b);
}

// Integer sums of n outputs with a panel.
template <int n>
struct Tile {
  Ints a[n], b[n];
};

// Four columns.
template <int kWidth, int n>
[[gnu::always_inline]] inline void add_columns(Tile<n>* tile, const int8_t* x, const uint8_t* w) {
  const auto* column = reinterpret_cast<const int32_t*>(x);
  const Ints x0 = first_lanes<kWidth>(column), x1 = second_lanes<kWidth>(column);
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    const Ints codes = four_codes(w + i * kCodeDepth);
    tile->a[i] = dot(tile->a[i], codes, x0);
    if (kTwo<kWidth>) tile->b[i] = dot(tile->b[i], codes, x1);
  }
}

constexpr int kGroupOutputs = 4;  // sums in floats take as many registers again

// A group of columns with one scale for each output: what its integers come to, upon the sums.
template <int kWidth, int kGroupCols, int kOffset>
[[gnu::always_inline]] inline void add_group(const CodePanel& x, int64_t k, const uint8_t* codes, const float* scales,
                                             Floats (&a)[kGroupOutputs], Floats (&b)[kGroupOutputs]) {
  Tile<kGroupOutputs> tile;
#pragma GCC unroll 8
  for (int i = 0; i < kGroupOutputs; ++i) tile.a[i] = tile.b[i] = zero();
#pragma GCC unroll 8
  for (int64_t i = 0; i < kGroupCols; i += 4) add_columns<kWidth>(&tile, x.codes + (k + i) * kWidth, codes + k + i);
  const float* scale = x.scales + k / kCodeBlock * kWidth;
  const float* sum = x.sums + k / 16 * kWidth;
  Floats sum0 = first_lanes<kWidth>(sum), sum1 = second_lanes<kWidth>(sum);
  if (kGroupCols == 32) {
    sum0 = add(sum0, first_lanes<kWidth>(sum + kWidth));
    sum1 = add(sum1, second_lanes<kWidth>(sum + kWidth));
  }
  // What the offset of the weights' codes adds.
  const Floats excess0 = multiply(sum0, splat(kOffset)), excess1 = multiply(sum1, splat(kOffset));
  const Floats scale0 = first_lanes<kWidth>(scale), scale1 = second_lanes<kWidth>(scale);
#pragma GCC unroll 8
  for (int i = 0; i < kGroupOutputs; ++i) {
    const Floats w = splat(scales[i * kScales + k / kGroupCols]);
    a[i] = multiply_add(multiply_subtract(to_floats(tile.a[i]), scale0, excess0), w, a[i]);
    if (kTwo<kWidth>) b[i] = multiply_add(multiply_subtract(to_floats(tile.b[i]), scale1, excess1), w, b[i]);
  }
}

template <int kWidth, int kGroupCols, int kOffset>
void multiply_groups(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                     float* sums, int64_t stride) {
  for (int64_t o = 0; o < outputs; o += kGroupOutputs) {
    Floats a[kGroupOutputs], b[kGroupOutputs];
#pragma GCC unroll 8
    for (int i = 0; i < kGroupOutputs; ++i) {
      a[i] = first_lanes<kWidth>(sums + i * stride);
      b[i] = second_lanes<kWidth>(sums + i * stride);
    }
    for (int64_t k = 0; k < cols; k += kGroupCols) add_group<kWidth, kGroupCols, kOffset>(x, k, codes, scales, a, b);
#pragma GCC unroll 8
    for (int i = 0; i < kGroupOutputs; ++i) store_both<kWidth>(sums + i * stride, a[i], b[i]);
    codes += kGroupOutputs * kCodeDepth;
    scales += kGroupOutputs * kScales;
    sums += kGroupOutputs * stride;
  }
}

template <int kWidth>
void multiply_sums(const CodePanel& x, int64_t cols, const uint8_t* codes, int64_t outputs, int32_t* sums,
                   int64_t stride) {
  for (int64_t o = 0; o < outputs; o += kTileOutputs) {
    Tile<kTileOutputs> tile;
#pragma GCC unroll 8
    for (int i = 0; i < kTileOutputs; ++i) {
      tile.a[i] = first_lanes<kWidth>(sums + i * stride);
      tile.b[i] = second_lanes<kWidth>(sums + i * stride);
    }
    for (int64_t k = 0; k < cols; k += 4) add_columns<kWidth>(&tile, x.codes + k * kWidth, codes + k);
#pragma GCC unroll 8
    for (int i = 0; i < kTileOutputs; ++i) store_both<kWidth>(sums + i * stride, tile.a[i], tile.b[i]);
    codes += kTileOutputs * kCodeDepth;
    sums += kTileOutputs * stride;
  }
}

// with(width) as a constant, for one of a panel's widths.
template <class With>
inline void with_width(int64_t width, const With& with) {
  if (width == kLanes) return with(std::integral_constant<int, kLanes>());
  if (width == 2 * kLanes) return with(std::integral_constant<int, 2 * kLanes>());
  if (kVectorLanes == 2 * kLanes && width == 3 * kLanes) return with(std::integral_constant<int, 3 * kLanes>());
  if (kVectorLanes == 2 * kLanes) return with(std::integral_constant<int, 4 * kLanes>());
}

template <int kGroupCols, int kOffset>
void multiply_panel_blocks(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                           void* sums, int64_t stride) {
  auto* out = static_cast<float*>(sums);
  with_width(x.width, [&](auto width) {
    multiply_groups<width, kGroupCols, kOffset>(x, cols, codes, scales, outputs, out, stride);
  });
}

inline void multiply_panel_channels(const CodePanel& x, int64_t cols, const uint8_t* codes, const float*,
                                    int64_t outputs, void* sums, int64_t stride) {
  auto* out = static_cast<int32_t*>(sums);
  with_width(x.width, [&](auto width) { multiply_sums<width>(x, cols, codes, outputs, out, stride); });
}

template <DType type, int kOffset, void (*unpack)(const uint8_t*, int64_t, uint8_t*, float*), int kGroupCols>
constexpr CodePanelKernel kBlockPanel = {type, kIsa,    kRows,  kGroupCols,
                                         1,    kOffset, unpack, multiply_panel_blocks<kGroupCols, kOffset>};
template <DType type, int kOffset, void (*unpack)(const uint8_t*, int64_t, uint8_t*, float*)>
constexpr CodePanelKernel kChannelPanel = {type, kIsa, kRows, 0, 1, kOffset, unpack, multiply_panel_channels};

}  // namespace
}  // namespace qat
