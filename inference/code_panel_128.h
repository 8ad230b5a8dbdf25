// Panels of activations in 8 bits against unpacked codes, with vectors of 128 bits. For the translation units that
// simd_128.h speaks of.
//
// Four columns of four rows of activations make a vector, and four columns of a row of weights meet each of its lanes.
// Sums are exact in 32 bits: at most 512 columns * 128 * 128 before they are added up. Three ways to get there:
//   i8mm      smmla multiplies eight columns of two rows of activations with those of two of weights;
//   dotprod   sdot multiplies the vector with one lane of 16 columns of weights (ARM without it: four instructions);
//   others    bytes are widened to 16 bits, those of weights once, as they are unpacked.
#pragma once

#include "inference/codes_128.h"
#include "inference/kernels_isa.h"

namespace qat {
namespace {

constexpr int64_t kScales = kCodeDepth / 16;  // room for a row's

// ---- Unpacking

#if defined(__ARM_NEON)
constexpr int64_t kPlanes = 1;
inline void store_codes(i8x16 codes, uint8_t* out) { store(out, codes); }
#else
constexpr int64_t kPlanes = 2;  // the two bytes of 16 bits; of four columns 0 and 2 first, then 1 and 3
inline void store_codes(i8x16 codes, uint8_t* out) {
  const Words words = words_of(codes);
  const i32x4 even = as<i32x4>(words.even), odd = as<i32x4>(words.odd);
  store(out, zip_low(even, odd));
  store(out + 16, zip_high(even, odd));
}
#endif
constexpr int64_t kRowBytes = kPlanes * kCodeDepth;

template <class Blocks, int kGroup>
void unpack_blocks(const uint8_t* row, int64_t cols, uint8_t* codes, float* scales) {
  for (int64_t k = 0; k < cols; k += Blocks::kCols, row += Blocks::kBytes)
    Blocks::each(row, [&](int64_t i, i8x16 values, float scale) {
      store_codes(values, codes + kPlanes * (k + i));
      scales[(k + i) / kGroup] = scale;
    });
}

template <int bits>
void unpack_packed(const uint8_t* row, int64_t cols, uint8_t* codes, float*) {
  constexpr int64_t kCodes = 128 / bits;
  const auto unpack = [](const uint8_t* bytes, uint8_t* out) {
    Packed<bits>::each(bytes, [&](int64_t i, i8x16 values) { store_codes(values, out + kPlanes * i); });
  };
  int64_t k = 0;
  for (; k + kCodes <= cols; k += kCodes, row += 16) unpack(row, codes + kPlanes * k);
  if (k == cols) return;
  uint8_t bytes[16] = {};  // what is left, filled up with zeros; kCodeDepth is a multiple of kCodes, so there is room
  copy(bytes, row, ((cols - k) * bits + 7) / 8);
  unpack(bytes, codes + kPlanes * k);
}
static_assert(kCodeDepth % 64 == 0);

// ---- Products. A tile is four rows of weights with n vectors of four rows of activations. Members one inside the
// other, because GCC keeps them in registers; an array of sums it would write back to memory at each step of a loop.

// Four outputs of four rows.
struct Sums4 {
  i32x4 o0, o1, o2, o3;
};

#if defined(__ARM_FEATURE_MATMUL_INT8)

constexpr int64_t kStep = 8;  // columns at a time

// Rows 0 and 1, and 2 and 3, of four rows of weights.
struct Weights {
  i8x16 w01, w23;
  explicit Weights(const uint8_t* w) : w01(two_rows(w)), w23(two_rows(w + 2 * kRowBytes)) {}
  static i8x16 two_rows(const uint8_t* w) { return as<i8x16>(u64x2{load<uint64_t>(w), load<uint64_t>(w + kRowBytes)}); }
};

template <int n>
struct CodeTile {
  i32x4 a01 = {}, a23 = {}, b01 = {}, b23 = {};  // rows 0 and 1 (a), 2 and 3 (b) of activations
  CodeTile<n - 1> rest;

  // Columns 4..7 are `next` bytes after the first four, if there are any.
  template <bool is_whole>
  void add(const int8_t* x, int64_t next, const Weights& w) {
    const i32x4 first = load<i32x4>(x), second = is_whole ? load<i32x4>(x + next) : i32x4{};
    const i8x16 a = as<i8x16>(zip_low(first, second)), b = as<i8x16>(zip_high(first, second));
    a01 = vmmlaq_s32(a01, w.w01, a);
    a23 = vmmlaq_s32(a23, w.w23, a);
    b01 = vmmlaq_s32(b01, w.w01, b);
    b23 = vmmlaq_s32(b23, w.w23, b);
    rest.template add<is_whole>(x + 16, next, w);
  }
  Sums4 sums() const { return {join_low(a01, b01), join_high(a01, b01), join_low(a23, b23), join_high(a23, b23)}; }
};
template <>
struct CodeTile<0> {
  template <bool is_whole>
  void add(const int8_t*, int64_t, const Weights&) {}
};

// The products of `cols` columns, a multiple of 4, of a panel that is `width` wide.
template <int n>
inline CodeTile<n> multiply_codes(const int8_t* x, int64_t width, int64_t cols, const uint8_t* w) {
  CodeTile<n> tile;
  int64_t k = 0;
  for (; k + kStep <= cols; k += kStep, x += kStep * width) tile.template add<true>(x, 4 * width, Weights(w + k));
  if (k < cols) tile.template add<false>(x, 0, Weights(w + k));
  return tile;
}

#else

#if defined(__ARM_FEATURE_DOTPROD)
using Columns = i8x16;  // four columns of four rows of activations
inline Columns columns_at(const int8_t* x) { return load<i8x16>(x); }
using Weights1 = i8x16;  // 16 columns of a row of weights
inline Weights1 weights_at(const uint8_t* w) { return load<i8x16>(w); }
template <int lane>
inline i32x4 dot_lane(i32x4 sum, Columns x, Weights1 w) {
  return vdotq_laneq_s32(sum, x, w, lane);
}
#elif defined(__ARM_NEON)
using Columns = i8x16;
inline Columns columns_at(const int8_t* x) { return load<i8x16>(x); }
using Weights1 = i32x4;
inline Weights1 weights_at(const uint8_t* w) { return load<i32x4>(w); }
template <int lane>
inline i32x4 dot_lane(i32x4 sum, Columns x, Weights1 w) {
  return dot(sum, x, as<i8x16>(__builtin_shufflevector(w, w, lane, lane, lane, lane)));
}
#else
using Columns = Words;
inline Columns columns_at(const int8_t* x) { return words_of(load<i8x16>(x)); }
struct Weights1 {
  i32x4 of[2];  // columns 0..7 and 8..15, as store_codes leaves them
};
inline Weights1 weights_at(const uint8_t* w) { return {{load<i32x4>(w), load<i32x4>(w + 16)}}; }
template <int lane>
inline i32x4 dot_lane(i32x4 sum, const Columns& x, const Weights1& w) {
  constexpr int even = lane % 2 * 2, odd = even + 1;
  const i32x4 four = w.of[lane / 2];
  return dot(sum, x,
             Words{as<i16x8>(__builtin_shufflevector(four, four, even, even, even, even)),
                   as<i16x8>(__builtin_shufflevector(four, four, odd, odd, odd, odd))});
}
#endif

// 16 columns of four rows of weights.
struct Weights {
  Weights1 w0, w1, w2, w3;
  explicit Weights(const uint8_t* w)
      : w0(weights_at(w)),
        w1(weights_at(w + kRowBytes)),
        w2(weights_at(w + 2 * kRowBytes)),
        w3(weights_at(w + 3 * kRowBytes)) {}
};

template <int n>
struct CodeTile {
  i32x4 o0 = {}, o1 = {}, o2 = {}, o3 = {};
  CodeTile<n - 1> rest;

  template <int lane>
  void add(const int8_t* column, const Weights& w) {
    const Columns x = columns_at(column);
    o0 = dot_lane<lane>(o0, x, w.w0);
    o1 = dot_lane<lane>(o1, x, w.w1);
    o2 = dot_lane<lane>(o2, x, w.w2);
    o3 = dot_lane<lane>(o3, x, w.w3);
    rest.template add<lane>(column + 16, w);
  }
  Sums4 sums() const { return {o0, o1, o2, o3}; }
};
template <>
struct CodeTile<0> {
  template <int lane>
  void add(const int8_t*, const Weights&) {}
};

template <int n>
inline CodeTile<n> multiply_codes(const int8_t* x, int64_t width, int64_t cols, const uint8_t* w) {
  CodeTile<n> tile;
  const int64_t next = 4 * width;  // bytes of four columns
  int64_t k = 0;
  for (; k + 16 <= cols; k += 16, x += 4 * next) {
    const Weights four(w + kPlanes * k);
    tile.template add<0>(x, four);
    tile.template add<1>(x + next, four);
    tile.template add<2>(x + 2 * next, four);
    tile.template add<3>(x + 3 * next, four);
  }
  if (k == cols) return tile;
  const Weights four(w + kPlanes * k);
  tile.template add<0>(x, four);
  if (cols - k > 4) tile.template add<1>(x + next, four);
  if (cols - k > 8) tile.template add<2>(x + 2 * next, four);
  return tile;
}

#endif

// ---- Weights with a scale per kGroup columns

inline void add_scaled(const CodeTile<0>&, const float*, const float*, float*, int64_t) {}
template <int n>
inline void add_scaled(const CodeTile<n>& tile, const float* x_scales, const float* w_scales, float* sums,
                       int64_t stride) {
  const Sums4 s = tile.sums();
  const f32x4 x = load<f32x4>(x_scales);
  const auto add = [&](i32x4 sum, float w_scale, float* out) {
    store(out, fma(to_floats(sum) * x, splat(w_scale), load<f32x4>(out)));
  };
  add(s.o0, w_scales[0], sums);
  add(s.o1, w_scales[kScales], sums + stride);
  add(s.o2, w_scales[2 * kScales], sums + 2 * stride);
  add(s.o3, w_scales[3 * kScales], sums + 3 * stride);
  add_scaled(tile.rest, x_scales + 4, w_scales, sums + 4, stride);
}

// Rows `first` and on of the panel with four rows of weights; their sums at `sums`.
template <int n, int kGroup>
void multiply_groups(const CodePanel& x, int64_t first, int64_t cols, const uint8_t* codes, const float* scales,
                     float* sums, int64_t stride) {
  for (int64_t k = 0; k < cols; k += kGroup)
    add_scaled(multiply_codes<n>(x.codes + 4 * first + k * x.width, x.width, kGroup, codes + kPlanes * k),
               x.scales + k / kCodeBlock * x.width + first, scales + k / kGroup, sums, stride);
}

// ---- Weights with a scale per row: integers

inline void add_sums(const CodeTile<0>&, int32_t*, int64_t) {}
template <int n>
inline void add_sums(const CodeTile<n>& tile, int32_t* sums, int64_t stride) {
  const Sums4 s = tile.sums();
  const auto add = [](i32x4 sum, int32_t* out) { store(out, load<i32x4>(out) + sum); };
  add(s.o0, sums);
  add(s.o1, sums + stride);
  add(s.o2, sums + 2 * stride);
  add(s.o3, sums + 3 * stride);
  add_sums(tile.rest, sums + 4, stride);
}

// ---- Four rows of weights with as many of the panel at a time as fit the registers

#if defined(__ARM_FEATURE_DOTPROD)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif
constexpr int64_t kTileRows = 4 * kTileVectors;

template <int kGroup>
void multiply_block_panel(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                          void* sums, int64_t stride) {
  auto* out = static_cast<float*>(sums);
  for (int64_t o = 0; o < outputs; o += 4, codes += 4 * kRowBytes, scales += 4 * kScales, out += 4 * stride) {
    int64_t r = 0;
    for (; r + kTileRows <= x.width; r += kTileRows)
      multiply_groups<kTileVectors, kGroup>(x, r, cols, codes, scales, out + r, stride);
    for (; r < x.width; r += 8) multiply_groups<2, kGroup>(x, r, cols, codes, scales, out + r, stride);
  }
}

inline void multiply_channel_panel(const CodePanel& x, int64_t cols, const uint8_t* codes, const float*,
                                   int64_t outputs, void* sums, int64_t stride) {
  auto* out = static_cast<int32_t*>(sums);
  const int64_t fours = (cols + 3) / 4 * 4;
  for (int64_t o = 0; o < outputs; o += 4, codes += 4 * kRowBytes, out += 4 * stride) {
    int64_t r = 0;
    for (; r + kTileRows <= x.width; r += kTileRows)
      add_sums(multiply_codes<kTileVectors>(x.codes + 4 * r, x.width, fours, codes), out + r, stride);
    for (; r < x.width; r += 8) add_sums(multiply_codes<2>(x.codes + 4 * r, x.width, fours, codes), out + r, stride);
  }
}
static_assert(kLanes == 8 && kCodeOutputs % 4 == 0);

constexpr int64_t kPanelWidth = 16;

template <Isa isa>
constexpr CodePanelKernel kCodePanelKernels[kBlockTypes + kChannelTypes] = {
    {DType::Q2_0, isa, kPanelWidth, 32, kPlanes, 0, unpack_blocks<BlocksQ2_0, 32>, multiply_block_panel<32>},
    {DType::Q4_0, isa, kPanelWidth, 32, kPlanes, 0, unpack_blocks<BlocksQ4_0, 32>, multiply_block_panel<32>},
    {DType::Q8_0, isa, kPanelWidth, 32, kPlanes, 0, unpack_blocks<BlocksQ8_0, 32>, multiply_block_panel<32>},
    {DType::Q6_K, isa, kPanelWidth, 16, kPlanes, 0, unpack_blocks<BlocksQ6_K, 16>, multiply_block_panel<16>},
    {DType::I2, isa, kPanelWidth, 0, kPlanes, 0, unpack_packed<2>, multiply_channel_panel},
    {DType::I4, isa, kPanelWidth, 0, kPlanes, 0, unpack_packed<4>, multiply_channel_panel},
    {DType::I8, isa, kPanelWidth, 0, kPlanes, 0, unpack_packed<8>, multiply_channel_panel},
};

}  // namespace
}  // namespace qat
