// The CPU's attention loops against the same attention in tensor operations: values and gradients.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "qat/train/cpu_attention.h"
#include "qat/train/ops.h"

namespace qat {
namespace {

struct Case {
  int64_t batch, length, heads, kv_heads, head_dim, window;
};

torch::Tensor mask_of(int64_t length, int64_t window) {
  const torch::Tensor position = torch::arange(length);
  const torch::Tensor distance = position.unsqueeze(1) - position.unsqueeze(0);
  torch::Tensor hidden = distance < 0;
  if (window > 0) hidden = hidden.logical_or(distance >= window);
  return torch::zeros({length, length}).masked_fill(hidden, -std::numeric_limits<float>::infinity());
}

double largest_of(const torch::Tensor& x) { return x.abs().max().item<double>(); }

// Float32 sums of at most a few hundred terms in another order: 1e-5 of the largest value is some hundred roundings.
void expect_close(const torch::Tensor& found, const torch::Tensor& expected, double largest, const char* what) {
  const double error = (found - expected).abs().max().item<double>();
  EXPECT_LE(error, 1e-5 * largest) << what;
}

TEST(CpuAttention, ValuesAndGradientsEqualTensorOperations) {
  if (!cpu_attention_available()) GTEST_SKIP() << "needs a processor with AVX2 and FMA";
  torch::manual_seed(1);
  // Head sizes that are no multiple of a vector, lengths that are no multiple of a block, windows shorter and longer
  // than a block.
  const Case cases[] = {{2, 37, 8, 4, 8, 0},  {1, 64, 4, 1, 32, 16}, {2, 16, 2, 2, 20, 0}, {1, 1, 2, 1, 8, 0},
                        {1, 50, 6, 2, 16, 5}, {1, 33, 4, 4, 64, 33}, {1, 40, 3, 3, 7, 1},  {2, 129, 4, 2, 16, 100}};
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << "length " << c.length << ", head size " << c.head_dim << ", window "
                                    << c.window);
    const auto q = torch::randn({c.batch, c.length, c.heads, c.head_dim}).mul_(2.0).requires_grad_();
    const auto k = torch::randn({c.batch, c.length, c.kv_heads, c.head_dim}).requires_grad_();
    const auto v = torch::randn({c.batch, c.length, c.kv_heads, c.head_dim}).requires_grad_();
    const torch::Tensor weight = torch::randn({c.batch, c.length, c.heads * c.head_dim});
    const torch::Tensor mask = mask_of(c.length, c.window);
    const double scale = 0.35;

    const torch::Tensor expected = attention_tensor_ops(q, k, v, mask, scale);
    const auto expected_gradients = torch::autograd::grad({(expected * weight).sum()}, {q, k, v});
    const torch::Tensor found = attention(q, k, v, mask, c.window, scale);
    const auto gradients = torch::autograd::grad({(found * weight).sum()}, {q, k, v});
    expect_close(found, expected, largest_of(expected), "values");
    // dq and dk are differences of terms as large as dv: with one visible key they are nothing but the roundings of
    // those.
    const double terms = largest_of(expected_gradients[2]);
    expect_close(gradients[0], expected_gradients[0], std::max(terms, largest_of(expected_gradients[0])), "dq");
    expect_close(gradients[1], expected_gradients[1], std::max(terms, largest_of(expected_gradients[1])), "dk");
    expect_close(gradients[2], expected_gradients[2], terms, "dv");
  }
}

// Scores far apart: the softmax is a one, and nothing overflows.
TEST(CpuAttention, LargeScoresStayFinite) {
  if (!cpu_attention_available()) GTEST_SKIP() << "needs a processor with AVX2 and FMA";
  const torch::Tensor q = torch::full({1, 20, 1, 8}, 100.0);
  const torch::Tensor k = torch::linspace(-100.0, 100.0, 20).view({1, 20, 1, 1}).expand({1, 20, 1, 8}).contiguous();
  const torch::Tensor v = torch::arange(20, torch::kFloat32).view({1, 20, 1, 1}).expand({1, 20, 1, 8}).contiguous();
  const torch::Tensor out = attention(q, k, v, mask_of(20, 0), 0, 1.0);
  EXPECT_TRUE(torch::allclose(out.view({20, 8}).select(1, 0), torch::arange(20, torch::kFloat32)));
}

}  // namespace
}  // namespace qat
