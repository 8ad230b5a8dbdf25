// AdamW steps against PyTorch and transformers: losses, gradient norms, every gradient of the first step.
//
// `llama`: all ten steps in float32. `gemma4-e2b` magnifies each rounding: in float32 PyTorch's own first gradients
// change by 1.1e-3 when OpenBLAS takes one thread instead of two, its fourth loss by 1e-2. So that model is compared on
// its first step and in float64, where nothing depends on the order of a sum; what is left of the bound is the rounding
// of the float32 golden itself (0.9e-3).
#include <gtest/gtest.h>

#include "qat/train/losses.h"
#include "qat/train/model.h"
#include "qat/train/optimizer.h"
#include "tests/test_paths.h"
#include "tests/train/goldens.h"

namespace qat {
namespace {

// The token after each position; -1 for the last of a sequence.
torch::Tensor next_tokens(const torch::Tensor& ids) {
  const torch::Tensor last = torch::full({ids.size(0), 1}, -1, torch::kInt64);
  return torch::cat({ids.narrow(1, 1, ids.size(1) - 1), last}, 1).reshape(-1);
}

struct Train10 : testing::TestWithParam<std::tuple<const char*, bool>> {};

void to_double(Model& model) {
  for (Parameter& p : model.parameters()) p.master = p.master.detach().to(torch::kFloat64).requires_grad_(p.trained);
}

TEST_P(Train10, LossesAndGradients) {
  QAT_NEED_SHARED("goldens");
  const auto [name, gradient_checkpointing] = GetParam();
  const FloatCheckpoint checkpoint(shared_path(std::string("goldens/") + name));
  const Safetensors golden(checkpoint.directory() + "/train10.safetensors");
  const torch::Tensor ids = int_tensor(golden, "input_ids");
  const std::vector<float> losses = to_floats(golden.at("losses"), golden.path());
  const std::vector<float> norms = to_floats(golden.at("grad_norms"), golden.path());
  const bool reproducible = std::string(name) == "llama";
  Model model(checkpoint, torch::kCPU);
  if (!reproducible) to_double(model);
  const ModelConfig& config = model.config();
  const Positions positions = make_positions(config, ids.size(2), torch::kCPU);
  std::vector<torch::Tensor> trained;
  for (const Parameter& p : model.parameters())
    if (p.trained) trained.push_back(p.master);
  AdamWOptions adam;
  adam.weight_decay = 0.01;
  AdamW optimizer(reproducible ? trained : std::vector<torch::Tensor>{}, adam);
  LossOptions options;
  options.ce = 1.0;
  options.chunk = 50;
  ForwardOptions forward;
  forward.gradient_checkpointing = gradient_checkpointing;
  for (int64_t step = 0; step < ids.size(0); ++step) {
    StepWeights weights(model);
    const torch::Tensor batch = ids[step];
    const torch::Tensor hidden = forward_hidden(config, weights.forward(), positions, batch, forward);
    const HeadInput student{hidden.reshape({-1, config.hidden}), weights.forward().head(), config.softcap};
    const Losses result = head_losses(student, nullptr, next_tokens(batch), options);
    result.total.backward();
    weights.backward();
    const auto s = static_cast<size_t>(step);
    EXPECT_NEAR(result.cross_entropy, losses[s], 1e-4 * losses[s]) << "step " << step;
    EXPECT_NEAR(gradient_norm(trained), norms[s], 1e-3 * norms[s]) << "step " << step;
    if (step == 0) {
      size_t compared = 0;
      for (const Parameter& p : model.parameters()) {
        if (!p.trained) continue;
        const torch::Tensor expected = float_tensor(golden, "grad0." + p.info.name);
        ASSERT_TRUE(p.master.grad().defined()) << p.info.name;
        EXPECT_LE((p.master.grad() - expected).norm().item<double>(), 1e-3 * expected.norm().item<double>())
            << p.info.name;
        ++compared;
      }
      EXPECT_EQ(compared + 3, golden.tensors().size());  // every gradient in the file has been looked at
    }
    if (!reproducible) break;
    optimizer.step(1e-3);
    optimizer.zero_grad();
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Train10, testing::Combine(testing::Values("llama", "gemma4-e2b"), testing::Bool()),
                         [](const testing::TestParamInfo<Train10::ParamType>& test) {
                           const std::string name = std::get<0>(test.param)[0] == 'l' ? "llama" : "gemma4_e2b";
                           return name + (std::get<1>(test.param) ? "_checkpointed" : "");
                         });

}  // namespace
}  // namespace qat
