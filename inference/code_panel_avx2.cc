// Panels of activations in 8 bits against unpacked codes, with AVX2, FMA and F16C. Compiled with those flags: see
// kernels_isa.h for what must not be used here.
//
// The product at the heart is vpmaddubsw: 32 unsigned bytes of weights (four columns of one row, the same for all
// lanes) times 32 signed ones of activations, pairs added in 16 bits. Weights of 4 bits, 0..15, against activations of
// -128..127: a pair is at most 2 * 15 * 128 = 3840, and the 8 of them that make up 32 columns 30720, so they are added
// in 16 bits too. Of 2 bits, 0..3: 768, and the 32 of 128 columns 24576. Weights of 8 bits come as two planes of 4.
#include <immintrin.h>

#include "inference/code_unpack_avx2.h"
#include "inference/kernels_isa.h"
#include "inference/lanes_avx2.h"

namespace qat {
namespace {

constexpr int64_t kScales = kCodeDepth / 16;  // room for a row's

__m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
void store32(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// ---- Products: 4 rows of bytes against n vectors of 8 rows of activations.

__m256i four_codes(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}

// Sums of pairs in 16 bits: of row i with the first vector, and with the second if there is one. Each has a name
// because GCC keeps an array of them in memory.
struct Tile {
  __m256i a0, a1, a2, a3, b0, b1, b2, b3;
};

// kept: GCC would add all products of an unrolled loop before the sums, and has no registers for so many.
__attribute__((always_inline)) inline void add_pairs(__m256i& sum, __m256i w, __m256i x) {
  sum = kept(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)));
}

// Four columns of the four rows of bytes from w on.
template <int n>
__attribute__((always_inline)) inline void add_step(Tile& t, const int8_t* x, const uint8_t* w) {
  const __m256i x0 = kept(load32(x)), x1 = n == 2 ? kept(load32(x + 32)) : x0;
  const __m256i w0 = four_codes(w), w1 = four_codes(w + kCodeDepth);
  const __m256i w2 = four_codes(w + 2 * kCodeDepth), w3 = four_codes(w + 3 * kCodeDepth);
  add_pairs(t.a0, w0, x0);
  if (n == 2) add_pairs(t.b0, w0, x1);
  add_pairs(t.a1, w1, x0);
  if (n == 2) add_pairs(t.b1, w1, x1);
  add_pairs(t.a2, w2, x0);
  if (n == 2) add_pairs(t.b2, w2, x1);
  add_pairs(t.a3, w3, x0);
  if (n == 2) add_pairs(t.b3, w3, x1);
}

// `steps` times four columns.
template <int n>
__attribute__((always_inline)) inline Tile multiply_tile(int64_t steps, const int8_t* x, const uint8_t* w) {
  const __m256i zero = _mm256_setzero_si256();
  Tile t = {zero, zero, zero, zero, zero, zero, zero, zero};
  for (; steps >= 8; steps -= 8, x += 8 * 32 * n, w += 8 * 4) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < 8; ++i) add_step<n>(t, x + 32 * n * i, w + 4 * i);
  }
  for (int64_t i = 0; i < steps; ++i) add_step<n>(t, x + 32 * n * i, w + 4 * i);
  return t;
}

__m256i wide(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
__m256i wide(__m256i high, __m256i low) { return _mm256_add_epi32(_mm256_slli_epi32(wide(high), 4), wide(low)); }

// ---- Weights with a scale per kGroup columns; kOffset as in CodePanelKernel.

// 8 rows of activations: their scales, and what the offset of the weights' codes comes to.
struct GroupX {
  __m256 scales, excess;
};

template <int kGroup, int kOffset>
GroupX group_of(const CodePanel& x, int64_t k, int64_t r) {
  const float* sums = x.sums + k / 16 * x.width + r;
  __m256 sum = _mm256_loadu_ps(sums);
  if (kGroup == 32) sum = _mm256_add_ps(sum, _mm256_loadu_ps(sums + x.width));
  return {_mm256_loadu_ps(x.scales + k / kCodeBlock * x.width + r), _mm256_mul_ps(sum, _mm256_set1_ps(kOffset))};
}

void add_scaled(__m256i sum, const GroupX& x, const float* w_scale, float* sums) {
  const __m256 product = _mm256_fmsub_ps(_mm256_cvtepi32_ps(sum), x.scales, x.excess);
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(product, _mm256_broadcast_ss(w_scale), _mm256_loadu_ps(sums)));
}

template <int kPlanes>
__attribute__((always_inline)) inline void add_group(__m256i p0, __m256i p1, __m256i p2, __m256i p3, const GroupX& x,
                                                     const float* w_scales, float* sums, int64_t stride) {
  if (kPlanes == 2) {
    add_scaled(wide(p0, p1), x, w_scales, sums);
    add_scaled(wide(p2, p3), x, w_scales + kScales, sums + stride);
    return;
  }
  add_scaled(wide(p0), x, w_scales, sums);
  add_scaled(wide(p1), x, w_scales + kScales, sums + stride);
  add_scaled(wide(p2), x, w_scales + 2 * kScales, sums + 2 * stride);
  add_scaled(wide(p3), x, w_scales + 3 * kScales, sums + 3 * stride);
}

template <int n, int kGroup, int kPlanes, int kOffset>
void multiply_groups(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                     float* sums, int64_t stride) {
  constexpr int64_t kRows = 4 / kPlanes;
  for (int64_t o = 0; o < outputs; o += kRows) {
    for (int64_t k = 0; k < cols; k += kGroup) {
      const Tile t = multiply_tile<n>(kGroup / 4, x.codes + k * 8 * n, codes + k);
      const float* w_scales = scales + k / kGroup;
      add_group<kPlanes>(t.a0, t.a1, t.a2, t.a3, group_of<kGroup, kOffset>(x, k, 0), w_scales, sums, stride);
      if (n == 1) continue;
      add_group<kPlanes>(t.b0, t.b1, t.b2, t.b3, group_of<kGroup, kOffset>(x, k, 8), w_scales, sums + 8, stride);
    }
    codes += 4 * kCodeDepth;
    scales += kRows * kScales;
    sums += kRows * stride;
  }
}

// ---- Weights with a scale per row: integers; kSteps * 4 columns add up in 16 bits.

void add_wide(__m256i sum, int32_t* sums) { store32(sums, _mm256_add_epi32(load32(sums), sum)); }

template <int kPlanes>
__attribute__((always_inline)) inline void add_sums(__m256i p0, __m256i p1, __m256i p2, __m256i p3, int32_t* sums,
                                                    int64_t stride) {
  if (kPlanes == 2) {
    add_wide(wide(p0, p1), sums);
    add_wide(wide(p2, p3), sums + stride);
    return;
  }
  add_wide(wide(p0), sums);
  add_wide(wide(p1), sums + stride);
  add_wide(wide(p2), sums + 2 * stride);
  add_wide(wide(p3), sums + 3 * stride);
}

template <int n, int kSteps, int kPlanes>
void multiply_rows(const CodePanel& x, int64_t cols, const uint8_t* codes, int64_t outputs, int32_t* sums,
                   int64_t stride) {
  constexpr int64_t kRows = 4 / kPlanes;
  const int64_t steps = (cols + 3) / 4;
  for (int64_t o = 0; o < outputs; o += kRows) {
    const auto add = [&](int64_t i, int64_t count) {
      const Tile t = multiply_tile<n>(count, x.codes + 32 * n * i, codes + 4 * i);
      add_sums<kPlanes>(t.a0, t.a1, t.a2, t.a3, sums, stride);
      if (n == 2) add_sums<kPlanes>(t.b0, t.b1, t.b2, t.b3, sums + 8, stride);
    };
    int64_t i = 0;
    for (; i + kSteps <= steps; i += kSteps) add(i, kSteps);  // without a loop where kSteps is 8
    if (i < steps) add(i, steps - i);
    codes += 4 * kCodeDepth;
    sums += kRows * stride;
  }
}
static_assert(kCodeDepth % 256 == 0);
constexpr int64_t kPanelWidth = 16;

template <int kGroup, int kPlanes, int kOffset>
void multiply_blocks(const CodePanel& x, int64_t cols, const uint8_t* codes, const float* scales, int64_t outputs,
                     void* sums, int64_t stride) {
  auto* out = static_cast<float*>(sums);
  if (x.width == 16) return multiply_groups<2, kGroup, kPlanes, kOffset>(x, cols, codes, scales, outputs, out, stride);
  multiply_groups<1, kGroup, kPlanes, kOffset>(x, cols, codes, scales, outputs, out, stride);
}

template <int kSteps, int kPlanes>
void multiply_channels(const CodePanel& x, int64_t cols, const uint8_t* codes, const float*, int64_t outputs,
                       void* sums, int64_t stride) {
  auto* out = static_cast<int32_t*>(sums);
  if (x.width == 16) return multiply_rows<2, kSteps, kPlanes>(x, cols, codes, outputs, out, stride);
  multiply_rows<1, kSteps, kPlanes>(x, cols, codes, outputs, out, stride);
}

}  // namespace

const CodePanelKernel kAvx2CodePanelKernels[kBlockTypes + kChannelTypes] = {
    {DType::Q2_0, Isa::avx2, kPanelWidth, 32, 1, 1, unpacking::unpack_q2_0, multiply_blocks<32, 1, 1>},
    {DType::Q4_0, Isa::avx2, kPanelWidth, 32, 1, 8, unpacking::unpack_q4_0, multiply_blocks<32, 1, 8>},
    {DType::Q8_0, Isa::avx2, kPanelWidth, 32, 2, 128, unpacking::unpack_q8_0<2>, multiply_blocks<32, 2, 128>},
    {DType::Q6_K, Isa::avx2, kPanelWidth, 16, 2, 32, unpacking::unpack_q6_k<2>, multiply_blocks<16, 2, 32>},
    {DType::I2, Isa::avx2, kPanelWidth, 0, 1, 2, unpacking::unpack_i2, multiply_channels<32, 1>},
    {DType::I4, Isa::avx2, kPanelWidth, 0, 1, 8, unpacking::unpack_i4, multiply_channels<8, 1>},
    {DType::I8, Isa::avx2, kPanelWidth, 0, 2, 128, unpacking::unpack_i8<2>, multiply_channels<8, 2>},
};

}  // namespace qat
