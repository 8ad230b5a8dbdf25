// PTQ into the mobile schema: every code, scale and static scale is what its rule says, what is tied is equal, and
// whatever goes wrong leaves nothing behind.
#include "export/mobile_ptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "export/mobile_export.h"
#include "format/channel_grid.h"
#include "inference/engine.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

std::string bytes_of(Span<const uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

// Two sequences of 300 tokens.
std::vector<std::vector<int32_t>> some_tokens() {
  std::vector<std::vector<int32_t>> sequences(2);
  uint32_t state = 7;
  for (std::vector<int32_t>& sequence : sequences)
    for (int i = 0; i < 300; ++i)
      sequence.push_back(static_cast<int32_t>((state = state * 1664525u + 1013904223u) >> 24));
  return sequences;
}

Plan weights_only() {
  Plan plan = plan_from_name("mobile");
  plan.activations = false;
  plan.kv_sliding_bits = plan.kv_global_bits = 0;
  return plan;
}

// Names of everything in the directory.
std::vector<std::string> names_in(const TemporaryDirectory& dir) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) names.push_back(entry.path().filename());
  return names;
}

class MobilePtq : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(dir_ / "hf", gemma4_json(), DType::BF16);
    options_.calibration = some_tokens();
  }
  void quantize(const Plan& plan, const std::string& out) { quantize_mobile(dir_ / "hf", plan, options_, dir_ / out); }

  TemporaryDirectory dir_;
  MobilePtqOptions options_;
};

// Scale and codes of a row as the rule has them, found without the code under test.
void expect_row(const MobileTensor& tensor, const std::vector<float>& values, int64_t row, int64_t cols,
                PtqMethod method, const float* importance, const std::string& name) {
  const int bits = code_bits(tensor.dtype);
  const int64_t group = cols / tensor.scales_per_row;
  std::vector<int8_t> codes(static_cast<size_t>(cols)), expected(static_cast<size_t>(cols));
  unpack_codes(bits, tensor.data.data() + static_cast<size_t>(row) * row_bytes(tensor.dtype, cols), 1, cols,
               codes.data());
  for (int64_t at = 0; at < cols; at += group) {
    const float* x = values.data() + row * cols + at;
    float largest = 0.0f;
    for (int64_t i = 0; i < group; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = method == PtqMethod::mse
                            ? search_scale(bits, x, importance != nullptr ? importance + at : nullptr, group)
                            : storable_scale(largest / static_cast<float>(highest_code(bits)));
    ASSERT_EQ(scale_at(tensor.scales, row * tensor.scales_per_row + at / group), scale) << name << " row " << row;
    encode_channel(bits, x, group, scale, expected.data() + at);
  }
  ASSERT_EQ(codes, expected) << name << " row " << row;
}

TEST_F(MobilePtq, WeightsAreWhatTheRuleSays) {
  const FloatCheckpoint source(dir_ / "hf");
  Importance importance;
  for (const TensorInfo& info : source.table()) {
    if (!info.quantizable || info.kind != TensorKind::linear) continue;
    for (int64_t c = 0; c < info.shape[1]; ++c)
      importance[info.name].push_back(c % 3 == 0 ? 9.0f : 0.1f * static_cast<float>(c));
  }
  for (const PtqMethod method : {PtqMethod::mse, PtqMethod::reference}) {
    for (const bool weighted : {false, true}) {
      if (weighted && method == PtqMethod::reference) continue;
      options_.method = method;
      options_.importance = weighted ? &importance : nullptr;
      quantize(weights_only(), "mobile");
      const MobileCheckpoint read(dir_ / "mobile");
      EXPECT_TRUE(read.notices().empty());
      for (const TensorInfo& info : read.table()) {
        const bool head = info.role == Role::output;
        const TensorInfo& from = head ? *find_tensor_info(source.table(), Role::token_embedding) : info;
        const MobileTensor& tensor = read.tensor(info);
        const std::vector<float> values = source.read(from);
        if (!info.quantizable) {
          EXPECT_EQ(tensor.dtype, DType::BF16) << info.name;
          EXPECT_EQ(read.read(info), values) << info.name;
          continue;
        }
        EXPECT_EQ(tensor.dtype, mobile_grid(info, read.table())) << info.name;
        EXPECT_EQ(tensor.scales_per_row, info.role == Role::ple_embedding ? 4 : 1) << info.name;
        EXPECT_EQ(tensor.input_scale, 0.0f);
        EXPECT_EQ(tensor.output_scale, 0.0f);
        const auto weights = importance.find(info.name);
        for (int64_t row = 0; row < info.shape[0]; ++row)
          expect_row(tensor, values, row, info.shape[1], method,
                     weighted && weights != importance.end() ? weights->second.data() : nullptr, info.name);
      }
      const MobileTensor& embedding = read.tensor(*find_tensor_info(read.table(), Role::token_embedding));
      const MobileTensor& output = read.tensor(*find_tensor_info(read.table(), Role::output));
      EXPECT_EQ(bytes_of(embedding.data), bytes_of(output.data));
      EXPECT_EQ(bytes_of(embedding.scales), bytes_of(output.scales));
      EXPECT_EQ(read.cache_scales(0).k, 0.0f);
    }
  }
}

// The scales are those of observers that see the activations of the model with these weights.
TEST_F(MobilePtq, StaticScalesComeFromTheQuantizedModelsActivations) {
  quantize(weights_only(), "weights");
  for (const Calibration rule : {Calibration::maximum, Calibration::percentile, Calibration::least_squares}) {
    options_.observer = rule;
    quantize(plan_from_name("mobile"), "mobile");
    std::map<std::string, ActivationObserver> inputs, outputs;
    std::map<int, ActivationObserver> keys, values;
    Engine engine(load_weights(dir_ / "weights"));
    engine.set_activation_hook([&](const Observed& seen) {
      std::string name = seen.name;
      const bool second = name.find("v_proj") != std::string::npos || name.find("up_proj") != std::string::npos;
      for (const auto& [from, to] : {std::pair("v_proj", "k_proj"), std::pair("up_proj", "gate_proj")})
        if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, std::string(from).size(), to);
      const int64_t count = seen.rows * seen.cols;
      if (seen.kind == Activation::key) keys[seen.layer].observe(seen.data, count);
      if (seen.kind == Activation::value) values[seen.layer].observe(seen.data, count);
      if (seen.kind == Activation::output) outputs[name].observe(seen.data, count);
      if (seen.kind == Activation::input && !second) inputs[name].observe(seen.data, count);
    });
    for (const std::vector<int32_t>& sequence : options_.calibration) {
      KvCache cache(engine, 300);
      engine.forward(sequence, cache, sequence.size(), nullptr);
    }
    const MobileCheckpoint read(dir_ / "mobile"), plain(dir_ / "weights");
    for (const TensorInfo& info : read.table()) {
      const MobileTensor& tensor = read.tensor(info);
      EXPECT_EQ(bytes_of(tensor.data), bytes_of(plain.tensor(info).data)) << info.name;
      EXPECT_EQ(bytes_of(tensor.scales), bytes_of(plain.tensor(info).scales)) << info.name;
      const bool rounded = info.kind == TensorKind::linear && info.quantizable && info.role != Role::output;
      const TensorInfo& leader = info.role == Role::v    ? *find_tensor_info(read.table(), Role::k, info.layer)
                                 : info.role == Role::up ? *find_tensor_info(read.table(), Role::gate, info.layer)
                                                         : info;
      EXPECT_EQ(tensor.input_scale, rounded ? inputs.at(leader.name).scale(rule, 8) : 0.0f) << info.name;
      EXPECT_EQ(tensor.output_scale, rounded ? outputs.at(leader.name).scale(rule, 8) : 0.0f) << info.name;
      EXPECT_EQ(tensor.output_scale > 0.0f, rounded) << info.name;
    }
    for (int layer = 0; layer < 4; ++layer) {
      const CacheScales scales = read.cache_scales(layer);
      const bool owns = layer < 2;
      const int bits = layer == 0 ? 8 : 4;  // sliding, global
      EXPECT_EQ(scales.bits, owns ? bits : 0) << layer;
      EXPECT_EQ(scales.k, owns ? keys.at(layer).scale(rule, bits) : 0.0f) << layer;
      EXPECT_EQ(scales.v, owns ? values.at(layer).scale(rule, bits) : 0.0f) << layer;
    }
  }
}

TEST_F(MobilePtq, RulesAndSwitchesAreFollowed) {
  Plan plan = plan_from_name("mobile");
  plan.rules = {{"layers\\.1\\.mlp", DType::I8},
                {"layers\\.0\\.self_attn\\.v_proj", DType::BF16},
                {"embed_tokens\\.weight", DType::I4}};
  plan.kv_global_bits = 0;
  quantize(plan, "mobile");
  const MobileCheckpoint read(dir_ / "mobile");
  const auto tensor = [&](Role role, int layer) { return read.tensor(*find_tensor_info(read.table(), role, layer)); };
  EXPECT_EQ(tensor(Role::up, 1).dtype, DType::I8);
  EXPECT_EQ(tensor(Role::up, 0).dtype, DType::I4);
  EXPECT_EQ(tensor(Role::up, 2).dtype, DType::I2);
  EXPECT_EQ(tensor(Role::output, -1).dtype, DType::I4);
  EXPECT_EQ(tensor(Role::token_embedding, -1).dtype, DType::I4);
  EXPECT_EQ(tensor(Role::v, 0).dtype, DType::BF16);  // float: not rounded either
  EXPECT_EQ(tensor(Role::v, 0).input_scale, 0.0f);
  EXPECT_GT(tensor(Role::k, 0).input_scale, 0.0f);
  EXPECT_GT(read.cache_scales(0).k, 0.0f);
  EXPECT_EQ(read.cache_scales(1).k, 0.0f);
  plan.activations = false;
  quantize(plan, "mobile");  // its own kind is replaced
  const MobileCheckpoint again(dir_ / "mobile");
  EXPECT_EQ(again.tensor(*find_tensor_info(again.table(), Role::k, 0)).input_scale, 0.0f);
  EXPECT_GT(again.cache_scales(0).v, 0.0f);
}

// A head of its own, K = V layers, other architectures: the loader takes them all.
TEST(MobilePtqOf, OtherModels) {
  TemporaryDirectory dir;
  MobilePtqOptions options;
  options.calibration = some_tokens();
  for (const std::string& config : {gemma4_k_eq_v_json(), gemma3_json(), llama_json(true, 80), llama_json(false)}) {
    write_tiny_model(dir / "hf", config, DType::F32);
    quantize_mobile(dir / "hf", plan_from_name("mobile"), options, dir / "mobile");
    const MobileCheckpoint read(dir / "mobile");
    const FloatCheckpoint source(dir / "hf");
    const TensorInfo& head = *find_tensor_info(read.table(), Role::output);
    const TensorInfo* own = find_tensor_info(source.table(), Role::output);
    const TensorInfo& from = own != nullptr ? *own : *find_tensor_info(source.table(), Role::token_embedding);
    expect_row(read.tensor(head), source.read(from), 5, head.shape[1], PtqMethod::mse, nullptr, head.name);
    EXPECT_GT(read.cache_scales(0).v, 0.0f);
    Engine engine(load_weights(dir / "mobile"));
    KvCache cache(engine, 8);
    std::vector<float> logits(static_cast<size_t>(engine.config().vocab));
    const std::vector<int32_t> tokens = {2, 70, 80};
    engine.forward(tokens, cache, 2, logits.data());
    EXPECT_TRUE(std::isfinite(logits[9]));
  }
}

TEST_F(MobilePtq, ThreadsDoNotMatter) {
  options_.threads = 1;
  quantize(plan_from_name("mobile"), "one");
  options_.threads = 3;
  quantize(plan_from_name("mobile"), "three");
  EXPECT_EQ(file_bytes(dir_ / "one/model.safetensors"), file_bytes(dir_ / "three/model.safetensors"));
}

TEST_F(MobilePtq, WhateverGoesWrongNothingIsLeft) {
  const auto refused = [&](const Plan& plan, const std::string& fragment) {
    expect_error([&] { quantize(plan, "mobile"); }, fragment);
    EXPECT_EQ(names_in(dir_), std::vector<std::string>{"hf"}) << fragment;
  };
  Plan plan = plan_from_name("mobile");
  plan.rules = {{"layers\\.9\\.", DType::I4}};
  refused(plan, "plan rule \"layers\\.9\\.\": matches no tensor");
  plan.rules = {{"mlp", DType::Q4_0}};
  refused(plan, "expected a type of the mobile schema (I2, I4, I8, F32, F16, BF16), found Q4_0");
  options_.calibration = {{2, 3, 4}};
  refused(plan_from_name("mobile"), "the calibration text is too short: expected at least 512 tokens, found 3");
  options_.calibration.clear();
  refused(plan_from_name("mobile"), "take a calibration text");
  options_.calibration = {std::vector<int32_t>(600, 5000)};
  refused(plan_from_name("mobile"), "token id 5000");
  write_tiny_model_with(dir_ / "hf", gemma4_json(), DType::F32, "model.layers.1.mlp.up_proj.weight", 64 * 3 + 7, NAN);
  refused(weights_only(), "model.layers.1.mlp.up_proj.weight: row 3, column 7: expected a finite weight that I4 can");
}

TEST_F(MobilePtq, InterruptedAtAnyStageNothingIsLeft) {
  for (const std::string wanted : {"scales", "codes", "activations", "files"}) {
    bool reached = false;
    const auto stop = [&](const char* stage, int64_t, int64_t) {
      if (stage != wanted) return;
      reached = true;
      throw std::runtime_error("stop");
    };
    EXPECT_THROW(quantize_mobile(dir_ / "hf", plan_from_name("mobile"), options_, dir_ / "mobile", stop),
                 std::runtime_error);
    EXPECT_TRUE(reached) << wanted;
    EXPECT_EQ(names_in(dir_), std::vector<std::string>{"hf"}) << wanted;
  }
}

}  // namespace
}  // namespace qat
