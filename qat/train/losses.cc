#include "qat/train/losses.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <vector>

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
  const HeadInput* teacher = nullptr;  // at most one of the two
  const TopK* top = nullptr;
  Tensor targets;
  LossOptions options;
  bool distills() const { return teacher != nullptr || top != nullptr; }
};

struct Sums {
  Tensor kl, reverse_kl, jsd, cross_entropy;  // scalars, float64, on the device: one transfer at the end
};

// tanh(x W^T / softcap) when there is a softcap, else x W^T; scaled back by soften().
Tensor raw_logits(const Tensor& hidden, const HeadInput& head) {
  Tensor z = torch::mm(hidden, head.weight.t());
  return head.softcap > 0.0 ? z.div_(head.softcap).tanh_() : z;
}
Tensor soften(const Tensor& z, const HeadInput& head) { return head.softcap > 0.0 ? z * head.softcap : z; }

Tensor heated(const Tensor& logits, double temperature) { return temperature == 1.0 ? logits : logits / temperature; }

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Logits outside the top k, those inside at minus infinity.
Tensor without(const Tensor& logits, const Tensor& ids) { return logits.scatter(1, ids, kMinusInfinity); }

TopK top_k_of(const Tensor& logits, int64_t k) {
  const auto [top, ids] = logits.topk(k, -1);
  // Not 1 - sum(p): it may be 1e-12.
  const Tensor tail = torch::logsumexp(without(logits, ids), -1, true).to(torch::kFloat64);
  const Tensor log_p = torch::log_softmax(torch::cat({top.to(torch::kFloat64), tail}, 1), -1).to(torch::kFloat32);
  return {ids, log_p.narrow(1, 0, k).contiguous(), log_p.select(1, k).contiguous()};
}

TopK rows_of(const TopK& top, int64_t begin, int64_t count) {
  return {top.ids.narrow(0, begin, count), top.log_p.narrow(0, begin, count), top.log_tail.narrow(0, begin, count)};
}

// The teacher's top k for a chunk: as given, or from its logits.
TopK chunk_top_k(const Problem& p, int64_t begin, int64_t count) {
  if (p.top != nullptr) return rows_of(*p.top, begin, count);
  const Tensor logits = soften(raw_logits(p.teacher->hidden.narrow(0, begin, count), *p.teacher), *p.teacher);
  return top_k_of(heated(logits, p.options.temperature), p.options.top_k);
}

// Adds what the divergences between two distributions, (tokens, outcomes), come to. With `gradient`, returns that of
// their weighted sum with respect to log_q before its normalization.
Tensor divergences(const Tensor& log_p, const Tensor& log_q, const LossOptions& o, bool gradient, Sums& sums) {
  const Tensor p = log_p.exp(), d = log_p - log_q;
  sums.kl += (d * p).sum(torch::kFloat64);
  const bool mixed = o.reverse_kl > 0.0 || o.jsd > 0.0;
  if (!gradient && !mixed) return {};
  const Tensor q = log_q.exp();
  Tensor slope;
  if (o.reverse_kl > 0.0) {
    sums.reverse_kl -= (q * d).sum(torch::kFloat64);
    slope = d * -o.reverse_kl;
  }
  if (o.jsd > 0.0) {
    const Tensor near = d.clamp_max(80.0);  // q is 0 beyond
    const Tensor m_by_q = torch::log1p(torch::expm1(near).mul_(o.jsd_beta));
    sums.jsd += (p * (near - m_by_q)).sum(torch::kFloat64) * o.jsd_beta -
                (q * m_by_q).sum(torch::kFloat64) * (1.0 - o.jsd_beta);
    const Tensor of_jsd = m_by_q * (-o.jsd * (1.0 - o.jsd_beta));
    slope = slope.defined() ? slope.add_(of_jsd) : of_jsd;
  }
  if (!gradient) return {};
  Tensor result = (q - p).mul_(o.kl);
  if (!mixed) return result;
  slope.mul_(q);
  return result.add_(slope).sub_(q * slope.sum(-1, true));
}

// The same over the top k and the tail, which the student's logits outside the top k share as a softmax of their own.
Tensor top_k_divergences(const TopK& teacher, const Tensor& logits, const LossOptions& o, bool gradient, Sums& sums) {
  const int64_t k = teacher.ids.size(1);
  const Tensor rest = without(logits, teacher.ids);
  const Tensor top = logits.gather(1, teacher.ids).to(torch::kFloat64);
  if (k == logits.size(1)) {
    const Tensor g = divergences(teacher.log_p.to(torch::kFloat64), torch::log_softmax(top, -1), o, gradient, sums);
    return gradient ? torch::zeros_like(logits).scatter_(1, teacher.ids, g.to(logits.scalar_type())) : Tensor();
  }
  const Tensor tail = torch::logsumexp(rest, -1, true);
  const Tensor log_q = torch::log_softmax(torch::cat({top, tail.to(torch::kFloat64)}, 1), -1);
  const Tensor log_p = torch::cat({teacher.log_p, teacher.log_tail.unsqueeze(1)}, 1).to(torch::kFloat64);
  Tensor g = divergences(log_p, log_q, o, gradient, sums);
  if (!gradient) return {};
  g = g.to(logits.scalar_type());
  return (rest - tail).exp_().mul_(g.narrow(1, k, 1)).scatter_(1, teacher.ids, g.narrow(1, 0, k));
}

// Losses of tokens [begin, begin + count). With `gradient`, returns d(total)/d(student hidden * weight^T), (count,
// vocab).
Tensor chunk_losses(const Problem& p, int64_t begin, int64_t count, int64_t with_target, bool gradient, Sums& sums) {
  const double temperature = p.options.temperature;
  const int64_t tokens = p.student.hidden.size(0);
  const Tensor squashed = raw_logits(p.student.hidden.narrow(0, begin, count), p.student);
  const Tensor logits = soften(squashed, p.student);
  const Tensor log_probability = torch::log_softmax(logits, -1);
  Tensor result;
  if (p.top != nullptr || (p.teacher != nullptr && p.options.top_k > 0)) {
    result = top_k_divergences(chunk_top_k(p, begin, count), heated(logits, temperature), p.options, gradient, sums);
  } else if (p.teacher != nullptr) {
    const Tensor teacher = soften(raw_logits(p.teacher->hidden.narrow(0, begin, count), *p.teacher), *p.teacher);
    result = divergences(torch::log_softmax(heated(teacher, temperature), -1),
                         temperature == 1.0 ? log_probability : torch::log_softmax(logits / temperature, -1), p.options,
                         gradient, sums);
  }
  // d(T^2 KL)/d(logits) = T d(KL)/d(logits / T)
  if (result.defined()) result.mul_(temperature / static_cast<double>(tokens));
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

TokenLosses token_losses(const Problem& p, int64_t with_target) {
  const double tokens = static_cast<double>(p.student.hidden.size(0));
  const auto weight = [&](double of_term) { return p.distills() ? static_cast<float>(of_term / tokens) : 0.0f; };
  TokenLosses options;
  options.softcap = static_cast<float>(p.student.softcap);
  options.kl_weight = weight(p.options.kl);
  options.reverse_kl_weight = weight(p.options.reverse_kl);
  options.jsd_weight = weight(p.options.jsd);
  options.jsd_beta = static_cast<float>(p.options.jsd_beta);
  options.ce_weight = static_cast<float>(p.options.ce / static_cast<double>(std::max<int64_t>(with_target, 1)));
  return options;
}

// The same in one pass over each token's logits, at temperature 1.
Tensor cpu_chunk_losses(const Problem& p, int64_t begin, int64_t count, int64_t with_target, bool gradient,
                        Sums& sums) {
  const Tensor student = torch::mm(p.student.hidden.narrow(0, begin, count), p.student.weight.t());
  const bool by_top = p.top != nullptr || (p.teacher != nullptr && p.options.top_k > 0);
  TopK top;
  Tensor teacher;
  if (by_top) top = chunk_top_k(p, begin, count);
  else if (p.teacher != nullptr) teacher = torch::mm(p.teacher->hidden.narrow(0, begin, count), p.teacher->weight.t());
  const int64_t vocab = student.size(1), k = by_top ? top.ids.size(1) : 0;
  const Tensor targets = p.targets.narrow(0, begin, count).contiguous();
  const TokenLosses options = token_losses(p, with_target);
  std::vector<TokenLoss> losses(static_cast<size_t>(count));
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t end) {
    TokenLosses of_token = options;
    for (int64_t i = first; i < end; ++i) {
      of_token.target = targets.data_ptr<int64_t>()[i];
      float* logits = student.data_ptr<float>() + i * vocab;
      if (by_top) {
        const TokenTopK of_teacher{top.ids.data_ptr<int64_t>() + i * k, top.log_p.data_ptr<float>() + i * k, k,
                                   top.log_tail.data_ptr<float>()[i]};
        losses[static_cast<size_t>(i)] = cpu_token_losses(of_token, of_teacher, logits, vocab, gradient);
      } else {
        float* of_teacher = teacher.defined() ? teacher.data_ptr<float>() + i * vocab : nullptr;
        losses[static_cast<size_t>(i)] = cpu_token_losses(of_token, logits, of_teacher, vocab, gradient);
      }
    }
  });
  TokenLoss total;
  for (const TokenLoss& loss : losses) {
    total.kl += loss.kl;
    total.reverse_kl += loss.reverse_kl;
    total.jsd += loss.jsd;
    total.cross_entropy += loss.cross_entropy;
  }
  sums.kl += total.kl;
  sums.reverse_kl += total.reverse_kl;
  sums.jsd += total.jsd;
  sums.cross_entropy += total.cross_entropy;
  return gradient && (p.distills() || p.options.ce != 0.0) ? student : Tensor();
}

// Inputs: student hidden and weight (differentiable). Outputs: total, and the means of KL, reverse KL, JSD and
// cross-entropy, (4) float64.
struct ChunkedLosses : torch::autograd::Function<ChunkedLosses> {
  static variable_list forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight,
                               const Problem* problem) {
    const bool gradient = hidden.requires_grad() || weight.requires_grad();
    const int64_t tokens = hidden.size(0);
    const int64_t with_target = (problem->targets >= 0).sum().item<int64_t>();
    const auto scalar = hidden.options().dtype(torch::kFloat64);
    Sums sums{torch::zeros({}, scalar), torch::zeros({}, scalar), torch::zeros({}, scalar), torch::zeros({}, scalar)};
    // One softcap for both: the pass over a token's logits knows no other case.
    const bool fast = problem->options.temperature == 1.0 && problem->options.loops && uses_cpu_loops(hidden) &&
                      (problem->teacher == nullptr || problem->options.top_k > 0 ||
                       problem->teacher->softcap == problem->student.softcap);
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
    const double per_token = 1.0 / static_cast<double>(tokens), t = problem->options.temperature;
    const Tensor means = torch::stack({sums.kl * per_token, sums.reverse_kl * per_token, sums.jsd * per_token,
                                       sums.cross_entropy / static_cast<double>(std::max<int64_t>(with_target, 1))});
    const LossOptions& o = problem->options;
    Tensor total = means[3] * o.ce;
    // Term by term: 0 times a divergence that is infinite would be no number.
    const double weights[] = {o.kl, o.reverse_kl, o.jsd};
    for (int i = 0; i < 3; ++i)
      if (problem->distills() && weights[i] > 0.0) total = total + means[i] * (weights[i] * t * t);
    if (gradient) context->save_for_backward({hidden_gradient, weight_gradient});
    context->mark_non_differentiable({means});
    return {total, means};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const Tensor scale = gradients[0].to(saved[0].scalar_type());
    return {saved[0] * scale, saved[1].defined() ? saved[1] * scale : Tensor(), Tensor()};
  }
};

Losses losses_of(const Problem& problem, const HeadInput& student) {
  QAT_CHECK(student.hidden.dim() == 2 && problem.targets.numel() == student.hidden.size(0));
  const variable_list outputs = torch::GradMode::is_enabled()
                                    ? ChunkedLosses::apply(student.hidden, student.weight, &problem)
                                    : ChunkedLosses::apply(problem.student.hidden, problem.student.weight, &problem);
  const Tensor means = outputs[1].cpu();
  const double* mean = means.data_ptr<double>();
  return {outputs[0], mean[0], mean[1], mean[2], mean[3]};
}

HeadInput detached(const HeadInput& head) { return {head.hidden.detach(), head.weight.detach(), head.softcap}; }

}  // namespace

LossOptions loss_options(const Recipe& recipe) {
  LossOptions options{recipe.kl, recipe.ce, recipe.temperature, recipe.loss_chunk};
  options.reverse_kl = recipe.reverse_kl;
  options.jsd = recipe.jsd;
  options.jsd_beta = recipe.jsd_beta;
  options.top_k = recipe.teacher_top_k;
  return options;
}

Losses head_losses(const HeadInput& student, const HeadInput* teacher, const Tensor& targets,
                   const LossOptions& options) {
  Problem problem{detached(student), nullptr, nullptr, targets, options};
  HeadInput frozen;
  if (teacher != nullptr) {
    frozen = detached(*teacher);
    problem.teacher = &frozen;
  }
  return losses_of(problem, student);
}

Losses head_losses(const HeadInput& student, const TopK& teacher, const Tensor& targets, const LossOptions& options) {
  QAT_CHECK(teacher.ids.size(0) == student.hidden.size(0) && teacher.ids.sizes() == teacher.log_p.sizes() &&
            teacher.ids.size(1) <= student.weight.size(0));
  const TopK rows{teacher.ids.contiguous(), teacher.log_p.contiguous(), teacher.log_tail.contiguous()};
  return losses_of({detached(student), nullptr, &rows, targets, options}, student);
}

TopK teacher_top_k(const HeadInput& teacher, int64_t k, double temperature, int64_t chunk) {
  const torch::NoGradGuard no_grad;
  const int64_t tokens = teacher.hidden.size(0);
  std::vector<Tensor> ids, log_p, log_tail;
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const Tensor hidden = teacher.hidden.narrow(0, begin, std::min(chunk, tokens - begin));
    const TopK part = top_k_of(heated(soften(raw_logits(hidden, teacher), teacher), temperature), k);
    ids.push_back(part.ids);
    log_p.push_back(part.log_p);
    log_tail.push_back(part.log_tail);
  }
  return {torch::cat(ids), torch::cat(log_p), torch::cat(log_tail)};
}

torch::Tensor hidden_loss(const std::vector<torch::Tensor>& student, const std::vector<torch::Tensor>& teacher) {
  QAT_CHECK(!student.empty() && student.size() == teacher.size());
  constexpr double kLeast = 1e-20;  // of a square, which zeros have none of
  torch::Tensor sum = torch::zeros({}, student.front().options());
  for (size_t i = 0; i < student.size(); ++i) {
    const torch::Tensor error = (student[i] - teacher[i]).square().sum(-1);
    sum = sum + (error / teacher[i].square().sum(-1).clamp_min(kLeast)).mean();
  }
  return sum / static_cast<double>(student.size());
}

}  // namespace qat
