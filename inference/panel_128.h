// Panels of floats with vectors of 128 bits. For the translation units that simd_128.h speaks of.
#pragma once

#include "inference/kernels_isa.h"
#include "inference/simd_128.h"

namespace qat {
namespace {

inline void pack_panel(const float* x, int64_t stride, int64_t rows, int64_t cols, float* panel) {
  const int64_t width = (rows + kLanes - 1) / kLanes * kLanes;
  for (int64_t first = 0; first < width; first += 4) {
    int64_t k = 0;
    for (; k + 4 <= cols; k += 4) {
      f32x4 block[4];
      for (int64_t r = 0; r < 4; ++r) block[r] = first + r < rows ? load<f32x4>(x + (first + r) * stride + k) : f32x4{};
      transpose(block);
      for (int64_t i = 0; i < 4; ++i) store(panel + (k + i) * width + first, block[i]);
    }
    for (; k < cols; ++k)
      for (int64_t r = 0; r < 4; ++r)
        panel[k * width + first + r] = first + r < rows ? x[(first + r) * stride + k] : 0.0f;
  }
}

struct Output {
  float* y;
  int64_t stride;
  int64_t rows, outputs;  // those that exist, from y on
  bool add;
};

// o0..o3 hold four outputs of 4 rows.
inline void store_tile(f32x4 o0, f32x4 o1, f32x4 o2, f32x4 o3, const Output& out) {
  f32x4 of_row[4] = {o0, o1, o2, o3};
  transpose(of_row);
  for (int64_t r = 0; r < 4 && r < out.rows; ++r) {
    float* y = out.y + r * out.stride;
    if (out.outputs >= 4) {
      store(y, out.add ? load<f32x4>(y) + of_row[r] : of_row[r]);
    } else {
      float values[4];
      store(values, of_row[r]);
      for (int64_t o = 0; o < out.outputs; ++o) y[o] = out.add ? y[o] + values[o] : values[o];
    }
  }
}

// Four columns of four rows of weights.
struct FourByFour {
  f32x4 w0, w1, w2, w3;
};

// Sums of four outputs and 4 * n rows of a panel. Members one inside the other, because GCC keeps them in registers; an
// array of sums it would write back to memory at each step of a loop.
template <int n>
struct Tile {
  f32x4 o0 = {}, o1 = {}, o2 = {}, o3 = {};
  Tile<n - 1> rest;

  template <int lane>
  void add(const float* column, const FourByFour& w) {
    const f32x4 x = load<f32x4>(column);
    o0 = fma_lane<lane>(x, w.w0, o0);
    o1 = fma_lane<lane>(x, w.w1, o1);
    o2 = fma_lane<lane>(x, w.w2, o2);
    o3 = fma_lane<lane>(x, w.w3, o3);
    rest.template add<lane>(column + 4, w);
  }
  void store(const Output& out) const {
    store_tile(o0, o1, o2, o3, out);
    rest.store({out.y + 4 * out.stride, out.stride, out.rows - 4, out.outputs, out.add});
  }
};
template <>
struct Tile<0> {
  template <int lane>
  void add(const float*, const FourByFour&) {}
  void store(const Output&) const {}
};

// Four rows of weights against 4 * n rows of a panel that is `width` wide, all sums in registers.
template <int n>
void multiply_tile(const float* panel, int64_t width, int64_t depth, const float* w, int64_t w_stride,
                   const Output& out) {
  Tile<n> tile;
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4, panel += 4 * width) {
    const FourByFour four = {load<f32x4>(w + k), load<f32x4>(w + w_stride + k), load<f32x4>(w + 2 * w_stride + k),
                             load<f32x4>(w + 3 * w_stride + k)};
    tile.template add<0>(panel, four);
    tile.template add<1>(panel + width, four);
    tile.template add<2>(panel + 2 * width, four);
    tile.template add<3>(panel + 3 * width, four);
  }
  for (; k < depth; ++k, panel += width)
    tile.template add<0>(panel,
                         {splat(w[k]), splat(w[w_stride + k]), splat(w[2 * w_stride + k]), splat(w[3 * w_stride + k])});
  tile.store(out);
}

inline void multiply_panel(const float* panel, int64_t rows, int64_t depth, const float* w, int64_t w_stride,
                           int64_t outputs, float* y, int64_t y_stride, bool add) {
  const int64_t width = (rows + kLanes - 1) / kLanes * kLanes;
  for (int64_t o = 0; o < outputs; o += 4)
    for (int64_t r = 0; r < width;) {
      const Output out = {y + r * y_stride + o, y_stride, rows - r, outputs - o, add};
      const bool is_wide = width - r >= 4 * kMostVectors;
      if (is_wide) multiply_tile<kMostVectors>(panel + r, width, depth, w + o * w_stride, w_stride, out);
      else multiply_tile<2>(panel + r, width, depth, w + o * w_stride, w_stride, out);
      r += is_wide ? 4 * kMostVectors : 8;
    }
}
static_assert(kLanes == 8 && kOutputStep % 4 == 0 && kMostVectors % 2 == 0);

template <Isa isa>
constexpr PanelKernel kPanelKernel = {isa, 24, pack_panel, multiply_panel};

}  // namespace
}  // namespace qat
