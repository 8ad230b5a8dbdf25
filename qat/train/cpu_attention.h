// Causal attention on the CPU without the [length, length] tensors: forward and gradient as plain loops over blocks of
// queries. At the sizes that train on a CPU (heads of 8 to 512) those tensors, not the matrix products, were most of a
// step.
#pragma once

#include <cstdint>

namespace qat {

// All row-major float32. q, out: (batch, length, heads, head_dim); k, v: (batch, length, kv_heads, head_dim).
struct AttentionShape {
  int64_t batch, length, heads, kv_heads, head_dim;
  int64_t window;  // positions a query sees, itself included; 0: all earlier ones
  float scale;     // of q k^T
  int64_t tasks() const { return batch * kv_heads; }
};

bool cpu_attention_available();  // the processor has AVX2 and FMA

// Task t in [0, tasks()) fills its part of out and of softmax (batch, heads, length, 2): each query's largest
// score and 1 / the sum of exponentials. (Their logarithm in one number would lose digits that the gradient shows.)
// Tasks touch disjoint memory, so they may run in any order and on any thread.
void cpu_attention_forward(const AttentionShape& shape, int64_t task, const float* q, const float* k, const float* v,
                           float* out, float* softmax);

// Gradients of q, k, v for the gradient of out. dq, dk, dv are overwritten.
void cpu_attention_backward(const AttentionShape& shape, int64_t task, const float* q, const float* k, const float* v,
                            const float* out, const float* softmax, const float* dout, float* dq, float* dk, float* dv);

}  // namespace qat
