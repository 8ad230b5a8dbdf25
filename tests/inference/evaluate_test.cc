// Perplexity and KL divergence: worked examples by hand, a naive second implementation, and the base file both ways.
#include "inference/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inference/logits_base.h"
#include "inference/metrics.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_model.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

// ---- Statistics, by hand

TEST(Metrics, MeanAndItsStandardError) {
  // 1, 2, 3, 6: mean 3, mean of squares 12.5, variance 3.5, over n - 1 = 3.
  const Estimate e = mean_estimate(12, 50, 4);
  EXPECT_DOUBLE_EQ(e.value, 3.0);
  EXPECT_DOUBLE_EQ(e.error, std::sqrt(3.5 / 3));
  EXPECT_EQ(mean_estimate(5, 25, 1).error, 0.0);
}

TEST(Metrics, PercentilesInterpolate) {
  const std::vector<double> sorted = {10, 20, 30, 40, 60};
  EXPECT_EQ(percentile(sorted, 0), 10);
  EXPECT_EQ(percentile(sorted, 1), 60);
  EXPECT_EQ(percentile(sorted, 0.5), 30);
  EXPECT_DOUBLE_EQ(percentile(sorted, 0.9), 52);  // place 3.6
  EXPECT_EQ(percentile({7}, 0.3), 7);
}

TEST(Metrics, Perplexity) {
  PerplexityMeter meter;
  for (const double p : {0.5, 0.125}) meter.add(-std::log(p));
  const PerplexityResult r = meter.result();
  EXPECT_DOUBLE_EQ(r.perplexity.value, 4.0);  // 1 / sqrt(1/16)
  EXPECT_DOUBLE_EQ(r.mean_nll, std::log(4.0));
  // -log p is ln 4 -+ ln 2: variance (ln 2)^2 over n - 1 = 1.
  EXPECT_NEAR(r.perplexity.error, 4.0 * std::log(2.0), 1e-12);
  EXPECT_EQ(r.tokens, 2);
}

TEST(Metrics, OneTokenUnderTwoModels) {
  const VectorKernels& kernels = vector_kernels(Isa::scalar);
  // Base: 1/2, 1/4, 1/4. Model: 1/4, 1/2, 1/4, with an offset that must not matter.
  const float ln2 = std::log(2.0f);
  const float base[3] = {-ln2, -2 * ln2, -2 * ln2}, logits[3] = {5.0f, 5.0f + ln2, 5.0f};
  const TokenComparison t = compare_rows(kernels, base, 0.0f, logits, 3, 0);
  EXPECT_NEAR(t.nll, std::log(4.0), 1e-6);
  EXPECT_NEAR(t.nll_base, std::log(2.0), 1e-6);
  EXPECT_NEAR(t.kld, 0.5 * std::log(2.0) - 0.25 * std::log(2.0), 1e-6);
  EXPECT_FALSE(t.same_top);
  const float tied[3] = {1.0f, 1.0f, 0.0f};  // the first of equals is the top
  EXPECT_TRUE(compare_rows(kernels, base, 0.0f, tied, 3, 0).same_top);
}

TEST(Metrics, KlStatistics) {
  KlMeter meter;
  // p 1/2 for base 1/4, p 1/8 for base 1/2.
  meter.add({std::log(2.0), std::log(4.0), 0.3, true});
  meter.add({std::log(8.0), std::log(2.0), 0.1, false});
  const KlResult r = meter.result();
  EXPECT_EQ(r.tokens, 2);
  EXPECT_NEAR(r.ppl_q.value, 4.0, 1e-12);
  EXPECT_NEAR(r.ppl_base.value, std::sqrt(8.0), 1e-12);
  EXPECT_NEAR(r.ratio.value, std::sqrt(2.0), 1e-12);
  EXPECT_NEAR(r.ln_ratio.value, std::log(2.0) / 2, 1e-12);
  EXPECT_NEAR(r.difference.value, 4.0 - std::sqrt(8.0), 1e-12);
  // One goes up as the other goes down: deviations +-ln 2 and -+ln(2)/2, so correlation -1 and the errors add.
  EXPECT_NEAR(r.nll_correlation, -1.0, 1e-9);
  EXPECT_NEAR(r.ln_ratio.error, 1.5 * std::log(2.0), 1e-9);
  EXPECT_NEAR(r.ratio.error, std::sqrt(2.0) * 1.5 * std::log(2.0), 1e-9);
  EXPECT_NEAR(r.difference.error, (4.0 + std::sqrt(8.0) / 2) * std::log(2.0), 1e-9);
  EXPECT_NEAR(r.kld.value, 0.2, 1e-12);
  EXPECT_NEAR(r.kld.error, 0.1, 1e-12);
  // Changes of p: +1/4 and -3/8.
  EXPECT_NEAR(r.delta_p.value, -1.0 / 16, 1e-12);
  const double mean_square = (1.0 / 16 + 9.0 / 64) / 2;
  EXPECT_NEAR(r.rms_delta_p.value, std::sqrt(mean_square), 1e-12);
  EXPECT_NEAR(r.rms_delta_p.error, 0.5 / std::sqrt(mean_square) * (9.0 / 64 - mean_square), 1e-12);
  EXPECT_EQ(r.same_top.value, 0.5);
  EXPECT_EQ(r.same_top.error, 0.5);
  EXPECT_EQ(r.kld_percentiles.size(), 11u);
  EXPECT_EQ(r.kld_percentiles.front().value, 0.3);
  EXPECT_EQ(r.kld_percentiles.back().value, 0.1);
  EXPECT_EQ(r.delta_p_percentiles.size(), 13u);
  EXPECT_NEAR(r.delta_p_percentiles[6].value, -1.0 / 16, 1e-12);  // the median
}

TEST(LogitsBase, RowsKeepSixteenBits) {
  const VectorKernels& kernels = vector_kernels(Isa::scalar);
  for (const int64_t vocab : {1, 2, 5, 512}) {
    std::vector<float> logits = Random(12).floats(vocab, 5.0f);
    logits[0] = 9.0f;
    if (vocab > 3) logits[3] = -30.0f;  // 39 below the largest: kept as 16 below
    std::vector<uint16_t> row(static_cast<size_t>(base_row_words(vocab)), 0xffff);
    const float lse = encode_base_row(kernels, logits.data(), vocab, row.data());
    EXPECT_EQ(row.size() % 2, 0u);
    float scale, offset;
    std::memcpy(&scale, row.data(), 4);
    std::memcpy(&offset, row.data() + 2, 4);
    for (size_t v = 0; v < logits.size(); ++v) {
      const float expected = std::max(logits[v], vocab > 3 ? -7.0f : -100.0f) - lse;
      EXPECT_NEAR(scale * static_cast<float>(row[4 + v]) + offset, expected, 16.0 / 65535 / 2 + 1e-5);
    }
  }
  const float equal[3] = {2.0f, 2.0f, 2.0f};
  std::vector<uint16_t> row(static_cast<size_t>(base_row_words(3)), 0xffff);
  encode_base_row(kernels, equal, 3, row.data());
  float scale, offset;
  std::memcpy(&scale, row.data(), 4);
  std::memcpy(&offset, row.data() + 2, 4);
  EXPECT_EQ(scale, 0.0f);
  EXPECT_NEAR(offset, -std::log(3.0), 1e-6);
}

// ---- Whole evaluations, on a tiny model with a byte tokenizer

class Evaluation : public testing::Test {
 protected:
  void SetUp() override {
    write_tiny_model(directory_ / "model", gemma4_json(), DType::BF16, 1);
    write_tiny_model(directory_ / "other", gemma4_json(), DType::BF16, 2);
    tokenizer_ = load_tokenizer(directory_ / "model");
    engine_ = std::make_unique<Engine>(load_weights(directory_ / "model"));
    other_ = std::make_unique<Engine>(load_weights(directory_ / "other"));
    for (int i = 0; i < 700; ++i) text_ += static_cast<char>('a' + (i * i + i / 3) % 26);
  }
  EvalChunks chunks(int64_t context, int64_t count = -1) {
    return make_chunks(*tokenizer_, text_, "text", context, count);
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_, other_;
  std::string text_;
};

TEST_F(Evaluation, ChunksAreTheTextCut) {
  const EvalChunks c = chunks(64);
  EXPECT_EQ(c.count(), 10);  // 701 tokens with BOS
  EXPECT_EQ(c.tokens.size(), 640u);
  EXPECT_TRUE(c.add_bos);
  EXPECT_EQ(c.tokens[0], tokenizer_->bos_id());
  EXPECT_EQ(chunks(64, 3).count(), 3);
  EXPECT_EQ(chunks(64, 30).count(), 10);
  expect_error([&] { chunks(351); }, "text: expected at least 702 tokens (twice the context of 351), found 701");
  expect_error([&] { chunks(2); }, "context of 2 tokens: expected 4 or more");
  expect_error([&] { make_chunks(*tokenizer_, "", "empty.txt", 64); }, "empty.txt: expected at least 128 tokens");
}

// The definition, with nothing shared but forward(): every row of every chunk, in double.
TEST_F(Evaluation, PerplexityAgreesWithItsDefinition) {
  for (const int64_t context : {4, 5, 64}) {
    const EvalChunks c = chunks(context);
    const int64_t vocab = engine_->config().vocab;
    std::vector<float> logits(static_cast<size_t>(context * vocab));
    double sum = 0.0;
    int64_t scored = 0;
    for (int64_t chunk = 0; chunk < c.count(); ++chunk) {
      std::vector<int32_t> tokens(c.tokens.begin() + chunk * context, c.tokens.begin() + (chunk + 1) * context);
      const std::vector<int32_t> labels = tokens;
      tokens[0] = tokenizer_->bos_id();
      KvCache cache(*engine_, context);
      engine_->forward(tokens, cache, 0, logits.data());
      for (int64_t i = context / 2; i + 1 < context; ++i, ++scored) {
        const float* row = logits.data() + i * vocab;
        double total = 0.0;
        for (int64_t v = 0; v < vocab; ++v) total += std::exp(static_cast<double>(row[v]));
        sum += std::log(total) - static_cast<double>(row[labels[static_cast<size_t>(i + 1)]]);
      }
    }
    const PerplexityResult r = perplexity(*engine_, c);
    EXPECT_EQ(r.tokens, scored);
    EXPECT_EQ(r.tokens, c.count() * (context - 1 - context / 2));
    EXPECT_NEAR(r.mean_nll, sum / static_cast<double>(scored), 1e-5);
  }
}

// A context of 600 has more scored rows (299) than are held at once.
TEST_F(Evaluation, LongContextsAreScoredInBlocks) {
  for (int i = 0; i < 600; ++i) text_ += static_cast<char>('a' + (i * 7) % 26);
  const EvalChunks c = chunks(600);
  ASSERT_EQ(c.count(), 2);
  const PerplexityResult r = perplexity(*engine_, c);
  EXPECT_EQ(r.tokens, 2 * 299);
  const int64_t vocab = engine_->config().vocab;
  std::vector<float> logits(static_cast<size_t>(600 * vocab));
  double sum = 0.0;
  for (int64_t chunk = 0; chunk < 2; ++chunk) {
    std::vector<int32_t> tokens(c.tokens.begin() + chunk * 600, c.tokens.begin() + (chunk + 1) * 600);
    tokens[0] = tokenizer_->bos_id();
    KvCache cache(*engine_, 600);
    engine_->forward(tokens, cache, 0, logits.data());
    for (int64_t i = 300; i < 599; ++i) {
      const float* row = logits.data() + i * vocab;
      sum += static_cast<double>(log_sum_exp(vector_kernels(Isa::scalar), row, vocab) -
                                 row[tokens[static_cast<size_t>(i + 1)]]);
    }
  }
  EXPECT_NEAR(r.mean_nll, sum / 598, 1e-5);
}

TEST_F(Evaluation, ProgressCountsChunks) {
  std::vector<int64_t> done;
  double last = 0.0;
  const PerplexityResult r = perplexity(*engine_, chunks(64), [&](int64_t n, int64_t of, double ppl) {
    EXPECT_EQ(of, 10);
    done.push_back(n);
    last = ppl;
  });
  EXPECT_EQ(done.size(), 10u);
  EXPECT_EQ(done.back(), 10);
  EXPECT_EQ(last, r.perplexity.value);
}

TEST_F(Evaluation, DivergenceFromItselfIsNothing) {
  const KlResult r = kl_divergence(*engine_, *engine_, chunks(64));
  EXPECT_NEAR(r.kld.value, 0.0, 1e-6);
  EXPECT_EQ(r.same_top.value, 1.0);
  EXPECT_EQ(r.delta_p.value, 0.0);
  EXPECT_EQ(r.ratio.value, 1.0);
}

TEST_F(Evaluation, DivergenceBothWaysOfHavingTheBase) {
  const EvalChunks c = chunks(64);
  const std::string file = directory_ / "base.logits";
  const PerplexityResult base = save_base(*other_, c, file);
  EXPECT_EQ(base.perplexity.value, perplexity(*other_, c).perplexity.value);
  EXPECT_TRUE(is_saved_base(file));
  EXPECT_FALSE(is_saved_base(directory_ / "model/config.json"));
  EXPECT_FALSE(is_saved_base(directory_.path()));
  EXPECT_EQ(read_base_chunks(file, *tokenizer_).tokens, c.tokens);
  EXPECT_EQ(read_base_chunks(file, *tokenizer_).add_bos, c.add_bos);

  const KlResult live = kl_divergence(*engine_, *other_, c), saved = kl_divergence(*engine_, file);
  EXPECT_EQ(live.tokens, 10 * 31);
  EXPECT_EQ(saved.tokens, live.tokens);
  EXPECT_GT(live.kld.value, 1e-4);
  EXPECT_LT(live.same_top.value, 1.0);
  EXPECT_NEAR(live.ppl_q.value, perplexity(*engine_, c).perplexity.value, 1e-9);
  EXPECT_NEAR(live.ppl_base.value, base.perplexity.value, 1e-9);
  // These flat distributions span less than 1: 16 bits of it are good to 1e-5.
  EXPECT_NEAR(saved.kld.value, live.kld.value, 1e-4 * live.kld.value + 1e-6);
  EXPECT_NEAR(saved.ppl_base.value, live.ppl_base.value, 1e-4 * live.ppl_base.value);
  EXPECT_EQ(saved.ppl_q.value, live.ppl_q.value);
  EXPECT_NEAR(saved.delta_p.value, live.delta_p.value, 1e-6);
}

TEST_F(Evaluation, DamagedBaseFilesAreRefused) {
  const std::string file = directory_ / "base.logits", bad = directory_ / "bad.logits";
  save_base(*other_, chunks(64, 2), file);
  const std::string good = file_bytes(file);
  const auto with = [&](size_t at, int32_t value) {
    std::string bytes = good;
    std::memcpy(bytes.data() + at, &value, sizeof value);
    add_file(bad, bytes);
  };
  const auto refused = [&](const std::string& fragment) {
    expect_error([&] { kl_divergence(*engine_, bad); }, fragment);
    expect_error([&] { read_base_chunks(bad, *tokenizer_); }, fragment);
  };
  add_file(bad, "_logit");
  refused("bad.logits: not a file of saved logits");
  add_file(bad, std::string(100, 'x'));
  refused("not a file of saved logits");
  for (const int32_t context : {0, -1, 3}) {
    with(8, context);
    refused("expected a context of 4 or more");
  }
  with(12, -5);
  refused("expected a context of 4 or more, a vocabulary and chunks, found 64, -5 and 2");
  with(16, 0);
  refused("chunks");
  with(8, 0x7fffffff);
  refused("expected 4294967294 tokens");
  with(12, 0x7fffffff);
  refused("expected 62 rows of 4294967304 bytes");
  with(16, 3);
  refused("rows");
  with(20, 260);
  refused("token 0: expected an id below 260, found 260");
  add_file(bad, good.substr(0, good.size() - 1));
  refused("expected 62 rows of 528 bytes after the tokens");
  add_file(bad, good + "xx");
  refused("expected 62 rows of 528 bytes");
  const size_t rows_at = 20 + 128 * 4;
  with(rows_at, 0x7fc00000);  // NaN for a scale
  expect_error([&] { kl_divergence(*engine_, bad); }, "bad.logits: row 0: expected a scale and an offset");
  // A file of another vocabulary: of the right size, but not for this model.
  write_tiny_model(directory_ / "wider", llama_json(true, 96, 300), DType::BF16);
  Engine wider(load_weights(directory_ / "wider"));
  expect_error([&] { kl_divergence(wider, file); }, "logits of a vocabulary of 260 tokens, but the model has 300");
}

}  // namespace
}  // namespace qat
