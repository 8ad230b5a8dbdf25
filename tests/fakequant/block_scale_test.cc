// Learned scales of Q4_0 blocks: forward is what files hold, bit for bit; gradients are those of the formula, in the
// loop and in tensor operations alike.
#include "fakequant/block_scale.h"

#include <gtest/gtest.h>

#include <cstring>

#include "fakequant/fake_quantize.h"

namespace qat {
namespace {

struct Example {
  torch::Tensor w, log_scale, sign, gradient;
  torch::Tensor d() const { return stored_block_scales(log_scale, sign); }
};

// Blocks whose scale is too small (weights beyond the grid at both ends), right, and too large; of both signs; one of
// zeros, and one whose scale no float16 is as large as.
Example example() {
  torch::manual_seed(11);
  Example e;
  e.w = torch::randn({6, 128});
  e.w[5].zero_();
  e.gradient = torch::randn_like(e.w);
  const BlockScales scales = reference_block_scales(e.w);
  e.log_scale = scales.log_scale + torch::linspace(-0.7, 0.7, 24);
  e.log_scale[3] = 20.0;
  e.sign = scales.sign;
  EXPECT_EQ((e.sign < 0).any().item<bool>() && (e.sign > 0).any().item<bool>(), true);
  return e;
}

TEST(BlockScale, ForwardIsWhatFilesHold) {
  const Example e = example();
  const torch::Tensor out = block_quantize(e.w, e.log_scale, e.sign), codes = block_codes(e.w, e.log_scale, e.sign);
  const torch::Tensor d = e.d();
  for (int64_t i = 0; i < d.numel(); ++i) {
    float values[kBlockSize];
    const BlockQ4_0 block = encode_q4_0_with_scale(e.w.data_ptr<float>() + i * kBlockSize, d.data_ptr<float>()[i]);
    decode_block(block, values);
    EXPECT_EQ(std::memcmp(values, out.data_ptr<float>() + i * kBlockSize, sizeof values), 0) << "block " << i;
  }
  const torch::Tensor frozen = frozen_block_quantize(codes, e.log_scale, e.sign);
  EXPECT_EQ(std::memcmp(frozen.data_ptr(), out.data_ptr(), static_cast<size_t>(out.numel()) * 4), 0);
  const torch::Tensor operations = block_quantize_tensor_ops(e.w.view({-1, kBlockSize}), d.view({-1, 1}));
  EXPECT_TRUE(torch::equal(operations.view_as(out), out));
}

TEST(BlockScale, ScalesAreFloat16AndNeverZeroOrInfinite) {
  const torch::Tensor t = torch::tensor({-100.0f, -16.0f, -3.3f, 0.1f, 11.1f, 50.0f}), sign = torch::ones({6});
  const torch::Tensor d = stored_block_scales(t, -sign);
  EXPECT_TRUE(torch::equal(d, d.to(torch::kFloat16).to(torch::kFloat32)));
  EXPECT_TRUE((d < 0).logical_and(d.isfinite()).all().item<bool>());
  // And a stored scale comes back as itself, whatever the logarithm's rounding.
  const torch::Tensor stored = (torch::randn({5000}) * 0.05).to(torch::kFloat16).to(torch::kFloat32);
  const BlockScales back = block_scales_of(stored);
  EXPECT_TRUE(torch::equal(stored_block_scales(back.log_scale, back.sign), stored));
}

TEST(BlockScale, BeginsWhereTheReferenceRuleHasIt) {
  torch::manual_seed(12);
  const torch::Tensor w = torch::randn({16, 256}) * 0.02;
  const BlockScales scales = reference_block_scales(w);
  const torch::Tensor plain = fake_quantize(w, DType::Q4_0), learned = block_quantize(w, scales.log_scale, scales.sign);
  // The reference takes codes from the scale before it is rounded to float16: few differ, by a level.
  EXPECT_LT((plain != learned).sum().item<int64_t>(), 20);
}

// What the estimator differentiates, for autograd to differentiate: rounding adds a constant number of steps to a
// weight inside the grid, a weight beyond it stands at the grid's end.
torch::Tensor surrogate(const torch::Tensor& w, const torch::Tensor& log_scale, const torch::Tensor& d_stored) {
  const torch::Tensor x = w.view({-1, kBlockSize});
  const torch::Tensor d = (log_scale - log_scale.detach()).exp().view({-1, 1}) * d_stored.view({-1, 1});
  const torch::Tensor level = (x / d).detach();
  const torch::Tensor code = (level + 0.5).floor().clamp(-8, 7);
  const torch::Tensor outside = (level < -8.0).logical_or(level > 7.0);
  return torch::where(outside, d * code, x + d * (code - level)).view_as(w);
}

TEST(BlockScale, GradientsAreThoseOfTheFormula) {
  const Example e = example();
  const torch::Tensor w = e.w.to(torch::kFloat64).requires_grad_(),
                      t = e.log_scale.to(torch::kFloat64).requires_grad_();
  (surrogate(w, t, e.d().to(torch::kFloat64)) * e.gradient).sum().backward();
  const torch::Tensor own_w = e.w.clone().requires_grad_(), own_t = e.log_scale.clone().requires_grad_();
  (block_quantize(own_w, own_t, e.sign) * e.gradient).sum().backward();
  // Straight through where the formula's gradient ends, too: weights beyond the grid.
  EXPECT_GT((w.grad() == 0).sum().item<int64_t>(), 20);
  EXPECT_LE(((own_w.grad() - w.grad()) * (w.grad() != 0)).abs().max().item<double>(), 1e-6);
  EXPECT_TRUE(torch::equal(own_w.grad(), e.gradient));
  // The factor is LSQ's, 1 / sqrt(32 * 7).
  const torch::Tensor expected = t.grad() / std::sqrt(32.0 * 7.0);
  EXPECT_LE(((own_t.grad() - expected).abs() / (expected.abs() + 1.0)).max().item<double>(), 1e-5);
}

TEST(BlockScale, GradientsInTensorOperationsAreTheSame) {
  const Example e = example();
  const torch::Tensor w = e.w.clone().requires_grad_(), t = e.log_scale.clone().requires_grad_();
  (block_quantize(w, t, e.sign) * e.gradient).sum().backward();
  const torch::Tensor operations = block_scale_backward_tensor_ops(e.w.view({-1, kBlockSize}), e.d().view({-1, 1}),
                                                                   e.gradient.view({-1, kBlockSize}));
  // Sums of 32 terms in another order.
  const torch::Tensor difference = (operations - t.grad()).abs() / (t.grad().abs() + 1.0);
  EXPECT_LE(difference.max().item<double>(), 1e-5);
}

TEST(BlockScale, FrozenCodesHaveTheGradientOfTheirScale) {
  const Example e = example();
  const torch::Tensor codes = block_codes(e.w, e.log_scale, e.sign), t = e.log_scale.clone().requires_grad_();
  (frozen_block_quantize(codes, t, e.sign) * e.gradient).sum().backward();
  const torch::Tensor products = (codes.to(torch::kFloat32) * e.gradient).view({-1, kBlockSize}).sum(1) * e.d();
  const torch::Tensor expected = products / std::sqrt(32.0 * 7.0);
  EXPECT_LE(((t.grad() - expected).abs() / (expected.abs() + 1.0)).max().item<double>(), 1e-5);
}

}  // namespace
}  // namespace qat
