// Equalisation: the float model stays what it was, and an outlier channel costs less.
#include "export/equalize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "inference/engine.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

const std::vector<int32_t> kTokens = {2, 17, 105, 44, 201, 9, 88, 130, 61, 250, 33, 77, 12, 180, 5, 99, 140, 21, 66, 3};

EngineOptions plain_loops() {
  EngineOptions options;
  options.reference = true;
  return options;
}

std::vector<float> logits_of(const std::string& directory) {
  Engine engine(load_weights(directory), plain_loops());
  KvCache cache(engine, 64);
  std::vector<float> logits(kTokens.size() * static_cast<size_t>(engine.config().vocab));
  engine.forward(kTokens, cache, 0, logits.data());
  return logits;
}

// Mean squares of what enters each linear, those of every fifth channel made larger: factors far from 1.
Importance inputs_of(const std::string& directory) {
  Importance inputs;
  Engine engine(load_weights(directory), plain_loops());
  engine.set_activation_hook([&](const Observed& seen) {
    if (seen.kind != Activation::input) return;
    std::vector<float>& mean = inputs[seen.name];
    mean.assign(static_cast<size_t>(seen.cols), 0.0f);
    for (int64_t i = 0; i < seen.rows * seen.cols; ++i)
      mean[static_cast<size_t>(i % seen.cols)] += seen.data[i] * seen.data[i] / static_cast<float>(seen.rows);
    for (size_t c = 0; c < mean.size(); c += 5) mean[c] *= 100.0f;
  });
  KvCache cache(engine, 64);
  std::vector<float> logits(static_cast<size_t>(engine.config().vocab));
  engine.forward(kTokens, cache, kTokens.size() - 1, logits.data());
  return inputs;
}

Plan pure_q4_0() {
  Plan plan = plan_from_name("q4_0");
  plan.pure = true;
  return plan;
}

TEST(Equalize, FloatModelIsUnchanged) {
  struct Case {
    const char* name;
    std::string json;
    int pairs;
  };
  for (const Case& c : {Case{"llama", llama_json(true), 8}, Case{"gemma3", gemma3_json(), 28},
                        Case{"gemma4", gemma4_json(), 12}, Case{"k_eq_v", gemma4_k_eq_v_json(), 12}}) {
    const TemporaryDirectory place;
    const std::string model = place / "model", out = place / "equalized";
    std::filesystem::create_directories(out);
    write_tiny_model(model, c.json, DType::F32);
    const EqualizedError error = equalize_checkpoint(model, pure_q4_0(), {}, inputs_of(model), out);
    EXPECT_EQ(error.pairs, c.pairs) << c.name;
    EXPECT_EQ(error.changed, c.pairs) << c.name;
    EXPECT_LT(error.after, 0.9 * error.before) << c.name;
    const std::vector<float> before = logits_of(model), after = logits_of(out);
    float largest = 0.0f, difference = 0.0f;
    for (size_t i = 0; i < before.size(); ++i) {
      largest = std::max(largest, std::fabs(before[i]));
      difference = std::max(difference, std::fabs(before[i] - after[i]));
    }
    EXPECT_GT(largest, 0.0f) << c.name;
    EXPECT_LT(difference, 1e-5f * largest) << c.name;
  }
}

}  // namespace
}  // namespace qat
