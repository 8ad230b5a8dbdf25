// The CPU's element-wise loops against the same in tensor operations: values and gradients, for widths that do and do
// not fill vectors.
#include <gtest/gtest.h>

#include <functional>

#include "qat/train/cpu_elementwise.h"
#include "qat/train/losses.h"
#include "qat/train/ops.h"

namespace qat {
namespace {

using torch::Tensor;
using Function = std::function<Tensor(const std::vector<Tensor>&)>;

// Value and gradients of `found` (float32) within 1e-5 in norm of those of `expected`, which computes in float64.
void expect_same(const Function& found, const Function& expected, const std::vector<Tensor>& inputs,
                 const std::string& what) {
  ASSERT_TRUE(uses_cpu_loops(inputs[0])) << what;
  std::vector<Tensor> single, wide;
  for (const Tensor& x : inputs) {
    single.push_back(x.detach().clone().requires_grad_(x.requires_grad()));
    wide.push_back(x.to(torch::kFloat64).detach().requires_grad_(x.requires_grad()));
  }
  const Tensor y = found(single), reference = expected(wide);
  const Tensor direction = torch::randn(reference.sizes(), torch::kFloat64);
  torch::autograd::backward({y}, {direction.to(torch::kFloat32)});
  torch::autograd::backward({reference}, {direction});
  const auto error = [](const Tensor& a, const Tensor& b) {
    return ((a.to(torch::kFloat64) - b).norm() / b.norm().clamp_min(1e-30)).item<double>();
  };
  EXPECT_LE(error(y, reference), 1e-6) << what;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].requires_grad()) continue;
    EXPECT_LE(error(single[i].grad(), wide[i].grad()), 1e-5) << what << ", gradient of input " << i;
  }
}

class CpuElementwise : public testing::Test {
 protected:
  void SetUp() override {
    if (!cpu_elementwise_available()) GTEST_SKIP() << "needs a processor with AVX2 and FMA";
    torch::manual_seed(3);
  }
};

TEST_F(CpuElementwise, RmsNorm) {
  for (const int64_t cols : {2, 7, 8, 20, 256})  // not 1: its gradient is 0 but for rounding
    for (const bool plus_one : {false, true}) {
      const Tensor x = (3 * torch::randn({2, 70, cols})).requires_grad_(), w = torch::randn({cols}).requires_grad_();
      const std::string what = "width " + std::to_string(cols);
      expect_same([&](const auto& in) { return rms_norm(in[0], in[1], 1e-6, plus_one); },
                  [&](const auto& in) { return rms_norm_tensor_ops(in[0], in[1], 1e-6, plus_one); }, {x, w}, what);
      expect_same([&](const auto& in) { return rms_norm(in[0], {}, 1e-6, plus_one); },
                  [&](const auto& in) { return rms_norm_tensor_ops(in[0], {}, 1e-6, plus_one); }, {x}, what);
      // A norm that is not trained gets no gradient.
      const Tensor y = rms_norm(x, w.detach(), 1e-6, plus_one);
      y.sum().backward();
      EXPECT_TRUE(x.grad().defined());
    }
}

TEST_F(CpuElementwise, GatedActivations) {
  for (const int64_t count : {1, 9, 1000, 40000})
    for (const bool gelu : {false, true}) {
      // Far out on both sides, where sigmoids are 0 and 1.
      const Tensor gate = (torch::randn({count}) * 20).requires_grad_(), up = torch::randn({count}).requires_grad_();
      expect_same([&](const auto& in) { return gated_activation(in[0], in[1], gelu); },
                  [&](const auto& in) { return gated_activation_tensor_ops(in[0], in[1], gelu); }, {gate, up},
                  std::to_string(count) + (gelu ? " gelu" : " silu"));
    }
}

TEST_F(CpuElementwise, RotaryEmbedding) {
  for (const int64_t half : {1, 4, 10, 32}) {
    const Tensor x = torch::randn({2, 33, 3, 2 * half}).requires_grad_();
    const Tensor angle = torch::randn({33, 1, half});
    expect_same([&](const auto& in) { return rotate(in[0], in[1], in[2]); },
                [&](const auto& in) { return rotate_tensor_ops(in[0], in[1], in[2]); }, {x, angle.cos(), angle.sin()},
                "half a head of " + std::to_string(half));
  }
}

TEST_F(CpuElementwise, LossesOfLogits) {
  for (const int64_t vocab : {5, 8, 1000})
    for (const double softcap : {0.0, 5.0})
      for (const LossOptions& options : {LossOptions{1.0, 0.0}, LossOptions{0.0, 1.0}, LossOptions{0.6, 0.4}}) {
        const Tensor hidden = torch::randn({37, 24}), weight = 2 * torch::randn({vocab, 24});
        const HeadInput teacher{torch::randn({37, 16}), torch::randn({vocab, 16}), softcap};
        Tensor targets = torch::randint(0, vocab, {37}, torch::kInt64);
        targets[36] = -1;
        Tensor gradients[2][2];
        Losses losses[2];
        for (const int loops : {0, 1}) {
          LossOptions of = options;
          of.loops = loops == 1;
          const HeadInput student{hidden.clone().requires_grad_(), weight.clone().requires_grad_(), softcap};
          losses[loops] = head_losses(student, options.kl > 0 ? &teacher : nullptr, targets, of);
          losses[loops].total.backward();
          gradients[loops][0] = student.hidden.grad();
          gradients[loops][1] = student.weight.grad();
        }
        EXPECT_NEAR(losses[1].kl, losses[0].kl, 2e-6 * losses[0].kl);
        EXPECT_NEAR(losses[1].cross_entropy, losses[0].cross_entropy, 1e-6 * losses[0].cross_entropy);
        for (int i = 0; i < 2; ++i)
          EXPECT_LE(((gradients[1][i] - gradients[0][i]).norm() / gradients[0][i].norm()).item<double>(), 1e-5)
              << vocab << " tokens, softcap " << softcap << ", input " << i;
      }
}

// A logit that is no number must show, not vanish in a maximum.
TEST_F(CpuElementwise, NaNShowsInTheLoss) {
  for (const float bad : {NAN, INFINITY}) {
    Tensor hidden = torch::randn({3, 8});
    hidden[1][2] = bad;
    const HeadInput student{hidden.requires_grad_(), torch::randn({20, 8}).requires_grad_(), 0.0};
    const HeadInput teacher{torch::randn({3, 8}), torch::randn({20, 8}), 0.0};
    const Losses losses = head_losses(student, &teacher, torch::tensor({1, 2, 3}, torch::kInt64), {});
    EXPECT_FALSE(std::isfinite(losses.kl)) << bad;
  }
}

}  // namespace
}  // namespace qat
