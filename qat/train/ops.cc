#include "qat/train/ops.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "qat/train/cpu_attention.h"
#include "qat/train/cpu_elementwise.h"

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

constexpr int64_t kRows = 64;  // of a task; fixed, so that sums over tasks do not depend on the number of threads

// body(first row, rows) for tasks of kRows.
template <class Body>
void for_tasks(int64_t rows, const Body& body) {
  at::parallel_for(0, (rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) body(task * kRows, std::min(kRows, rows - task * kRows));
  });
}

struct CpuRmsNorm : torch::autograd::Function<CpuRmsNorm> {
  // weight: empty for none, since LibTorch 1.13 takes no undefined tensor here.
  static Tensor forward(AutogradContext* context, const Tensor& x_in, const Tensor& weight_in, double eps,
                        bool plus_one) {
    const Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    const int64_t cols = x.size(-1), rows = x.numel() / cols;
    const Tensor out = torch::empty_like(x), inverse = torch::empty({rows}, x.options());
    const float* w = weight.numel() > 0 ? weight.data_ptr<float>() : nullptr;
    for_tasks(rows, [&](int64_t first, int64_t count) {
      cpu_rms_norm(x.data_ptr<float>() + first * cols, w, plus_one ? 1.0f : 0.0f, count, cols, eps,
                   out.data_ptr<float>() + first * cols, inverse.data_ptr<float>() + first);
    });
    context->save_for_backward({x, weight, inverse});
    context->saved_data["plus_one"] = plus_one;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &inverse = saved[2];
    const Tensor dout = gradients[0].contiguous(), dx = torch::empty_like(x);
    const int64_t cols = x.size(-1), rows = x.numel() / cols;
    const bool weighted = weight.numel() > 0, of_weight = weighted && context->needs_input_grad(1);
    const Tensor partial = torch::zeros({of_weight ? (rows + kRows - 1) / kRows : 0, cols}, x.options());
    for_tasks(rows, [&](int64_t first, int64_t count) {
      cpu_rms_norm_backward(x.data_ptr<float>() + first * cols, weighted ? weight.data_ptr<float>() : nullptr,
                            context->saved_data["plus_one"].toBool() ? 1.0f : 0.0f, inverse.data_ptr<float>() + first,
                            dout.data_ptr<float>() + first * cols, count, cols, dx.data_ptr<float>() + first * cols,
                            of_weight ? partial.data_ptr<float>() + first / kRows * cols : nullptr);
    });
    return {dx, of_weight ? partial.sum(0) : Tensor(), Tensor(), Tensor()};
  }
};

struct CpuGated : torch::autograd::Function<CpuGated> {
  static constexpr int64_t kPiece = 1 << 14;
  static Tensor forward(AutogradContext* context, const Tensor& gate_in, const Tensor& up_in, bool gelu) {
    const Tensor gate = gate_in.contiguous(), up = up_in.contiguous(), out = torch::empty_like(gate);
    at::parallel_for(0, gate.numel(), kPiece, [&](int64_t begin, int64_t end) {
      cpu_gated(gate.data_ptr<float>() + begin, up.data_ptr<float>() + begin, gelu, end - begin,
                out.data_ptr<float>() + begin);
    });
    context->save_for_backward({gate, up});
    context->saved_data["gelu"] = gelu;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], dout = gradients[0].contiguous();
    const Tensor dgate = torch::empty_like(gate), dup = torch::empty_like(up);
    const bool gelu = context->saved_data["gelu"].toBool();
    at::parallel_for(0, gate.numel(), kPiece, [&](int64_t begin, int64_t end) {
      cpu_gated_backward(gate.data_ptr<float>() + begin, up.data_ptr<float>() + begin, dout.data_ptr<float>() + begin,
                         gelu, end - begin, dgate.data_ptr<float>() + begin, dup.data_ptr<float>() + begin);
    });
    return {dgate, dup, Tensor()};
  }
};

// x (batch, length, heads, 2 * half), contiguous; cos, sin (length, 1, half).
Tensor rotated(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) {
  const int64_t length = x.size(1), heads = x.size(2), width = x.size(3), half = width / 2;
  const Tensor out = torch::empty_like(x);
  at::parallel_for(0, x.size(0) * length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      cpu_rotate(x.data_ptr<float>() + r * heads * width, cos.data_ptr<float>() + r % length * half,
                 sin.data_ptr<float>() + r % length * half, heads, half, inverse,
                 out.data_ptr<float>() + r * heads * width);
  });
  return out;
}

struct CpuRotate : torch::autograd::Function<CpuRotate> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& cos_in, const Tensor& sin_in) {
    const Tensor cos = cos_in.contiguous(), sin = sin_in.contiguous();
    context->save_for_backward({cos, sin});
    return rotated(x.contiguous(), cos, sin, false);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    return {rotated(gradients[0].contiguous(), saved[0], saved[1], true), Tensor(), Tensor()};
  }
};

}  // namespace

bool uses_cpu_loops(const torch::Tensor& x) {
  static const bool available = cpu_elementwise_available() && cpu_attention_available();
  return available && x.is_cpu() && x.scalar_type() == torch::kFloat32;
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool plus_one) {
  if (uses_cpu_loops(x))
    return CpuRmsNorm::apply(x, weight.defined() ? weight : torch::empty({0}, x.options()), eps, plus_one);
  return rms_norm_tensor_ops(x, weight, eps, plus_one);
}

torch::Tensor rms_norm_tensor_ops(const torch::Tensor& x, const torch::Tensor& weight, double eps, bool plus_one) {
  const torch::Tensor normalized = x * (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  if (!weight.defined()) return normalized;
  return normalized * (plus_one ? 1.0 + weight : weight);
}

torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin) {
  return uses_cpu_loops(x) ? CpuRotate::apply(x, cos, sin) : rotate_tensor_ops(x, cos, sin);
}

torch::Tensor rotate_tensor_ops(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  return torch::cat({halves[0] * cos - halves[1] * sin, halves[1] * cos + halves[0] * sin}, -1);
}

torch::Tensor gated_activation(const torch::Tensor& gate, const torch::Tensor& up, bool gelu) {
  return uses_cpu_loops(gate) ? CpuGated::apply(gate, up, gelu) : gated_activation_tensor_ops(gate, up, gelu);
}

torch::Tensor gated_activation_tensor_ops(const torch::Tensor& gate, const torch::Tensor& up, bool gelu) {
  return (gelu ? at::gelu(gate, "tanh") : at::silu(gate)) * up;
}

torch::Tensor attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                        const torch::Tensor& mask, int64_t window, double scale) {
  if (!uses_cpu_loops(q)) return attention_tensor_ops(q, k, v, mask, scale);
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
