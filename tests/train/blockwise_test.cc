#include "qat/train/blockwise.h"

#include <gmock/gmock.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <random>
#include <thread>

#include "export/ptq.h"
#include "format/number.h"
#include "qat/train/data.h"
#include "qat/train/layer_rounding.h"
#include "qat/train/sign_rounding.h"
#include "tests/train/trainer_fixture.h"

namespace qat {
namespace {

using testing::HasSubstr;

std::vector<float> random_weights(int64_t count) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  std::vector<float> weights(static_cast<size_t>(count));
  for (float& w : weights) w = normal(random);
  return weights;
}

std::vector<BlockQ4_0> encoded(const std::vector<float>& weights) {
  std::vector<BlockQ4_0> blocks(weights.size() / kBlockSize);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = encode_q4_0(weights.data() + i * kBlockSize);
  return blocks;
}

std::vector<float> values_of(const SignRounding& rounding) {
  std::vector<float> values(static_cast<size_t>(rounding.count()));
  rounding.values(values.data());
  return values;
}

bool same_blocks(const std::vector<BlockQ4_0>& a, const std::vector<BlockQ4_0>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(BlockQ4_0)) == 0;
}

TEST(SignRounding, BeginsAtTheBlocksGivenWhateverTheWeights) {
  const std::vector<float> weights = random_weights(32 * 40);
  std::vector<BlockQ4_0> start = encoded(weights);
  for (size_t i = 0; i < start.size(); ++i)  // codes as no rounding would choose them
    for (uint8_t& pair : start[i].qs) pair = static_cast<uint8_t>(pair ^ (i % 2 == 0 ? 0x11 : 0));
  SignRounding rounding(weights, start.data());
  EXPECT_TRUE(same_blocks(rounding.blocks(), start));
  rounding.step(std::vector<float>(weights.size(), 0.0f).data(), 0.1, 0.1);
  EXPECT_TRUE(same_blocks(rounding.blocks(), start)) << "a gradient of 0 moves nothing";
}

TEST(SignRounding, MovesAgainstTheGradientByOneLevelAtMost) {
  const std::vector<float> weights = random_weights(32 * 40);
  const std::vector<BlockQ4_0> start = encoded(weights);
  SignRounding rounding(weights, start.data());
  const std::vector<float> before = values_of(rounding);
  for (int i = 0; i < 20; ++i) rounding.step(std::vector<float>(weights.size(), 1.0f).data(), 0.1, 0.0);
  const std::vector<float> after = values_of(rounding);
  int64_t lower = 0;
  for (size_t i = 0; i < after.size(); ++i) {
    const float level = std::fabs(f16_to_f32(start[i / kBlockSize].d));
    EXPECT_LE(after[i], before[i]) << i;
    EXPECT_GE(after[i], before[i] - 1.001f * level) << i;
    lower += after[i] < before[i];
  }
  EXPECT_GT(lower, 32 * 10);
}

TEST(SignRounding, ScaleMovesWithinAFactorOfTwo) {
  const std::vector<float> weights = random_weights(32 * 4);
  const std::vector<BlockQ4_0> start = encoded(weights);
  SignRounding rounding(weights, start.data());
  for (int i = 0; i < 50; ++i) rounding.step(values_of(rounding).data(), 0.0, 0.1);  // smaller values, please
  for (size_t i = 0; i < start.size(); ++i) {
    const float ratio = f16_to_f32(rounding.blocks()[i].d) / f16_to_f32(start[i].d);
    EXPECT_GE(ratio, 0.499f);
    EXPECT_LE(ratio, 1.0f);
  }
}

TEST(SignRounding, BlockOfZerosStays) {
  const std::vector<float> weights(32, 0.0f);
  const std::vector<BlockQ4_0> start = encoded(weights);
  SignRounding rounding(weights, start.data());
  rounding.step(std::vector<float>(32, 1.0f).data(), 0.5, 0.5);
  EXPECT_TRUE(same_blocks(rounding.blocks(), start));
}

class Blockwise : public Trainer {
 protected:
  Recipe blockwise(const std::string& out) const {
    Recipe r = recipe(out);
    r.blockwise = true;
    r.init = "search";
    r.steps = 30;
    r.batch = 4;
    r.calibration_sequences = 16;
    return r;
  }

  static std::string weights_of(const Recipe& r) { return read_file(r.out + "/quantized/model.safetensors"); }

  torch::Tensor some_ids(int64_t sequences) const {
    torch::manual_seed(5);
    return torch::randint(3, 250, {sequences, 24}, torch::kInt64);
  }

  static TensorSource source_of(const FloatCheckpoint& checkpoint) {
    return [&](const TensorInfo& info) {
      return StoredRows{DType::F32, [&](int64_t row, int64_t count, uint8_t* out) {
                          checkpoint.read_rows(info, row, count, reinterpret_cast<float*>(out));
                        }};
    };
  }
};

// Per-layer inputs, shared K and V, both kinds of layers.
TEST_F(Blockwise, StreamThroughTheLayersIsTheForwardPass) {
  const FloatCheckpoint checkpoint(directory_ / "model");
  const Model model(checkpoint, torch::kCPU);
  const torch::Tensor ids = some_ids(5);
  LayerStream stream(checkpoint.config(), checkpoint.table(), ids, source_of(checkpoint));
  const ForwardWeights weights = model.forward_weights();
  std::vector<torch::Tensor> expected;
  ForwardOptions options;
  options.residual_hook = [&](size_t, const torch::Tensor& h) {
    expected.push_back(h);
    return h;
  };
  const torch::NoGradGuard no_grad;
  forward_hidden(checkpoint.config(), weights, make_positions(checkpoint.config(), 24, torch::kCPU), ids, options);
  EXPECT_TRUE(torch::allclose(stream.hidden(), expected[0], 1e-6, 1e-6));
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    stream.enter(i);
    stream.advance(weights.layers[i], 2);
    // Products are split otherwise than in the whole model, and attention passes that on many times over.
    const double away = (stream.hidden() - expected[i + 1]).norm().item<double>();
    EXPECT_LT(away, 1e-4 * expected[i + 1].norm().item<double>()) << "layer " << i;
  }
}

TEST_F(Blockwise, LowersTheErrorOfEveryLayer) {
  const Recipe r = blockwise("run");
  const TrainResult result = train(r);
  EXPECT_EQ(result.step, 4);
  EXPECT_EQ(result.interrupted, 0);
  const std::vector<Json> lines = metrics(r);
  ASSERT_EQ(lines.size(), 4u);
  for (const Json& line : lines) EXPECT_LT(line["error"].get<double>(), 0.9 * line["error_before"].get<double>());
  EXPECT_FALSE(fs::exists(r.out + "/blocks"));
}

// The error that the run ended with is that of the file.
TEST_F(Blockwise, FileHoldsWhatTheLastStepComputedWith) {
  Recipe r = blockwise("run");
  r.calibration_sequences = 1000;  // all: no order to know
  train(r);
  const FloatCheckpoint model(r.model);
  const QuantizedCheckpoint file(r.out + "/quantized");
  const TrainingData data = load_training_data(r, model.config());
  torch::Tensor ids = torch::empty({data.train.count(), data.train.length}, torch::kInt64);
  std::copy(data.train.tokens.begin(), data.train.tokens.end(), ids.data_ptr<int64_t>());
  const TensorSource stored = [&](const TensorInfo& info) {
    return StoredRows{file.grid(info),
                      [&](int64_t row, int64_t count, uint8_t* out) { file.read_blocks(info, row, count, out); }};
  };
  LayerStream floats(model.config(), model.table(), ids, source_of(model));
  LayerStream quantized(model.config(), model.table(), ids, stored);
  const auto weights_of_layer = [&](size_t layer, const TensorSource& source) {
    TensorsByRole weights;
    for (const TensorInfo& info : model.table()) {
      if (info.layer != static_cast<int>(layer)) continue;
      const StoredRows rows = source(info);
      weights[info.role] = decode_stored(info, rows.grid, read_stored(info, rows, 0, rows_of(info)));
    }
    return weights;
  };
  const std::vector<Json> lines = metrics(r);
  for (size_t layer = 0; layer < lines.size(); ++layer) {
    floats.enter(layer);
    floats.advance(weights_of_layer(layer, source_of(model)), 8);
    quantized.enter(layer);
    quantized.advance(weights_of_layer(layer, stored), 8);
    const torch::Tensor y = floats.hidden(), away = (quantized.hidden() - y).square().sum(-1);
    const double error = (away / y.square().sum(-1)).mean().item<double>();
    EXPECT_NEAR(error, lines[layer]["error"].get<double>(), 1e-5 * error) << "layer " << layer;
  }
}

TEST_F(Blockwise, StoppedAndResumedEndsInTheSameBytes) {
  const Recipe whole = blockwise("whole");
  train(whole);
  Recipe r = blockwise("stopped");
  std::thread watcher([&] {
    while (!fs::exists(r.out + "/blocks/layer-001.safetensors"))
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    g_stop_signal = SIGINT;
  });
  const TrainResult stopped = train(r);
  watcher.join();
  EXPECT_EQ(stopped.interrupted, SIGINT);
  EXPECT_GE(stopped.step, 2);
  EXPECT_FALSE(fs::exists(r.out + "/quantized"));
  g_stop_signal = 0;
  EXPECT_THAT(error_of(r), HasSubstr("holds an unfinished run"));
  Recipe other = r;
  other.steps = 31;
  EXPECT_THAT(error_of(other, true), HasSubstr("a resumed run cannot change [train] steps: 30 -> 31"));
  train(r, true);
  EXPECT_EQ(weights_of(r), weights_of(whole));
  EXPECT_EQ(metrics(r), metrics(whole));
}

TEST_F(Blockwise, BeginsAtGptqAndAtAFile) {
  Recipe r = blockwise("gptq");
  r.init = "gptq";
  r.calibration_sequences = 32;
  train(r);
  EXPECT_FALSE(fs::exists(r.out + "/start"));
  Recipe further = blockwise("further");
  further.init = r.out + "/quantized";
  further.calibration_sequences = 32;
  train(further);
  const std::vector<Json> first = metrics(r), second = metrics(further);
  EXPECT_NEAR(second[0]["error_before"].get<double>(), first[0]["error"].get<double>(), 1e-9);
  EXPECT_LE(second[3]["error"].get<double>(), first[3]["error"].get<double>());
}

TEST_F(Blockwise, TrainingThatBeginsAtAFileHasItsCodes) {
  const Recipe start = blockwise("blocks");
  train(start);
  Recipe r = recipe("qat");
  r.init = start.out + "/quantized";
  r.lr = 0.0;
  r.scale_lr = 0.0;
  train(r);
  EXPECT_EQ(weights_of(r), weights_of(start));
}

TEST_F(Blockwise, InitThatDoesNotFitIsSaid) {
  Recipe r = recipe("qat");
  r.init = directory_ / "nothing";
  EXPECT_THAT(error_of(r), HasSubstr("no such directory"));
  r.init = directory_ / "model";
  EXPECT_THAT(error_of(r), HasSubstr("expected a quantized checkpoint"));
  r.init = directory_ / "q8_0";
  quantize_checkpoint(r.model, plan_from_name("q8_0"), {}, r.init);
  EXPECT_THAT(error_of(r), HasSubstr("another plan's: model."));
  const std::string other = directory_ / "other";
  fs::create_directories(other);
  for (const auto& entry : fs::directory_iterator(r.model)) fs::copy(entry, other);
  std::string config = read_file(other + "/config.json");
  const std::string key = "\"num_attention_heads\": 2";
  config.replace(config.find(key), key.size(), "\"num_attention_heads\": 3");
  write_file(other + "/config.json", config);
  const std::vector<TensorInfo> table = tensor_table(model_config_from_hf(other));
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : table) specs.push_back({info.name, DType::F32, info.shape});
  SafetensorsWriter file(other + "/model.safetensors", specs);
  for (const TensorSpec& spec : specs) {
    const torch::Tensor w = torch::full(spec.shape, 0.1);
    file.append(w.data_ptr<float>(), static_cast<size_t>(w.numel()) * sizeof(float));
  }
  file.commit();
  r.init = directory_ / "other_q4_0";
  quantize_checkpoint(other, plan_from_name("q4_0"), {}, r.init);
  EXPECT_THAT(error_of(r), HasSubstr("another model's: model.layers.0.self_attn.q_proj.weight: expected shape"));
}

TEST_F(Blockwise, WhatItCannotDoIsSaid) {
  Recipe r = blockwise("run");
  r.plan = "mobile";
  EXPECT_THAT(error_of(r), HasSubstr("blockwise: expected a plan with Q4_0"));
  r.plan = "bf16";
  EXPECT_THAT(error_of(r), HasSubstr("has no linear of a layer on Q4_0"));
  r = blockwise("run");
  r.teacher = "elsewhere";
  EXPECT_THAT(error_of(r), HasSubstr("teacher must be empty"));
  r = blockwise("run");
  r.init = "serch";
  EXPECT_THAT(error_of(r), HasSubstr("expected plain, search or gptq, found \"serch\""));
}

}  // namespace
}  // namespace qat
