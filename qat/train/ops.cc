#include "qat/train/ops.h"

#include <ATen/Parallel.h>

#include "qat/train/cpu_attention.h"

namespace qat {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

AttentionShape attention_shape(const Tensor& q, const Tensor& k, int64_t window, double scale) {
  return {q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), window, static_cast<float>(scale)};
}

struct CpuAttention : torch::autograd::Function<CpuAttention> {
  static Tensor forward(AutogradContext* context, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                        int64_t window, double scale) {
    const Tensor q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous();
    const AttentionShape shape = attention_shape(q, k, window, scale);
    const Tensor out = torch::empty_like(q);
    const Tensor softmax = torch::empty({shape.batch, shape.heads, shape.length, 2}, q.options());
    at::parallel_for(0, shape.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        cpu_attention_forward(shape, task, q.data_ptr<float>(), k.data_ptr<float>(), v.data_ptr<float>(),
                              out.data_ptr<float>(), softmax.data_ptr<float>());
    });
    context->save_for_backward({q, k, v, out, softmax});
    context->saved_data["window"] = window;
    context->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &softmax = saved[4];
    const Tensor dout = gradients[0].contiguous();
    const AttentionShape shape =
        attention_shape(q, k, context->saved_data["window"].toInt(), context->saved_data["scale"].toDouble());
    const Tensor dq = torch::empty_like(q), dk = torch::empty_like(k), dv = torch::empty_like(v);
    at::parallel_for(0, shape.tasks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task)
        cpu_attention_backward(shape, task, q.data_ptr<float>(), k.data_ptr<float>(), v.data_ptr<float>(),
                               out.data_ptr<float>(), softmax.data_ptr<float>(), dout.data_ptr<float>(),
                               dq.data_ptr<float>(), dk.data_ptr<float>(), dv.data_ptr<float>());
    });
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

}  // namespace

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

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const torch::Tensor& mask, int64_t window, double scale) {
  static const bool available = cpu_attention_available();
  if (!q.is_cpu() || q.scalar_type() != torch::kFloat32 || !available)
    return attention_tensor_ops(q, k, v, mask, scale);
  return CpuAttention::apply(q, k, v, window, scale).reshape({q.size(0), q.size(1), q.size(2) * q.size(3)});
}

torch::Tensor attention_tensor_ops(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                   const torch::Tensor& mask, double scale) {
  const int64_t batch = q.size(0), length = q.size(1), heads = q.size(2), head_dim = q.size(3), kv_heads = k.size(2);
  const int64_t group = heads / kv_heads;
  if (kHasFusedAttention) {
    const torch::Tensor keys = k.transpose(1, 2).repeat_interleave(group, 1);
    const torch::Tensor values = v.transpose(1, 2).repeat_interleave(group, 1);
    return fused_attention(q.transpose(1, 2), keys, values, mask, scale)
        .transpose(1, 2)
        .reshape({batch, length, heads * head_dim});
  }
  // The query heads that share a kv head are stacked along its length, so that keys and values are never repeated.
  const torch::Tensor queries = (q * scale).transpose(1, 2).reshape({batch, kv_heads, group * length, head_dim});
  const torch::Tensor scores =
      torch::matmul(queries, k.permute({0, 2, 3, 1})).view({batch, kv_heads, group, length, length});
  const torch::Tensor weights = torch::softmax(scores + mask, -1).view({batch, kv_heads, group * length, length});
  return torch::matmul(weights, v.transpose(1, 2))
      .view({batch, heads, length, head_dim})
      .transpose(1, 2)
      .reshape({batch, length, heads * head_dim});
}

}  // namespace qat
