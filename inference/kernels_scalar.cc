// The reference: what every other kernel is tested against. Written to be read; sums are kept in double.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/channel_grid.h"
#include "format/grid.h"
#include "format/number.h"
#include "inference/kernels_isa.h"

namespace qat {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  double sum[4] = {0.0, 0.0, 0.0, 0.0};  // four chains, or the latency of an addition is all one sees
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) sum[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
  for (; i < n; ++i) sum[0] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <DType type>
void decode(const uint8_t* row, int64_t cols, float* out) {
  decode_rows(type, row, 1, cols, out);
}

template <DType type>
float dot_row(const uint8_t* row, const float* x, int64_t cols) {
  constexpr int64_t kPiece = kSuperBlock;  // a multiple of every block size
  float weights[kPiece];
  double sum = 0.0;
  for (int64_t k = 0; k < cols; k += kPiece) {
    const int64_t n = std::min(kPiece, cols - k);
    decode_rows(type, row + row_bytes(type, k), 1, n, weights);
    sum += dot(weights, x + k, n);
  }
  return static_cast<float>(sum);
}

template <int bits>
void decode_codes(const uint8_t* row, int64_t cols, float scale, float* out) {
  decode_packed(bits, row, 0, cols, scale, out);
}

template <int bits>
float dot_codes(const uint8_t* row, int64_t cols, float scale, const float* x) {
  constexpr int64_t kPiece = 256;
  float weights[kPiece];
  double sum = 0.0;
  for (int64_t k = 0; k < cols; k += kPiece) {
    const int64_t n = std::min(kPiece, cols - k);
    decode_packed(bits, row, k, n, scale, weights);
    sum += dot(weights, x + k, n);
  }
  return static_cast<float>(sum);
}

template <int bits>
void multiply_codes(const uint8_t* w, int64_t w_stride, int64_t outputs, const int8_t* arranged, int64_t rows,
                    int64_t cols, int32_t* sums) {
  constexpr int64_t kPiece = 256;
  int8_t weights[kPiece];
  std::fill_n(sums, outputs * rows, 0);
  for (int64_t o = 0; o < outputs; ++o, w += w_stride, sums += rows) {
    for (int64_t k = 0; k < cols; k += kPiece) {
      const int64_t n = std::min(kPiece, cols - k);
      unpack_codes(bits, w + k * bits / 8, 1, n, weights);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) sums[r] += weights[i] * arranged[r * arranged_bytes(cols) + k + i];
    }
  }
}

void arrange_codes(const int8_t* codes, int64_t cols, int8_t* out) { std::copy_n(codes, cols, out); }

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const double mean_square = dot(x, x, n) / static_cast<double>(n);
  const float scale = static_cast<float>(1.0 / std::sqrt(mean_square + static_cast<double>(eps)));
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * (weight != nullptr ? weight[i] : 1.0f);
}

void gelu_multiply(float* gate, const float* x, int64_t n) {
  const double c = std::sqrt(2.0 / M_PI);
  for (int64_t i = 0; i < n; ++i) {
    const double g = static_cast<double>(gate[i]);
    gate[i] = static_cast<float>(0.5 * g * (1.0 + std::tanh(c * (g + 0.044715 * g * g * g)))) * x[i];
  }
}

void silu_multiply(float* gate, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double g = static_cast<double>(gate[i]);
    gate[i] = static_cast<float>(g / (1.0 + std::exp(-g))) * x[i];
  }
}

void softcap(float* x, int64_t n, float cap) {
  for (int64_t i = 0; i < n; ++i) x[i] = cap * std::tanh(x[i] / cap);
}

float max(const float* x, int64_t n) { return *std::max_element(x, x + n); }

void round_to_grid(float* x, int64_t n, float scale) { round_activations(x, n, scale, x); }

double sum_exp(const float* x, int64_t n, float shift) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(std::exp(x[i] - shift));
  return sum;
}

SoftmaxSum softmax(float* x, int64_t n, const void*) {
  const float largest = max(x, n);
  const double sum = sum_exp(x, n, largest);
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(static_cast<double>(std::exp(x[i] - largest)) / sum);
  return {largest, static_cast<float>(sum)};
}

double kl(const float* base, float base_lse, const float* x, float lse, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    const float log_p = base[i] - base_lse;
    if (log_p > -16.0f) sum += static_cast<double>(std::exp(log_p) * (log_p - x[i] + lse));
  }
  return sum;
}

void decode_pairs(const uint8_t* data, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kPairedCodes, data += kPairedCodes / 2)
    for (int64_t k = 0; k < kPairedCodes / 2; ++k) {
      const int pair = static_cast<int8_t>(data[k]), lower = pair & 15;
      out[i + k] = static_cast<float>(lower - (lower & 8) * 2);
      out[i + k + kPairedCodes / 2] = static_cast<float>(pair >> 4);
    }
}

const float* floats_at(const CachedRows& rows, int64_t j) {
  return reinterpret_cast<const float*>(rows.data + j * rows.stride);
}

void scores(const float* q, int64_t q_stride, int64_t heads, const CachedRows& k, float scale, float* out,
            int64_t out_stride) {
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t j = 0; j < k.count; ++j)
      out[h * out_stride + j] = scale * static_cast<float>(dot(q + h * q_stride, floats_at(k, j), k.cols));
}

void mix(const float* weights, int64_t weight_stride, int64_t heads, const CachedRows& v, bool add, float* out,
         int64_t out_stride) {
  for (int64_t h = 0; h < heads; ++h, weights += weight_stride, out += out_stride)
    for (int64_t i = 0; i < v.cols; ++i) {
      double sum = add ? static_cast<double>(out[i]) : 0.0;
      for (int64_t j = 0; j < v.count; ++j)
        sum += static_cast<double>(weights[j]) * static_cast<double>(floats_at(v, j)[i]);
      out[i] = static_cast<float>(sum);
    }
}

void key_scores(const CodedQueries& q, int64_t heads, const KeyGroups& keys, float scale, float* out,
                int64_t out_stride) {
  const int64_t cols = keys.cols, blocks = cols / kCodeBlock;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t place = keys.first; place < keys.last; ++place) {
      const uint8_t* group = keys.data + place / kKeyGroup * keys.stride;
      const auto* codes = reinterpret_cast<const int8_t*>(group + blocks * kKeyGroup * 2);
      const int64_t j = place % kKeyGroup;
      double sum = 0.0;
      for (int64_t b = 0; b < blocks; ++b) {
        uint16_t half;
        std::memcpy(&half, group + (b * kKeyGroup + j) * 2, sizeof half);
        int32_t of_codes = 0;
        for (int64_t k = b * kCodeBlock; k < (b + 1) * kCodeBlock; ++k)
          of_codes += q.codes[h * cols + k] * codes[(k / 4 * kKeyGroup + j) * 4 + k % 4];
        sum += static_cast<double>(f16_to_f32(half)) * static_cast<double>(q.scales[h * blocks + b]) * of_codes;
      }
      out[h * out_stride + place - keys.first] = scale * static_cast<float>(sum);
    }
}

template <DType type>
constexpr RowKernel row_kernel() {
  return {type, Isa::scalar, decode<type>, dot_row<type>};
}

template <int bits>
ChannelKernel channel_kernel() {
  return {code_type(bits), Isa::scalar, decode_codes<bits>, dot_codes<bits>, multiply_codes<bits>, arrange_codes};
}

}  // namespace

const RowKernel kScalarRowKernels[kRunnableTypes] = {
    row_kernel<DType::F32>(),  row_kernel<DType::F16>(),  row_kernel<DType::BF16>(), row_kernel<DType::Q2_0>(),
    row_kernel<DType::Q4_0>(), row_kernel<DType::Q8_0>(), row_kernel<DType::Q6_K>(),
};

const ChannelKernel kScalarChannelKernels[kChannelTypes] = {channel_kernel<2>(), channel_kernel<4>(),
                                                            channel_kernel<8>()};

const VectorKernels kScalarVectorKernels = {Isa::scalar, rms_norm, gelu_multiply, silu_multiply,
                                            softcap,     max,      round_to_grid, sum_exp,
                                            softmax,     kl,       decode_pairs};

const KeyKernel kScalarKeyKernel = {Isa::scalar, key_scores};

const CacheKernel kScalarCacheKernel = {DType::F32, Isa::scalar, 1.0f, scores, mix};

}  // namespace qat
