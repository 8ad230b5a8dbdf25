// Whole runs on a GPU give what the CPU gives: losses, held-out figures, and a file. Skipped, and said so, where
// LibTorch finds no CUDA device.
#include <torch/cuda.h>

#include <cmath>

#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

class CudaTrainer : public Trainer {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "needs a LibTorch with CUDA, and a CUDA device";
    Trainer::SetUp();
  }
  void expect_same_losses(Recipe cpu) {
    // Adam's first steps have the size of the learning rate whatever the gradient, also where that is 0 but for
    // rounding: at a large one two devices part within steps.
    cpu.lr = 1e-4;
    Recipe cuda = cpu;
    cuda.device = "cuda";
    cuda.out = cpu.out + "-cuda";
    train(cpu);
    train(cuda);
    const std::vector<Json> expected = metrics(cpu), found = metrics(cuda);
    ASSERT_EQ(expected.size(), found.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      for (const char* key : {"loss", "eval_kl", "eval_ce"}) {
        ASSERT_EQ(expected[i].contains(key), found[i].contains(key));
        if (!expected[i].contains(key)) continue;
        const double a = expected[i][key], b = found[i][key];
        // Sums in another order move a weight across a rounding border now and then: few steps, so few of them.
        EXPECT_NEAR(a, b, 2e-3 * std::fabs(a) + 1e-6) << cpu.plan << ", " << key << ", line " << i;
      }
    }
    EXPECT_TRUE(fs::exists(cuda.out + "/quantized/model.safetensors"));
  }
};

TEST_F(CudaTrainer, LossesAreThoseOfTheCpu) {
  for (const char* plan : {"q4_0", "q8_0"}) {
    Recipe r = recipe(plan);
    r.plan = plan;
    expect_same_losses(r);
  }
}

TEST_F(CudaTrainer, MobileLossesAreThoseOfTheCpu) {
  Recipe r = recipe("mobile");
  r.plan = "mobile";
  r.steps = 8;
  r.activations_after = 0.25;
  r.freeze_after = 0.75;
  r.calibration_sequences = 4;
  expect_same_losses(r);
}

TEST_F(CudaTrainer, ResumingGivesTheSameBits) {
  Recipe whole = recipe("whole"), pieces = recipe("pieces");
  whole.device = pieces.device = "cuda";
  train(whole);
  g_stop_signal = SIGTERM;
  ASSERT_EQ(train(pieces).step, 1);
  g_stop_signal = 0;
  train(pieces, true);
  EXPECT_EQ(metrics(pieces), metrics(whole));
}

}  // namespace
}  // namespace qat
