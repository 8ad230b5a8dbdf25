#include "qat/train/ops.h"

namespace qat {

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool plus_one) {
  const torch::Tensor normalized = x * (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  if (!weight.defined()) return normalized;
  return normalized * (plus_one ? 1.0 + weight : weight);
}

torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

torch::Tensor gated_activation(const torch::Tensor& gate, const torch::Tensor& up, bool gelu) {
  return (gelu ? at::gelu(gate, "tanh") : at::silu(gate)) * up;
}

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const torch::Tensor& mask,
                        double scale) {
  const int64_t batch = q.size(0), length = q.size(1), heads = q.size(2), head_dim = q.size(3), kv_heads = k.size(2);
  const int64_t group = heads / kv_heads;
  if (kHasFusedAttention) {
    const torch::Tensor keys = k.transpose(1, 2).repeat_interleave(group, 1);
    const torch::Tensor values = v.transpose(1, 2).repeat_interleave(group, 1);
    return fused_attention(q.transpose(1, 2), keys, values, mask, scale).transpose(1, 2).reshape({batch, length, heads * head_dim});
  }
  // The query heads that share a kv head are stacked along its length, so that keys and values are never repeated.
  const torch::Tensor queries = (q * scale).transpose(1, 2).reshape({batch, kv_heads, group * length, head_dim});
  const torch::Tensor scores = torch::matmul(queries, k.permute({0, 2, 3, 1})).view({batch, kv_heads, group, length, length});
  const torch::Tensor weights = torch::softmax(scores + mask, -1).view({batch, kv_heads, group * length, length});
  return torch::matmul(weights, v.transpose(1, 2)).view({batch, heads, length, head_dim}).transpose(1, 2).reshape({batch, length, heads * head_dim});
}

}  // namespace qat
