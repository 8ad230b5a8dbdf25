// AdamW by hand, clipping, and the learning rate's schedule. Ten real steps against PyTorch: train10_test.cc.
#include "qat/train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>

namespace qat {
namespace {

TEST(AdamW, TwoStepsByHand) {
  torch::Tensor w = torch::tensor({1.0f, -2.0f});
  w.requires_grad_();
  AdamWOptions options;
  options.weight_decay = 0.1;
  AdamW adam({w}, options);
  double expected[2] = {1.0, -2.0}, mean[2] = {}, square[2] = {};
  const double gradients[2][2] = {{0.5, -3.0}, {-0.25, 1e-4}};
  for (int step = 1; step <= 2; ++step) {
    w.mutable_grad() =
        torch::tensor({static_cast<float>(gradients[step - 1][0]), static_cast<float>(gradients[step - 1][1])});
    adam.step(0.01, 0.5);
    for (int i = 0; i < 2; ++i) {
      const double g = 0.5 * gradients[step - 1][i];
      mean[i] = 0.9 * mean[i] + 0.1 * g;
      square[i] = 0.95 * square[i] + 0.05 * g * g;
      expected[i] *= 1.0 - 0.01 * 0.1;
      expected[i] -=
          0.01 * (mean[i] / (1.0 - std::pow(0.9, step))) / (std::sqrt(square[i] / (1.0 - std::pow(0.95, step))) + 1e-8);
      EXPECT_NEAR(w[i].item<double>(), expected[i], 1e-6) << "step " << step;
    }
  }
  EXPECT_EQ(adam.steps, 2);
}

TEST(AdamW, LeavesAParameterWithoutGradientAlone) {
  torch::Tensor w = torch::ones({3});
  w.requires_grad_();
  AdamWOptions options;
  options.weight_decay = 0.1;
  AdamW adam({w}, options);
  adam.step(0.1);
  EXPECT_TRUE(torch::equal(w.detach(), torch::ones({3})));
}

// The first step of Adam has the size of the learning rate, whatever the gradient.
TEST(AdamW, ParametersHaveRulesOfTheirOwn) {
  torch::Tensor plain = torch::ones({1}), other = torch::ones({1});
  for (torch::Tensor* w : {&plain, &other}) {
    w->requires_grad_();
    w->mutable_grad() = torch::tensor({2.0f});
  }
  AdamWOptions options;
  options.weight_decay = 0.5;
  AdamW adam({plain, other}, options, {{1.0, true, {}}, {3.0, false, {}}});
  adam.step(0.1);
  EXPECT_NEAR(plain.item<double>(), 1.0 - 0.1 * 0.5 - 0.1, 1e-6);
  EXPECT_NEAR(other.item<double>(), 1.0 - 0.3, 1e-6);
}

TEST(AdamW, ElementsMayBeMeasuredInUnits) {
  torch::Tensor w = torch::ones({2, 2}), log_unit = torch::tensor({0.0f, std::log(0.5f)});
  w.requires_grad_();
  w.mutable_grad() = torch::full({2, 2}, 2.0f);
  AdamW adam({w}, {}, {{1.0, true, log_unit}});
  adam.step(0.1);
  EXPECT_TRUE(torch::allclose(w.detach(), torch::tensor({{0.9f, 0.9f}, {0.95f, 0.95f}}), 1e-6, 1e-6));
  log_unit.fill_(0.0);  // as it stands at the step
  const torch::Tensor before = w.detach().clone();
  w.mutable_grad() = torch::full({2, 2}, 2.0f);
  adam.step(0.1);
  EXPECT_TRUE(torch::allclose(w.detach(), before - 0.1, 1e-6, 1e-6));
}

TEST(GradientNorm, IsOverAllParameters) {
  torch::Tensor a = torch::zeros({2}), b = torch::zeros({1});
  a.requires_grad_();
  b.requires_grad_();
  a.mutable_grad() = torch::tensor({3.0f, 0.0f});
  b.mutable_grad() = torch::tensor({4.0f});
  EXPECT_DOUBLE_EQ(gradient_norm({a, b}), 5.0);
}

TEST(Schedule, WarmsUpThenFollowsACosine) {
  EXPECT_DOUBLE_EQ(scheduled_lr(1.0, 0.1, 10, 110, 1), 0.1);
  EXPECT_DOUBLE_EQ(scheduled_lr(1.0, 0.1, 10, 110, 10), 1.0);
  EXPECT_NEAR(scheduled_lr(1.0, 0.1, 10, 110, 60), 0.55, 1e-12);
  EXPECT_NEAR(scheduled_lr(1.0, 0.1, 10, 110, 110), 0.1, 1e-12);
  EXPECT_DOUBLE_EQ(scheduled_lr(1.0, 0.1, 0, 5, 5), 0.1);  // no warm-up
}

}  // namespace
}  // namespace qat
