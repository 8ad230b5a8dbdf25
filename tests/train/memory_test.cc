// The memory that a run says it needs, beside what it is measured to take; and the refusal.
#include "qat/train/memory.h"

#include <gmock/gmock.h>

#include <cstdio>

#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class Memory : public Trainer {
 protected:
  // Half a gigabyte of activations: what a wrong count would not hide behind LibTorch's own memory.
  Recipe large(const std::string& out) const {
    Recipe r = recipe(out);
    r.sequence = 256;
    r.batch = 64;
    r.accumulate = 1;
    r.steps = 2;
    r.eval_sequences = 1;
    r.loss_chunk = 256;
    r.checkpoint_every = 0;
    r.threads = 2;
    return r;
  }
  MemoryNeed need_of(const Recipe& r) const {
    const FloatCheckpoint model(r.model);
    return memory_need(r, plan_from_name(r.plan), model, &model, r.threads, torch::kCPU);
  }
  // What qat-train said of itself, in MB: before it began, and what it had taken in the end. A process of its own,
  // since the count begins with what the process has; the shell between the two keeps this one's own peak out of it.
  struct Said {
    double need = 0.0, peak = 0.0;
  };
  static double megabytes(const std::string& output, const std::string& before) {
    const size_t at = output.find(before);
    double value = 0.0;
    char unit = ' ';
    if (at == std::string::npos || std::sscanf(output.c_str() + at + before.size(), "%lf %cB", &value, &unit) != 2)
      ADD_FAILURE() << "no \"" << before << "\" in: " << output;
    return unit == 'G' ? value * 1000 : value;
  }
  static Said run(const Recipe& r) {
    fs::create_directories(r.out);
    write_file(r.out + "/recipe.toml", recipe_to_toml(r));
    const std::string command = std::string(QAT_TRAIN_PROGRAM) + " --recipe " + r.out + "/recipe.toml 2>&1; true";
    FILE* pipe = popen(command.c_str(), "r");
    std::string output;
    for (int c = std::fgetc(pipe); c != EOF; c = std::fgetc(pipe)) output += static_cast<char>(c);
    pclose(pipe);
    return {megabytes(output, "needs about "), megabytes(output, "peak memory ")};
  }
};

TEST_F(Memory, IsWithin15PercentOfWhatARunTakes) {
  if (QAT_SANITIZED) GTEST_SKIP() << "sanitizers have memory of their own";
  Recipe plain = large("plain"), checkpointed = large("checkpointed"), mobile = large("mobile"), lora = large("lora"),
         hidden = large("hidden"), blockwise = large("blockwise");
  lora.lora_rank = 4;
  lora.batch = 32;
  checkpointed.gradient_checkpointing = true;
  mobile.plan = "mobile";
  mobile.batch = 32;
  mobile.activations_after = 0.0;
  hidden.hidden = 1.0;
  blockwise.blockwise = true;
  write_file(directory_ / "long.txt", tiny_text(10000));
  blockwise.data = {directory_ / "long.txt"};
  blockwise.calibration_sequences = 256;
  blockwise.steps = 1;
  Recipe streams = blockwise;
  streams.out = directory_ / "streams";
  streams.batch = 4;
  for (const Recipe& r : {plain, checkpointed, mobile, lora, hidden, blockwise, streams}) {
    const Said said = run(r);
    EXPECT_NEAR(said.need, said.peak, 0.15 * said.peak) << r.out << ": MB counted, measured, and the bound";
    RecordProperty(fs::path(r.out).filename(), std::to_string(said.need) + " of " + std::to_string(said.peak));
  }
}

TEST_F(Memory, GrowsWithWhatTakesIt) {
  const Recipe plain = large("run");
  const MemoryNeed base = need_of(plain);
  const auto change = [&](auto f) {
    Recipe r = plain;
    f(r);
    return need_of(r);
  };
  EXPECT_NEAR(
      static_cast<double>(change([](Recipe& r) { r.batch *= 2; }).activations) / static_cast<double>(base.activations),
      2.0, 0.05);
  // Of four layers one and a half remain, and what is between them.
  EXPECT_LT(change([](Recipe& r) { r.gradient_checkpointing = true; }).activations, base.activations * 2 / 3);
  EXPECT_LT(change([](Recipe& r) { r.optimizer = "adamw8bit"; }).optimizer, base.optimizer / 2);
  EXPECT_LT(change([](Recipe& r) { r.lora_rank = 2; }).optimizer, base.optimizer / 5);
  EXPECT_LT(change([](Recipe& r) { r.lora_rank = 2; }).gradients, base.gradients);
  // Of 260 tokens logits take less than a layer that goes back, which it does when they are gone.
  EXPECT_EQ(change([](Recipe& r) { r.loss_chunk *= 4; }).activations, base.activations);
  // Of all tokens at once, by tensor operations, which keep each step of the loss, they take more. Counting needs no
  // device.
  const auto on_cuda = [&](int64_t loss_chunk) {
    Recipe r = plain;
    r.loss_chunk = loss_chunk;
    const FloatCheckpoint model(r.model);
    return memory_need(r, plan_from_name(r.plan), model, &model, 1, torch::kCUDA).activations;
  };
  EXPECT_GT(on_cuda(plain.batch * plain.sequence), on_cuda(256));
  EXPECT_GT(change([](Recipe& r) { r.hidden = 1.0; }).activations, base.activations);
  EXPECT_GT(change([](Recipe& r) { r.threads = 4; }).gradients, base.gradients);           // each worker has its own
  EXPECT_EQ(change([](Recipe& r) { r.plan = "none"; }).optimizer < base.optimizer, true);  // no scales
}

TEST_F(Memory, TooLittleIsRefusedWithTheFigureAndWhatHelps) {
  Recipe r = recipe("run");
  r.batch = 1 << 24;
  EXPECT_THAT(error_of(r), AllOf(HasSubstr("this run needs about "), HasSubstr(" TB of memory (model "),
                                 HasSubstr(" are free: try a smaller batch with a larger accumulate, "),
                                 HasSubstr("gradient_checkpointing = true"), HasSubstr("\"adamw8bit\"")));
  EXPECT_FALSE(fs::exists(r.out));
  MemoryNeed need;
  need.model = 1000;
  EXPECT_NO_THROW(check_memory(need, 1000, r));
  EXPECT_NO_THROW(check_memory(need, -1, r));  // unknown
  EXPECT_THROW(check_memory(need, 999, r), Error);
}

TEST(MemoryText, NamesTheParts) {
  MemoryNeed need;
  need.model = 200000000;
  need.optimizer = 400000000;
  EXPECT_EQ(memory_text(need, -1),
            "needs about 600 MB of memory (model 200 MB, optimizer 400 MB)");  // no parts that are nothing
  need.teacher = 100000000;
  EXPECT_THAT(memory_text(need, 22000000000), AllOf(HasSubstr(", teacher 100 MB)"), HasSubstr("; 22.0 GB are free")));
}

TEST(FreeMemory, IsSomeOfTheMachines) {
  const int64_t free = free_memory(torch::kCPU);
  EXPECT_GT(free, 50 << 20);
  EXPECT_LT(free, int64_t{1} << 46);
}

TEST(TimeText, IsForAllSteps) { EXPECT_EQ(time_text(400, 3, 1.875), "about 4 min 10 s for 400 steps"); }

}  // namespace
}  // namespace qat
