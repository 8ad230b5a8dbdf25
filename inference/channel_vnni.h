// Rows of packed codes against 8-bit activations, over simd_vnni.h.
//
// A vector of packed bytes gives 8 / bits planes of unsigned codes, 2^(bits-1) above what they mean; plane j has the
// elements planes * b + j, and the activations lie in the same order. What the offset adds, 2^(bits-1) times the sum of
// the activations, is taken off at the end; that sum stands behind the codes. Sums are integers of 32 bits that may
// wrap on the way; what comes out fits (kMostCodes).
#pragma once

#include "inference/simd_vnni.h"

namespace qat {
namespace {

constexpr int64_t arranged_codes(int64_t cols) { return (cols + 127) / 128 * 128; }
constexpr int64_t row_stride(int64_t cols) { return arranged_codes(cols) + 64; }  // arranged_bytes

// 16 elements to their planes: four of each of four, eight of each of two.
template <int bits>
inline void to_planes(__m128i codes, int8_t* out, int64_t plane) {
  const __m128i by_four = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i by_two = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  alignas(16) int8_t sorted[16];
  store16(sorted, _mm_shuffle_epi8(codes, bits == 2 ? by_four : by_two));
  for (int64_t j = 0; j < 8 / bits; ++j) __builtin_memcpy(out + j * plane, sorted + 2 * bits * j, 2 * bits);
}

// Planes of whole vectors; those of what is left of the row are as long as its bytes, so that a vector loaded from one
// has something of the next, which meets weights of 0: up to arranged_bytes(cols) of it all. Codes of 8 bits meet 128
// there instead, and zeros here.
template <int bits>
void arrange_codes(const int8_t* codes, int64_t cols, int8_t* out) {
  constexpr int64_t kPlanes = 8 / bits, kCodes = kPlanes * kVector;
  const int64_t whole = cols / kCodes * kCodes, rest = (cols - whole + kPlanes - 1) / kPlanes;
  __builtin_memset(out + whole, 0, static_cast<size_t>(row_stride(cols) - whole));
  int32_t sum = 0;
  for (int64_t k = 0; k < cols; ++k) sum += codes[k];
  __builtin_memcpy(out + arranged_codes(cols), &sum, sizeof sum);
  if constexpr (kPlanes == 1) {
    __builtin_memcpy(out, codes, static_cast<size_t>(cols));
  } else {
    for (int64_t k = 0; k < whole; k += kCodes)
      for (int64_t i = 0; i < kCodes; i += 16) to_planes<bits>(load16(codes + k + i), out + k + i / kPlanes, kVector);
    for (int64_t k = 0; k < cols - whole; ++k) out[whole + k % kPlanes * rest + k / kPlanes] = codes[whole + k];
  }
}

// Of a vector of weights and what meets it. Two sums, as one would wait for its own last addition.
template <int bits>
struct CodeSum {
  Ints even = zero(), odd = zero();
  void add(Ints bytes, const int8_t* x, int64_t plane) {
    const Ints mask = splat_byte((1 << bits) - 1);
    if constexpr (bits == 8) {
      even = dot(even, differing(bytes, splat_byte(0x80)), load(x));
    } else if constexpr (bits == 4) {
      even = dot(even, both(bytes, mask), load(x));
      odd = dot(odd, both(shifted_right(bytes, 4), mask), load(x + plane));
    } else {
      even = dot(even, both(bytes, mask), load(x));
      odd = dot(odd, both(shifted_right(bytes, 2), mask), load(x + plane));
      even = dot(even, both(shifted_right(bytes, 4), mask), load(x + 2 * plane));
      odd = dot(odd, both(shifted_right(bytes, 6), mask), load(x + 3 * plane));
    }
  }
};

// Sums of kOutputs rows of weights with kRows rows of activations. Members one inside the other, because GCC keeps them
// in registers; an array it would write back to memory at each step of a loop.
template <int bits, int kOutputs, int kRows>
struct CodeSums {
  CodeSum<bits> of0, of1;  // of two rows of activations; the second may be idle
  CodeSums<bits, kOutputs - 1, kRows> rest;
  void add(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t x_stride) {
    add_bytes(load_weights(w), x, x_stride, kVector);
    rest.add(w + w_stride, w_stride, x, x_stride);
  }
  void add_last(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t x_stride, int64_t bytes) {
    add_bytes(load_first(w, bytes), x, x_stride, bytes);
    rest.add_last(w + w_stride, w_stride, x, x_stride, bytes);
  }
  void add_bytes(Ints bytes, const int8_t* x, int64_t x_stride, int64_t plane) {
    of0.add(bytes, x, plane);
    if (kRows == 2) of1.add(bytes, x + x_stride, plane);
  }
  void store(int32_t* sums, int64_t stride) const {
    sums[0] = sum_lanes(qat::add(of0.even, of0.odd));
    if (kRows == 2) sums[1] = sum_lanes(qat::add(of1.even, of1.odd));
    rest.store(sums + stride, stride);
  }
};
template <int bits, int kRows>
struct CodeSums<bits, 0, kRows> {
  void add(const uint8_t*, int64_t, const int8_t*, int64_t) {}
  void add_last(const uint8_t*, int64_t, const int8_t*, int64_t, int64_t) {}
  void store(int32_t*, int64_t) const {}
};

template <int bits, int kOutputs, int kRows>
inline void multiply_rows(const uint8_t* w, int64_t w_stride, const int8_t* x, int64_t cols, int32_t* sums,
                          int64_t stride) {
  constexpr int64_t kCodes = kVector * 8 / bits;
  CodeSums<bits, kOutputs, kRows> all;
  int64_t k = 0;
  for (; k + kCodes <= cols; k += kCodes, w += kVector) {
    for (int64_t o = 0; o < kOutputs; ++o) prefetch<kVector>(w + o * w_stride);
    all.add(w, w_stride, x + k, row_stride(cols));
  }
  if (k < cols) all.add_last(w, w_stride, x + k, row_stride(cols), ((cols - k) * bits + 7) / 8);
  all.store(sums, stride);
}

// The rows that are multiplied together stand far apart.
template <int bits, int kRows>
inline void multiply_all(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* x, int64_t cols,
                         int32_t* sums) {
  constexpr int kTogether = kFourStreams.streams / kRows;
  const int64_t apart = outputs / kTogether;
  for (int64_t o = 0; o < apart; ++o)
    multiply_rows<bits, kTogether, kRows>(w + o * w_stride, apart * w_stride, x, cols, sums + o * kRows, apart * kRows);
  for (int64_t o = kTogether * apart; o < outputs; ++o)
    multiply_rows<bits, 1, kRows>(w + o * w_stride, w_stride, x, cols, sums + o * kRows, kRows);
  for (int64_t r = 0; r < kRows; ++r) {  // what the offset of the codes adds to a sum
    uint32_t total;
    __builtin_memcpy(&total, x + r * row_stride(cols) + arranged_codes(cols), sizeof total);
    const uint32_t excess = total << (bits - 1);
    for (int64_t i = 0; i < outputs; ++i)
      sums[i * kRows + r] = static_cast<int32_t>(static_cast<uint32_t>(sums[i * kRows + r]) - excess);
  }
}

template <int bits>
void multiply_codes(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* x, int64_t rows, int64_t cols,
                    int32_t* sums) {
  if (rows == 1) return multiply_all<bits, 1>(w, w_stride, outputs, x, cols, sums);
  multiply_all<bits, 2>(w, w_stride, outputs, x, cols, sums);
}
static_assert(kCodeRows == 2);

template <DType type, int bits>
constexpr ChannelKernel kChannelKernel = {type, kIsa, nullptr, nullptr, multiply_codes<bits>, arrange_codes<bits>};

}  // namespace
}  // namespace qat
