// Adam's means as 8-bit codes: what a code keeps, what dithered rounding is for, and whole runs beside float32's.
#include "qat/train/adam8bit.h"

#include <gmock/gmock.h>

#include <cmath>

#include "qat/train/optimizer.h"
#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

using testing::HasSubstr;

constexpr int64_t kCount = 5000;  // 19 blocks and a part of one

struct Coded {
  torch::Tensor w = torch::zeros({kCount});
  Moment mean = coded_zeros(kCount, torch::kCPU), square = coded_zeros(kCount, torch::kCPU);
};

// No memory of earlier gradients: the means are what this step's rounding makes of them.
constexpr AdamUpdate kForgetful = {1.0f, 0.0f, 0.0f, 0.0f, 1.0f, 1e-8f, 1.0f};

// Over four orders of magnitude, both signs, with zeros.
torch::Tensor spread_gradient() {
  torch::manual_seed(3);
  const torch::Tensor g = (torch::rand({kCount}) - 0.5).sign() * torch::pow(10.0f, torch::rand({kCount}) * -4.0);
  return g.masked_fill(torch::rand({kCount}) < 0.05, 0.0f);
}

TEST(Adam8bit, TakesTwoBytesPerWeight) {
  torch::Tensor w = torch::zeros({1 << 16}), small = torch::zeros({kLeastCoded - 1});
  AdamWOptions options;
  options.eight_bit = true;
  AdamW adam({w, small}, options);
  const auto bytes = [&](size_t i) {
    size_t n = 0;
    for (const Moment* m : {&adam.means()[i], &adam.squares()[i]})
      n += m->values.nbytes() + (m->scales.defined() ? m->scales.nbytes() : 0);
    return static_cast<double>(n);
  };
  EXPECT_EQ(bytes(0) / (1 << 16), 2.0 + 2.0 * 4 / kMomentBlock);
  EXPECT_EQ(bytes(1) / (kLeastCoded - 1), 8.0);
}

TEST(Adam8bit, ACodeIsWithinAnEighthAndZeroStaysZero) {
  Coded c;
  const torch::Tensor g = spread_gradient();
  update_coded_cpu(kForgetful, {}, 1, g, c.w, c.mean, c.square);
  const torch::Tensor mean = decoded_mean(c.mean), square = decoded_square(c.square);
  EXPECT_TRUE(torch::all((mean - g).abs() <= g.abs() * 0.125).item<bool>());
  EXPECT_TRUE(torch::all((square - g * g).abs() <= g * g * 0.125).item<bool>());
  EXPECT_TRUE(torch::all((square == 0.0f) == (g == 0.0f)).item<bool>());
}

TEST(Adam8bit, WhatIsFarBelowItsBlockMayBecomeZeroAsAMeanButNotAsASquare) {
  Coded c;
  torch::Tensor g = torch::full({kCount}, 1e-7f);
  g[0] = 1.0f;
  update_coded_cpu(kForgetful, {}, 1, g, c.w, c.mean, c.square);
  EXPECT_EQ(decoded_mean(c.mean)[0].item<float>(), 1.0f);
  EXPECT_LT(decoded_mean(c.mean)[1].item<float>(), 3e-5f);
  EXPECT_GT(decoded_square(c.square)[1].item<float>(), 0.0f);
}

TEST(Adam8bit, RoundingAveragesOut) {
  const torch::Tensor g = spread_gradient();
  torch::Tensor mean_sum = torch::zeros({kCount}), square_sum = torch::zeros({kCount});
  constexpr int kSteps = 400;
  for (int step = 1; step <= kSteps; ++step) {
    Coded c;
    update_coded_cpu(kForgetful, {}, step, g, c.w, c.mean, c.square);
    mean_sum += decoded_mean(c.mean);
    square_sum += decoded_square(c.square);
  }
  EXPECT_TRUE(torch::allclose(mean_sum / kSteps, g, 2e-3, 1e-9));
  EXPECT_TRUE(torch::allclose(square_sum / kSteps, g * g, 2e-3, 1e-12));
}

// A thousandth per step, far less than half a code: rounding to the nearest would stand still.
TEST(Adam8bit, AMeanThatMovesByLessThanACodeMoves) {
  Coded c;
  AdamUpdate u = kForgetful;
  update_coded_cpu(u, {}, 1, torch::ones({kCount}), c.w, c.mean, c.square);
  u.beta2 = 0.999f;
  torch::Tensor g = torch::zeros({kCount});
  g.view(-1).slice(0, 0, kCount, kMomentBlock).fill_(1.0f);  // holds each block's scale where it is
  for (int step = 2; step <= 1001; ++step) update_coded_cpu(u, {}, step, g, c.w, c.mean, c.square);
  const torch::Tensor left = decoded_square(c.square).masked_select(g == 0.0f);
  EXPECT_NEAR(left.mean().item<double>(), std::pow(0.999, 1000), 0.03);
  EXPECT_LT(left.std().item<double>(), 0.1);
}

TEST(Adam8bit, TensorOperationsAndTheLoopAgree) {
  const AdamUpdate u = {0.999f, 0.9f, 0.95f, 1e-2f, 1.2f, 1e-8f, 0.5f};
  Coded loop, operations;
  const torch::Tensor units = torch::rand({kCount / 20}) + 0.5;
  for (int step = 1; step <= 20; ++step) {
    const torch::Tensor g = spread_gradient() + 0.1 * torch::randn({kCount});
    update_coded_cpu(u, units, step, g, loop.w, loop.mean, loop.square);
    update_coded_tensor_ops(u, units, step, g, operations.w, operations.mean, operations.square);
  }
  const auto different = [](const Moment& a, const Moment& b) { return (a.values != b.values).sum().item<int64_t>(); };
  EXPECT_LT(different(loop.mean, operations.mean), kCount / 500);  // a last bit can decide a rounding
  EXPECT_LT(different(loop.square, operations.square), kCount / 500);
  EXPECT_TRUE(torch::allclose(loop.w, operations.w, 1e-2, 1e-3));
  EXPECT_LT((loop.w - operations.w).abs().mean().item<double>(), 1e-5);
}

TEST(Adam8bit, ThreadsDoNotChangeTheBits) {
  const AdamUpdate u = {1.0f, 0.9f, 0.95f, 1e-2f, 1.2f, 1e-8f, 1.0f};
  const int before = at::get_num_threads();
  constexpr int64_t kMany = 1 << 17;
  torch::manual_seed(5);
  const torch::Tensor g = torch::randn({kMany});
  torch::Tensor results[2], codes[2];
  for (const int threads : {1, 2}) {
    at::set_num_threads(threads);
    torch::Tensor w = torch::zeros({kMany});
    Moment mean = coded_zeros(kMany, torch::kCPU), square = coded_zeros(kMany, torch::kCPU);
    for (int step = 1; step <= 3; ++step) update_coded_cpu(u, {}, step, g, w, mean, square);
    results[threads - 1] = w;
    codes[threads - 1] = square.values;
  }
  at::set_num_threads(before);
  EXPECT_TRUE(torch::equal(results[0], results[1]));
  EXPECT_TRUE(torch::equal(codes[0], codes[1]));
}

// A noisy quadratic whose curvatures, and so gradients, span four orders of magnitude within every block.
TEST(Adam8bit, DescendsAsFarAsFloat) {
  torch::manual_seed(7);
  const torch::Tensor curvature = torch::pow(10.0f, torch::rand({kCount}) * -4.0), start = torch::randn({kCount});
  double losses[2];
  for (const bool eight_bit : {false, true}) {
    torch::Tensor w = start.clone().requires_grad_();
    AdamWOptions options;
    options.eight_bit = eight_bit;
    options.beta2 = 0.99;
    AdamW adam({w}, options);
    torch::manual_seed(8);
    for (int step = 1; step <= 300; ++step) {
      w.mutable_grad() = curvature * (w.detach() + 0.1 * torch::randn({kCount}));
      adam.step(scheduled_lr(0.03, 0.01, 10, 300, step));
    }
    losses[eight_bit ? 1 : 0] = (curvature * w.detach().square()).sum().item<double>();
  }
  const double first = (curvature * start.square()).sum().item<double>();
  EXPECT_LT(losses[0], 0.01 * first);
  EXPECT_NEAR(losses[1], losses[0], 0.1 * losses[0]);
}

class Trainer8bit : public Trainer {
 protected:
  Recipe coded(const std::string& out) const {
    Recipe r = recipe(out);
    r.optimizer = "adamw8bit";
    return r;
  }
};

TEST_F(Trainer8bit, LearnsAsFloatDoes) {
  Recipe plain = recipe("plain"), coded = this->coded("coded");
  for (Recipe* r : {&plain, &coded}) {
    r->steps = 30;
    r->ce = 1.0;
    r->beta2 = 0.99;
    train(*r);
  }
  const std::vector<Json> a = metrics(plain), b = metrics(coded);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_LT(a.back()["eval_perplexity"].get<double>(), 0.5 * a.front()["eval_perplexity"].get<double>());
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i]["step"].get<int64_t>() < 20) continue;  // on the steep part one of them may be a step ahead
    const char* key = a[i].contains("loss") ? "loss" : "eval_ce";
    EXPECT_NEAR(b[i][key].get<double>(), a[i][key].get<double>(), 0.05 * a[i][key].get<double>()) << a[i].dump();
  }
}

TEST_F(Trainer8bit, ResumingAfterEveryStepGivesTheSameBits) {
  const Recipe whole = coded("whole"), pieces = coded("pieces");
  train(whole);
  for (int64_t step = 1; step < whole.steps + 1; ++step) {
    g_stop_signal = SIGTERM;
    ASSERT_EQ(train(pieces, step > 1).step, step);
  }
  g_stop_signal = 0;
  train(pieces, true);
  EXPECT_EQ(read_file(pieces.out + "/quantized/model.safetensors"),
            read_file(whole.out + "/quantized/model.safetensors"));
  EXPECT_EQ(metrics(pieces), metrics(whole));
}

TEST_F(Trainer8bit, CheckpointsHoldCodes) {
  Recipe r = coded("run");
  g_stop_signal = SIGTERM;
  const Safetensors file(train(r).checkpoint);
  g_stop_signal = 0;
  const std::string name = "model.embed_tokens.weight";
  const TensorView &codes = file.at("adam_square." + name), &scales = file.at("adam_square_scale." + name);
  EXPECT_EQ(codes.dtype, DType::U8);
  EXPECT_EQ(codes.count(), file.at(name).count());
  EXPECT_EQ(scales.count(), codes.count() / kMomentBlock);
  EXPECT_EQ(file.at("adam_square.model.norm.weight").dtype, DType::F32);
  r.optimizer = "adamw";
  EXPECT_THAT(error_of(r, true),
              HasSubstr("a resumed run cannot change [train] optimizer: \"adamw8bit\" -> \"adamw\""));
}

}  // namespace
}  // namespace qat
