// Losses in chunks against the same losses written plainly, and KL against a worked example.
#include "qat/train/losses.h"

#include <gtest/gtest.h>

#include <cmath>

#include "qat/train/model.h"

namespace qat {
namespace {

struct Example {
  HeadInput student, teacher;
  torch::Tensor targets;
};

Example make_example(double softcap) {
  torch::manual_seed(1);
  Example e;
  e.student = {torch::randn({37, 24}).requires_grad_(), torch::randn({50, 24}).requires_grad_(), softcap};
  e.teacher = {torch::randn({37, 16}), torch::randn({50, 16}), softcap};
  e.targets = torch::randint(0, 50, {37}, torch::kInt64);
  e.targets[36] = -1;
  e.targets[11] = -1;
  return e;
}

torch::Tensor plain_logits(const HeadInput& head) {
  return soften_logits(torch::matmul(head.hidden, head.weight.t()), head.softcap);
}

// With whole tensors, by autograd.
torch::Tensor plain_loss(const Example& e, bool with_teacher, const LossOptions& o) {
  const torch::Tensor student = plain_logits(e.student);
  const torch::Tensor counted = e.targets >= 0;
  const torch::Tensor ce = -torch::log_softmax(student, -1)
                                .gather(1, e.targets.clamp_min(0).unsqueeze(1))
                                .squeeze(1)
                                .masked_select(counted)
                                .mean();
  if (!with_teacher) return o.ce * ce;
  const torch::Tensor log_s = torch::log_softmax(student / o.temperature, -1),
                      log_t = torch::log_softmax(plain_logits(e.teacher) / o.temperature, -1);
  const torch::Tensor kl = (log_t.exp() * (log_t - log_s)).sum(-1).mean();
  return o.kl * o.temperature * o.temperature * kl + o.ce * ce;
}

double relative(const torch::Tensor& a, const torch::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

TEST(HeadLosses, ChunksGiveTheLossAndGradientsOfTheWhole) {
  const LossOptions variants[] = {
      {1.0, 0.0, 1.0, 8}, {1.0, 0.0, 2.0, 8}, {0.0, 1.0, 1.0, 10}, {0.7, 0.3, 1.5, 1000}, {0.7, 0.3, 1.0, 1}};
  for (const double softcap : {0.0, 5.0}) {
    for (const LossOptions& options : variants) {
      const bool with_teacher = options.kl > 0.0;
      Example e = make_example(softcap);
      plain_loss(e, with_teacher, options).backward();
      const torch::Tensor hidden = e.student.hidden.grad().clone(), weight = e.student.weight.grad().clone();
      const double expected = plain_loss(e, with_teacher, options).item<double>();
      e.student.hidden.mutable_grad().reset();
      e.student.weight.mutable_grad().reset();
      const Losses losses = head_losses(e.student, with_teacher ? &e.teacher : nullptr, e.targets, options);
      losses.total.backward();
      EXPECT_NEAR(losses.total.item<double>(), expected, 1e-5 * expected);
      EXPECT_LE(relative(e.student.hidden.grad(), hidden), 1e-5);
      EXPECT_LE(relative(e.student.weight.grad(), weight), 1e-5);
    }
  }
}

TEST(HeadLosses, KlOfAWorkedExample) {
  // Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2). The identity as head makes hidden states
  // logits.
  const torch::Tensor identity = torch::eye(2);
  const HeadInput student{torch::zeros({1, 2}), identity, 0.0};
  const HeadInput teacher{torch::tensor({{std::log(3.0f), 0.0f}}), identity, 0.0};
  const Losses losses = head_losses(student, &teacher, torch::tensor({0}, torch::kInt64), {});
  EXPECT_NEAR(losses.kl, 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-7);
  EXPECT_NEAR(losses.cross_entropy, std::log(2.0), 1e-7);
}

TEST(HeadLosses, EqualModelsHaveNoKlAndNoGradient) {
  Example e = make_example(5.0);
  e.teacher = {e.student.hidden.detach(), e.student.weight.detach(), 5.0};
  const Losses losses = head_losses(e.student, &e.teacher, e.targets, {});
  losses.total.backward();
  EXPECT_EQ(losses.kl, 0.0);
  EXPECT_EQ(e.student.hidden.grad().abs().max().item<float>(), 0.0f);
}

TEST(HeadLosses, ScalesItsGradientByWhatComesFromAbove) {
  Example e = make_example(0.0);
  head_losses(e.student, &e.teacher, e.targets, {}).total.backward();
  const torch::Tensor once = e.student.weight.grad().clone();
  e.student.weight.mutable_grad().reset();
  (head_losses(e.student, &e.teacher, e.targets, {}).total * 0.25).backward();
  EXPECT_TRUE(torch::equal(e.student.weight.grad(), once * 0.25));
}

}  // namespace
}  // namespace qat
