// Activations on the static grid of one scale per tensor: what goes into a linear layer, what comes out, and keys and
// values on their way into the cache.
#pragma once

#include "fakequant/learned_scale.h"
#include "format/observer.h"

namespace qat {

// x (..., features), float32, rounded (float64, for checks of a whole forward pass: as the float32 nearest to it): on
// the CPU, bit for bit format/'s fake_quantize_channel (at 8 bits round_activations). log_scale: one element, or
// undefined: off (x itself), as a scale of 0 in a file. Tensors whose scales the schema ties are given the same
// log_scale. Differentiable in both: lsq_quantize with the factor of `features` numbers (not of all tokens), the
// gradient of x being 0 where it is clipped.
torch::Tensor static_quantize(const torch::Tensor& x, const torch::Tensor& log_scale, int bits);

// log(scale) of one element, or undefined for a scale of 0.
torch::Tensor static_log_scale(float scale);

// Shows x, float32 on any device, to an observer as one batch.
void observe(const torch::Tensor& x, ActivationObserver& observer);

}  // namespace qat
