// Adam's two running means in 8 bits each, blocks of 256 numbers with a float32 scale, after Dettmers, Lewis, Shleifer,
// Zettlemoyer, "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861): 2.03 bytes per weight instead of 8.
//
// A code is a small floating-point number relative to its block's largest magnitude, which is code 1.875: 3 bits of
// mantissa; the mean has a sign and 4 bits of exponent (1 : 5.5e4 within a block), the mean square, which needs the
// square of that range, 5 (1 : 3.6e9). So what is small beside its block keeps its relative precision, as under the
// paper's dynamic exponents: an update is the mean over the root of the mean square, and a row of an embedding that is
// seldom read shares blocks with rows that are read often. A mean square that is not 0 never becomes code 0, whose
// update would be as large as eps lets it be.
//
// Rounding is dithered: up or down in proportion to what is nearer. To the nearest would not do, since beta2 = 0.999
// moves a mean by a thousandth of itself per step, codes are 6 to 12 % apart, and the mean would stay where it is.
// The dither is a Weyl sequence in the element's index and the step's number, so that a step draws no random number, a
// resumed run has the same bits, and the thread count does not matter.
#pragma once

#include <cstdint>

#include "fakequant/libtorch.h"

namespace qat {

constexpr int64_t kMomentBlock = 256;  // numbers that share a scale

// The factors of one update, the same for all elements of a parameter.
struct AdamUpdate {
  float keep;  // 1 - lr * weight_decay
  float beta1, beta2;
  float rate;             // lr / (1 - beta1^t)
  float root_correction;  // 1 / sqrt(1 - beta2^t)
  float eps;
  float gradient_scale;
};

// One of the two means of one parameter: float32 in the parameter's shape, or codes.
struct Moment {
  torch::Tensor values;  // float32, or codes: uint8, one dimension
  torch::Tensor scales;  // of each block of codes; undefined for float32
};

Moment coded_zeros(int64_t count, torch::Device device);
// The numbers that codes stand for, float32 of one dimension.
torch::Tensor decoded_mean(const Moment& mean);
torch::Tensor decoded_square(const Moment& square);

// One update of `w` and of both means. units: as update_cpu() of optimizer.cc has them, undefined: 1. step: the number
// of the update. The loop of the CPU, in parallel over blocks, and the same in tensor operations for any device.
void update_coded_cpu(const AdamUpdate& u, const torch::Tensor& units, int64_t step, const torch::Tensor& gradient,
                      torch::Tensor& w, Moment& mean, Moment& square);
void update_coded_tensor_ops(const AdamUpdate& u, const torch::Tensor& units, int64_t step,
                             const torch::Tensor& gradient, torch::Tensor& w, Moment& mean, Moment& square);

}  // namespace qat
