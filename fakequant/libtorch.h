// The one door to LibTorch. The parts of torch/torch.h that this project uses compile in a third of its time; what
// differs between LibTorch versions (1.13 to the newest 2.x) is told apart here and nowhere else.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>
#include <torch/version.h>

#if AT_PARALLEL_OPENMP && !defined(_OPENMP)
#error "at::parallel_for would be a plain loop: compile with -fopenmp"
#endif

namespace qat {

// LibTorch 2.1 and newer: fused attention with a scale argument.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 1)
constexpr bool kHasFusedAttention = true;
// q: (batch, heads, length, head_dim); k, v: the same shape. mask: (length, length) added to the scores; undefined =
// causal.
inline torch::Tensor fused_attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                     const torch::Tensor& mask, double scale) {
  // A mask of another type than q is not refused on the CPU, it is misread.
  if (mask.defined()) return at::scaled_dot_product_attention(q, k, v, mask.to(q.scalar_type()), 0.0, false, scale);
  return at::scaled_dot_product_attention(q, k, v, {}, 0.0, true, scale);
}
#else
constexpr bool kHasFusedAttention = false;
inline torch::Tensor fused_attention(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                                     const torch::Tensor&, double) {
  return {};
}
#endif

// Deterministic algorithms of LibTorch 2.2 and newer also fill every tensor that is about to be overwritten: work for
// nothing, since nothing here reads such memory.
inline void leave_memory_unfilled() {
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 2)
  at::globalContext().setDeterministicFillUninitializedMemory(false);
#endif
}

}  // namespace qat
