#include "qat/train/adam8bit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "format/error.h"

namespace qat {
namespace {

using torch::Tensor;

constexpr int kDropped = 20;  // of float32's 23 bits of mantissa
constexpr float kTop = 1.875f;
// What a code's magnitude 0 would be as the upper 12 bits of a float32: 2^-15 and 2^-31.
constexpr int32_t kMeanOffset = (127 - 15) << 3, kSquareOffset = (127 - 31) << 3;
constexpr float kLeastMean = 1.125f / (1 << 15);  // code 1
// Fractions of the golden ratio and of the root of 2, as parts of 2^32: multiples of either are spread evenly over
// [0, 1), however many there are.
constexpr uint32_t kGolden = 0x9e3779b9u, kRootTwo = 0x6a09e667u;

float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
int32_t as_int(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

using Table = std::array<float, 256>;

Table mean_table() {
  Table table{};
  for (uint32_t c = 1; c < 128; ++c) {
    table[c] = as_float((c + kMeanOffset) << kDropped);
    table[c + 128] = -table[c];
  }
  return table;
}
Table square_table() {
  Table table{};
  for (uint32_t c = 1; c < 256; ++c) table[c] = as_float((c + kSquareOffset) << kDropped);
  return table;
}
const Table kMeans = mean_table(), kSquares = square_table();

// 20 bits: what is added to the bits that rounding drops.
int32_t dither(uint32_t i, uint32_t step, uint32_t of_index, uint32_t of_step) {
  return static_cast<int32_t>((i * of_index + step * of_step) >> (32 - kDropped));
}

// y: relative to the block's scale.
uint8_t mean_code(float y, int32_t dither) {
  const float size = std::min(std::fabs(y), kTop);
  const int32_t rounded = ((as_int(size) + dither) >> kDropped) - kMeanOffset;
  const int32_t small = size * static_cast<float>(1 << kDropped) > kLeastMean * static_cast<float>(dither) ? 1 : 0;
  const int32_t code = size < kLeastMean ? small : rounded;
  return static_cast<uint8_t>(code | (y < 0.0f && code != 0 ? 128 : 0));
}
uint8_t square_code(float y, int32_t dither) {
  const int32_t rounded = ((as_int(std::min(y, kTop)) + dither) >> kDropped) - kSquareOffset;
  return static_cast<uint8_t>(y > 0.0f ? std::max(rounded, 1) : 0);
}

float scale_of(float largest) { return largest / kTop; }
float divisor(float scale) { return scale > 0.0f ? scale : 1.0f; }

// The n <= kMomentBlock elements from `first` on; rates: one for each.
void update_block(const AdamUpdate& u, const float* rates, uint32_t step, int64_t first, int64_t n,
                  const float* gradient, float* w, uint8_t* mean_codes, float* mean_scale, uint8_t* square_codes,
                  float* square_scale) {
  float mean[kMomentBlock], square[kMomentBlock], largest_mean = 0.0f, largest_square = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    mean[i] = kMeans[mean_codes[i]] * *mean_scale;
    square[i] = kSquares[square_codes[i]] * *square_scale;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * u.gradient_scale;
    mean[i] += (g - mean[i]) * (1.0f - u.beta1);
    square[i] = square[i] * u.beta2 + (1.0f - u.beta2) * g * g;
    w[i] = w[i] * u.keep - rates[i] * mean[i] / (std::sqrt(square[i]) * u.root_correction + u.eps);
    largest_mean = std::max(largest_mean, std::fabs(mean[i]));
    largest_square = std::max(largest_square, square[i]);
  }
  *mean_scale = scale_of(largest_mean);
  *square_scale = scale_of(largest_square);
  const float mean_divisor = divisor(*mean_scale), square_divisor = divisor(*square_scale);
  for (int64_t i = 0; i < n; ++i) {
    const auto index = static_cast<uint32_t>(first + i);
    mean_codes[i] = mean_code(mean[i] / mean_divisor, dither(index, step, kRootTwo, kGolden));
    square_codes[i] = square_code(square[i] / square_divisor, dither(index, step, kGolden, kRootTwo));
  }
}

// --- Tensor operations: the elements as rows of kMomentBlock ---

Tensor table_tensor(const Table& table, torch::Device device) {
  return torch::from_blob(const_cast<float*>(table.data()), {256}, torch::kFloat32).clone().to(device);
}

Tensor decoded(const Moment& moment, const Table& table) {
  const Tensor rows =
      at::constant_pad_nd(moment.values, {0, moment.scales.numel() * kMomentBlock - moment.values.numel()});
  return table_tensor(table, moment.values.device())
      .index_select(0, rows.to(torch::kInt32))
      .view({-1, kMomentBlock})
      .mul_(moment.scales.view({-1, 1}));
}

Tensor dither_tensor(int64_t first, int64_t count, int64_t step, int64_t of_index, int64_t of_step,
                     torch::Device device) {
  const int64_t mask = 0xffffffff, start = (first * of_index + step * of_step) & mask;
  const Tensor index = torch::arange(count, torch::TensorOptions().dtype(torch::kInt64).device(device));
  return index.mul_(of_index).add_(start).bitwise_and_(mask).floor_divide_(1 << (32 - kDropped)).to(torch::kInt32);
}

Tensor rounded_codes(const Tensor& size, const Tensor& dither, int32_t offset) {
  const Tensor bits = size.view(torch::kInt32).add(dither);
  return at::bitwise_right_shift(bits, kDropped).sub_(offset);
}

// Sets `moment` to the numbers of `rows`, of which the first `count` are the parameter's, `first` the index of the
// first.
void encode_mean(const Tensor& rows, int64_t first, int64_t step, Moment& moment) {
  const Tensor scales = rows.abs().amax(1).div_(kTop);
  const Tensor y = rows / torch::where(scales > 0.0f, scales, torch::ones_like(scales)).view({-1, 1});
  const Tensor size = y.abs().clamp_max_(kTop);
  const Tensor dither = dither_tensor(first, rows.numel(), step, kRootTwo, kGolden, rows.device()).view_as(rows);
  const Tensor small = (size * static_cast<float>(1 << kDropped) > dither.to(torch::kFloat32) * kLeastMean);
  Tensor code = torch::where(size < kLeastMean, small.to(torch::kInt32), rounded_codes(size, dither, kMeanOffset));
  code = code + (y < 0.0f).logical_and_(code != 0).to(torch::kInt32).mul_(128);
  moment.values.copy_(code.view(-1).narrow(0, 0, moment.values.numel()));
  moment.scales.copy_(scales);
}

void encode_square(const Tensor& rows, int64_t first, int64_t step, Moment& moment) {
  const Tensor scales = rows.amax(1).div_(kTop);
  const Tensor y = rows / torch::where(scales > 0.0f, scales, torch::ones_like(scales)).view({-1, 1});
  const Tensor dither = dither_tensor(first, rows.numel(), step, kGolden, kRootTwo, rows.device()).view_as(rows);
  const Tensor code = rounded_codes(y.clamp_max(kTop), dither, kSquareOffset).clamp_min_(1).mul_(y > 0.0f);
  moment.values.copy_(code.view(-1).narrow(0, 0, moment.values.numel()));
  moment.scales.copy_(scales);
}

// Elements [first, first + count), first a multiple of kMomentBlock.
Moment part_of(const Moment& moment, int64_t first, int64_t count) {
  return {moment.values.narrow(0, first, count),
          moment.scales.narrow(0, first / kMomentBlock, (count + kMomentBlock - 1) / kMomentBlock)};
}

}  // namespace

Moment coded_zeros(int64_t count, torch::Device device) {
  const auto options = torch::TensorOptions().device(device);
  return {torch::zeros({count}, options.dtype(torch::kUInt8)),
          torch::zeros({(count + kMomentBlock - 1) / kMomentBlock}, options.dtype(torch::kFloat32))};
}

torch::Tensor decoded_mean(const Moment& mean) {
  return decoded(mean, kMeans).view(-1).narrow(0, 0, mean.values.numel());
}
torch::Tensor decoded_square(const Moment& square) {
  return decoded(square, kSquares).view(-1).narrow(0, 0, square.values.numel());
}

void update_coded_cpu(const AdamUpdate& u, const torch::Tensor& units, int64_t step, const torch::Tensor& gradient,
                      torch::Tensor& w, Moment& mean, Moment& square) {
  constexpr int64_t kBlocksPerTask = 64;
  const int64_t count = w.numel(), run = units.defined() ? count / units.numel() : count;
  const float *g = gradient.data_ptr<float>(), *unit = units.defined() ? units.data_ptr<float>() : nullptr;
  float *to = w.data_ptr<float>(), *mean_scales = mean.scales.data_ptr<float>(),
        *square_scales = square.scales.data_ptr<float>();
  uint8_t *means = mean.values.data_ptr<uint8_t>(), *squares = square.values.data_ptr<uint8_t>();
  at::parallel_for(0, mean.scales.numel(), kBlocksPerTask, [&](int64_t begin, int64_t end) {
    float rates[kMomentBlock];
    std::fill(rates, rates + kMomentBlock, u.rate);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kMomentBlock, n = std::min(kMomentBlock, count - at);
      for (int64_t i = 0; unit != nullptr && i < n; ++i) rates[i] = u.rate * unit[(at + i) / run];
      update_block(u, rates, static_cast<uint32_t>(step), at, n, g + at, to + at, means + at, mean_scales + block,
                   squares + at, square_scales + block);
    }
  });
}

void update_coded_tensor_ops(const AdamUpdate& u, const torch::Tensor& units, int64_t step,
                             const torch::Tensor& gradient, torch::Tensor& w, Moment& mean, Moment& square) {
  constexpr int64_t kPart = int64_t{1} << 22;  // elements whose means exist as float32 at once
  const Tensor all_g = gradient.view(-1), all_w = w.view(-1);
  const Tensor rates =
      units.defined() ? (units * u.rate).view({-1, 1}).expand({-1, w.numel() / units.numel()}).reshape(-1) : Tensor();
  for (int64_t first = 0; first < w.numel(); first += kPart) {
    const int64_t count = std::min(kPart, w.numel() - first);
    Moment own_mean = part_of(mean, first, count), own_square = part_of(square, first, count);
    const Tensor m = decoded(own_mean, kMeans), v = decoded(own_square, kSquares);
    const Tensor g =
        at::constant_pad_nd(all_g.narrow(0, first, count), {0, m.numel() - count}).mul(u.gradient_scale).view_as(m);
    m.add_((g - m).mul_(1.0f - u.beta1));
    v.mul_(u.beta2).addcmul_(g, g, 1.0f - u.beta2);
    const Tensor change = m.div(v.sqrt().mul_(u.root_correction).add_(u.eps)).view(-1).narrow(0, 0, count);
    Tensor own_w = all_w.narrow(0, first, count);
    own_w.mul_(u.keep).sub_(rates.defined() ? change.mul(rates.narrow(0, first, count)) : change.mul(u.rate));
    encode_mean(m, first, step, own_mean);
    encode_square(v, first, step, own_square);
  }
}

}  // namespace qat
