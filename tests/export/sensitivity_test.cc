// What a type costs a tensor: the measured divergence is that of an engine whose weights differ in that one tensor; the
// chosen types come back out of the plan; the file is as large as was said.
#include "export/sensitivity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "export/gguf_export.h"
#include "inference/engine.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

std::vector<std::vector<int32_t>> some_tokens() {
  std::vector<std::vector<int32_t>> sequences(2);
  uint32_t state = 7;
  for (size_t i = 0; i < sequences.size(); ++i)
    for (size_t j = 0; j < 30 + 490 * i; ++j)  // the second takes two passes
      sequences[i].push_back(static_cast<int32_t>((state = state * 1664525u + 1013904223u) >> 24));
  return sequences;
}

// Logits of all tokens.
std::vector<float> logits_of(Weights weights) {
  EngineOptions options;
  options.float_activations = true;
  Engine engine(std::move(weights), options);
  std::vector<float> logits;
  for (const std::vector<int32_t>& sequence : some_tokens()) {
    KvCache cache(engine, static_cast<int64_t>(sequence.size()));
    const size_t before = logits.size();
    logits.resize(before + sequence.size() * static_cast<size_t>(engine.config().vocab));
    engine.forward(sequence, cache, 0, logits.data() + before);
  }
  return logits;
}

std::vector<double> log_probabilities(const float* logits, size_t vocab) {
  double sum = 0.0;
  for (size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]));
  std::vector<double> out(logits, logits + vocab);
  for (double& x : out) x -= std::log(sum);
  return out;
}

double divergence(const std::vector<float>& base, const std::vector<float>& other, size_t vocab) {
  double sum = 0.0;
  for (size_t row = 0; row < base.size(); row += vocab) {
    const std::vector<double> p = log_probabilities(&base[row], vocab), q = log_probabilities(&other[row], vocab);
    for (size_t i = 0; i < vocab; ++i) sum += std::exp(p[i]) * (p[i] - q[i]);
  }
  return sum / static_cast<double>(base.size() / vocab);
}

std::string shared_kv_or_not(int which) { return which == 0 ? gemma4_json() : llama_json(which == 1, 96); }

TEST(Sensitivity, CostIsTheDivergenceOfAModelWithThatOneTensorRounded) {
  for (int which = 0; which < 3; ++which) {  // per-layer tables and shared K and V; a tied head; one of its own
    TemporaryDirectory dir;
    write_tiny_model(dir / "hf", shared_kv_or_not(which), DType::F32);
    const FloatCheckpoint checkpoint(dir / "hf");
    PtqOptions options;
    options.calibration = some_tokens();
    std::vector<TensorChoices> tensors = type_choices(checkpoint, plan_from_name("q4_0"));
    int64_t last = 0, all = 0;
    measure_costs(checkpoint, options, &tensors, [&](int64_t done, int64_t total) {
      EXPECT_GE(done, last);
      last = done;
      all = total;
    });
    EXPECT_NEAR(static_cast<double>(last), static_cast<double>(all), 2.0);

    const Weights weights = load_weights(dir / "hf");
    const std::vector<float> base = logits_of(weights);
    for (const TensorChoices& tensor : tensors) {
      const TensorInfo& info = tensor.info;
      ASSERT_GT(tensor.choices.size(), 1u) << info.name;
      for (const TypeCost& choice : tensor.choices) {
        if (choice.type != DType::Q2_0 && choice.type != DType::Q4_0) continue;  // those that are run
        std::vector<uint8_t> rows(static_cast<size_t>(info.shape[0]) * row_bytes(choice.type, info.shape[1]));
        const std::vector<float> values = checkpoint.read(info);
        encode_rows(choice.type, values.data(), info.shape[0], info.shape[1], rows.data());
        Weights changed = weights;
        Matrix& matrix = *find_matrix(changed, info);
        matrix.dtype = choice.type;
        matrix.data = rows.data();
        if (info.role == Role::token_embedding && changed.config.tied) changed.output = matrix;
        const double expected = divergence(base, logits_of(changed), static_cast<size_t>(changed.config.vocab));
        EXPECT_GT(expected, 0.0);
        // The divergence of tensors that hardly matter is lost in the roundings of single floats, some 1e-7 a token.
        EXPECT_NEAR(choice.cost, expected, 2e-7 + 1e-3 * expected) << info.name << " " << dtype_name(choice.type);
      }
      for (size_t i = 1; tensor.choices.front().cost > 1e-5 && i < tensor.choices.size(); ++i)
        EXPECT_LT(tensor.choices[i].cost, tensor.choices[i - 1].cost) << info.name;
    }
  }
}

TEST(Sensitivity, ChoicesAreTypesThatFitTheRowsAndWhatARuleSettles) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", llama_json(true, 80), DType::BF16);  // 80 columns are no multiple of 32
  const FloatCheckpoint checkpoint(dir / "hf");
  Plan plan = plan_from_name("q4_0");
  plan.rules.push_back({"layers.0.self_attn.q_proj", DType::Q8_0});
  for (const TensorChoices& tensor : type_choices(checkpoint, plan)) {
    std::vector<DType> types;
    for (const TypeCost& choice : tensor.choices) types.push_back(choice.type);
    std::vector<DType> expected = {DType::Q2_0, DType::Q4_0, DType::Q8_0, DType::BF16};
    if (tensor.info.role == Role::down) expected = {DType::F16};
    if (tensor.info.name == "model.layers.0.self_attn.q_proj.weight") expected = {DType::Q8_0};
    EXPECT_EQ(types, expected) << tensor.info.name;
  }
}

TEST(Sensitivity, ThePlanHasTheChosenTypesAndTheFileTheirSize) {
  for (const std::string& json : {gemma4_json(), llama_json(false, 96)}) {
    TemporaryDirectory dir;
    write_tiny_model(dir / "hf", json, DType::BF16);
    const FloatCheckpoint checkpoint(dir / "hf");
    Plan plan = plan_from_name("q4_0");
    const std::vector<TensorChoices> tensors = type_choices(checkpoint, plan);
    std::vector<size_t> chosen;
    for (size_t i = 0; i < tensors.size(); ++i) chosen.push_back(i * 7 % tensors[i].choices.size());
    plan = plan_of_choices(plan, checkpoint, tensors, chosen);
    plan.name = kDynamicPlan;
    std::map<std::string, DType> types;
    for (const auto& [name, entry] : resolve_plan(plan, checkpoint.table(), checkpoint.dtypes()))
      types[name] = entry.grid;
    for (size_t i = 0; i < tensors.size(); ++i)
      EXPECT_EQ(types.at(tensors[i].info.name), tensors[i].choices[chosen[i]].type) << tensors[i].info.name;

    quantize_checkpoint(dir / "hf", plan, {}, dir / "qq");  // a name as long as the model's
    export_gguf(dir / "qq", dir / "q.gguf");
    EXPECT_EQ(std::filesystem::file_size(dir / "q.gguf"), gguf_bytes(checkpoint, types));

    // The same types again, from what was written.
    quantize_checkpoint(dir / "hf", plan_from_name_or_file(dir / "qq"), {}, dir / "again");
    EXPECT_EQ(file_bytes(dir / "again/model.safetensors"), file_bytes(dir / "qq/model.safetensors"));
  }
}

TEST(Sensitivity, OnlyAChosenPlanIsReadFromAFile) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "hf", llama_json(true), DType::BF16);
  quantize_checkpoint(dir / "hf", plan_from_name("q4_0"), {}, dir / "q");
  expect_error([&] { plan_from_file(dir / "q"); }, "expected a plan of qat quantize --plan dynamic, found \"q4_0\"");
  add_file(dir / "bad.json",
           R"({"format": "qat_plan", "version": 1, "name": "dynamic", "rules": [{"pattern": "x", "grid": "Q9"}]})");
  expect_error([&] { plan_from_file(dir / "bad.json"); }, "rules: expected {\"pattern\"");
  add_file(dir / "none.json", R"({"format": "qat_plan", "version": 1, "name": "dynamic"})");
  expect_error([&] { plan_from_file(dir / "none.json"); }, "rules: expected an array");
  expect_error([&] { plan_from_name_or_file(dir / "absent"); }, "or a directory of qat quantize --plan dynamic");
  expect_error([&] { plan_from_name("dynamic"); }, "name that directory");
}

}  // namespace
}  // namespace qat
