// Whole training runs on a tiny model, for tests.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "qat/train/trainer.h"
#include "tests/test_paths.h"
#include "tests/train/tiny_model.h"

namespace qat {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class Trainer : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(directory_ / "model");
    write_file(directory_ / "text.txt", tiny_text(600));
    g_stop_signal = 0;
  }
  void TearDown() override { g_stop_signal = 0; }

  Recipe recipe(const std::string& out) const {
    Recipe r;
    r.model = directory_ / "model";
    r.out = directory_ / out;
    r.data = {directory_ / "text.txt"};
    r.sequence = 24;
    r.eval_sequences = 3;
    r.steps = 5;
    r.batch = 2;
    r.accumulate = 2;
    r.lr = 2e-3;
    r.warmup = 2;
    r.loss_chunk = 20;
    r.eval_every = 2;
    r.checkpoint_every = 2;
    r.log_every = 1;
    r.threads = 1;
    return r;
  }

  // Its reports are for people: kept off the test's output.
  struct Quiet {
    Quiet() {
      testing::internal::CaptureStdout();
      testing::internal::CaptureStderr();
    }
    ~Quiet() {
      testing::internal::GetCapturedStdout();
      testing::internal::GetCapturedStderr();
    }
  };

  static TrainResult train(const Recipe& r, bool resume = false, const std::string& dump = "") {
    const Quiet quiet;
    return run_training({r, resume, dump});
  }

  static std::string error_of(const Recipe& r, bool resume = false) {
    try {
      train(r, resume);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

  // metrics.jsonl without what a clock decides.
  static std::vector<Json> metrics(const Recipe& r) {
    std::vector<Json> lines;
    std::ifstream file(r.out + "/metrics.jsonl");
    for (std::string text; std::getline(file, text);) {
      Json line = Json::parse(text);
      line.erase("time");
      line.erase("tokens_per_s");
      lines.push_back(line);
    }
    return lines;
  }

  TemporaryDirectory directory_;
};

}  // namespace qat
