// The rule gptq in whole models: what is stored is what gptq.h makes of the inputs that the layers before, as stored,
// give each linear; found here by running the engine with weights of both models.
#include "export/gptq_layers.h"

#include <gtest/gtest.h>

#include "export/mobile_ptq.h"
#include "format/channel_grid.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

std::vector<std::vector<int32_t>> some_tokens() {
  std::vector<std::vector<int32_t>> sequences(3);
  uint32_t state = 7;
  for (size_t i = 0; i < sequences.size(); ++i)
    for (size_t j = 0; j < 200 + 180 * i; ++j)  // the last one takes two passes
      sequences[i].push_back(static_cast<int32_t>((state = state * 1664525u + 1013904223u) >> 24));
  return sequences;
}

// The float model, its tables and the layers before `layer` as quantized.
Weights mixed_weights(const std::string& model, const std::string& quantized, int layer) {
  Weights weights = load_weights(model), stored = load_weights(quantized);
  weights.embedding = stored.embedding;
  weights.ple_embedding = stored.ple_embedding;
  for (size_t i = 0; i < static_cast<size_t>(layer); ++i) {
    const CacheScales cache = weights.layers[i].cache;
    weights.layers[i] = stored.layers[i];
    weights.layers[i].cache = cache;
  }
  for (const std::shared_ptr<void>& owner : stored.owners) weights.owners.push_back(owner);
  return weights;
}

// Of the inputs of a layer's linears, by name.
std::map<std::string, InputMoments> moments_of(Weights weights, int layer) {
  std::map<std::string, InputMoments> moments;
  ThreadPool pool(2);
  Engine engine(std::move(weights));
  engine.set_activation_hook([&](const Observed& seen) {
    if (seen.kind != Activation::input || seen.layer != layer) return;
    moments.emplace(seen.name, seen.cols).first->second.add(pool, select_isa(), seen.data, seen.rows);
  });
  for (const std::vector<int32_t>& sequence : some_tokens()) {
    KvCache cache(engine, static_cast<int64_t>(sequence.size()));
    engine.forward(sequence, cache, sequence.size(), nullptr);
  }
  for (auto& [name, found] : moments) found.factorize();
  return moments;
}

TEST(GptqLayers, BlocksAreWhatTheInputsSay) {
  for (const std::string& json : {gemma4_json(), gemma4_k_eq_v_json(), gemma3_json(), llama_json(false, 80)}) {
    TemporaryDirectory dir;
    write_tiny_model(dir / "hf", json, DType::BF16);
    PtqOptions options;
    options.method = PtqMethod::gptq;
    options.calibration = some_tokens();
    quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), options, dir / "q");
    const FloatCheckpoint source(dir / "hf");
    const QuantizedCheckpoint stored(dir / "q");
    int rounded = 0;
    std::map<std::string, InputMoments> moments;
    int layer = -1;
    for (const TensorInfo& info : source.table()) {
      if (info.layer > layer) {
        layer = info.layer;
        moments = moments_of(mixed_weights(dir / "hf", dir / "q", layer), layer);
      }
      const DType grid = stored.grid(info);
      const std::vector<float> values = source.read(info);
      const int64_t cols = info.shape.back(), rows = static_cast<int64_t>(values.size()) / cols;
      std::vector<uint8_t> expected(static_cast<size_t>(rows) * row_bytes(grid, cols)), found(expected.size());
      if (grid == DType::Q4_0 && info.layer >= 0) {
        gptq_blocks(moments.at(info.name), grid, values.data(), rows, expected.data());
        ++rounded;
      } else if (grid != DType::Q4_0) {
        encode_rows(grid, values.data(), rows, cols, expected.data());
      } else {
        continue;  // an embedding by search: ptq_test.cc
      }
      stored.read_blocks(info, 0, rows, found.data());
      EXPECT_EQ(found, expected) << info.name;
    }
    EXPECT_GE(rounded, 12);
  }
}

TEST(GptqLayers, ChannelsAreWhatTheInputsSay) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", gemma4_json(), DType::BF16);
  MobilePtqOptions options;
  options.method = PtqMethod::gptq;
  options.calibration = some_tokens();
  Plan plan = plan_from_name("mobile");
  plan.activations = false;
  plan.kv_sliding_bits = plan.kv_global_bits = 0;
  quantize_mobile(dir / "hf", plan, options, dir / "mobile");
  const FloatCheckpoint source(dir / "hf");
  const MobileCheckpoint stored(dir / "mobile");
  std::map<std::string, InputMoments> moments;
  int layer = -1, rounded = 0;
  for (const TensorInfo& info : source.table()) {
    if (info.layer > layer) {
      layer = info.layer;
      moments = moments_of(mixed_weights(dir / "hf", dir / "mobile", layer), layer);
    }
    if (info.layer < 0 || !info.quantizable) continue;
    const MobileTensor& tensor = stored.tensor(info);
    const int bits = code_bits(tensor.dtype);
    const int64_t rows = info.shape[0], cols = info.shape[1];
    std::vector<float> scales(static_cast<size_t>(rows));
    std::vector<int8_t> codes(static_cast<size_t>(rows * cols)), found(codes.size());
    gptq_channels(moments.at(info.name), bits, source.read(info).data(), rows, scales.data(), codes.data());
    unpack_codes(bits, tensor.data.data(), rows, cols, found.data());
    EXPECT_EQ(found, codes) << info.name;
    for (int64_t row = 0; row < rows; ++row) EXPECT_EQ(scale_at(tensor.scales, row), scales[static_cast<size_t>(row)]);
    ++rounded;
  }
  EXPECT_GE(rounded, 30);
  // The static scales of activations come after, on the same codes.
  quantize_mobile(dir / "hf", plan_from_name("mobile"), options, dir / "whole");
  const MobileCheckpoint whole(dir / "whole");
  for (const TensorInfo& info : stored.table()) {
    const Span<const uint8_t> a = stored.tensor(info).data, b = whole.tensor(info).data;
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << info.name;
  }
  EXPECT_GT(whole.tensor(*find_tensor_info(whole.table(), Role::k, 0)).input_scale, 0.0f);
}

class GptqModel : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(dir_ / "hf", gemma4_json(), DType::BF16);
    options_.method = PtqMethod::gptq;
    options_.calibration = some_tokens();
  }
  void quantize(const std::string& out, const PtqProgress& progress = {}) {
    quantize_checkpoint(dir_ / "hf", plan_from_name("q4_0"), options_, dir_ / out, progress);
  }
  void quantize_to_mobile(const std::string& out, const MobilePtqProgress& progress = {}) {
    MobilePtqOptions options;
    options.method = PtqMethod::gptq;
    options.calibration = options_.calibration;
    quantize_mobile(dir_ / "hf", plan_from_name("mobile"), options, dir_ / out, progress);
  }
  std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) found.push_back(entry.path().filename());
    return found;
  }
  TemporaryDirectory dir_;
  PtqOptions options_;
};

TEST_F(GptqModel, ThreadsDoNotMatterAndProgressReachesTheEnd) {
  int64_t last = 0, end = 0;
  options_.threads = 1;
  quantize("one", [&](int64_t done, int64_t total) {
    EXPECT_GE(done, last);
    last = done;
    end = total;
  });
  EXPECT_LE(last, end);
  EXPECT_GE(last, end - 2);
  options_.threads = 3;
  quantize("three");
  EXPECT_EQ(file_bytes(dir_ / "one/model.safetensors"), file_bytes(dir_ / "three/model.safetensors"));
}

TEST_F(GptqModel, WhateverGoesWrongNothingIsLeft) {
  const auto refused = [&](const std::string& fragment) {
    expect_error([&] { quantize("q"); }, fragment);
    expect_error([&] { quantize_to_mobile("q"); }, fragment);
    EXPECT_EQ(names(), std::vector<std::string>{"hf"}) << fragment;
  };
  options_.calibration = {{2, 3, 4}};
  refused("the calibration text is too short: expected at least 512 tokens, found 3");
  options_.calibration.clear();
  refused("rule gptq takes a calibration text");
  options_.calibration = {std::vector<int32_t>(600, 5000)};
  refused("token id 5000");
  options_.calibration = some_tokens();
  write_tiny_model_with(dir_ / "hf", gemma4_json(), DType::F32, "model.layers.1.mlp.up_proj.weight", 64 * 3 + 7, NAN);
  refused("model.layers.1.mlp.up_proj.weight: row 3, column 7: expected a finite weight");
}

TEST_F(GptqModel, InterruptedNothingIsLeft) {
  EXPECT_THROW(quantize("q",
                        [](int64_t done, int64_t total) {
                          if (done > total / 2) throw std::runtime_error("stop");
                        }),
               std::runtime_error);
  for (const std::string wanted : {"layers", "codes"})
    EXPECT_THROW(quantize_to_mobile("q",
                                    [&](const char* stage, int64_t done, int64_t total) {
                                      if (stage == wanted && done > total / 2) throw std::runtime_error("stop");
                                    }),
                 std::runtime_error);
  EXPECT_EQ(names(), std::vector<std::string>{"hf"});
}

}  // namespace
}  // namespace qat
