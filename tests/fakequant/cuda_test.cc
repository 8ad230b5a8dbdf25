// A GPU rounds weights and activations to the very values of the CPU, which are those of the files; its gradients are
// the same but for the order of sums. Skipped, and said so, where LibTorch finds no CUDA device.
#include <gtest/gtest.h>
#include <torch/cuda.h>

#include "fakequant/block_scale.h"
#include "fakequant/channel_quantize.h"
#include "fakequant/fake_quantize.h"
#include "fakequant/static_quantize.h"

namespace qat {
namespace {

using torch::Tensor;

class Cuda : public testing::Test {
 protected:
  void SetUp() override {
    if (!torch::cuda::is_available()) GTEST_SKIP() << "needs a LibTorch with CUDA, and a CUDA device";
    torch::manual_seed(21);
  }
  static Tensor leaf(const Tensor& x, torch::Device device) { return x.to(device).clone().requires_grad_(); }
};

// Differences where there must be none; -0 equals 0, NaN only itself in the same place.
int64_t different(const Tensor& cpu, const Tensor& cuda) {
  const Tensor other = cuda.detach().cpu(), one = cpu.detach();
  return (one != other).logical_and((one == one).logical_or(other == other)).sum().item<int64_t>();
}

// Sums in another order: 1e-5 of the largest is some 100 roundings.
void expect_close(const Tensor& cpu, const Tensor& cuda, const char* what) {
  const double error = (cpu - cuda.cpu()).abs().max().item<double>(), largest = cpu.abs().max().item<double>();
  EXPECT_LE(error, 1e-5 * largest) << what;
}

// Ordinary weights, weights with many ties, and blocks at the edges: zeros, equal magnitudes, the tiny, the huge.
Tensor weights() {
  Tensor w = torch::randn({512, 1024}) * 0.02;
  Tensor ties = torch::randn({512, 1024}).to(torch::kBFloat16).to(torch::kFloat32);
  ties[0].zero_();
  ties[1] *= 1e-30;
  ties[3] *= 2e4;
  ties[4] = (ties[4] * 8).round() / 8;
  ties[5].fill_(-0.25);
  return torch::cat({w, ties});
}

TEST_F(Cuda, GridsWithoutLearnedScales) {
  const Tensor w = weights(), g = torch::randn_like(w);
  for (const DType grid : {DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0, DType::Q6_K, DType::Q2_0}) {
    const Tensor cpu = leaf(w, torch::kCPU), cuda = leaf(w, torch::kCUDA);
    const Tensor expected = fake_quantize(cpu, grid), found = fake_quantize(cuda, grid);
    EXPECT_EQ(different(expected, found), 0) << dtype_name(grid);
    expected.backward(g);
    found.backward(g.cuda());
    expect_close(cpu.grad(), cuda.grad(), dtype_name(grid));
  }
}

TEST_F(Cuda, LearnedBlockScales) {
  const Tensor w = torch::randn({256, 1024}) * 0.02, g = torch::randn_like(w);
  const BlockScales scales = reference_block_scales(w), there = reference_block_scales(w.cuda());
  EXPECT_EQ(different(scales.sign, there.sign), 0);
  EXPECT_EQ(
      different(stored_block_scales(scales.log_scale, scales.sign), stored_block_scales(there.log_scale, there.sign)),
      0);
  const Tensor moved = scales.log_scale + torch::linspace(-0.7, 0.7, scales.log_scale.numel());
  const Tensor cpu = leaf(w, torch::kCPU), cuda = leaf(w, torch::kCUDA);
  const Tensor t = leaf(moved, torch::kCPU), u = leaf(moved, torch::kCUDA);
  const Tensor expected = block_quantize(cpu, t, scales.sign);
  const Tensor found = block_quantize(cuda, u, scales.sign.cuda());
  EXPECT_EQ(different(expected, found), 0);
  EXPECT_TRUE(torch::equal(block_codes(cpu, t, scales.sign), block_codes(cuda, u, scales.sign.cuda())));
  expected.backward(g);
  found.backward(g.cuda());
  EXPECT_EQ(different(cpu.grad(), cuda.grad()), 0);
  expect_close(t.grad(), u.grad(), "of the scales");
}

TEST_F(Cuda, Channels) {
  const Tensor w = torch::randn({300, 1000}) * 0.02, g = torch::randn_like(w);
  for (const int bits : {2, 4, 8}) {
    const Tensor scales = search_log_scales(w, w.size(1), bits);
    const Tensor cpu = leaf(w, torch::kCPU), cuda = leaf(w, torch::kCUDA);
    const Tensor t = leaf(scales, torch::kCPU), u = leaf(scales, torch::kCUDA);
    const Tensor expected = channel_quantize(cpu, t, bits), found = channel_quantize(cuda, u, bits);
    EXPECT_EQ(different(expected, found), 0) << bits << " bits";
    const Tensor codes = channel_codes(cpu, t, bits);
    EXPECT_TRUE(torch::equal(codes, channel_codes(cuda, u, bits)));
    EXPECT_EQ(different(expected, frozen_channel_quantize(codes.cuda(), u, bits)), 0);
    expected.backward(g);
    found.backward(g.cuda());
    EXPECT_EQ(different(cpu.grad(), cuda.grad()), 0) << bits << " bits";
    expect_close(t.grad(), u.grad(), "of the scales");
  }
}

TEST_F(Cuda, Activations) {
  const Tensor x = torch::randn({4, 333, 96}) * 3.0, g = torch::randn_like(x);
  for (const int bits : {4, 8}) {
    for (const float scale : {0.25f, 0.0115966796875f}) {
      const Tensor cpu = leaf(x, torch::kCPU), cuda = leaf(x, torch::kCUDA);
      const Tensor t = leaf(static_log_scale(scale), torch::kCPU), u = leaf(static_log_scale(scale), torch::kCUDA);
      const Tensor expected = static_quantize(cpu, t, bits), found = static_quantize(cuda, u, bits);
      EXPECT_EQ(different(expected, found), 0) << bits << " bits, scale " << scale;
      expected.backward(g);
      found.backward(g.cuda());
      EXPECT_EQ(different(cpu.grad(), cuda.grad()), 0);
      // One sum over all: its terms cancel, so it is held against their size, not its own.
      const double terms = (expected - x).mul(g).abs().sum().item<double>();
      EXPECT_NEAR(t.grad().item<double>(), u.grad().item<double>(), 1e-6 * terms);
    }
  }
}

}  // namespace
}  // namespace qat
