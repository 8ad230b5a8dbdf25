// The engine against hidden states and logits that transformers computed in float32: every architecture, both
// arithmetic paths.
//
// How near can two float32 programs come? The miniature `gemma4-e2b` has random weights that amplify any difference:
// the logits of transformers itself move by 4e-4 of the largest when it takes its other attention, by 5e-4 in float64.
// Its end-to-end bound is therefore 1e-3; what holds the engine to the model is the test of single layers, each fed
// what transformers fed it.
#include <algorithm>
#include <cmath>

#include "format/safetensors.h"
#include "inference/transformer.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

struct GoldenCase {
  const char* model;
  bool reference;
};
void PrintTo(const GoldenCase& c, std::ostream* out) { *out << c.model << (c.reference ? ", reference" : ", best"); }

// Largest difference and largest expected value.
struct Difference {
  double error = 0.0, largest = 0.0;
  void add(const float* expected, const float* actual, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      largest = std::max(largest, static_cast<double>(std::fabs(expected[i])));
      const double e = std::fabs(static_cast<double>(expected[i]) - static_cast<double>(actual[i]));
      error = std::isnan(actual[i]) ? HUGE_VAL : std::max(error, e);
    }
  }
};

class Golden : public testing::TestWithParam<GoldenCase> {
 protected:
  void SetUp() override {
    const std::string directory = shared_path(std::string("goldens/") + GetParam().model);
    QAT_NEED_SHARED(std::string("goldens/") + GetParam().model);
    EngineOptions options;
    options.reference = GetParam().reference;
    engine_ = std::make_unique<Engine>(load_weights(directory), options);
    golden_ = std::make_unique<Safetensors>(directory + "/golden.safetensors");
    ids_ = to_ints(golden_->at("input_ids"), golden_->path());
    sequences_ = golden_->at("input_ids").shape[0];
    length_ = golden_->at("input_ids").shape[1];
  }

  std::vector<float> floats(const std::string& name) const { return to_floats(golden_->at(name), golden_->path()); }

  // Logits of sequence s.
  std::vector<float> run(int64_t s) {
    const std::vector<int32_t> tokens(ids_.begin() + s * length_, ids_.begin() + (s + 1) * length_);
    KvCache cache(engine_->config(), length_);
    std::vector<float> logits(static_cast<size_t>(length_ * engine_->config().vocab));
    engine_->forward(tokens, cache, 0, logits.data());
    return logits;
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Safetensors> golden_;
  std::vector<int64_t> ids_;
  int64_t sequences_ = 0, length_ = 0;
};

TEST_P(Golden, LogitsEndToEnd) {
  const std::vector<float> expected = floats("logits");
  Difference difference;
  for (int64_t s = 0; s < sequences_; ++s) {
    const std::vector<float> logits = run(s);
    difference.add(expected.data() + static_cast<size_t>(s) * logits.size(), logits.data(), logits.size());
  }
  EXPECT_LE(difference.error, (std::string(GetParam().model) == "gemma4-e2b" ? 1e-3 : 1e-4) * difference.largest)
      << difference.error / difference.largest << " of the largest logit";
}

// float32 sums of at most 320 products, a few in a row: 1e-5 of the largest value is some 100 roundings.
TEST_P(Golden, EveryLayerFedByTransformers) {
  const size_t layers = engine_->config().layers.size(), hidden = static_cast<size_t>(engine_->config().hidden);
  const size_t per_sequence = static_cast<size_t>(length_) * hidden;
  const std::vector<float> expected_logits = floats("logits");
  for (int64_t s = 0; s < sequences_; ++s) {
    size_t compared = 0;
    engine_->impl().transformer.residual_hook = [&](size_t layer, float* stream) {
      const std::vector<float> all = floats("hidden." + std::to_string(layer));
      const float* expected = all.data() + static_cast<size_t>(s) * per_sequence;
      Difference difference;
      difference.add(expected, stream, per_sequence);
      EXPECT_LE(difference.error, 1e-5 * difference.largest) << "hidden." << layer;
      std::copy_n(expected, per_sequence, stream);
      ++compared;
    };
    const std::vector<float> logits = run(s);
    EXPECT_EQ(compared, layers);
    Difference difference;
    difference.add(expected_logits.data() + static_cast<size_t>(s) * logits.size(), logits.data(), logits.size());
    EXPECT_LE(difference.error, 1e-5 * difference.largest) << "logits";
  }
}

std::string test_name(const testing::TestParamInfo<GoldenCase>& c) {
  std::string name = std::string(c.param.model) + (c.param.reference ? "_reference" : "_best");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(AllArchitectures, Golden,
                         testing::Values(GoldenCase{"llama", true}, GoldenCase{"llama", false},
                                         GoldenCase{"gemma3", true}, GoldenCase{"gemma3", false},
                                         GoldenCase{"gemma4-e2b", true}, GoldenCase{"gemma4-e2b", false},
                                         GoldenCase{"gemma4-e4b", true}, GoldenCase{"gemma4-e4b", false},
                                         GoldenCase{"gemma4-31b", true}, GoldenCase{"gemma4-31b", false}),
                         test_name);

}  // namespace
}  // namespace qat
