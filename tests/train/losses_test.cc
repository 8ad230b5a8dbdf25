// Losses in chunks against the same losses written plainly, and KL against a worked example.
#include "qat/train/losses.h"

#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

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

// The definitions of losses.h, in float64 and by autograd. Returns {total, kl, reverse_kl, jsd}.
std::vector<torch::Tensor> naive_losses(const HeadInput& student, const HeadInput& teacher,
                                        const torch::Tensor& targets, const LossOptions& o) {
  const torch::Tensor z = plain_logits(student), z_t = plain_logits(teacher);
  torch::Tensor log_q = torch::log_softmax(z / o.temperature, -1), log_p = torch::log_softmax(z_t / o.temperature, -1);
  if (o.top_k > 0) {
    const torch::Tensor ids = std::get<1>(log_p.topk(o.top_k, -1));
    const torch::Tensor inside = torch::zeros_like(log_p).scatter(1, ids, 1.0).to(torch::kBool);
    const auto outcomes = [&](const torch::Tensor& log_x) {
      const torch::Tensor top = log_x.gather(1, ids);
      if (o.top_k == log_x.size(1)) return top;
      return torch::cat({top, torch::logsumexp(log_x.masked_fill(inside, -INFINITY), -1, true)}, 1);
    };
    log_q = outcomes(log_q);
    log_p = outcomes(log_p);
  }
  const torch::Tensor p = log_p.exp(), q = log_q.exp();
  const torch::Tensor log_m = (o.jsd_beta * p + (1 - o.jsd_beta) * q).log();
  const torch::Tensor kl = (p * (log_p - log_q)).sum(-1).mean(), reverse = (q * (log_q - log_p)).sum(-1).mean();
  const torch::Tensor jsd = (o.jsd_beta * p * (log_p - log_m) + (1 - o.jsd_beta) * q * (log_q - log_m)).sum(-1).mean();
  const torch::Tensor ce = -torch::log_softmax(z, -1)
                                .gather(1, targets.clamp_min(0).unsqueeze(1))
                                .squeeze(1)
                                .masked_select(targets >= 0)
                                .mean();
  const double square = o.temperature * o.temperature;
  return {square * (o.kl * kl + o.reverse_kl * reverse + o.jsd * jsd) + o.ce * ce, kl, reverse, jsd};
}

HeadInput in_double(const HeadInput& head, bool trained) {
  const auto wide = [&](const torch::Tensor& x) { return x.detach().to(torch::kFloat64).requires_grad_(trained); };
  return {wide(head.hidden), wide(head.weight), head.softcap};
}

// Values and gradients within 1e-5 of those of the definitions.
void expect_as_defined(Example& e, const LossOptions& options, const std::string& what) {
  const HeadInput wide = in_double(e.student, true);
  const std::vector<torch::Tensor> expected = naive_losses(wide, in_double(e.teacher, false), e.targets, options);
  expected[0].backward();
  e.student.hidden.mutable_grad().reset();
  e.student.weight.mutable_grad().reset();
  const Losses losses = head_losses(e.student, &e.teacher, e.targets, options);
  losses.total.backward();
  const auto near = [&](double found, const torch::Tensor& value) {
    EXPECT_NEAR(found, value.item<double>(), 1e-5 * std::abs(value.item<double>()) + 1e-8) << what;
  };
  near(losses.total.item<double>(), expected[0]);
  near(losses.kl, expected[1]);
  if (options.reverse_kl > 0.0) near(losses.reverse_kl, expected[2]);
  if (options.jsd > 0.0) near(losses.jsd, expected[3]);
  EXPECT_LE(relative(e.student.hidden.grad().to(torch::kFloat64), wide.hidden.grad()), 1e-5) << what;
  EXPECT_LE(relative(e.student.weight.grad().to(torch::kFloat64), wide.weight.grad()), 1e-5) << what;
}

struct Mix {
  double kl, ce, reverse_kl, jsd, jsd_beta;
};
const Mix kMixes[] = {{1, 0, 0, 0, 0.5}, {0, 0, 1, 0, 0.5},   {0.5, 0, 0.5, 0, 0.5},     {0, 0, 0, 1, 0.5},
                      {0, 0, 0, 2, 0.1}, {0, 0.3, 0, 1, 0.9}, {0.4, 0.3, 0.2, 0.6, 0.7}, {0, 1, 0, 0, 0.5}};

// In loops and in tensor operations, in one chunk and in several.
TEST(HeadLosses, AreAsDefinedAndSoAreTheirGradients) {
  for (const double softcap : {0.0, 5.0})
    for (const double temperature : {1.0, 2.0})
      for (const int64_t top_k : {0, 1, 7, 49, 50})
        for (const Mix& mix : kMixes)
          for (const bool loops : {true, false}) {
            Example e = make_example(softcap);
            const LossOptions options{mix.kl,  mix.ce,       temperature, loops ? 8 : 1000, loops, mix.reverse_kl,
                                      mix.jsd, mix.jsd_beta, top_k};
            std::ostringstream what;
            what << "softcap " << softcap << ", temperature " << temperature << ", top " << top_k << ", kl " << mix.kl
                 << ", reverse " << mix.reverse_kl << ", jsd " << mix.jsd << ", loops " << loops;
            expect_as_defined(e, options, what.str());
          }
}

TEST(HeadLosses, TopKOfTheWholeVocabularyIsTheFullKl) {
  const Example e = make_example(5.0);
  LossOptions options;
  const double full = head_losses(e.student, &e.teacher, e.targets, options).kl;
  options.top_k = 50;
  EXPECT_NEAR(head_losses(e.student, &e.teacher, e.targets, options).kl, full, 1e-6 * full);
  options.top_k = 5;  // merging outcomes loses some
  const double merged = head_losses(e.student, &e.teacher, e.targets, options).kl;
  EXPECT_LT(merged, full);
  EXPECT_GT(merged, 0.0);
}

// A teacher that ran before, at both temperatures, in chunks of its own.
TEST(HeadLosses, AGivenTopKIsTheTeachersOwn) {
  for (const double temperature : {1.0, 1.5}) {
    const Example e = make_example(5.0);
    LossOptions options{1.0, 0.1, temperature, 8};
    options.top_k = 6;
    const TopK top = teacher_top_k(e.teacher, 6, temperature, 10);
    const Losses own = head_losses(e.student, &e.teacher, e.targets, options);
    const Losses given = head_losses(e.student, top, e.targets, options);
    EXPECT_NEAR(given.kl, own.kl, 1e-6 * own.kl);
    EXPECT_NEAR(given.total.item<double>(), own.total.item<double>(), 1e-6 * own.total.item<double>());
    const torch::Tensor mass = top.log_p.exp().sum(-1) + top.log_tail.exp();
    EXPECT_LE((mass - 1.0).abs().max().item<double>(), 1e-6);
  }
}

// Tails of 1e-12 and less on either side: 1 - sum would be 0 or noise. The identity as head makes hidden states logits,
// so that gradients can be compared logit by logit.
TEST(HeadLosses, TailsOfNearlyNothingAreExact) {
  const int64_t vocab = 12, k = 3;
  torch::manual_seed(4);
  for (const double teacher_gap : {0.0, 30.0, 60.0})
    for (const double student_gap : {0.0, 30.0, 60.0})
      for (const Mix& mix : kMixes)
        for (const bool loops : {true, false}) {
          const auto logits = [&](double gap) {
            torch::Tensor z = torch::randn({5, vocab});
            z.narrow(1, 0, k).add_(gap + 4.0);
            return z;
          };
          Example e;
          e.teacher = {logits(teacher_gap), torch::eye(vocab), 0.0};
          e.student = {logits(student_gap).requires_grad_(), torch::eye(vocab).requires_grad_(), 0.0};
          e.targets = torch::tensor({0, 5, 2, 11, -1}, torch::kInt64);
          const LossOptions options{mix.kl, mix.ce, 1.0, 2, loops, mix.reverse_kl, mix.jsd, mix.jsd_beta, k};
          const std::string what = "gaps " + std::to_string(teacher_gap) + ", " + std::to_string(student_gap);
          expect_as_defined(e, options, what);
          const HeadInput wide = in_double(e.student, true);
          naive_losses(wide, in_double(e.teacher, false), e.targets, options)[0].backward();
          const torch::Tensor expected = wide.hidden.grad(), found = e.student.hidden.grad();
          // Relative to the logit's own probability: what is left of a difference may be all rounding.
          const torch::Tensor scale = torch::softmax(wide.hidden.detach(), -1) + expected.abs();
          EXPECT_LE(((found.to(torch::kFloat64) - expected).abs() / scale).max().item<double>(), 1e-4) << what;
        }
}

TEST(HeadLosses, EqualModelsHaveNoDivergenceOfAnyKind) {
  for (const bool loops : {true, false}) {
    Example e = make_example(5.0);
    e.teacher = {e.student.hidden.detach(), e.student.weight.detach(), 5.0};
    const Losses losses = head_losses(e.student, &e.teacher, e.targets, {1, 0, 1, 8, loops, 1, 1, 0.3});
    losses.total.backward();
    EXPECT_EQ(losses.kl, 0.0);
    EXPECT_EQ(losses.reverse_kl, 0.0);
    EXPECT_EQ(losses.jsd, 0.0);
    EXPECT_EQ(e.student.hidden.grad().abs().max().item<float>(), 0.0f);
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

TEST(HiddenLoss, IsRelativeToEachTokensSquare) {
  // Two layers of (1, 2, 2): off by a half of the teacher's in one token, right in the other; off by all of it in both.
  const torch::Tensor teacher = torch::tensor({3.0f, 4.0f, 30.0f, 40.0f}).reshape({1, 2, 2});
  const torch::Tensor half = (teacher * torch::tensor({0.5f, 1.0f}).reshape({1, 2, 1})).requires_grad_();
  const torch::Tensor none = torch::zeros({1, 2, 2}).requires_grad_();
  const torch::Tensor loss = hidden_loss({half, none}, {teacher, teacher});
  EXPECT_FLOAT_EQ(loss.item<float>(), (0.25f / 2 + 1.0f) / 2);
  loss.backward();
  // 2 (s - t) / |t|^2, of two tokens and two layers.
  const torch::Tensor expected = torch::tensor({-1.5f, -2.0f, 0.0f, 0.0f}).reshape({1, 2, 2}) * 2 / 25 / 4;
  EXPECT_TRUE(torch::allclose(half.grad(), expected, 1e-6, 1e-9)) << half.grad();
  EXPECT_EQ(hidden_loss({torch::zeros({1, 1, 2})}, {torch::zeros({1, 1, 2})}).item<float>(), 0.0f);
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
