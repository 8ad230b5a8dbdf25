// Weights on channel-wise grids: what format/ stores, bit for bit; the gradients of weights and scales by their
// formulas; scales that are searched, learned and frozen.
#include "fakequant/channel_quantize.h"

#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstring>

#include "format/error.h"
#include "format/number.h"

namespace qat {
namespace {

constexpr int kWidths[] = {2, 4, 8};

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  const torch::Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() &&
         std::memcmp(x.data_ptr(), y.data_ptr(), static_cast<size_t>(x.numel()) * x.element_size()) == 0;
}

torch::Tensor leaf(const torch::Tensor& x) { return x.clone().requires_grad_(); }

// What format/ stores and reads back.
torch::Tensor decoded(const torch::Tensor& w, const torch::Tensor& log_scale, int bits) {
  const torch::Tensor scales = storable_scales(log_scale).contiguous(), x = w.contiguous(), out = torch::empty_like(x);
  const int64_t rows = scales.numel(), cols = x.numel() / rows;
  std::vector<int8_t> codes(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    const float scale = scales.data_ptr<float>()[r];
    encode_channel(bits, x.data_ptr<float>() + r * cols, cols, scale, codes.data());
    decode_channel(codes.data(), cols, scale, out.data_ptr<float>() + r * cols);
  }
  return out;
}

struct Case {
  torch::Tensor w, log_scale;  // (rows, cols), (rows)
};

// Ordinary rows, and those that rounding can get wrong: zeros, ties, limits, subnormals, the huge; one row and many,
// lengths around the vectors' and the pieces' size.
std::vector<Case> cases(int bits) {
  torch::manual_seed(11);
  std::vector<Case> out;
  for (const int64_t cols : {1, 2, 7, 8, 9, 31, 33, 513, 1000, 16384, 16385, 40001}) {
    for (const int64_t rows : {1, 6}) {
      const torch::Tensor w = torch::randn({rows, cols}) * 0.02;
      const torch::Tensor s = w.abs().mean(1).clamp_min(1e-3) * (4.0 / (1 << bits)) * (torch::rand({rows}) + 0.5);
      out.push_back({w, s.log()});
    }
  }
  torch::Tensor hard = torch::randn({8, 600});
  const torch::Tensor scales = torch::full({8}, 0.25f);
  hard[0].zero_();
  hard[1].fill_(-0.0f);
  hard[2] = (torch::arange(600) - 300).to(torch::kFloat32) * 0.125f;  // every tie and limit
  hard[3] = hard[2] * (1.0f + FLT_EPSILON);
  hard[4] = hard[2] * (1.0f - FLT_EPSILON / 2);
  hard[5] *= 1e-39;
  hard[6] *= 1e30;
  hard[7] = hard[7].round() * 0.25f;  // on the grid already
  out.push_back({hard, scales.log()});
  return out;
}

TEST(LearnedScale, EveryStorableScaleComesBackFromItsLogarithm) {
  std::vector<float> scales;
  for (uint32_t bits = float_bits(kLeastStorableScale); bits <= float_bits(kLargestStorableScale); bits += 0x10000)
    scales.push_back(float_from_bits(bits));
  const torch::Tensor expected = torch::tensor(scales);
  EXPECT_EQ(scales.size(), 30u * 128u);
  EXPECT_TRUE(same_bits(storable_scales(expected.log()), expected));
}

TEST(LearnedScale, IsFormatsRounding) {
  torch::manual_seed(2);
  const torch::Tensor logs = torch::cat({torch::randn({10000}) * 6.0, torch::tensor({-1e4f, -100.0f, 100.0f, 1e4f})});
  const torch::Tensor scales = storable_scales(logs);
  for (int64_t i = 0; i < logs.numel(); ++i) {
    const double exact = std::exp(static_cast<double>(logs[i].item<float>()));
    ASSERT_EQ(scales[i].item<float>(), storable_scale(static_cast<float>(exact))) << logs[i].item<float>();
  }
}

TEST(ChannelQuantize, IsDecodeOfEncodeBitForBit) {
  for (const int bits : kWidths) {
    for (const Case& c : cases(bits)) {
      EXPECT_TRUE(same_bits(channel_quantize(c.w, c.log_scale, bits), decoded(c.w, c.log_scale, bits)))
          << bits << " bits, " << c.w.sizes();
    }
  }
}

TEST(ChannelQuantize, TensorOperationsGiveTheSameNumbers) {
  for (const int bits : kWidths) {
    for (const Case& c : cases(bits)) {
      const torch::Tensor scales = storable_scales(c.log_scale).unsqueeze(1);
      // torch::equal: atol = rtol = 0, and -0 equals 0.
      EXPECT_TRUE(torch::equal(quantize_tensor_ops(c.w, scales, bits), decoded(c.w, c.log_scale, bits)))
          << bits << " bits, " << c.w.sizes();
    }
  }
}

TEST(ChannelQuantize, CodesAreThoseOfTheValues) {
  for (const int bits : kWidths) {
    for (const Case& c : cases(bits)) {
      const torch::Tensor codes = channel_codes(c.w, c.log_scale, bits);
      const torch::Tensor values = codes.to(torch::kFloat32) * storable_scales(c.log_scale).unsqueeze(1);
      EXPECT_TRUE(same_bits(values, channel_quantize(c.w, c.log_scale, bits))) << bits;
      EXPECT_GE(codes.min().item<int>(), lowest_code(bits));
      EXPECT_LE(codes.max().item<int>(), highest_code(bits));
    }
  }
}

// The formulas, in double. The code is the stored one: float division decides what is a tie.
struct Expected {
  torch::Tensor dw;          // (rows, cols), float
  torch::Tensor dlog_scale;  // (rows), double
  torch::Tensor magnitude;   // (rows), double: the sum's terms without their signs
};
Expected expected_gradients(const Case& c, const torch::Tensor& g, int bits, bool pass_clipped) {
  const torch::Tensor s = storable_scales(c.log_scale).to(torch::kFloat64).unsqueeze(1);
  const torch::Tensor w = c.w.to(torch::kFloat64), code = channel_codes(c.w, c.log_scale, bits).to(torch::kFloat64);
  const torch::Tensor inside = (w >= lowest_code(bits) * s).logical_and(w <= highest_code(bits) * s);
  const torch::Tensor h = torch::where(inside, code - w / s, code);
  const double factor = 1.0 / std::sqrt(static_cast<double>(c.w.size(1)) * highest_code(bits));
  const torch::Tensor terms = g.to(torch::kFloat64) * h * s * factor;
  return {pass_clipped ? g : torch::where(inside, g, torch::zeros_like(g)), terms.sum(1), terms.abs().sum(1)};
}

void expect_gradients(const Expected& expected, const torch::Tensor& dw, const torch::Tensor& dlog_scale) {
  EXPECT_TRUE(torch::equal(dw, expected.dw));
  // Blocks of 512 are summed in floats, 64 to a lane; each term was rounded twice before, the sum once after.
  const torch::Tensor bound = expected.magnitude * (67 * 0.5 * FLT_EPSILON) + 1e-30;
  const torch::Tensor error = (dlog_scale.to(torch::kFloat64) - expected.dlog_scale).abs();
  EXPECT_TRUE((error <= bound).all().item<bool>()) << "errors " << error << "bounds " << bound;
}

TEST(ChannelQuantize, GradientsAreThoseOfTheFormulas) {
  for (const int bits : kWidths) {
    for (const bool pass_clipped : {false, true}) {
      for (const Case& c : cases(bits)) {
        const torch::Tensor g = torch::randn(c.w.sizes());
        const torch::Tensor w = leaf(c.w), log_scale = leaf(c.log_scale);
        if (pass_clipped) channel_quantize(w, log_scale, bits).backward(g);
        else lsq_quantize(w, log_scale, bits, {lsq_factor(c.w.size(1), bits), pass_clipped}).backward(g);
        SCOPED_TRACE(std::to_string(bits) + " bits, " + std::to_string(c.w.size(1)) + " columns");
        expect_gradients(expected_gradients(c, g, bits, pass_clipped), w.grad(), log_scale.grad());
      }
    }
  }
}

TEST(ChannelQuantize, TensorOperationsGiveTheSameGradients) {
  for (const int bits : kWidths) {
    for (const bool pass_clipped : {false, true}) {
      for (const Case& c : cases(bits)) {
        const torch::Tensor g = torch::randn(c.w.sizes());
        const LsqGradients d = lsq_backward_tensor_ops(c.w, storable_scales(c.log_scale).unsqueeze(1), g, bits,
                                                       {lsq_factor(c.w.size(1), bits), pass_clipped});
        expect_gradients(expected_gradients(c, g, bits, pass_clipped), d.x, d.log_scale);
      }
    }
  }
}

// Weights and scale doubled together double every value: the gradients must add up to that slope (Euler), which is the
// finite difference of the forward pass itself, clipped or not.
TEST(ChannelQuantize, GradientsAddUpToTheFiniteDifferenceOfScalingAll) {
  torch::manual_seed(4);
  for (const int bits : kWidths) {
    const torch::Tensor w = leaf(torch::randn({5, 77})), log_scale = leaf(torch::full({5}, std::log(0.3f)));
    const torch::Tensor g = torch::randn({5, 77});
    const torch::Tensor value = lsq_quantize(w, log_scale, bits, {});
    value.backward(g);
    const torch::Tensor doubled =
        lsq_quantize(w.detach() * 2, (storable_scales(log_scale) * 2).log(), bits, {}).to(torch::kFloat64);
    const torch::Tensor slope = (g * (doubled - value.detach())).sum(1);
    const torch::Tensor sum = (w.grad() * w.detach()).to(torch::kFloat64).sum(1) + log_scale.grad();
    EXPECT_TRUE(torch::allclose(sum, slope, 0.0, 1e-4)) << bits << sum << slope;
    EXPECT_GT(slope.abs().max().item<double>(), 1.0);
  }
}

// Where everything is clipped, values are proportional to the scale, and its gradient is a true derivative.
TEST(ChannelQuantize, ScaleGradientOfClippedRowsIsTheFiniteDifference) {
  for (const int bits : kWidths) {
    const torch::Tensor w = torch::tensor({{900.0f, -900.0f, 700.0f}}), g = torch::tensor({{0.5f, 0.25f, -2.0f}});
    const torch::Tensor weight = leaf(w), log_scale = leaf(torch::full({1}, std::log(1.5f)));
    lsq_quantize(weight, log_scale, bits, {}).backward(g);
    const auto loss = [&](float scale) {
      return (g * lsq_quantize(w, torch::full({1}, std::log(scale)), bits, {})).sum().item<double>();
    };
    const double step = 1.0 / 64.0;
    const double slope = (loss(1.5f + 1.0f / 64.0f) - loss(1.5f - 1.0f / 64.0f)) / (2.0 * step);
    EXPECT_NEAR(log_scale.grad().item<double>(), slope * 1.5, 1e-4 * std::fabs(slope));
    EXPECT_TRUE(torch::equal(weight.grad(), torch::zeros_like(w)));
  }
}

TEST(ChannelQuantize, DoesNotDependOnThreads) {
  torch::manual_seed(3);
  const int before = at::get_num_threads();
  for (const int64_t rows : {1, 3, 1000}) {
    const torch::Tensor w = torch::randn({rows, 90000 / rows}), g = torch::randn({rows, 90000 / rows});
    const torch::Tensor t = torch::full({rows}, -2.0f);
    std::vector<torch::Tensor> values, dw, dt;
    for (const int threads : {1, 4}) {
      at::set_num_threads(threads);
      const torch::Tensor weight = leaf(w), log_scale = leaf(t);
      values.push_back(channel_quantize(weight, log_scale, 4));
      values.back().backward(g);
      dw.push_back(weight.grad());
      dt.push_back(log_scale.grad());
    }
    EXPECT_TRUE(same_bits(values[0], values[1]) && same_bits(dw[0], dw[1]) && same_bits(dt[0], dt[1])) << rows;
  }
  at::set_num_threads(before);
}

TEST(ChannelQuantize, ZeroRowsStayZeroAndMoveNoScale) {
  for (const int bits : kWidths) {
    const torch::Tensor w = leaf(torch::zeros({2, 40}));
    const torch::Tensor log_scale = leaf(search_log_scales(w, 40, bits));
    EXPECT_TRUE(torch::equal(storable_scales(log_scale), torch::full({2}, kLeastStorableScale)));
    const torch::Tensor value = channel_quantize(w, log_scale, bits), g = torch::randn({2, 40});
    value.backward(g);
    EXPECT_TRUE(torch::equal(value, torch::zeros({2, 40})));
    EXPECT_TRUE(torch::equal(w.grad(), g));
    EXPECT_TRUE(torch::equal(log_scale.grad(), torch::zeros({2})));
  }
}

TEST(ChannelQuantize, PerLayerEmbeddingHasAScalePerTokenAndLayer) {
  torch::manual_seed(6);
  constexpr int64_t kVocab = 12, kLayers = 3, kWidth = 20;
  const torch::Tensor table = torch::randn({kVocab, kLayers * kWidth}), g = torch::randn(table.sizes());
  const torch::Tensor logs = search_log_scales(table, kWidth, 4).view({kVocab, kLayers});
  const torch::Tensor w = leaf(table), t = leaf(logs);
  const torch::Tensor value = channel_quantize(w, t, 4);
  value.backward(g);
  EXPECT_EQ(t.grad().sizes(), logs.sizes());
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto part = [&](const torch::Tensor& x) { return x.slice(1, layer * kWidth, (layer + 1) * kWidth); };
    const torch::Tensor w_part = leaf(part(table)), t_part = leaf(logs.select(1, layer).contiguous());
    const torch::Tensor alone = channel_quantize(w_part, t_part, 4);
    alone.backward(part(g));
    EXPECT_TRUE(same_bits(part(value.detach()), alone.detach()));
    EXPECT_TRUE(same_bits(part(w.grad()), w_part.grad()));
    EXPECT_TRUE(same_bits(t.grad().select(1, layer), t_part.grad()));
  }
}

TEST(ChannelQuantize, StartsAtTheSearchedScale) {
  torch::manual_seed(8);
  const torch::Tensor w = torch::randn({9, 50}), importance = torch::rand({50});
  for (const int bits : kWidths) {
    for (const bool weighted : {false, true}) {
      const torch::Tensor scales =
          storable_scales(search_log_scales(w, 50, bits, weighted ? importance : torch::Tensor()));
      for (int64_t r = 0; r < 9; ++r) {
        EXPECT_EQ(scales[r].item<float>(), search_scale(bits, w.data_ptr<float>() + r * 50,
                                                        weighted ? importance.data_ptr<float>() : nullptr, 50));
      }
    }
  }
}

TEST(ChannelQuantizeDeathTest, ShapesThatDoNotDivideAreAProgrammersFault) {
  const torch::Tensor w = torch::zeros({4, 6});
  EXPECT_DEATH(channel_quantize(w, torch::zeros({5}), 4), "check failed");
  EXPECT_DEATH(channel_quantize(w, torch::zeros({4}), 3), "check failed");
  EXPECT_DEATH(search_log_scales(w, 5, 4), "check failed");
  EXPECT_DEATH(search_log_scales(w, 6, 4, torch::zeros({5})), "check failed");
}

TEST(FrozenCodes, KeepTheirCodesWhileTheScaleMoves) {
  torch::manual_seed(9);
  for (const int bits : kWidths) {
    const torch::Tensor w = torch::randn({4, 65});
    const torch::Tensor start = search_log_scales(w, 65, bits), codes = channel_codes(w, start, bits);
    EXPECT_TRUE(same_bits(frozen_channel_quantize(codes, start, bits), channel_quantize(w, start, bits)));

    const torch::Tensor log_scale = leaf(start + 0.3), g = torch::randn({4, 65});
    const torch::Tensor value = frozen_channel_quantize(codes, log_scale, bits);
    const torch::Tensor expected = codes.to(torch::kFloat32) * storable_scales(log_scale).unsqueeze(1);
    EXPECT_TRUE(same_bits(value.detach(), expected));
    EXPECT_FALSE(torch::equal(channel_codes(w, log_scale, bits), codes));  // rounding would have moved some
    value.backward(g);
    const torch::Tensor gradient =
        (g.to(torch::kFloat64) * expected).sum(1) / std::sqrt(65.0 * static_cast<double>(highest_code(bits)));
    EXPECT_TRUE(torch::allclose(log_scale.grad().to(torch::kFloat64), gradient, 1e-5, 1e-5)) << bits;
  }
}

// A row and its scale fitted by Adam under a quadratic loss with a given Hessian, from the searched scale (which knows
// the Hessian's diagonal): what is learned must be at least as good.
TEST(ChannelQuantize, LearnedScaleAndWeightsBeatTheSearchedScale) {
  torch::manual_seed(10);
  constexpr int64_t kCols = 96;
  const torch::Tensor inputs =
      torch::matmul(torch::randn({400, 24}), torch::randn({24, kCols})) + torch::randn({400, kCols});
  const torch::Tensor hessian = torch::matmul(inputs.t(), inputs) / 400.0;
  const torch::Tensor target = torch::randn({1, kCols}) * 0.02;
  for (const int bits : kWidths) {
    const torch::Tensor searched = search_log_scales(target, kCols, bits, hessian.diagonal().contiguous());
    const auto loss = [&](const torch::Tensor& w, const torch::Tensor& t) {
      const torch::Tensor error = channel_quantize(w, t, bits) - target;
      return (torch::matmul(error, hessian) * error).sum();
    };
    const double before = loss(target, searched).item<double>();
    const torch::Tensor w = leaf(target), t = leaf(searched);
    torch::Tensor means[2], squares[2];
    double best = before;
    for (int step = 1; step <= 400; ++step) {
      const torch::Tensor value = loss(w, t);
      best = std::min(best, value.item<double>());
      value.backward();
      const torch::NoGradGuard no_grad;
      int k = 0;
      for (const torch::Tensor& p : {w, t}) {
        const torch::Tensor g = p.grad().clone();
        means[k] = step == 1 ? g * 0.1 : means[k] * 0.9 + g * 0.1;
        squares[k] = step == 1 ? g * g * 0.05 : squares[k] * 0.95 + g * g * 0.05;
        const torch::Tensor direction =
            (means[k] / (1 - std::pow(0.9, step))) / ((squares[k] / (1 - std::pow(0.95, step))).sqrt() + 1e-12);
        const double rate = (k == 0 ? std::exp(searched.item<double>()) / 50 : 2e-3) * (1.0 - step / 401.0);
        torch::Tensor parameter = p;
        parameter -= direction * rate;
        parameter.mutable_grad().reset();
        ++k;
      }
    }
    EXPECT_LT(best, 0.6 * before) << bits << " bits";
    RecordProperty("loss_of_searched_" + std::to_string(bits), std::to_string(before / best));
    // The scale alone, from the largest magnitude instead of the search.
    const torch::Tensor from = (target.abs().amax(1) / highest_code(bits)).log();
    const torch::Tensor alone = leaf(from);
    torch::Tensor mean = torch::zeros({1}), square = torch::zeros({1});
    double best_alone = loss(target, from).item<double>();
    const double start_alone = best_alone;
    for (int step = 1; step <= 400; ++step) {
      const torch::Tensor value = loss(target, alone);
      best_alone = std::min(best_alone, value.item<double>());
      value.backward();
      const torch::NoGradGuard no_grad;
      mean = mean * 0.9 + alone.grad() * 0.1;
      square = square * 0.95 + alone.grad().square() * 0.05;
      torch::Tensor parameter = alone;
      parameter -= 1e-2 * (1.0 - step / 401.0) * mean / (1 - std::pow(0.9, step)) /
                   ((square / (1 - std::pow(0.95, step))).sqrt() + 1e-12);
      parameter.mutable_grad().reset();
    }
    std::printf(
        "%d bits: searched %.4g, weights and scale learned %.4g; largest magnitude %.4g, its scale learned %.4g\n",
        bits, before, best, start_alone, best_alone);
  }
}

}  // namespace
}  // namespace qat
