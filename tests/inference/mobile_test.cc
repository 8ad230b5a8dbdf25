// The engine on tiny directories in the mobile schema: codes and scales are the floats they mean, and the static grids
// of activations act where they stand.
#include <gtest/gtest.h>

#include <cmath>

#include "format/channel_grid.h"
#include "inference/engine.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_mobile.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

class MobileFiles : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(dir_ / "hf", gemma4_json(), DType::F32);
    model_ = quantize_tiny_mobile(dir_ / "hf");
  }

  // The same model with its weights as floats; tensors of roles in `silent` are zero.
  void write_floats(const std::string& directory, const std::vector<Role>& silent = {}) {
    std::filesystem::create_directories(directory);
    std::string config = gemma4_json();
    const std::string tied = R"("tie_word_embeddings": true)";
    config.replace(config.find(tied), tied.size(), R"("tie_word_embeddings": false)");
    add_file(directory + "/config.json", config);
    std::vector<TensorSpec> specs;
    for (const TensorInfo& info : model_.table) specs.push_back({info.name, DType::F32, info.shape});
    SafetensorsWriter writer(directory + "/model.safetensors", specs);
    for (size_t i = 0; i < model_.table.size(); ++i) {
      std::vector<float> values = model_.values[i];
      if (std::count(silent.begin(), silent.end(), model_.table[i].role) != 0) values.assign(values.size(), 0.0f);
      writer.append(values.data(), 4 * values.size());
    }
    writer.commit();
  }

  static Engine load(const std::string& directory, bool reference, bool float_cache = false) {
    EngineOptions options;
    options.threads = 2;
    options.reference = reference;
    options.float_cache = float_cache;
    options.float_activations = true;  // these tests compare floats with the codes that mean them
    return Engine(load_weights(directory), options);
  }

  // Logits of 12 tokens at once, then of 3 more, one at a time.
  static std::vector<float> run(const std::string& directory, bool reference, bool float_cache = false) {
    Engine engine = load(directory, reference, float_cache);
    KvCache cache(engine, 15);
    const size_t vocab = static_cast<size_t>(engine.config().vocab);
    std::vector<float> logits(15 * vocab);
    const std::vector<int32_t> tokens = some_tokens();
    engine.forward({tokens.data(), 12}, cache, 0, logits.data());
    for (size_t i = 12; i < 15; ++i) engine.forward({tokens.data() + i, 1}, cache, 0, logits.data() + i * vocab);
    return logits;
  }

  static std::vector<int32_t> some_tokens() {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < 15; ++i) tokens.push_back(i * 17 % 250);
    return tokens;
  }

  // Grids for the caches of all layers that own theirs: sliding layers 8 bits, global ones 4.
  void set_cache_scales(float k, float v) {
    const ModelConfig config = model_config_from_hf(dir_ / "hf");
    for (size_t i = 0; i < config.layers.size(); ++i)
      if (config.layers[i].kv_source == static_cast<int64_t>(i))
        model_.cache_scales[i] = {k, v, config.layers[i].sliding ? 8 : 4};
  }

  // Activation scales of one role, everywhere.
  void set_scales(Role role, float input, float output) {
    for (size_t i = 0; i < model_.table.size(); ++i) {
      if (model_.table[i].role != role) continue;
      model_.specs[i].input_scale = input;
      model_.specs[i].output_scale = output;
    }
  }

  TemporaryDirectory dir_;
  TinyMobile model_;
  std::map<std::pair<size_t, bool>, std::vector<float>> expected_;  // of a cache, by layer; keys: true
};

class MobileEngine : public MobileFiles, public testing::WithParamInterface<bool> {
 protected:
  Engine load(const std::string& directory) { return MobileFiles::load(directory, GetParam()); }
  std::vector<float> run(const std::string& directory, bool float_cache = false) {
    return MobileFiles::run(directory, GetParam(), float_cache);
  }

  // The reference: to the bit. The fast path adds up a lone row of codes in another order than one of floats.
  static void expect_same(const std::vector<float>& actual, const std::vector<float>& expected,
                          const std::string& where) {
    float largest = 0.0f;
    for (const float x : expected) largest = std::max(largest, std::fabs(x));
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(actual[i], expected[i], GetParam() ? 0.0f : 2e-5f * largest) << where << " logit " << i;
  }
};

TEST_P(MobileEngine, CodesAndScalesAreTheFloatsTheyMean) {
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  write_floats(dir_ / "floats");
  expect_same(run(dir_ / "mobile"), run(dir_ / "floats"), "");
}

// So coarse a grid has no other level near than zero.
TEST_P(MobileEngine, EachLinearRoundsItsInputAndItsOutput) {
  for (const Role role :
       {Role::q, Role::k, Role::v, Role::o, Role::gate, Role::up, Role::down, Role::ple_gate, Role::ple_projection}) {
    write_floats(dir_ / "floats", {role});
    const std::vector<float> expected = run(dir_ / "floats");
    for (const bool input : {true, false}) {
      set_scales(role, input ? 1e6f : 0.0f, input ? 0.0f : 1e6f);
      write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
      const std::string where = "role " + std::to_string(static_cast<int>(role)) + (input ? " in" : " out");
      expect_same(run(dir_ / "mobile"), expected, where);
    }
    set_scales(role, 0.0f, 0.0f);
  }
}

TEST_P(MobileEngine, TheHeadsOutputIsOnItsGrid) {
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "plain");
  set_scales(Role::output, 0.0f, 0.25f);
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "rounded");
  // Softcapping comes after the head: undo it.
  const std::vector<float> plain = run(dir_ / "plain"), rounded = run(dir_ / "rounded");
  double worst = 0.0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double raw = 30.0 * std::atanh(static_cast<double>(plain[i]) / 30.0);
    const double level = 30.0 * std::atanh(static_cast<double>(rounded[i]) / 30.0) / 0.25;
    worst = std::max(worst, std::fabs(level - std::nearbyint(level)));
    ASSERT_LE(std::fabs(level * 0.25 - raw), 0.125 + 1e-4);
  }
  EXPECT_LE(worst, 1e-3);
}

// What goes into a linear's cache, as the hook sees it, is in the cache as its grid has it.
TEST_P(MobileEngine, TheCacheIsOnItsGrids) {
  set_cache_scales(0.25f, 0.125f);
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  Engine engine = load(dir_ / "mobile");
  KvCache cache(engine, 15);
  int seen = 0;
  engine.set_activation_hook([&](const Observed& observed) {
    if (observed.kind != Activation::key && observed.kind != Activation::value) return;
    const size_t layer = static_cast<size_t>(observed.layer);
    const LayerConfig& config = engine.config().layers[layer];
    const bool key = observed.kind == Activation::key;
    std::vector<float> expected(static_cast<size_t>(observed.rows * observed.cols));
    fake_quantize_channel(config.sliding ? 8 : 4, observed.data, observed.rows * observed.cols, key ? 0.25f : 0.125f,
                          expected.data());
    std::vector<float>& kept = expected_[{layer, key}];
    kept.insert(kept.end(), expected.begin(), expected.end());
    ++seen;
  });
  engine.forward(some_tokens(), cache, 15, nullptr);
  EXPECT_GT(seen, 0);
  for (const auto& [where, expected] : expected_) {
    const LayerConfig& config = engine.config().layers[where.first];
    CacheRows& rows = where.second ? cache.k(where.first) : cache.v(where.first);
    std::vector<float> actual(expected.size());
    for (int64_t i = 0; i < 15 * config.kv_heads; ++i)
      rows.decode(Isa::scalar, i / config.kv_heads, i % config.kv_heads, 1, actual.data() + i * config.head_dim);
    for (float& x : actual) x *= rows.scale();
    EXPECT_EQ(actual, expected) << "layer " << where.first << (where.second ? " keys" : " values");
  }
}

TEST_P(MobileEngine, FloatCacheIgnoresTheGrids) {
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "plain");
  set_cache_scales(0.5f, 0.5f);
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  const std::vector<float> plain = run(dir_ / "plain");
  EXPECT_EQ(run(dir_ / "mobile", true), plain);
  EXPECT_NE(run(dir_ / "mobile"), plain);
}

// So coarse a grid of values has no other level near than zero: attention adds nothing.
TEST_P(MobileEngine, AttentionReadsTheCacheAsItIsStored) {
  set_cache_scales(0.0f, 1e6f);
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  write_floats(dir_ / "floats", {Role::o});
  expect_same(run(dir_ / "mobile"), run(dir_ / "floats"), "");
}

TEST_P(MobileEngine, TokenizerComesAlong) {
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  EXPECT_NE(load_tokenizer(dir_ / "mobile"), nullptr);
  std::filesystem::remove(dir_ / "mobile/tokenizer.json");
  expect_error([&] { load_tokenizer(dir_ / "mobile"); },
               "mobile: expected tokenizer.json or a SentencePiece tokenizer.model, found neither");
}

// Everything on its grid at once: sums of integers and sums of floats in double round to the same levels.
TEST_F(MobileFiles, IntegersAreTheReferenceUpToRounding) {
  for (MobileSpec& spec : model_.specs) {
    if (code_bits(spec.dtype) == 0) continue;
    spec.input_scale = 0.0078125f;
    spec.output_scale = 0.005859375f;
  }
  for (size_t i = 0; i < model_.table.size(); ++i) {
    const TensorInfo& info = model_.table[i];
    if (info.kind == TensorKind::embedding || info.role == Role::output)
      model_.specs[i].input_scale = model_.specs[i].output_scale = 0.0f;
  }
  set_cache_scales(0.0625f, 0.03125f);
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  Engine engine = load(dir_ / "mobile", true);
  int64_t count = 0, off_zero = 0;  // the grids are neither too coarse nor too fine to be of interest
  engine.set_activation_hook([&](const Observed& observed) {
    for (int64_t i = 0; i < observed.rows * observed.cols; ++i) off_zero += std::fabs(observed.data[i]) > 0.004f;
    count += observed.rows * observed.cols;
  });
  KvCache cache(engine, 15);
  engine.forward(some_tokens(), cache, 15, nullptr);
  EXPECT_GT(off_zero, count / 2) << "of " << count;
  const std::vector<float> reference = run(dir_ / "mobile", true), integers = run(dir_ / "mobile", false);
  float largest = 0.0f;
  for (const float x : reference) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < reference.size(); ++i)
    ASSERT_NEAR(integers[i], reference[i], 2e-5f * largest) << "logit " << i;
}

// By default the head, which has no static grid, meets a lone row in 16 bits: 2^-17 of the largest activation each.
TEST_F(MobileFiles, ALoneRowMeetsTheHeadIn16Bits) {
  write_tiny_mobile(model_, dir_ / "hf", dir_ / "mobile");
  const auto last_logits = [&](bool float_activations) {
    EngineOptions options;
    options.float_activations = float_activations;
    Engine engine(load_weights(dir_ / "mobile"), options);
    const std::vector<int32_t> tokens = some_tokens();
    KvCache cache(engine, 64);
    std::vector<float> logits(static_cast<size_t>(engine.config().vocab));
    engine.forward(tokens, cache, tokens.size() - 1, logits.data());
    return logits;
  };
  const std::vector<float> exact = last_logits(true), rounded = last_logits(false);
  EXPECT_NE(exact, rounded);
  float largest = 0.0f;
  for (const float x : exact) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(rounded[i], exact[i], 1e-4f * largest) << "logit " << i;
}

INSTANTIATE_TEST_SUITE_P(Paths, MobileEngine, testing::Bool(), [](const testing::TestParamInfo<bool>& reference) {
  return reference.param ? "reference" : "best";
});

}  // namespace
}  // namespace qat
