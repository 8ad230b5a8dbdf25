// Adapters inside the fake-quantizer: their gradients, what a run leaves as it is, and that the file holds the codes of
// weight and adapter together, rounded once.
#include "qat/train/lora.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "fakequant/block_scale.h"
#include "format/number.h"
#include "qat/train/run_state.h"
#include "qat/train/workers.h"
#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kUp = "model.layers.0.mlp.up_proj.weight";

class Lora : public Trainer {
 protected:
  Recipe lora(const std::string& out) const {
    Recipe r = recipe(out);
    r.lora_rank = 2;
    r.lr = 1e-2;
    return r;
  }
};

// --- Of one step ---

class LoraModel : public Lora {
 protected:
  void SetUp() override {
    Lora::SetUp();
    source_ = std::make_unique<FloatCheckpoint>(directory_ / "model");
    model_ = std::make_unique<Model>(*source_, torch::kCPU);
    const Plan plan = plan_from_name("q4_0");
    model_->apply_plan(plan, resolve_plan(plan, model_->table(), source_->dtypes()));
    model_->adapt({3, 6.0, 7});
    const torch::NoGradGuard no_grad;
    torch::manual_seed(5);
    for (Parameter& p : model_->parameters())
      if (p.adapter.defined()) p.adapter.b.normal_(0.0, 0.02);  // else the gradient of A is 0
  }
  torch::Tensor loss(const ForwardWeights& weights, int64_t seed) const {
    const Positions positions = make_positions(model_->config(), 12, torch::kCPU);
    torch::manual_seed(static_cast<uint64_t>(seed));
    const torch::Tensor ids = torch::randint(3, 259, {2, 12}, torch::kInt64);
    const torch::Tensor hidden = forward_hidden(model_->config(), weights, positions, ids);
    return (hidden * torch::randn(hidden.sizes())).mean();
  }
  std::unique_ptr<FloatCheckpoint> source_;
  std::unique_ptr<Model> model_;
};

TEST_F(LoraModel, GradientsAreThoseOfThePlainFormula) {
  // Everything in one graph, by the formula.
  ForwardWeights plain = model_->forward_weights();
  std::map<std::string, torch::Tensor> leaves;
  for (const Parameter& p : model_->parameters()) {
    if (!p.adapter.defined() || !p.scale_sign.defined()) continue;
    const auto leaf = [&](const char* part, const torch::Tensor& t) {
      return leaves[p.info.name + part] = t.detach().clone().requires_grad_();
    };
    const torch::Tensor a = leaf(".lora_A", p.adapter.a), b = leaf(".lora_B", p.adapter.b);
    const torch::Tensor sum = p.master + torch::matmul(b, a) * (6.0 / 3.0);
    plain.at(p.info) = block_quantize(sum, leaf(".log_scale", p.log_scale), p.scale_sign);
  }
  ASSERT_GT(leaves.size(), 50u);
  (loss(plain, 1) + loss(plain, 2)).backward();

  for (const int64_t workers : {1, 2}) {
    StepWeights weights(*model_);
    WorkerWeights shared(weights.forward(), workers);
    loss(shared.of(0), 1).backward();
    loss(shared.of(workers - 1), 2).backward();  // a second pass through the same weights where there is one worker
    shared.gather();
    weights.backward();
    size_t compared = 0;
    for (const Trained& t : model_->trained()) {
      if (leaves.count(t.name) == 0) continue;
      const torch::Tensor expected = leaves[t.name].grad();
      ASSERT_TRUE(t.tensor.grad().defined()) << t.name;
      EXPECT_LT((t.tensor.grad() - expected).norm().item<double>(), 1e-4 * expected.norm().item<double>()) << t.name;
      t.tensor.mutable_grad().reset();
      ++compared;
    }
    EXPECT_EQ(compared, leaves.size());
  }
}

TEST_F(LoraModel, TrainsAdaptersAndTheirScalesAndNothingElse) {
  std::map<std::string, torch::Tensor> before;
  for (const Parameter& p : model_->parameters()) before[p.info.name] = p.master.clone();
  std::vector<torch::Tensor> trained;
  for (const Trained& t : model_->trained()) trained.push_back(t.tensor);
  AdamW optimizer(trained, {});
  StepWeights weights(*model_);
  loss(weights.forward(), 1).backward();
  weights.backward();
  optimizer.step(1e-3);
  for (const Parameter& p : model_->parameters()) {
    EXPECT_TRUE(p.master.equal(before[p.info.name])) << p.info.name;
    EXPECT_FALSE(p.master.requires_grad() || p.master.grad().defined()) << p.info.name;
    EXPECT_EQ(p.adapter.defined(), p.info.layer >= 0 && p.info.kind == TensorKind::linear) << p.info.name;
    if (!p.adapter.defined()) continue;
    EXPECT_TRUE(p.adapter.a.grad().defined() && p.adapter.b.grad().defined()) << p.info.name;
  }
}

// --- Of runs ---

TEST_F(Lora, BeginsAtTheWeightsAndLearns) {
  Recipe still = lora("still"), full = recipe("full"), moving = lora("moving");
  for (Recipe* r : {&still, &full}) {
    r->steps = 1;
    r->warmup = 0;
    r->lr = r->scale_lr = 0.0;
    train(*r);
  }
  EXPECT_EQ(read_file(still.out + "/quantized/model.safetensors"),
            read_file(full.out + "/quantized/model.safetensors"));
  moving.steps = moving.eval_every = 30;
  moving.lr = 3e-3;
  moving.ce = 1.0;
  train(moving);
  const std::vector<Json> lines = metrics(moving);
  EXPECT_LT(lines.back()["eval_perplexity"].get<double>(), 0.8 * lines.front()["eval_perplexity"].get<double>());
}

// The blocks of a tensor as the file holds them.
std::vector<uint8_t> blocks_of(const QuantizedCheckpoint& checkpoint, const TensorInfo& info) {
  const int64_t cols = info.shape.back();
  const auto rows = static_cast<size_t>(info.shape.size() == 1 ? 1 : info.shape[0]);
  std::vector<uint8_t> blocks(rows * row_bytes(checkpoint.grid(info), cols));
  checkpoint.read_blocks(info, 0, -1, blocks.data());
  return blocks;
}

TEST_F(Lora, FilesHoldWhatTheLastForwardPassMultipliedBy) {
  for (const char* plan : {"q4_0", "q8_0", "f16"}) {
    for (const double freeze_after : {0.5, 1.0}) {
      Recipe r = lora(plan);
      r.plan = plan;
      r.freeze_after = freeze_after;
      const std::string dump = directory_ / "dump.safetensors";
      train(r, false, dump);
      const QuantizedCheckpoint checkpoint(r.out + "/quantized");
      const Safetensors used(dump);
      for (const TensorInfo& info : checkpoint.table()) {
        const TensorView& view = used.at(info.name);
        const int64_t cols = info.shape.back(), rows = view.count() / cols;
        std::vector<float> values(static_cast<size_t>(rows * cols));
        decode_rows(checkpoint.grid(info), blocks_of(checkpoint, info).data(), rows, cols, values.data());
        EXPECT_EQ(std::memcmp(values.data(), view.bytes.data(), view.bytes.size()), 0) << plan << " " << info.name;
      }
    }
  }
}

TEST_F(Lora, TheFileHoldsTheCodesOfWeightAndAdapterTogether) {
  Recipe r = lora("run");
  r.freeze_after = 1.0;
  train(r);
  const QuantizedCheckpoint file(r.out + "/quantized");
  const FloatCheckpoint source(r.model);
  const Safetensors state(newest_checkpoint(r.out));
  const auto floats = [&](const std::string& name) { return to_floats(state.at(name), "checkpoint"); };
  int compared = 0;
  size_t moved = 0;
  for (const TensorInfo& info : source.table()) {
    EXPECT_FALSE(state.find(info.name) != nullptr) << info.name;  // the model's file has it
    if (info.layer < 0 || info.kind != TensorKind::linear || file.grid(info) != DType::Q4_0) continue;
    ++compared;
    const std::vector<float> a = floats(info.name + ".lora_A"), b = floats(info.name + ".lora_B");
    const std::vector<float> log_scale = floats(info.name + ".log_scale"), sign = floats(info.name + ".scale_sign");
    const std::vector<float> w = source.read(info);
    const std::vector<uint8_t> stored = blocks_of(file, info);
    const int64_t cols = info.shape[1];
    for (size_t block = 0; block < log_scale.size(); ++block) {
      float sum[kBlockSize];
      for (int64_t j = 0; j < kBlockSize; ++j) {
        const int64_t at = static_cast<int64_t>(block) * kBlockSize + j, row = at / cols, col = at % cols;
        double product = 0.0;
        for (int64_t k = 0; k < r.lora_rank; ++k)
          product += static_cast<double>(b[static_cast<size_t>(row * r.lora_rank + k)]) *
                     static_cast<double>(a[static_cast<size_t>(k * cols + col)]);
        sum[j] = static_cast<float>(static_cast<double>(w[static_cast<size_t>(at)]) +
                                    r.lora_alpha / static_cast<double>(r.lora_rank) * product);
      }
      const float d =
          sign[block] * f16_to_f32(f32_to_f16(static_cast<float>(std::exp(static_cast<double>(log_scale[block])))));
      const BlockQ4_0 expected = encode_q4_0_with_scale(sum, d);
      const BlockQ4_0 alone = encode_q4_0_with_scale(w.data() + block * kBlockSize, d);
      EXPECT_EQ(std::memcmp(&expected, stored.data() + block * sizeof expected, sizeof expected), 0)
          << info.name << " block " << block;
      moved += std::memcmp(&expected, &alone, sizeof expected) != 0;
    }
  }
  EXPECT_GE(compared, 24);  // attention (two layers share k and v) and MLP
  EXPECT_GT(moved, 100u);   // or this would not have tested anything
}

TEST_F(Lora, ResumingAfterEveryStepGivesTheSameBits) {
  for (const std::string kind : {"plain", "gptq", "mobile"}) {
    Recipe whole = lora(kind + "-whole"), pieces = lora(kind + "-pieces");
    for (Recipe* r : {&whole, &pieces}) {
      r->freeze_after = 0.5;
      r->plan = kind == "mobile" ? "mobile" : "q4_0";
      r->init = kind == "gptq" ? "gptq" : "plain";
      r->calibration_sequences = 30;
      r->average = kind == "plain" ? 0.9 : 0.0;
      r->threads = kind == "plain" ? 2 : 1;
    }
    train(whole);
    for (int64_t step = 1; step < whole.steps + 1; ++step) {
      g_stop_signal = SIGTERM;
      ASSERT_EQ(train(pieces, step > 1).step, step);
    }
    g_stop_signal = 0;
    train(pieces, true);
    EXPECT_EQ(read_file(pieces.out + "/quantized/model.safetensors"),
              read_file(whole.out + "/quantized/model.safetensors"))
        << kind;
    EXPECT_EQ(metrics(pieces), metrics(whole)) << kind;
  }
}

TEST_F(Lora, ACheckpointGoesWithTheWeightsThatItAdapts) {
  const Recipe r = lora("run");
  g_stop_signal = SIGINT;
  const std::string checkpoint = train(r).checkpoint;
  g_stop_signal = 0;
  EXPECT_EQ(Safetensors(checkpoint).at(std::string(kUp) + ".lora_A").shape, (std::vector<int64_t>{2, 64}));
  std::string bytes = read_file(directory_ / "model/model.safetensors");
  const float other = 0.75f;
  std::memcpy(bytes.data() + bytes.size() - 4, &other, 4);
  write_file(directory_ / "model/model.safetensors", bytes);
  EXPECT_THAT(error_of(r, true), HasSubstr("are not those whose adapters it holds: expected hash "));
}

TEST_F(Lora, ARankThatDoesNotFitIsRefused) {
  Recipe r = lora("run");
  r.lora_rank = 32;
  EXPECT_THAT(error_of(r), AllOf(HasSubstr("[train] lora_rank: expected at most 31, since model.layers.0."),
                                 HasSubstr(" is "), HasSubstr(", found 32")));
  r.lora_rank = 31;
  EXPECT_EQ(error_of(r), "no error");
  r.plan = "f32";
  EXPECT_THAT(error_of(r), HasSubstr("lora_rank: expected 0, found 31: the plan puts no matrix"));
}

}  // namespace
}  // namespace qat
