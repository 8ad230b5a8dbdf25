// Whole runs on a tiny model: resuming gives the same bits, files hold what training multiplied by, bad runs stop well.
#include "qat/train/trainer.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <map>

#include "export/ptq.h"
#include "qat/train/data.h"
#include "qat/train/run_state.h"
#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

using testing::HasSubstr;

TEST_F(Trainer, ResumingAfterEveryStepGivesTheSameBits) {
  Recipe whole = recipe("whole"), pieces = recipe("pieces");
  whole.threads = pieces.threads = 2;
  train(whole);
  for (int64_t step = 1; step < whole.steps + 1; ++step) {
    g_stop_signal = SIGTERM;  // as if the signal had come during the first step
    const TrainResult result = train(pieces, step > 1);
    ASSERT_EQ(result.interrupted, SIGTERM);
    ASSERT_EQ(result.step, step);
    ASSERT_TRUE(fs::exists(result.checkpoint));
  }
  g_stop_signal = 0;
  EXPECT_FALSE(fs::exists(pieces.out + "/quantized"));
  const TrainResult result = train(pieces, true);
  EXPECT_EQ(result.interrupted, 0);
  EXPECT_EQ(read_file(pieces.out + "/quantized/model.safetensors"),
            read_file(whole.out + "/quantized/model.safetensors"));
  EXPECT_EQ(metrics(pieces), metrics(whole));
  EXPECT_EQ(read_file(pieces.out + "/tensorboard/events.out.tfevents.qat").size(),
            read_file(whole.out + "/tensorboard/events.out.tfevents.qat").size());
}

TEST_F(Trainer, ResumesFromTheNewestCheckpointThatCanBeRead) {
  const Recipe whole = recipe("whole"), broken = recipe("broken");
  train(whole);
  train(broken);
  const std::string newest = newest_checkpoint(broken.out);
  EXPECT_THAT(newest, HasSubstr("step-00000005"));
  fs::resize_file(newest, fs::file_size(newest) / 2);
  EXPECT_THAT(newest_checkpoint(broken.out), HasSubstr("step-00000004"));
  fs::remove_all(broken.out + "/quantized");
  train(broken, true);
  EXPECT_EQ(read_file(broken.out + "/quantized/model.safetensors"),
            read_file(whole.out + "/quantized/model.safetensors"));
  EXPECT_EQ(metrics(broken), metrics(whole));
}

TEST_F(Trainer, KeepsAsManyCheckpointsAsAsked) {
  Recipe r = recipe("run");
  r.keep_checkpoints = 1;
  train(r);
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(r.out + "/checkpoints")) files += entry.is_regular_file() ? 1 : 0;
  EXPECT_EQ(files, 1u);
}

TEST_F(Trainer, LearnsAndSaysSo) {
  Recipe r = recipe("run");
  r.steps = 30;
  r.eval_every = 30;
  r.ce = 1.0;
  train(r);
  const std::vector<Json> lines = metrics(r);
  EXPECT_EQ(lines.front()["step"], 0);
  EXPECT_EQ(lines.back()["step"], 30);
  EXPECT_LT(lines.back()["eval_perplexity"].get<double>(), 0.5 * lines.front()["eval_perplexity"].get<double>());
  EXPECT_TRUE(lines[1].contains("grad_norm") && lines[1].contains("lr") && lines[1].contains("kl"));
}

TEST_F(Trainer, FilesHoldWhatTheLastForwardPassMultipliedBy) {
  for (const char* plan : {"q4_0", "q8_0", "f16"}) {
    Recipe r = recipe(plan);
    r.plan = plan;
    r.freeze_after = 1.0;
    const std::string dump = directory_ / (std::string(plan) + ".safetensors");
    train(r, false, dump);
    const QuantizedCheckpoint checkpoint(r.out + "/quantized");
    const Safetensors used(dump);
    for (const TensorInfo& info : checkpoint.table()) {
      const TensorView& view = used.at(info.name);
      const int64_t cols = view.shape.back(), rows = view.count() / cols;
      const DType grid = checkpoint.grid(info);
      std::vector<uint8_t> blocks(static_cast<size_t>(rows) * row_bytes(grid, cols));
      checkpoint.read_blocks(info, 0, -1, blocks.data());
      std::vector<float> values(static_cast<size_t>(rows * cols));
      decode_rows(grid, blocks.data(), rows, cols, values.data());
      EXPECT_EQ(std::memcmp(values.data(), view.bytes.data(), view.bytes.size()), 0)
          << plan << " " << info.name << " on " << dtype_name(grid);
    }
  }
}

// Of the tensors that have learned scales, by name; codes and scales as the file holds them.
std::map<std::string, std::vector<uint8_t>> q4_0_blocks(const std::string& directory) {
  const QuantizedCheckpoint checkpoint(directory);
  std::map<std::string, std::vector<uint8_t>> all;
  for (const TensorInfo& info : checkpoint.table()) {
    if (checkpoint.grid(info) != DType::Q4_0) continue;
    std::vector<uint8_t>& blocks = all[info.name];
    blocks.resize(static_cast<size_t>(info.shape[0]) * row_bytes(DType::Q4_0, info.shape[1]));
    checkpoint.read_blocks(info, 0, -1, blocks.data());
  }
  return all;
}

class InitializedTrainer : public Trainer {
 protected:
  Recipe initialized(const std::string& init, const std::string& out) const {
    Recipe r = recipe(out);
    r.init = init;
    r.calibration_sequences = 30;  // of 24 tokens
    r.freeze_after = 0.5;          // from step 4 on (2.5 steps, rounded)
    r.relative_lr = 0.02;
    return r;
  }
};

TEST_F(InitializedTrainer, BeginsAtTheCodesOfPtq) {
  const std::pair<const char*, PtqMethod> rules[] = {{"search", PtqMethod::mse}, {"gptq", PtqMethod::gptq}};
  for (const auto& [init, method] : rules) {
    Recipe r = initialized(init, std::string("run-") + init);
    r.steps = 1;
    r.warmup = 0;
    r.lr = r.scale_lr = r.relative_lr = 0.0;  // a run that moves nothing
    train(r);
    PtqOptions options;
    options.method = method;
    const FloatCheckpoint checkpoint(r.model);
    const TrainingData data = load_training_data(r, checkpoint.config());
    DataOrder order(data.train.count(), r.seed);
    for (int64_t i = 0; i < std::min(r.calibration_sequences, data.train.count()); ++i) {
      const int32_t* row = data.train.row(order.at(i));
      options.calibration.emplace_back(row, row + data.train.length);
    }
    const std::string ptq = directory_ / (std::string("ptq-") + init);
    quantize_checkpoint(r.model, plan_from_name("q4_0"), options, ptq);
    const auto expected = q4_0_blocks(ptq), found = q4_0_blocks(r.out + "/quantized");
    ASSERT_GT(expected.size(), 5u);
    EXPECT_EQ(found, expected) << init;
  }
}

TEST_F(InitializedTrainer, ResumingAfterEveryStepGivesTheSameBits) {
  const Recipe whole = initialized("gptq", "whole"), pieces = initialized("gptq", "pieces");
  train(whole);
  for (int64_t step = 1; step < whole.steps + 1; ++step) {
    g_stop_signal = SIGTERM;
    ASSERT_EQ(train(pieces, step > 1).step, step);
  }
  g_stop_signal = 0;
  train(pieces, true);
  EXPECT_EQ(read_file(pieces.out + "/quantized/model.safetensors"),
            read_file(whole.out + "/quantized/model.safetensors"));
  EXPECT_EQ(metrics(pieces), metrics(whole));
}

TEST_F(InitializedTrainer, FrozenCodesStayAndScalesGoOn) {
  Recipe r = initialized("search", "all"), first = initialized("search", "first");
  r.freeze_after = 0.6;  // from step 4 on
  r.scale_lr = 0.05;
  r.checkpoint_every = 1;
  r.keep_checkpoints = 9;
  train(r);
  const Safetensors before(r.out + "/checkpoints/step-00000004.safetensors");
  const Safetensors after(r.out + "/checkpoints/step-00000005.safetensors");
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  const auto same = [&](const std::string& tensor) {
    const TensorView &a = before.at(tensor), &b = after.at(tensor);
    return std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
  };
  EXPECT_TRUE(same(name));
  EXPECT_TRUE(same(name + ".scale_sign"));
  EXPECT_FALSE(same(name + ".log_scale"));
  for (const float code : to_floats(before.at(name), "checkpoint")) EXPECT_EQ(code, std::round(code));
}

TEST_F(InitializedTrainer, SaysThatTheCalibrationTextIsTooShort) {
  Recipe r = initialized("gptq", "run");
  r.calibration_sequences = 2;
  EXPECT_THAT(error_of(r), HasSubstr("calibration text is too short: expected at least 512 tokens, found 48"));
  EXPECT_THAT(error_of(r), HasSubstr("calibration_sequences"));
}

TEST_F(Trainer, PlanNoneWritesAFloatCheckpoint) {
  Recipe r = recipe("float");
  r.plan = "none";
  r.kl = 0.0;
  r.ce = 1.0;
  const std::string dump = directory_ / "dump.safetensors";
  train(r, false, dump);
  const FloatCheckpoint checkpoint(r.out + "/hf");
  const Safetensors used(dump);
  for (const TensorInfo& info : checkpoint.table()) {
    EXPECT_EQ(checkpoint.dtype(info), DType::F32);
    EXPECT_EQ(checkpoint.read(info), to_floats(used.at(info.name), dump)) << info.name;
  }
  EXPECT_EQ(Json::parse(read_file(r.out + "/hf/config.json"))["dtype"], "float32");
  EXPECT_TRUE(fs::exists(r.out + "/hf/tokenizer.json"));
}

TEST_F(Trainer, AccumulationAndGradientCheckpointingChangeOnlyRoundings) {
  const Recipe plain = recipe("plain");
  Recipe other = recipe("other");
  other.batch = 4;
  other.accumulate = 1;
  other.gradient_checkpointing = true;
  train(plain);
  train(other);
  const std::vector<Json> a = metrics(plain), b = metrics(other);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    const char* key = a[i].contains("loss") ? "loss" : "eval_kl";
    EXPECT_NEAR(a[i][key].get<double>(), b[i][key].get<double>(), 0.02 * a[i][key].get<double>()) << a[i].dump();
  }
}

// Its weight falls to 0 by half the run: 0.6 and 0.2 of the recipe's in the first two of five steps.
TEST_F(Trainer, HiddenStatesCountUntilHalfOfTheRun) {
  const Recipe without = recipe("without");
  Recipe with = recipe("with"), more = recipe("more"), threads = recipe("threads");
  with.hidden = 1.0;
  more.hidden = 2.0;
  threads.hidden = 1.0;
  threads.threads = 2;
  for (const Recipe& r : {without, with, more, threads}) train(r);
  const auto losses = [](const Recipe& r, const char* key) {
    std::vector<double> values;
    for (const Json& line : metrics(r))
      if (line.contains("loss")) values.push_back(line[key]);
    return values;
  };
  const std::vector<double> total = losses(with, "loss"), kl = losses(with, "kl"), plain = losses(without, "loss");
  ASSERT_EQ(total.size(), 5u);
  const double first = total[0] - kl[0];
  EXPECT_GT(first, 1e-4);
  EXPECT_DOUBLE_EQ(kl[0], plain[0]);
  EXPECT_NEAR(losses(more, "loss")[0] - losses(more, "kl")[0], 2 * first, 1e-6);
  EXPECT_GT(total[1] - kl[1], 0.0);
  for (size_t i = 2; i < 5; ++i) EXPECT_NEAR(total[i], kl[i], 1e-7) << "step " << i + 1;
  EXPECT_NE(total[4], plain[4]);
  EXPECT_NEAR(losses(threads, "loss")[0], total[0], 1e-6) << "a mean over tokens, whoever computes them";
}

TEST_F(Trainer, StopsAtALossThatIsNotFinite) {
  const Recipe r = recipe("run");
  g_stop_signal = SIGINT;
  const std::string checkpoint = train(r).checkpoint;
  g_stop_signal = 0;
  // A weight so large that its block's scale is infinite as a float16. The first tensor begins after the header.
  std::string bytes = read_file(checkpoint);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  const float huge = 3e38f;
  std::memcpy(bytes.data() + 8 + header, &huge, 4);
  write_file(checkpoint, bytes);
  const std::string error = error_of(r, true);
  EXPECT_THAT(error, HasSubstr("step 2: the loss is "));
  EXPECT_THAT(error, HasSubstr("step-00000001.safetensors"));
  EXPECT_TRUE(fs::exists(checkpoint));
  EXPECT_FALSE(fs::exists(r.out + "/quantized"));
}

TEST_F(Trainer, NamesTheTensorThatIsNotFinite) {
  std::string bytes = read_file(directory_ / "model/model.safetensors");
  const float bad = std::nanf("");
  std::memcpy(bytes.data() + bytes.size() - 4, &bad, 4);
  write_file(directory_ / "model/model.safetensors", bytes);
  EXPECT_THAT(error_of(recipe("run")), HasSubstr("tensor model.norm.weight: expected finite weights"));
}

TEST_F(Trainer, DoesNotThrowAnUnfinishedRunAway) {
  const Recipe r = recipe("run");
  g_stop_signal = SIGINT;
  train(r);
  g_stop_signal = 0;
  EXPECT_THAT(error_of(r), HasSubstr("holds an unfinished run (step 1 of 5)"));
  EXPECT_EQ(train(r, true).step, 5);
  EXPECT_EQ(train(r).step, 5);  // a finished one is replaced
}

TEST_F(Trainer, ResumesOnlyTheSameRun) {
  Recipe r = recipe("run");
  g_stop_signal = SIGINT;
  train(r);
  g_stop_signal = 0;
  Recipe changed = r;
  changed.lr = 1e-5;
  EXPECT_THAT(error_of(changed, true), HasSubstr("lr"));
  write_file(directory_ / "text.txt", tiny_text(601));
  EXPECT_THAT(error_of(r, true), HasSubstr("data is not what this run began with"));
}

TEST_F(Trainer, ResumingNothingBegins) { EXPECT_EQ(train(recipe("run"), true).step, 5); }

}  // namespace
}  // namespace qat
