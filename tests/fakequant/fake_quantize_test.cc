// Fake quantization gives the floats that the stored blocks mean, bit for bit, on either realisation; its gradient goes
// straight through the rounding, on Q4_0 through the scale too.
#include "fakequant/fake_quantize.h"

#include <gtest/gtest.h>

#include <cstring>

namespace qat {
namespace {

torch::Tensor decoded(const torch::Tensor& w, DType grid) {
  const torch::Tensor x = w.contiguous();
  const int64_t cols = x.size(-1), rows = x.numel() / cols;
  std::vector<uint8_t> blocks(static_cast<size_t>(rows) * row_bytes(grid, cols));
  encode_rows(grid, x.data_ptr<float>(), rows, cols, blocks.data());
  torch::Tensor out = torch::empty_like(x);
  decode_rows(grid, blocks.data(), rows, cols, out.data_ptr<float>());
  return out;
}

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.sizes() == b.sizes() && std::memcmp(a.data_ptr(), b.data_ptr(), static_cast<size_t>(a.numel()) * 4) == 0;
}

// Weights that hit what rounding can get wrong: zero blocks, ties (bfloat16 weights have many), one huge value among
// small ones, subnormals, values at the edges of float16.
std::vector<torch::Tensor> hard_weights() {
  torch::manual_seed(7);
  const torch::Tensor normal = torch::randn({24, 512}) * 0.02;
  torch::Tensor mixed = torch::randn({24, 512});
  mixed[0].zero_();
  mixed[1].fill_(-0.0);
  mixed[2] = mixed[2] * 1e-30;
  mixed[3] = mixed[3] * 1e-7;
  mixed[4] = mixed[4] * 3e4;
  mixed[5] = mixed[5].round();
  mixed[6] = (mixed[6] * 8).round() / 8;
  mixed[7][5] = 1000;
  mixed[8] = torch::arange(512).to(torch::kFloat32) - 256;
  mixed[9].fill_(0.25);
  mixed[10] = torch::where(torch::arange(512) % 2 == 0, torch::tensor(-1.5f),
                           torch::tensor(1.5f));  // equal magnitudes: the first decides
  return {normal, normal.to(torch::kBFloat16).to(torch::kFloat32), mixed};
}

constexpr DType kGrids[] = {DType::F32, DType::F16, DType::BF16, DType::Q2_0, DType::Q4_0, DType::Q8_0, DType::Q6_K};

TEST(FakeQuantize, IsDecodeOfEncodeBitForBit) {
  for (const torch::Tensor& w : hard_weights())
    for (const DType grid : kGrids)
      EXPECT_TRUE(same_bits(fake_quantize(w, grid), decoded(w, grid))) << dtype_name(grid);
}

TEST(FakeQuantize, TensorOperationsGiveTheSameNumbers) {
  for (const torch::Tensor& w : hard_weights()) {
    for (const DType grid : kGrids) {
      if (grid == DType::Q6_K || grid == DType::Q2_0) continue;  // no tensor form
      // torch::equal: atol = rtol = 0, and -0 equals 0.
      EXPECT_TRUE(torch::equal(fake_quantize_tensor_ops(w, grid), decoded(w, grid))) << dtype_name(grid);
    }
  }
}

TEST(FakeQuantize, DoesNotDependOnThreads) {
  torch::manual_seed(3);
  const torch::Tensor w = torch::randn({1000, 96});
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const torch::Tensor one = fake_quantize(w, DType::Q4_0);
  at::set_num_threads(4);
  EXPECT_TRUE(same_bits(fake_quantize(w, DType::Q4_0), one));
  at::set_num_threads(before);
}

TEST(FakeQuantize, RoundingTwiceChangesNothing) {
  for (const torch::Tensor& w : hard_weights()) {
    for (const DType grid : {DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0}) {
      // A block whose scale is a float16 subnormal loses its extreme's exactness; those rows are not on this promise.
      const torch::Tensor usual = w.slice(0, 4, 24).clamp(-6e4, 6e4);
      const torch::Tensor once = fake_quantize(usual, grid);
      EXPECT_TRUE(torch::equal(fake_quantize(once, grid), once)) << dtype_name(grid);
    }
  }
}

TEST(FakeQuantize, GradientGoesStraightThrough) {
  torch::manual_seed(5);
  for (const DType grid : kGrids) {
    if (grid == DType::Q4_0) continue;  // its scale has a gradient too: below
    torch::Tensor w = torch::randn({4, 256});
    w.requires_grad_();
    const torch::Tensor g = torch::randn({4, 256});
    (fake_quantize(w, grid) * g).sum().backward();
    EXPECT_TRUE(torch::equal(w.grad(), g)) << dtype_name(grid);
  }
}

// What the estimator differentiates, for autograd to differentiate: d = m / -8 as a function of the weights, rounding
// as the identity, a weight beyond the grid standing at 7 d.
torch::Tensor surrogate(const torch::Tensor& w) {
  const torch::Tensor x = w.reshape({-1, kBlockSize});
  const torch::Tensor d = x.gather(1, x.abs().argmax(1, true)) / -8.0;
  const torch::Tensor level = (x / d).detach();
  const torch::Tensor inside = x + d * ((level + 0.5).floor() - level);
  return torch::where(level >= 7.5, 7.0 * d, inside).view_as(w);
}

TEST(FakeQuantize, GradientOfQ4_0IsThatOfItsScaleToo) {
  torch::manual_seed(6);
  const torch::Tensor values = torch::randn({8, 256}), g = torch::randn({8, 256});
  const torch::Tensor exact = values.to(torch::kFloat64).requires_grad_();
  const torch::Tensor w = values.clone().requires_grad_();
  // The surrogate's value is the rounded weight, but for the scale's rounding to float16.
  EXPECT_LE((surrogate(exact) - fake_quantize(values, DType::Q4_0)).abs().max().item<double>(), 3e-3);
  (surrogate(exact) * g).sum().backward();
  (fake_quantize(w, DType::Q4_0) * g).sum().backward();
  EXPECT_LE((w.grad() - exact.grad()).abs().max().item<double>(), 1e-5);
  EXPECT_EQ((w.grad() != g).sum().item<int64_t>(), (exact.grad() != g).sum().item<int64_t>());
}

TEST(FakeQuantize, GradientOfQ4_0InTensorOperationsIsTheSame) {
  torch::manual_seed(8);
  for (const torch::Tensor& w : hard_weights()) {
    const torch::Tensor g = torch::randn_like(w);
    const torch::Tensor loop = q4_0_gradient(w, g), operations = q4_0_gradient_tensor_ops(w, g);
    EXPECT_LE((loop - operations).abs().max().item<double>(), 1e-5);  // sums of 32 terms in another order
    EXPECT_TRUE(torch::equal(loop == 0, operations == 0));
  }
}

}  // namespace
}  // namespace qat
