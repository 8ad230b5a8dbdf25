#include "qat/train/losses.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "format/error.h"
#include "qat/train/cpu_elementwise.h"
#include "qat/train/ops.h"

namespace qat {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Problem {
  HeadInput student;
  const HeadInput* teacher = nullptr;
  Tensor targets;
  LossOptions options;
};

struct Sums {
  Tensor kl, cross_entropy;  // scalars, float64, on the device: one transfer at the end
};

// tanh(x W^T / softcap) when there is a softcap, else x W^T; scaled back by soften().
Tensor raw_logits(const Tensor& hidden, const HeadInput& head) {
  Tensor z = torch::mm(hidden, head.weight.t());
  return head.softcap > 0.0 ? z.div_(head.softcap).tanh_() : z;
}
Tensor soften(const Tensor& z, const HeadInput& head) { return head.softcap > 0.0 ? z * head.softcap : z; }

// Losses of tokens [begin, begin + count). With `gradient`, returns d(total)/d(student hidden * weight^T), (count,
// vocab).
Tensor chunk_losses(const Problem& p, int64_t begin, int64_t count, int64_t with_target, bool gradient, Sums& sums) {
  const double temperature = p.options.temperature;
  const int64_t tokens = p.student.hidden.size(0);
  const Tensor squashed = raw_logits(p.student.hidden.narrow(0, begin, count), p.student);
  const Tensor logits = soften(squashed, p.student);
  const Tensor log_probability = torch::log_softmax(logits, -1);
  Tensor result;
  if (p.teacher != nullptr) {
    const Tensor student = temperature == 1.0 ? log_probability : torch::log_softmax(logits / temperature, -1);
    Tensor teacher = soften(raw_logits(p.teacher->hidden.narrow(0, begin, count), *p.teacher), *p.teacher);
    teacher = torch::log_softmax(temperature == 1.0 ? teacher : teacher / temperature, -1);
    const Tensor probability = teacher.exp();
    sums.kl += (teacher.sub_(student)).mul_(probability).sum(torch::kFloat64);
    // d(T^2 KL)/d(logits) = T (p_student - p_teacher)
    if (gradient)
      result = student.exp().sub_(probability).mul_(p.options.kl * temperature / static_cast<double>(tokens));
  }
  const Tensor targets = p.targets.narrow(0, begin, count);
  const Tensor counted = targets >= 0;
  const Tensor index = targets.clamp_min(0).unsqueeze(1);
  sums.cross_entropy -=
      log_probability.gather(1, index).squeeze(1).masked_fill(counted.logical_not(), 0.0).sum(torch::kFloat64);
  if (gradient && p.options.ce != 0.0) {
    const Tensor weight = counted.to(log_probability.scalar_type())
                              .mul_(p.options.ce / static_cast<double>(std::max<int64_t>(with_target, 1)))
                              .unsqueeze(1);
    const Tensor of_ce = log_probability.exp().mul_(weight).scatter_add_(1, index, -weight);
    result = result.defined() ? result.add_(of_ce) : of_ce;
  }
  if (result.defined() && p.student.softcap > 0.0) result.mul_(1.0 - squashed.square());
  return result;
}

// The same in one pass over each token's logits, at temperature 1.
Tensor cpu_chunk_losses(const Problem& p, int64_t begin, int64_t count, int64_t with_target, bool gradient,
                        Sums& sums) {
  const Tensor student = torch::mm(p.student.hidden.narrow(0, begin, count), p.student.weight.t());
  Tensor teacher;
  if (p.teacher != nullptr) teacher = torch::mm(p.teacher->hidden.narrow(0, begin, count), p.teacher->weight.t());
  const int64_t vocab = student.size(1), tokens = p.student.hidden.size(0);
  const Tensor targets = p.targets.narrow(0, begin, count).contiguous();
  TokenLosses options;
  options.softcap = static_cast<float>(p.student.softcap);
  options.kl_weight = p.teacher == nullptr ? 0.0f : static_cast<float>(p.options.kl / static_cast<double>(tokens));
  options.ce_weight = static_cast<float>(p.options.ce / static_cast<double>(std::max<int64_t>(with_target, 1)));
  std::vector<TokenLoss> losses(static_cast<size_t>(count));
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t end) {
    TokenLosses of_token = options;
    for (int64_t i = first; i < end; ++i) {
      of_token.target = targets.data_ptr<int64_t>()[i];
      losses[static_cast<size_t>(i)] =
          cpu_token_losses(of_token, student.data_ptr<float>() + i * vocab,
                           teacher.defined() ? teacher.data_ptr<float>() + i * vocab : nullptr, vocab, gradient);
    }
  });
  TokenLoss total;
  for (const TokenLoss& loss : losses) {
    total.kl += loss.kl;
    total.cross_entropy += loss.cross_entropy;
  }
  sums.kl += total.kl;
  sums.cross_entropy += total.cross_entropy;
  return gradient && (p.teacher != nullptr || p.options.ce != 0.0) ? student : Tensor();
}

// Inputs: student hidden and weight (differentiable). Outputs: total, and the two means as float64 scalars.
struct ChunkedLosses : torch::autograd::Function<ChunkedLosses> {
  static variable_list forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight,
                               const Problem* problem) {
    const bool gradient = hidden.requires_grad() || weight.requires_grad();
    const int64_t tokens = hidden.size(0);
    const int64_t with_target = (problem->targets >= 0).sum().item<int64_t>();
    const auto scalar = hidden.options().dtype(torch::kFloat64);
    Sums sums{torch::zeros({}, scalar), torch::zeros({}, scalar)};
    // One softcap for both: the pass over a token's logits knows no other case.
    const bool fast = problem->options.temperature == 1.0 && problem->options.loops && uses_cpu_loops(hidden) &&
                      (problem->teacher == nullptr || problem->teacher->softcap == problem->student.softcap);
    Tensor hidden_gradient, weight_gradient;
    if (gradient) {
      hidden_gradient = torch::zeros_like(hidden);
      if (weight.requires_grad()) weight_gradient = torch::zeros_like(weight);  // as large as the head
    }
    for (int64_t begin = 0; begin < tokens; begin += problem->options.chunk) {
      const int64_t count = std::min(problem->options.chunk, tokens - begin);
      const Tensor g = (fast ? cpu_chunk_losses : chunk_losses)(*problem, begin, count, with_target, gradient, sums);
      if (!g.defined()) continue;
      Tensor rows = hidden_gradient.narrow(0, begin, count);
      torch::mm_out(rows, g, weight);
      if (weight_gradient.defined()) weight_gradient.addmm_(g.t(), hidden.narrow(0, begin, count));
    }
    const Tensor kl = sums.kl / static_cast<double>(tokens);
    const Tensor cross_entropy = sums.cross_entropy / static_cast<double>(std::max<int64_t>(with_target, 1));
    const double temperature = problem->options.temperature;
    Tensor total = cross_entropy * problem->options.ce;
    if (problem->teacher != nullptr) total = total + kl * (problem->options.kl * temperature * temperature);
    if (gradient) context->save_for_backward({hidden_gradient, weight_gradient});
    context->mark_non_differentiable({kl, cross_entropy});
    return {total, kl, cross_entropy};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor scale = gradients[0].to(saved[0].scalar_type());
    return {saved[0] * scale, saved[1].defined() ? saved[1] * scale : Tensor(), Tensor()};
  }
};

}  // namespace

Losses head_losses(const HeadInput& student, const HeadInput* teacher, const Tensor& targets,
                   const LossOptions& options) {
  QAT_CHECK(student.hidden.dim() == 2 && targets.numel() == student.hidden.size(0));
  const bool gradient = torch::GradMode::is_enabled();
  Problem problem{{student.hidden.detach(), student.weight.detach(), student.softcap}, teacher, targets, options};
  HeadInput frozen;
  if (teacher != nullptr) {
    frozen = {teacher->hidden.detach(), teacher->weight.detach(), teacher->softcap};
    problem.teacher = &frozen;
  }
  const variable_list outputs = gradient
                                    ? ChunkedLosses::apply(student.hidden, student.weight, &problem)
                                    : ChunkedLosses::apply(problem.student.hidden, problem.student.weight, &problem);
  Losses losses;
  losses.total = outputs[0];
  losses.kl = outputs[1].item<double>();
  losses.cross_entropy = outputs[2].item<double>();
  return losses;
}

}  // namespace qat
