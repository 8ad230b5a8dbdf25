#include "fakequant/block_scale.h"

#include <algorithm>
#include <cmath>

#include "fakequant/learned_scale.h"
#include "format/error.h"

namespace qat {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int kBits = 4;
constexpr int64_t kBlocksPerTask = 512;
constexpr double kLeastScale = 5.9604644775390625e-8, kLargestScale = 65504.0;  // float16

double factor() { return lsq_factor(kBlockSize, kBits); }

template <typename Work>
void for_each_block(int64_t count, const Work& work) {
  at::parallel_for(0, count, kBlocksPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i, i * kBlockSize);
  });
}

Tensor forward_cpu(const Tensor& x, const Tensor& d) {
  Tensor out = torch::empty_like(x);
  const float *from = x.data_ptr<float>(), *scale = d.data_ptr<float>();
  float* to = out.data_ptr<float>();
  for_each_block(d.numel(),
                 [&](int64_t i, int64_t at) { decode_block(encode_q4_0_with_scale(from + at, scale[i]), to + at); });
  return out;
}

// dL/dd.
float block_scale_gradient(const float* x, const float* gradient, float d) {
  const float inverse = 1.0f / d;
  float of_scale = 0.0f;
  for (int j = 0; j < kBlockSize; ++j) {
    const float level = x[j] * inverse, code = std::min(std::max(std::floor(level + 0.5f), -8.0f), 7.0f);
    const bool inside = (level >= -8.0f) & (level <= 7.0f);
    of_scale += gradient[j] * (code - (inside ? level : 0.0f));
  }
  return of_scale;
}

// (blocks) dL/dlog_scale.
Tensor scale_backward_cpu(const Tensor& x, const Tensor& d, const Tensor& gradient) {
  Tensor out = torch::empty_like(d);
  const float *from = x.data_ptr<float>(), *g = gradient.data_ptr<float>(), *scale = d.data_ptr<float>();
  float* dlog_scale = out.data_ptr<float>();
  const auto times = static_cast<float>(factor());
  for_each_block(d.numel(), [&](int64_t i, int64_t at) {
    dlog_scale[i] = times * scale[i] * block_scale_gradient(from + at, g + at, scale[i]);
  });
  return out;
}

struct BlockQuantize : torch::autograd::Function<BlockQuantize> {
  static Tensor forward(AutogradContext* context, const Tensor& w, const Tensor& log_scale, const Tensor& sign) {
    const Tensor x = w.contiguous(), d = stored_block_scales(log_scale, sign).contiguous();
    context->save_for_backward({x, d});
    if (x.is_cpu()) return forward_cpu(x, d);
    return block_quantize_tensor_ops(x.view({-1, kBlockSize}), d.view({-1, 1})).view_as(x);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &d = saved[1];
    const Tensor g = gradients[0].contiguous();
    const Tensor of_scale = x.is_cpu() ? scale_backward_cpu(x, d, g)
                                       : block_scale_backward_tensor_ops(x.view({-1, kBlockSize}), d.view({-1, 1}),
                                                                         g.view({-1, kBlockSize}));
    return {g, of_scale.view_as(d), Tensor()};
  }
};

void check_shapes(const Tensor& w, const Tensor& log_scale, const Tensor& sign) {
  QAT_CHECK(log_scale.numel() > 0 && sign.numel() == log_scale.numel());
  QAT_CHECK(w.size(-1) % kBlockSize == 0 && w.numel() == log_scale.numel() * kBlockSize);
}

}  // namespace

torch::Tensor stored_block_scales(const torch::Tensor& log_scale, const torch::Tensor& sign) {
  const torch::NoGradGuard no_grad;
  // The exponential in double: rounded to 11 bits afterwards, it is the same whoever's exp computes it.
  const Tensor magnitude = log_scale.detach().to(torch::kFloat64).exp().clamp(kLeastScale, kLargestScale);
  return magnitude.to(torch::kFloat32).to(torch::kFloat16).to(torch::kFloat32).mul_(sign);
}

BlockScales block_scales_of(const torch::Tensor& d) {
  const torch::NoGradGuard no_grad;
  return {d.abs().to(torch::kFloat64).clamp_min(kLeastScale).log().to(torch::kFloat32),
          torch::where(d < 0, -torch::ones_like(d), torch::ones_like(d))};
}

BlockScales reference_block_scales(const torch::Tensor& w) {
  QAT_CHECK(w.scalar_type() == torch::kFloat32 && w.size(-1) % kBlockSize == 0);
  const torch::NoGradGuard no_grad;
  const Tensor x = w.detach().reshape({-1, kBlockSize});
  const Tensor largest = x.abs().argmax(1, /*keepdim=*/true);  // the first of several, as the rule has it
  return block_scales_of((x.gather(1, largest) / -8.0).to(torch::kFloat16).to(torch::kFloat32).view({-1}));
}

torch::Tensor block_quantize(const torch::Tensor& w, const torch::Tensor& log_scale, const torch::Tensor& sign) {
  QAT_CHECK(w.scalar_type() == torch::kFloat32 && log_scale.scalar_type() == torch::kFloat32);
  check_shapes(w, log_scale, sign);
  return BlockQuantize::apply(w, log_scale, sign);
}

torch::Tensor block_codes(const torch::Tensor& w, const torch::Tensor& log_scale, const torch::Tensor& sign) {
  check_shapes(w, log_scale, sign);
  const Tensor x = w.detach().cpu().contiguous(), d = stored_block_scales(log_scale, sign).cpu().contiguous();
  Tensor codes = torch::empty_like(x, torch::kInt8);
  const float *from = x.data_ptr<float>(), *scale = d.data_ptr<float>();
  int8_t* to = codes.data_ptr<int8_t>();
  for_each_block(d.numel(), [&](int64_t i, int64_t at) {
    const BlockQ4_0 block = encode_q4_0_with_scale(from + at, scale[i]);
    for (int j = 0; j < kBlockSize / 2; ++j) {
      to[at + j] = static_cast<int8_t>((block.qs[j] & 15) - 8);
      to[at + j + kBlockSize / 2] = static_cast<int8_t>((block.qs[j] >> 4) - 8);
    }
  });
  return codes;
}

torch::Tensor frozen_block_quantize(const torch::Tensor& codes, const torch::Tensor& log_scale,
                                    const torch::Tensor& sign) {
  check_shapes(codes, log_scale, sign);
  return codes_times_scales(codes, log_scale, stored_block_scales(log_scale, sign), factor());
}

torch::Tensor block_quantize_tensor_ops(const torch::Tensor& x, const torch::Tensor& d) {
  const torch::NoGradGuard no_grad;
  // Each line is its own operation, so that no compiler contracts x * inverse + 8.5 to a fused multiply-add.
  const Tensor level = x * d.reciprocal();
  const Tensor code = (level + 8.5).floor_().clamp_(0, 15).sub_(8);
  return code.mul_(d);
}

torch::Tensor block_scale_backward_tensor_ops(const torch::Tensor& x, const torch::Tensor& d,
                                              const torch::Tensor& gradient) {
  const torch::NoGradGuard no_grad;
  const Tensor level = x * d.reciprocal();
  const Tensor inside = (level >= -8.0).logical_and_(level <= 7.0);
  const Tensor step = (level + 0.5).floor_().clamp_(-8, 7).sub_(level * inside);
  return step.mul_(gradient).sum(1).mul_(d.view({-1})).mul_(factor());
}

}  // namespace qat
