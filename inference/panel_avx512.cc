// Panels with AVX-512: products of floats, and what products of codes leave brought to rows. Number for number what
// kernels_avx2.cc and block_avx2.cc compute. Compiled with AVX-512's flags: see kernels_isa.h for what must not be used
// here.
#include "inference/simd_vnni.h"

namespace qat {
namespace {

// Lane j of v[i] to lane i of v[j].
inline void transpose16(Ints (&v)[16]) {
  Ints t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // v[i + j]: lanes j, 4 + j, 8 + j, 12 + j of four vectors
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Ints low01 = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88), high01 = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    const Ints low23 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    const Ints high23 = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    t[i] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    t[i + 8] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    t[i + 12] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// use(r, lanes) for rows r of what stands at in[o * stride + r], a lane for each of up to 16 outputs. At least 8 rows
// are read of each output, those beyond `rows` never used.
template <class Use>
inline void for_rows(const int32_t* in, int64_t stride, int64_t rows, int64_t outputs, const Use& use) {
  for (int64_t first = 0; first < rows; first += 16) {
    Ints block[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; ++i)
      block[i] = i < outputs ? load_lanes(in + i * stride + first, rows - first <= 8 ? 8 : 16) : zero();
    transpose16(block);
    for (int64_t r = 0; r < 16 && first + r < rows; ++r) use(first + r, block[r]);
  }
}

void store_floats(const float* sums, int64_t stride, int64_t rows, int64_t outputs, float* y, int64_t y_stride) {
  const auto* in = reinterpret_cast<const int32_t*>(sums);
  for (int64_t o = 0; o < outputs; o += 16)
    for_rows(in + o * stride, stride, rows, outputs - o, [&](int64_t r, Ints lanes) {
      store_lanes(y + r * y_stride + o, outputs - o, _mm512_castsi512_ps(lanes));
    });
}

void store_sums(const int32_t* sums, int64_t stride, int64_t rows, int64_t outputs, int32_t offset,
                const int32_t* x_sums, const double* x_scales, const float* w_scales, float* y, int64_t y_stride) {
  for (int64_t o = 0; o < outputs; o += 16) {
    const Floats scales = load_lanes(w_scales + o, outputs - o);
    const __m512d low_scales = _mm512_cvtps_pd(_mm512_castps512_ps256(scales));
    const __m512d high_scales = _mm512_cvtps_pd(_mm512_extractf32x8_ps(scales, 1));
    for_rows(sums + o * stride, stride, rows, outputs - o, [&](int64_t r, Ints lanes) {
      const Ints exact = _mm512_sub_epi32(lanes, splat_int(offset * x_sums[r]));
      const __m512d x_scale = _mm512_set1_pd(x_scales[r]);
      const auto eight = [&](__m256i sum, __m512d w_scale) {
        return _mm512_cvtpd_ps(_mm512_mul_pd(_mm512_cvtepi32_pd(sum), _mm512_mul_pd(x_scale, w_scale)));
      };
      const __m256 low = eight(_mm512_castsi512_si256(exact), low_scales);
      const __m256 high = eight(_mm512_extracti64x4_epi64(exact, 1), high_scales);
      store_lanes(y + r * y_stride + o, outputs - o, _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1));
    });
  }
}

// ---- Floats: 8 rows of weights against a panel of kWidth rows of activations, two vectors or one, all sums in
// registers.

constexpr int kOutputs = 8;
constexpr int64_t kRows = 32;
static_assert(kOutputStep == kOutputs && kRows <= kMostPanelRows);

struct Output {
  float* y;
  int64_t stride;
  int64_t rows, outputs;  // those that exist, from y on
  bool add;
};

// v[i] holds output i of 16 rows.
inline void store_outputs(const Floats* v, const Output& out) {
  Ints block[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) block[i] = i < kOutputs ? _mm512_castps_si512(v[i]) : zero();
  transpose16(block);
  const int64_t outputs = out.outputs < kOutputs ? out.outputs : kOutputs;
  for (int64_t r = 0; r < 16 && r < out.rows; ++r) {
    float* y = out.y + r * out.stride;
    const Floats sum = _mm512_castsi512_ps(block[r]);
    store_lanes(y, outputs, out.add ? add(sum, load_lanes(y, outputs)) : sum);
  }
}

template <int kWidth>
void multiply_outputs(const float* panel, int64_t depth, const float* w, int64_t w_stride, Output out) {
  constexpr bool kTwo = kWidth > 16;
  for (; out.outputs > 0; out.outputs -= kOutputs, out.y += kOutputs, w += kOutputs * w_stride) {
    Floats a[kOutputs], b[kOutputs];
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) a[o] = b[o] = splat(0.0f);
    for (int64_t k = 0; k < depth; ++k) {
      const float* column = panel + k * kWidth;
      const Floats x0 = load_lanes(column, kWidth), x1 = kTwo ? load_lanes(column + 16, kWidth - 16) : x0;
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) {
        const Floats weight = splat(w[o * w_stride + k]);
        a[o] = multiply_add(weight, x0, a[o]);
        if (kTwo) b[o] = multiply_add(weight, x1, b[o]);
      }
    }
    store_outputs(a, out);
    if (kTwo) store_outputs(b, {out.y + 16 * out.stride, out.stride, out.rows - 16, out.outputs, out.add});
  }
}

void multiply_panel(const float* panel, int64_t rows, int64_t depth, const float* w, int64_t w_stride, int64_t outputs,
                    float* y, int64_t y_stride, bool add) {
  const Output out = {y, y_stride, rows, outputs, add};
  if (rows > 24) return multiply_outputs<32>(panel, depth, w, w_stride, out);
  if (rows > 16) return multiply_outputs<24>(panel, depth, w, w_stride, out);
  if (rows > 8) return multiply_outputs<16>(panel, depth, w, w_stride, out);
  return multiply_outputs<8>(panel, depth, w, w_stride, out);
}

}  // namespace

const Avx512Panels kAvx512Panels = {store_floats, store_sums, kRows, multiply_panel};

}  // namespace qat
