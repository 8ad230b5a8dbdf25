// Packed codes of the channel-wise grids against codes of activations, with vectors of 128 bits. For the translation
// units that simd_128.h speaks of.
#pragma once

#include "inference/kernels_isa.h"
#include "inference/row_128.h"

namespace qat {
namespace {

// 2 and 4 bits: 16 packed bytes give P = 8 / bits planes of 16 unsigned codes, code + 2^(bits-1); plane j has the
// elements P b + j, and the activations lie in the same order. What the offset adds, 2^(bits-1) times the sum of the
// activations, is taken off at the end; that sum stands behind the codes.
template <int bits>
constexpr int64_t padded(int64_t cols) {
  constexpr int64_t kCodes = 128 / bits;
  return (cols + kCodes - 1) / kCodes * kCodes;
}

constexpr int64_t row_stride(int64_t cols) { return (cols + 127) / 128 * 128 + 64; }  // arranged_bytes

template <int bits>
void arrange(const int8_t* codes, int64_t cols, int8_t* out) {
  constexpr int64_t kPlanes = 8 / bits, kCodes = 16 * kPlanes;
  int32_t sum = 0;
  for (int64_t k = 0; k < cols; ++k) sum += codes[k];
  for (int64_t k = 0; k < cols; k += kCodes) {
    int8_t last[kCodes] = {};
    const int8_t* from = codes + k;
    if (cols - k < kCodes) {
      copy(last, from, cols - k);
      from = last;
    }
    for (int64_t j = 0; j < kPlanes; ++j)
      for (int64_t b = 0; b < 16; ++b) out[k + 16 * j + b] = from[kPlanes * b + j];
  }
  copy(out + padded<bits>(cols), &sum, sizeof sum);
}

// sum + the products of 16 bytes of codes.
template <int bits>
inline i32x4 dot_planes(i32x4 sum, u8x16 bytes, const int8_t* x) {
  if (bits == 8) return dot(sum, as<i8x16>(bytes), load<i8x16>(x));
  if (bits == 4) return dot(dot(sum, bytes & 15, load<i8x16>(x)), bytes >> 4, load<i8x16>(x + 16));
  sum = dot(dot(sum, bytes & 3, load<i8x16>(x)), (bytes >> 2) & 3, load<i8x16>(x + 16));
  return dot(dot(sum, (bytes >> 4) & 3, load<i8x16>(x + 32)), bytes >> 6, load<i8x16>(x + 48));
}

// Sums of kOutputs rows of weights with kRows rows of activations. Members one inside the other, because GCC keeps them
// in registers; an array of sums it would write back to memory at each step of a loop.
template <int bits, int kOutputs, int kRows>
struct ChannelSums {
  i32x4 of0 = {}, of1 = {};  // of two rows of activations; the second may be idle
  ChannelSums<bits, kOutputs - 1, kRows> rest;
  void add(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t x_stride) {
    const u8x16 bytes = load<u8x16>(w);
    of0 = dot_planes<bits>(of0, bytes, x);
    if (kRows == 2) of1 = dot_planes<bits>(of1, bytes, x + x_stride);
    rest.add(w + w_stride, w_stride, x, x_stride);
  }
  void store(int32_t* sums) const {
    sums[0] = sum_lanes(of0);
    if (kRows == 2) sums[1] = sum_lanes(of1);
    rest.store(sums + kRows);
  }
};
template <int bits, int kRows>
struct ChannelSums<bits, 0, kRows> {
  void add(const uint8_t*, int64_t, const int8_t*, int64_t) {}
  void store(int32_t*) const {}
};

// kOutputs rows of weights together: they share the loads of the activations, and memory is read in as many streams.
template <int bits, int kOutputs, int kRows>
void multiply_outputs(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t cols, int32_t* sums) {
  constexpr int64_t kCodes = 128 / bits;
  const int64_t x_stride = row_stride(cols), whole = cols / kCodes;
  ChannelSums<bits, kOutputs, kRows> all;
  for (int64_t i = 0; i < whole; ++i) {
    if (i % 4 == 0)
      for (int64_t o = 0; o < kOutputs; ++o) prefetch(w + o * w_stride + 16 * i, 64);
    all.add(w + 16 * i, w_stride, x + i * kCodes, x_stride);
  }
  if (whole * kCodes < cols) {
    uint8_t last[16 * kOutputs] = {};
    for (int64_t o = 0; o < kOutputs; ++o)
      copy(last + 16 * o, w + o * w_stride + 16 * whole, ((cols - whole * kCodes) * bits + 7) / 8);
    all.add(last, 16, x + whole * kCodes, x_stride);
  }
  all.store(sums);
}

template <int bits, int kRows>
void multiply_rows(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* x, int64_t cols, int32_t* sums) {
  constexpr int kTogether = kRows == 1 ? 4 : 2;
  int64_t o = 0;
  for (; o + kTogether <= outputs; o += kTogether)
    multiply_outputs<bits, kTogether, kRows>(w + o * w_stride, w_stride, x, cols, sums + o * kRows);
  for (; o < outputs; ++o) multiply_outputs<bits, 1, kRows>(w + o * w_stride, w_stride, x, cols, sums + o * kRows);
  for (int64_t r = 0; bits != 8 && r < kRows; ++r) {  // what the offset of the codes adds to a sum
    const auto excess = load<int32_t>(x + r * row_stride(cols) + padded<bits>(cols)) * (1 << (bits - 1));
    for (int64_t i = 0; i < outputs; ++i) sums[i * kRows + r] -= excess;
  }
}

template <int bits>
void multiply_channel(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* arranged, int64_t rows,
                      int64_t cols, int32_t* sums) {
  if (rows == 1) return multiply_rows<bits, 1>(w, w_stride, outputs, arranged, cols, sums);
  multiply_rows<bits, 2>(w, w_stride, outputs, arranged, cols, sums);
}
static_assert(kCodeRows == 2);

template <Isa isa>
constexpr ChannelKernel kChannelKernels[kChannelTypes] = {
    {DType::I2, isa, decode_packed_row<2>, dot_packed_row<2>, multiply_channel<2>, arrange<2>},
    {DType::I4, isa, decode_packed_row<4>, dot_packed_row<4>, multiply_channel<4>, arrange<4>},
    {DType::I8, isa, decode_packed_row<8>, dot_packed_row<8>, multiply_channel<8>, arrange<8>},
};

}  // namespace
}  // namespace qat
