// Pieces of the model's layers. On a CPU with AVX2 and in float32, loops of our own (cpu_elementwise.h,
// cpu_attention.h) compute them and their gradients, each in one pass over memory; elsewhere tensor operations do,
// which are also what the loops are tested against.
#pragma once

#include <cstdint>

#include "fakequant/libtorch.h"

namespace qat {

bool uses_cpu_loops(const torch::Tensor& x);

// x / sqrt(mean(x^2) + eps) over the last dimension, times weight, or 1 + weight, or nothing when weight is undefined.
torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool plus_one);
torch::Tensor rms_norm_tensor_ops(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool plus_one);

// Rotates the pairs (i, i + head_dim/2) of x (batch, length, heads, head_dim). cos, sin: (length, 1, head_dim / 2).
torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin);
torch::Tensor rotate_tensor_ops(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin);

// gelu_tanh(gate) * up, or silu(gate) * up.
torch::Tensor gated_activation(const torch::Tensor& gate, const torch::Tensor& up, bool gelu);
torch::Tensor gated_activation_tensor_ops(const torch::Tensor& gate, const torch::Tensor& up, bool gelu);

// Causal attention. q: (batch, length, heads, head_dim); k, v: (batch, length, kv_heads, head_dim), query head j reads
// kv head j / (heads / kv_heads). window: positions a query sees, itself included, 0 for all earlier ones; mask says
// the same as a (length, length) tensor of 0 and -infinity. Returns (batch, length, heads * head_dim).
torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const torch::Tensor& mask, int64_t window, double scale);
torch::Tensor attention_tensor_ops(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                   const torch::Tensor& mask, double scale);

}  // namespace qat
