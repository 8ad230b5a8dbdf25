// The running mean of what is trained, by hand; that an exchange loses nothing; scales that are off.
#include "qat/train/averages.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace qat {
namespace {

TEST(Averages, FollowTheTensorsByHand) {
  torch::Tensor w = torch::tensor({1.0f, -2.0f}).requires_grad_();
  Averages averages({w}, 0.5);
  double expected[2] = {1.0, -2.0};
  for (int n = 1; n <= 40; ++n) {
    const float now[2] = {std::sin(static_cast<float>(n)), static_cast<float>(n)};
    w.detach().copy_(torch::tensor({now[0], now[1]}));
    averages.update();
    const double kept = std::min(0.5, (n - 1.0) / (n + 9.0));
    for (int i = 0; i < 2; ++i) expected[i] = kept * expected[i] + (1.0 - kept) * static_cast<double>(now[i]);
  }
  EXPECT_EQ(averages.updates, 40);
  for (int i = 0; i < 2; ++i) EXPECT_NEAR(averages.means()[0][i].item<double>(), expected[i], 1e-5);
}

TEST(Averages, ExchangedTwiceNothingHasChanged) {
  torch::manual_seed(1);
  torch::Tensor w = torch::randn({300}).requires_grad_();
  const torch::Tensor first = w.detach().clone();
  Averages averages({w}, 0.9);
  w.detach().mul_(1.7);
  const torch::Tensor now = w.detach().clone(), mean = averages.means()[0].clone();
  EXPECT_TRUE(torch::equal(mean, first));
  {
    const AveragedModel averaged(averages);
    EXPECT_TRUE(torch::equal(w.detach(), mean));
  }
  EXPECT_TRUE(torch::equal(w.detach(), now));
  EXPECT_TRUE(torch::equal(averages.means()[0], mean));
}

TEST(Averages, NumbersThatStayAreKeptToTheBit) {
  torch::manual_seed(2);
  torch::Tensor w = torch::randn({1000}).requires_grad_();
  Averages averages({w}, 0.99);
  for (int i = 0; i < 50; ++i) averages.update();
  EXPECT_TRUE(torch::equal(averages.means()[0], w.detach()));
}

TEST(Averages, AScaleThatIsOffIsMinusInfinityAndNotNan) {
  torch::Tensor scale = torch::full({1}, -std::numeric_limits<float>::infinity()).requires_grad_();
  Averages averages({scale}, 0.9);
  averages.update();
  averages.update();
  EXPECT_EQ(averages.means()[0].item<float>(), -std::numeric_limits<float>::infinity());
}

TEST(Averages, OffTheyKeepNothing) {
  torch::Tensor w = torch::ones({2}).requires_grad_();
  Averages averages({w}, 0.0);
  averages.update();
  averages.exchange();
  EXPECT_TRUE(averages.means().empty());
  EXPECT_TRUE(torch::equal(w.detach(), torch::ones({2})));
}

}  // namespace
}  // namespace qat
