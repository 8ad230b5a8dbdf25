// The LibTorch model against hidden states and logits that transformers computed.
//
// How near can one float32 program come to another? The miniature `gemma4-e2b` has random weights and ten layers that
// double any difference: transformers itself moves its logits by 7e-4 of the largest when OpenBLAS runs on one thread
// instead of two, by 4e-4 with its other attention, and computing in float64 moves them by 5e-4. So that model's logits
// get a bound of 1e-3 here, and every layer is held to a tight bound on its own, fed with the golden's input.
#include "qat/train/model.h"

#include <gtest/gtest.h>

#include "tests/test_paths.h"
#include "tests/train/goldens.h"

namespace qat {
namespace {

double largest(const torch::Tensor& x) { return x.abs().max().item<double>(); }

struct GoldenRun {
  explicit GoldenRun(const std::string& name)
      : checkpoint(shared_path("goldens/" + name)),
        model(checkpoint, torch::kCPU),
        golden(checkpoint.directory() + "/golden.safetensors") {}

  torch::Tensor logits(const ForwardOptions& options) const {
    const torch::NoGradGuard no_grad;
    const torch::Tensor ids = int_tensor(golden, "input_ids");
    const ForwardWeights weights = model.forward_weights();
    const Positions positions = make_positions(model.config(), ids.size(1), torch::kCPU);
    const torch::Tensor hidden = forward_hidden(model.config(), weights, positions, ids, options);
    return soften_logits(torch::matmul(hidden, weights.head().t()), model.config().softcap);
  }

  FloatCheckpoint checkpoint;
  Model model;
  Safetensors golden;
};

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, Logits) {
  QAT_NEED_SHARED("goldens");
  const GoldenRun run(GetParam());
  const torch::Tensor expected = float_tensor(run.golden, "logits");
  const double error = largest(run.logits({}) - expected) / largest(expected);
  EXPECT_LE(error, std::string(GetParam()) == "gemma4-e2b" ? 1e-3 : 1e-4);
  RecordProperty("relative_error", std::to_string(error));
}

// Float32 sums over at most 320 products, a few in a row: 1e-5 of the largest value is some 100 roundings.
TEST_P(Golden, EveryLayerAlone) {
  QAT_NEED_SHARED("goldens");
  const GoldenRun run(GetParam());
  const size_t layers = run.model.config().layers.size();
  ForwardOptions options;
  options.residual_hook = [&](size_t index, const torch::Tensor& hidden) {
    if (index == layers) return hidden;  // the golden has it only after the final norm
    const torch::Tensor expected = float_tensor(run.golden, "hidden." + std::to_string(index));
    EXPECT_LE(largest(hidden - expected), 1e-5 * largest(expected)) << "hidden." << index;
    return expected;
  };
  const torch::Tensor expected = float_tensor(run.golden, "logits");
  EXPECT_LE(largest(run.logits(options) - expected), 1e-5 * largest(expected));
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, testing::Values("llama", "gemma3", "gemma4-e2b", "gemma4-e4b", "gemma4-31b"),
                         [](const testing::TestParamInfo<const char*>& test) {
                           std::string name = test.param;
                           for (char& c : name)
                             if (c == '-') c = '_';
                           return name;
                         });

}  // namespace
}  // namespace qat
