#include "fakequant/learned_scale.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "format/error.h"

namespace qat {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Runs cut into pieces of fixed size: threads share one long run (a tensor of activations) or many short ones (rows of
// weights), and sums do not depend on how many threads there are.
struct Pieces {
  int64_t runs, length, per_run;
  static constexpr int64_t kLength = 1 << 14;

  Pieces(const Tensor& x, const Tensor& scales)
      : runs(scales.numel()), length(x.numel() / runs), per_run((length + kLength - 1) / kLength) {}
  int64_t count() const { return runs * per_run; }
  // work(piece, run, first element, elements)
  template <typename Work>
  void for_each(const Work& work) const {
    at::parallel_for(0, count(), std::max<int64_t>(1, 2 * kLength / std::max<int64_t>(length, 1)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t piece = begin; piece < end; ++piece) {
                         const int64_t run = piece / per_run, from = piece % per_run * kLength;
                         work(piece, run, run * length + from, std::min(kLength, length - from));
                       }
                     });
  }
};

// Writes dL/dx and returns the sum of G * h * s. As h * s = x_hat - x inside and x_hat outside, no code is needed, and
// the difference is nearly always exact. highest * s is exact too: a code has 7 bits, a storable scale 8.
double lsq_backward_run(int bits, float scale, bool pass_clipped, const float* x, const float* gradient, int64_t count,
                        float* dx) {
  constexpr int64_t kBlock = 512, kLanes = 8;
  const float low = static_cast<float>(lowest_code(bits)) * scale,
              high = static_cast<float>(highest_code(bits)) * scale;
  float term[kBlock];  // x_hat, then what each element adds to the sum
  double total = 0.0;
  for (int64_t begin = 0; begin < count; begin += kBlock, x += kBlock, gradient += kBlock, dx += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    fake_quantize_channel(bits, x, n, scale, term);
    for (int64_t i = 0; i < n; ++i) {
      const bool inside = (x[i] >= low) & (x[i] <= high);
      term[i] = gradient[i] * (term[i] - (inside ? x[i] : 0.0f));
      dx[i] = inside | pass_clipped ? gradient[i] : 0.0f;
    }
    const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
    std::fill(term + n, term + padded, 0.0f);
    float sum[kLanes] = {};
    for (int64_t i = 0; i < padded; i += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) sum[j] += term[i + j];
    for (const float lane : sum) total += static_cast<double>(lane);
  }
  return total;
}

Tensor forward_cpu(const Tensor& x, const Tensor& scales, int bits) {
  const Pieces pieces(x, scales);
  Tensor out = torch::empty_like(x);
  const float *from = x.data_ptr<float>(), *scale = scales.data_ptr<float>();
  float* to = out.data_ptr<float>();
  pieces.for_each([&](int64_t, int64_t run, int64_t first, int64_t count) {
    fake_quantize_channel(bits, from + first, count, scale[run], to + first);
  });
  return out;
}

LsqGradients backward_cpu(const Tensor& x, const Tensor& scales, const Tensor& gradient, int bits,
                          const LsqOptions& options) {
  const Pieces pieces(x, scales);
  std::vector<double> sums(static_cast<size_t>(pieces.count()));
  LsqGradients gradients{torch::empty_like(x), torch::empty_like(scales)};
  const float *from = x.data_ptr<float>(), *g = gradient.data_ptr<float>(), *scale = scales.data_ptr<float>();
  float *dx = gradients.x.data_ptr<float>(), *dlog_scale = gradients.log_scale.data_ptr<float>();
  pieces.for_each([&](int64_t piece, int64_t run, int64_t first, int64_t count) {
    sums[static_cast<size_t>(piece)] =
        lsq_backward_run(bits, scale[run], options.pass_clipped, from + first, g + first, count, dx + first);
  });
  for (int64_t run = 0; run < pieces.runs; ++run) {
    double sum = 0.0;
    for (int64_t piece = 0; piece < pieces.per_run; ++piece)
      sum += sums[static_cast<size_t>(run * pieces.per_run + piece)];
    dlog_scale[run] = static_cast<float>(options.factor * sum);
  }
  return gradients;
}

struct LsqQuantize : torch::autograd::Function<LsqQuantize> {
  static Tensor forward(AutogradContext* context, const Tensor& x_in, const Tensor& log_scale, int64_t bits,
                        double factor, bool pass_clipped) {
    const Tensor x = x_in.contiguous(), scales = storable_scales(log_scale).contiguous();
    context->save_for_backward({x, scales});
    context->saved_data["bits"] = bits;
    context->saved_data["factor"] = factor;
    context->saved_data["pass_clipped"] = pass_clipped;
    if (x.is_cpu()) return forward_cpu(x, scales, static_cast<int>(bits));
    return quantize_tensor_ops(x.view({scales.numel(), -1}), scales.view({-1, 1}), static_cast<int>(bits)).view_as(x);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &x = saved[0], &scales = saved[1];
    const Tensor g = gradients[0].contiguous();
    const int bits = static_cast<int>(context->saved_data["bits"].toInt());
    const LsqOptions options{context->saved_data["factor"].toDouble(), context->saved_data["pass_clipped"].toBool()};
    const int64_t runs = scales.numel();
    const LsqGradients d = x.is_cpu() ? backward_cpu(x, scales, g, bits, options)
                                      : lsq_backward_tensor_ops(x.view({runs, -1}), scales.view({runs, 1}),
                                                                g.view({runs, -1}), bits, options);
    return {d.x.view_as(x), d.log_scale.view_as(scales), Tensor(), Tensor(), Tensor()};
  }
};

Tensor decode_codes(const Tensor& codes, const Tensor& scales) {
  return codes.to(torch::kFloat32).view({scales.numel(), -1}).mul_(scales.view({-1, 1})).view_as(codes);
}

struct FrozenCodes : torch::autograd::Function<FrozenCodes> {
  static Tensor forward(AutogradContext* context, const Tensor& /*log_scale*/, const Tensor& scales,
                        const Tensor& codes, double factor) {
    context->save_for_backward({scales, codes});
    context->saved_data["factor"] = factor;
    return decode_codes(codes, scales);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor &scales = saved[0], &codes = saved[1];
    const Tensor product = decode_codes(codes, scales).mul_(gradients[0]);  // G * code * scale
    const Tensor sum = product.view({scales.numel(), -1}).sum(1).mul_(context->saved_data["factor"].toDouble());
    return {sum.view_as(scales), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

torch::Tensor storable_scales(const torch::Tensor& log_scale) {
  const torch::NoGradGuard no_grad;
  // The exponential in double: rounded to 8 bits afterwards, it is the same whoever's exp computes it.
  return log_scale.detach()
      .to(torch::kFloat64)
      .exp()
      .to(torch::kFloat32)
      .to(torch::kBFloat16)
      .to(torch::kFloat32)
      .clamp(kLeastStorableScale, kLargestStorableScale);
}

double lsq_factor(int64_t count, int bits) {
  return 1.0 / std::sqrt(static_cast<double>(count) * static_cast<double>(highest_code(bits)));
}

torch::Tensor lsq_quantize(const torch::Tensor& x, const torch::Tensor& log_scale, int bits,
                           const LsqOptions& options) {
  QAT_CHECK(x.scalar_type() == torch::kFloat32 && log_scale.scalar_type() == torch::kFloat32);
  QAT_CHECK(x.dim() >= 1 && log_scale.numel() > 0 && x.numel() % log_scale.numel() == 0);
  QAT_CHECK(bits == 2 || bits == 4 || bits == 8);
  return LsqQuantize::apply(x, log_scale, static_cast<int64_t>(bits), options.factor, options.pass_clipped);
}

torch::Tensor codes_times_scales(const torch::Tensor& codes, const torch::Tensor& log_scale,
                                 const torch::Tensor& scales, double factor) {
  QAT_CHECK(codes.scalar_type() == torch::kInt8 && codes.is_contiguous());
  QAT_CHECK(scales.numel() > 0 && codes.numel() % scales.numel() == 0 && scales.numel() == log_scale.numel());
  return FrozenCodes::apply(log_scale, scales.contiguous(), codes, factor);
}

torch::Tensor quantize_tensor_ops(const torch::Tensor& x, const torch::Tensor& scales, int bits) {
  const torch::NoGradGuard no_grad;
  return (x / scales).clamp_(lowest_code(bits), highest_code(bits)).round_().mul_(scales);
}

LsqGradients lsq_backward_tensor_ops(const torch::Tensor& x, const torch::Tensor& scales, const torch::Tensor& gradient,
                                     int bits, const LsqOptions& options) {
  const torch::NoGradGuard no_grad;
  const Tensor inside = (x >= scales * lowest_code(bits)).logical_and_(x <= scales * highest_code(bits));
  const Tensor step = quantize_tensor_ops(x, scales, bits).sub_(x * inside);  // s * h
  return {options.pass_clipped ? gradient : gradient * inside, step.mul_(gradient).sum(1).mul_(options.factor)};
}

}  // namespace qat
