// Sampling: distributions, truncation and seeds; sequences that depend on their seed alone.
#include "inference/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/expect_error.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

// Probabilities 0.4, 0.1, 0.3, 0.2 (and an offset that must not matter).
const std::vector<float> kLogits = {5 + std::log(0.4f), 5 + std::log(0.1f), 5 + std::log(0.3f), 5 + std::log(0.2f)};

std::vector<double> frequencies(const SamplingOptions& options, int draws = 20000) {
  Sampler sampler(options);
  std::vector<double> counts(kLogits.size());
  for (int i = 0; i < draws; ++i) counts[static_cast<size_t>(sampler.sample(kLogits))] += 1.0 / draws;
  return counts;
}

// Within five standard deviations of what is expected; exactly never where that is 0.
void expect_frequencies(const SamplingOptions& options, const std::vector<double>& expected) {
  const std::vector<double> actual = frequencies(options);
  for (size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(actual[i], expected[i], 5 * std::sqrt(expected[i] * (1 - expected[i]) / 20000) + 1e-9) << "token " << i;
}

TEST(Sampler, DrawsInProportion) { expect_frequencies({1.0f, 0, 1.0f, 3}, {0.4, 0.1, 0.3, 0.2}); }

TEST(Sampler, TemperatureSharpens) {
  expect_frequencies({0.5f, 0, 1.0f, 3}, {0.16 / 0.3, 0.01 / 0.3, 0.09 / 0.3, 0.04 / 0.3});
  expect_frequencies({0.5f, 3, 1.0f, 3}, {0.16 / 0.29, 0, 0.09 / 0.29, 0.04 / 0.29});
}

TEST(Sampler, TopKKeepsTheLikeliest) {
  expect_frequencies({1.0f, 2, 1.0f, 3}, {4.0 / 7, 0, 3.0 / 7, 0});
  expect_frequencies({1.0f, 1, 1.0f, 3}, {1, 0, 0, 0});
  expect_frequencies({1.0f, 4, 1.0f, 3}, {0.4, 0.1, 0.3, 0.2});
  expect_frequencies({1.0f, 99, 1.0f, 3}, {0.4, 0.1, 0.3, 0.2});
}

TEST(Sampler, TopPKeepsTheShortestRunThatReachesIt) {
  expect_frequencies({1.0f, 0, 0.75f, 3}, {4.0 / 9, 0, 3.0 / 9, 2.0 / 9});  // 0.4 + 0.3 is not enough
  expect_frequencies({1.0f, 0, 0.65f, 3}, {4.0 / 7, 0, 3.0 / 7, 0});
  expect_frequencies({1.0f, 0, 0.0f, 3}, {1, 0, 0, 0});
  expect_frequencies({1.0f, 3, 0.5f, 3}, {4.0 / 7, 0, 3.0 / 7, 0});  // of the three that are left: 4/9 is not enough
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  Sampler sampler({0.0f, 40, 0.9f, 1});
  EXPECT_EQ(sampler.sample(kLogits), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 3, 2}), 1);
}

TEST(Sampler, EqualLogitsAreKeptInOrderOfId) {
  Sampler sampler({1.0f, 2, 1.0f, 1});
  for (int i = 0; i < 100; ++i) EXPECT_LT(sampler.sample(std::vector<float>(10, 0.5f)), 2);
}

TEST(Sampler, TheSeedDecides) {
  const auto draws = [](uint64_t seed) {
    Sampler sampler({1.0f, 0, 1.0f, seed});
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.sample(kLogits));
    return ids;
  };
  EXPECT_EQ(draws(1), draws(1));
  EXPECT_NE(draws(1), draws(2));
}

TEST(Sampler, RefusesWhatIsNoNumber) {
  for (const float t : {0.0f, 1.0f})
    for (const float bad : {NAN, HUGE_VALF})
      expect_error([&] { Sampler({t, 0, 1.0f, 1}).sample(std::vector<float>{1, bad, 2}); }, "logits are not numbers");
  // A token may be impossible.
  EXPECT_EQ(Sampler({1.0f, 0, 1.0f, 1}).sample(std::vector<float>{-HUGE_VALF, 2, -HUGE_VALF}), 1);
}

class Generation : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(path_, gemma4_json(), DType::BF16);
    tokenizer_ = load_tokenizer(path_);
  }
  std::unique_ptr<Engine> engine(int threads) {
    EngineOptions options;
    options.threads = threads;
    return std::make_unique<Engine>(load_weights(path_), options);
  }
  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "model";
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(Generation, GreedyFollowsTheLogits) {
  const auto e = engine(1);
  const std::vector<int32_t> prompt = tokenizer_->encode_with_bos("hello");
  std::vector<int32_t> written;
  generate(*e, *tokenizer_, prompt, 12, {0.0f, 40, 0.95f, 0}, [&](int32_t id) { written.push_back(id); });
  std::vector<int32_t> tokens = prompt;
  std::vector<float> logits(static_cast<size_t>(e->config().vocab));
  for (const int32_t id : written) {
    KvCache cache(*e, 64);
    e->forward(tokens, cache, tokens.size() - 1, logits.data());
    // The likeliest, up to the rounding between one pass and many.
    EXPECT_NEAR(logits[static_cast<size_t>(id)], *std::max_element(logits.begin(), logits.end()), 1e-4);
    tokens.push_back(id);
  }
  if (written.size() < 12) {  // only an end-of-generation token may stop it
    KvCache cache(*e, 64);
    e->forward(tokens, cache, tokens.size() - 1, logits.data());
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    EXPECT_TRUE(tokenizer_->is_end_of_generation(static_cast<int32_t>(best)));
  }
  expect_error([&] { generate(*e, *tokenizer_, {}, 3, {}, [](int32_t) {}); }, "expected a prompt");
}

TEST_F(Generation, SequencesDependOnTheirSeedAlone) {
  const int64_t length = 12;
  const auto sequences = sample_sequences(*engine(1), *tokenizer_, 60, length, 5);
  ASSERT_EQ(sequences.size(), 60u);
  for (const auto& s : sequences) {
    ASSERT_EQ(static_cast<int64_t>(s.size()), length);
    EXPECT_EQ(s[0], tokenizer_->bos_id());
  }
  EXPECT_NE(sequences[0], sequences[1]);
  // On other counts of threads, in groups of other sizes, begun elsewhere, alone.
  for (const int threads : {2, 3}) EXPECT_EQ(sample_sequences(*engine(threads), *tokenizer_, 60, length, 5), sequences);
  const auto some = sample_sequences(*engine(2), *tokenizer_, 26, length, 12);
  for (size_t i = 0; i < some.size(); ++i) EXPECT_EQ(some[i], sequences[i + 7]);
  EXPECT_EQ(sample_sequences(*engine(1), *tokenizer_, 1, length, 5 + 33)[0], sequences[33]);
}

TEST_F(Generation, SequencesGoOnWithBosAfterTheEnd) {
  const auto sequences = sample_sequences(*engine(2), *tokenizer_, 40, 100, 1);
  int ends = 0;
  for (const auto& s : sequences) {
    for (size_t i = 0; i + 1 < s.size(); ++i) {
      if (!tokenizer_->is_end_of_generation(s[i])) continue;
      ++ends;
      EXPECT_EQ(s[i + 1], tokenizer_->bos_id());
    }
  }
  EXPECT_GT(ends, 0) << "a nearly uniform model of 260 tokens ends some of 4000 times";
}

// The model is nearly uniform over 260 tokens: the mean log probability of what it drew must be its negative entropy.
TEST_F(Generation, SequencesAreDrawnFromTheModel) {
  const auto e = engine(2);
  const int64_t length = 40;
  const auto sequences = sample_sequences(*e, *tokenizer_, 30, length, 9);
  const size_t vocab = static_cast<size_t>(e->config().vocab);
  std::vector<float> logits(static_cast<size_t>(length) * vocab);
  double surprise = 0.0, entropy = 0.0;
  for (const auto& s : sequences) {
    KvCache cache(*e, length);
    e->forward(s, cache, 0, logits.data());
    for (size_t i = 0; i + 1 < s.size(); ++i) {
      const float* row = logits.data() + i * vocab;
      double total = 0.0, mean = 0.0;
      for (size_t v = 0; v < vocab; ++v) total += std::exp(static_cast<double>(row[v]));
      for (size_t v = 0; v < vocab; ++v)
        mean += std::exp(static_cast<double>(row[v])) / total * static_cast<double>(row[v]);
      surprise += std::log(total) - static_cast<double>(row[s[i + 1]]);
      entropy += std::log(total) - mean;
    }
  }
  const double count = 30.0 * (static_cast<double>(length) - 1);
  EXPECT_NEAR(surprise / count, entropy / count, 5 * 1.0 / std::sqrt(count));
}

TEST_F(Generation, ProgressCountsSequences) {
  std::vector<int64_t> done;
  sample_sequences(*engine(2), *tokenizer_, 100, 5, 1, [&](int64_t n) { done.push_back(n); });
  EXPECT_EQ(done, (std::vector<int64_t>{48, 96, 100}));
  EXPECT_THROW(sample_sequences(*engine(2), *tokenizer_, 100, 5, 1, [](int64_t) { throw std::runtime_error("stop"); }),
               std::runtime_error);
}

}  // namespace
}  // namespace qat
