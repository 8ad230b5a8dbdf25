// The engine on tiny random models of each architecture, written as files and loaded: its two arithmetic paths, its
// ways to run (whole, token by token, in batches, on more threads) and its three kinds of file give one result.
#include "inference/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "export/gguf_export.h"
#include "export/ptq.h"
#include "inference/attention.h"
#include "inference/isa.h"
#include "tests/expect_error.h"
#include "tests/export/tiny_model.h"
#include "tests/inference/naive_model.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

struct NamedConfig {
  const char* name;
  std::string json;
};
void PrintTo(const NamedConfig& config, std::ostream* out) { *out << config.name; }

const float* floats_of(const CacheRows& rows, int64_t position, int64_t head) {
  return reinterpret_cast<const float*>(rows.stored(position, head));
}

// The writer's small random norms leave little of attention and MLP in the logits: add 1, as trained norms have it.
Weights strong_weights(const std::string& path) {
  Weights w = load_weights(path);
  const auto lift = [](std::vector<float>& norm) {
    for (float& x : norm) x += 1.0f;
  };
  if (w.config.arch != Arch::gemma3) {
    lift(w.output_norm);
    lift(w.ple_projection_norm);
  }
  for (LayerWeights& layer : w.layers) {
    layer.scalar = 0.8f;
    if (w.config.arch == Arch::gemma3) continue;  // its norms are 1 + w already
    for (auto* norm : {&layer.attention_norm, &layer.q_norm, &layer.k_norm, &layer.post_attention_norm, &layer.ffn_norm,
                       &layer.post_ffn_norm, &layer.post_ple_norm})
      lift(*norm);
  }
  return w;
}

EngineOptions with_threads(int threads, bool reference = false) {
  EngineOptions options;
  options.threads = threads;
  options.reference = reference;
  return options;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed = 11) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<int32_t>((static_cast<double>(random.next()) + 1) / 2 * static_cast<double>(vocab)));
  return tokens;
}

std::vector<float> run(Engine& engine, const std::vector<int32_t>& tokens, size_t first = 0) {
  KvCache cache(engine, static_cast<int64_t>(tokens.size()));
  std::vector<float> logits((tokens.size() - first) * static_cast<size_t>(engine.config().vocab));
  engine.forward(tokens, cache, first, logits.data());
  EXPECT_EQ(cache.length(), static_cast<int64_t>(tokens.size()));
  return logits;
}

float largest(const std::vector<float>& x) {
  float most = 0.0f;
  for (const float v : x) most = std::max(most, std::fabs(v));
  return most;
}

// Float paths differ by some tens of roundings in a row, which layers amplify: 2e-5 of the largest logit.
constexpr float kRounding = 2e-5f;

void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, float relative) {
  ASSERT_EQ(actual.size(), expected.size());
  const float bound = relative * largest(expected);
  for (size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], bound) << "logit " << i;
}

class EngineTest : public testing::TestWithParam<NamedConfig> {
 protected:
  void SetUp() override { write_tiny_model(path_, GetParam().json, DType::BF16); }
  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "model";
};

// Half-split and interleaved heads (a Llama GGUF), every kind of layer, against the second implementation.
TEST_P(EngineTest, ReferenceIsTheModel) {
  const std::string gguf = directory_ / "model.gguf";
  export_gguf_float(path_, DType::F32, gguf);
  for (const std::string& path : {path_, gguf}) {
    Engine engine(strong_weights(path), with_threads(2, true));
    const std::vector<int32_t> tokens = random_tokens(40, engine.config().vocab);
    const std::vector<double> expected = naive_logits(strong_weights(path), tokens);
    expect_near(run(engine, tokens), std::vector<float>(expected.begin(), expected.end()), kRounding);
  }
}

TEST_P(EngineTest, OptimizedIsTheReferenceUpToRounding) {
  Engine reference(strong_weights(path_), with_threads(2, true)), best(strong_weights(path_), with_threads(2));
  const std::vector<int32_t> tokens = random_tokens(50, reference.config().vocab);
  expect_near(run(best, tokens), run(reference, tokens), kRounding);
}

TEST_P(EngineTest, TokenByTokenIsTheWholePrompt) {
  for (const bool reference : {false, true}) {
    Engine engine(strong_weights(path_), with_threads(1, reference));
    const size_t vocab = static_cast<size_t>(engine.config().vocab);
    const std::vector<int32_t> tokens = random_tokens(40, engine.config().vocab);
    std::vector<float> steps(tokens.size() * vocab);
    KvCache cache(engine, 40);
    engine.forward({tokens.data(), 7}, cache, 0, steps.data());  // some at once, the rest one by one
    for (size_t i = 7; i < tokens.size(); ++i)
      engine.forward({tokens.data() + i, 1}, cache, 0, steps.data() + i * vocab);
    expect_near(steps, run(engine, tokens), kRounding);
  }
}

// As above with smaller caches, and beside a cache of floats. Where a float's last bit falls the other way, so may a
// code, and these weights amplify: what is not where it belongs is wrong by as much as the largest logit.
TEST_P(EngineTest, SmallCachesAreNearlyTheFloats) {
  Engine floats(strong_weights(path_), with_threads(1));
  const std::vector<int32_t> tokens = random_tokens(40, floats.config().vocab);
  const std::vector<float> expected = run(floats, tokens);
  const size_t vocab = static_cast<size_t>(floats.config().vocab);
  const auto has_blocks = [&] {
    for (const LayerConfig& layer : floats.config().layers)
      if (layer.head_dim % 32 != 0) return false;
    return true;
  };
  for (const auto& [type, bound] : {std::pair(DType::F16, 1e-2f), std::pair(DType::Q8_0, 1e-1f)}) {
    EngineOptions options = with_threads(1);
    options.cache_type = type;
    if (type == DType::Q8_0 && !has_blocks()) {
      EXPECT_THROW(Engine(strong_weights(path_), options), Error);
      continue;
    }
    Engine engine(strong_weights(path_), options);
    KvCache cache(engine, 40);
    std::vector<float> steps(expected.size());
    engine.forward({tokens.data(), 7}, cache, 0, steps.data());
    for (size_t i = 7; i < tokens.size(); ++i)
      engine.forward({tokens.data() + i, 1}, cache, 0, steps.data() + i * vocab);
    EXPECT_NE(steps, expected);
    expect_near(steps, expected, bound);
    expect_near(run(engine, tokens), steps, bound);
  }
}

TEST_P(EngineTest, BatchOfSequencesIsEachAlone) {
  Engine engine(strong_weights(path_), with_threads(2));
  const size_t vocab = static_cast<size_t>(engine.config().vocab), sequences = 5;
  std::vector<KvCache> caches;
  std::vector<std::vector<int32_t>> texts;
  std::vector<KvCache*> pointers;
  std::vector<int32_t> last;
  for (size_t s = 0; s < sequences; ++s) {
    texts.push_back(
        random_tokens(static_cast<int64_t>(3 + 8 * s), engine.config().vocab, 20 + s));  // of different lengths
    caches.emplace_back(engine, 64);
  }
  for (size_t s = 0; s < sequences; ++s) {
    engine.forward({texts[s].data(), texts[s].size() - 1}, caches[s], texts[s].size() - 1, nullptr);
    pointers.push_back(&caches[s]);
    last.push_back(texts[s].back());
  }
  std::vector<float> logits(sequences * vocab);
  engine.decode_batch(last, pointers, logits.data());
  for (size_t s = 0; s < sequences; ++s) {
    EXPECT_EQ(caches[s].length(), static_cast<int64_t>(texts[s].size()));
    const std::vector<float> mine(logits.begin() + static_cast<int64_t>(s * vocab),
                                  logits.begin() + static_cast<int64_t>((s + 1) * vocab));
    expect_near(mine, run(engine, texts[s], texts[s].size() - 1), kRounding);
  }
}

TEST_P(EngineTest, ThreadsDoNotChangeABit) {
  Engine one(strong_weights(path_), with_threads(1)), four(strong_weights(path_), with_threads(4));
  const std::vector<int32_t> tokens = random_tokens(60, one.config().vocab);
  EXPECT_EQ(run(one, tokens), run(four, tokens));
  EXPECT_EQ(run(one, {tokens[0]}), run(four, {tokens[0]}));
}

// Threads share the stretches of a long context (attention.h) when a token comes alone, and not with its whole prompt;
// of four threads some then take stretches with all heads that share keys rather than heads (cut_attention).
TEST_P(EngineTest, ThreadsDoNotChangeABitAfterALongContext) {
  const int64_t context = 2 * kAttentionStretch + 3;
  std::vector<float> expected;
  for (const int threads : {1, 2, 4}) {
    Engine engine(strong_weights(path_), with_threads(threads));
    const std::vector<int32_t> tokens = random_tokens(context + 2, engine.config().vocab);
    const auto vocab = static_cast<size_t>(engine.config().vocab);
    KvCache cache(engine, context + 2);
    engine.forward({tokens.data(), static_cast<size_t>(context)}, cache, static_cast<size_t>(context), nullptr);
    std::vector<float> logits(2 * vocab);
    for (size_t i = 0; i < 2; ++i) engine.forward({&tokens[tokens.size() - 2 + i], 1}, cache, 0, &logits[i * vocab]);
    if (threads == 1) expected = logits;
    EXPECT_EQ(logits, expected) << threads << " threads";
    if (threads == 4)
      expect_near({logits.begin() + static_cast<int64_t>(vocab), logits.end()}, run(engine, tokens, tokens.size() - 1),
                  kRounding);
  }
}

TEST_P(EngineTest, LogitsFromALaterRowOnAreTheSameRows) {
  Engine engine(strong_weights(path_), with_threads(2));
  const std::vector<int32_t> tokens = random_tokens(40, engine.config().vocab);
  const std::vector<float> all = run(engine, tokens);
  for (const size_t first : {size_t{20}, size_t{39}}) {
    const std::vector<float> expected(
        all.begin() + static_cast<int64_t>(first * static_cast<size_t>(engine.config().vocab)), all.end());
    expect_near(run(engine, tokens, first), expected, kRounding);
  }
}

// Windows that begin anywhere in the ring of a sliding layer's cache.
TEST_P(EngineTest, LongPromptsAreTheModel) {
  Engine engine(strong_weights(path_), with_threads(2, true));
  const std::vector<int32_t> tokens = random_tokens(600, engine.config().vocab);
  const std::vector<double> all = naive_logits(strong_weights(path_), tokens);
  const std::vector<float> expected(all.begin() + 590 * engine.config().vocab, all.end());
  expect_near(run(engine, tokens, 590), expected, kRounding);
}

// 1100 tokens are three passes; the middle and the end must see what earlier passes left in the cache.
TEST_P(EngineTest, LongPromptsRunInPasses) {
  Engine engine(strong_weights(path_), with_threads(2));
  const std::vector<int32_t> tokens = random_tokens(1100, engine.config().vocab);
  const std::vector<float> whole = run(engine, tokens, 1000);
  KvCache cache(engine, 1100);
  std::vector<float> parts(whole.size());
  engine.forward({tokens.data(), 300}, cache, 300, nullptr);
  engine.forward({tokens.data() + 300, 500}, cache, 500, nullptr);
  engine.forward({tokens.data() + 800, 300}, cache, 200, parts.data());
  expect_near(parts, whole, kRounding);
}

TEST_P(EngineTest, ExportedFloatGgufIsTheDirectory) {
  const std::string gguf = directory_ / "model.gguf";
  export_gguf_float(path_, DType::BF16, gguf);
  Engine from_hf(load_weights(path_), with_threads(1, true)), from_gguf(load_weights(gguf), with_threads(1, true));
  const std::vector<int32_t> tokens = random_tokens(50, from_hf.config().vocab);
  // Llama's heads are stored in another order there, so that sums are taken in another order.
  expect_near(run(from_gguf, tokens), run(from_hf, tokens), 1e-6f);
}

TEST_P(EngineTest, QuantizedCheckpointIsItsGguf) {
  const std::string quantized = directory_ / "quantized", gguf = directory_ / "quantized.gguf";
  quantize_checkpoint(path_, plan_from_name("q4_0"), {}, quantized);
  export_gguf(quantized, gguf);
  Engine from_directory(load_weights(quantized), with_threads(1)), from_gguf(load_weights(gguf), with_threads(1));
  const std::vector<int32_t> tokens = random_tokens(50, from_gguf.config().vocab);
  const std::vector<float> expected = run(from_gguf, tokens);
  expect_near(run(from_directory, tokens), expected, 1e-6f);
  Engine from_hf(load_weights(path_), with_threads(1));
  std::vector<float> unquantized = run(from_hf, tokens);
  for (size_t i = 0; i < unquantized.size(); ++i) unquantized[i] -= expected[i];
  EXPECT_GT(largest(unquantized), 1e-3f * largest(expected)) << "Q4_0 costs something";
}

// A hook sees what gate and up give, each for itself; without one they may be computed together.
TEST_P(EngineTest, AHookChangesNoBit) {
  const std::string quantized = directory_ / "quantized";
  quantize_checkpoint(path_, plan_from_name("q4_0"), {}, quantized);
  Engine engine(load_weights(quantized), with_threads(2));
  const std::vector<int32_t> tokens = random_tokens(50, engine.config().vocab);
  const std::vector<float> without = run(engine, tokens);
  engine.set_activation_hook([](const Observed&) {});
  EXPECT_EQ(run(engine, tokens), without);
}

struct Seen {
  int64_t rows = 0, cols = 0;
  int layer = -2;
  std::vector<float> data;  // of the last call
};
using SeenByName = std::map<std::pair<Activation, std::string>, Seen>;

SeenByName observe(Engine& engine, const std::vector<int32_t>& tokens, size_t first_logit) {
  SeenByName all;
  engine.set_activation_hook([&](const Observed& observed) {
    Seen& seen = all[{observed.kind, observed.name}];
    seen.rows += observed.rows;
    seen.cols = observed.cols;
    seen.layer = observed.layer;
    seen.data.assign(observed.data, observed.data + observed.rows * observed.cols);
  });
  run(engine, tokens, first_logit);
  engine.set_activation_hook({});
  return all;
}

TEST_P(EngineTest, CopiedWeightsAreTheSameElsewhere) {
  const Weights mapped = load_weights(path_);
  Weights copied = mapped;
  copy_into_memory(copied);
  for (const TensorInfo& info : tensor_table(mapped.config)) {
    const Matrix *m = find_matrix(mapped, info), *c = find_matrix(copied, info);
    if (m == nullptr || !*m) continue;
    EXPECT_EQ(std::memcmp(m->data, c->data, m->data_bytes()), 0) << info.name;
    EXPECT_EQ(m->data == c->data, m->file != nullptr) << info.name;  // tables stay where they are
  }
  EXPECT_EQ(copied.embedding.data == copied.output.data, mapped.embedding.data == mapped.output.data);
  EngineOptions options = with_threads(2);
  options.copy_weights = true;
  Engine a(load_weights(path_), with_threads(2)), b(load_weights(path_), options);
  const std::vector<int32_t> tokens = random_tokens(10, a.config().vocab);
  EXPECT_EQ(run(a, tokens), run(b, tokens));
}

TEST_P(EngineTest, SaysHowFarWeightsAreReadIn) {
  const Weights weights = load_weights(path_);
  int64_t bytes = 0;  // of what every token reads whole
  for (const TensorInfo& info : tensor_table(weights.config)) {
    const Matrix* m = find_matrix(weights, info);
    if (m != nullptr && m->file == nullptr) bytes += static_cast<int64_t>(m->data_bytes());
  }
  for (const bool copy : {false, true}) {
    std::vector<std::pair<int64_t, int64_t>> said;
    EngineOptions options = with_threads(1);
    options.copy_weights = copy;
    options.load_progress = [&](int64_t done, int64_t total) { said.push_back({done, total}); };
    const Engine engine(weights, options);
    ASSERT_GE(said.size(), 2u);
    EXPECT_EQ(said.front().first, 0);
    EXPECT_EQ(said.back().first, said.back().second);
    if (copy) {
      EXPECT_EQ(said.back().second, bytes);
    } else {
      EXPECT_GE(said.back().second, bytes);  // with the norms that lie between
    }
  }
}

TEST_P(EngineTest, HookSeesInputAndOutputOfEveryLinear) {
  Engine engine(strong_weights(path_), with_threads(1));
  const ModelConfig& c = engine.config();
  SeenByName all = observe(engine, random_tokens(6, c.vocab), 4);
  size_t linears = 0, caches = 0;
  for (const TensorInfo& info : tensor_table(c)) {
    const bool head = info.role == (c.tied ? Role::token_embedding : Role::output);
    if (info.kind != TensorKind::linear && !head) continue;
    ++linears;
    caches += info.role == Role::k;
    for (const Activation kind : {Activation::input, Activation::output}) {
      const Seen& seen = all[{kind, info.name}];
      EXPECT_EQ(seen.rows, head ? 2 : 6) << info.name;
      EXPECT_EQ(seen.cols, info.shape[kind == Activation::input ? 1 : 0]) << info.name;
      EXPECT_EQ(seen.layer, info.layer) << info.name;
    }
  }
  EXPECT_EQ(all.size(), 2 * linears + 2 * caches);
  const std::string attention = "model.layers.0.self_attn.";
  EXPECT_EQ((all[{Activation::input, attention + "q_proj.weight"}].data),
            (all[{Activation::input, attention + "k_proj.weight"}].data));
}

// What the hook says of keys and values is what the cache holds.
TEST_P(EngineTest, HookSeesWhatGoesIntoTheCache) {
  Engine engine(strong_weights(path_), with_threads(1));
  const ModelConfig& c = engine.config();
  const std::vector<int32_t> tokens = random_tokens(6, c.vocab);
  SeenByName all = observe(engine, tokens, 6);
  KvCache cache(engine, 6);
  engine.forward(tokens, cache, 6, nullptr);
  for (const TensorInfo& info : tensor_table(c)) {
    if (info.role != Role::k) continue;
    const Seen &key = all[{Activation::key, info.name}], &value = all[{Activation::value, info.name}];
    const size_t layer = static_cast<size_t>(info.layer), width = static_cast<size_t>(info.shape[0]);
    ASSERT_EQ(key.data.size(), 6 * width);
    ASSERT_EQ(value.data.size(), 6 * width);
    EXPECT_EQ(key.layer, info.layer);
    const auto dim = static_cast<size_t>(c.layers[layer].head_dim), heads = width / dim;
    for (size_t i = 0; i < 6 * heads; ++i) {  // by position, then by head
      const auto position = static_cast<int64_t>(i / heads), head = static_cast<int64_t>(i % heads);
      const float *k = key.data.data() + i * dim, *v = value.data.data() + i * dim;
      EXPECT_TRUE(std::equal(k, k + dim, floats_of(cache.k(layer), position, head))) << info.name << ", " << i;
      EXPECT_TRUE(std::equal(v, v + dim, floats_of(cache.v(layer), position, head))) << info.name << ", " << i;
    }
  }
}

std::string config_name(const testing::TestParamInfo<NamedConfig>& config) { return config.param.name; }

INSTANTIATE_TEST_SUITE_P(Architectures, EngineTest,
                         testing::Values(NamedConfig{"llama", llama_json(false)},
                                         NamedConfig{"llama_tied", llama_json(true)},
                                         NamedConfig{"gemma3", gemma3_json()}, NamedConfig{"gemma4_e2b", gemma4_json()},
                                         NamedConfig{"gemma4_31b", gemma4_k_eq_v_json()}),
                         config_name);

// One sliding layer: what is `window` positions back must not be seen, what is one nearer must.
TEST(SlidingWindow, HoldsExactlyItsPositions) {
  TemporaryDirectory directory;
  const std::string path = directory / "model";
  std::string json = gemma3_json();
  const auto replace = [&](const std::string& from, const std::string& to) {
    json.replace(json.find(from), from.size(), to);
  };
  replace("\"num_hidden_layers\": 7", "\"num_hidden_layers\": 1");
  const size_t list = json.find("\"layer_types\": [");
  json.replace(list, json.find(']', list) + 1 - list, R"("layer_types": ["sliding_attention"])");
  write_tiny_model(path, json, DType::F32);
  for (const bool reference : {true, false}) {
    Engine engine(load_weights(path), with_threads(1, reference));
    const int64_t window = engine.config().sliding_window;
    // The longer one goes round the ring of the cache, which has place for the window and a pass.
    for (const int64_t length : {int64_t{40}, kMaxBatchRows + 3 * window}) {
      const std::vector<int32_t> tokens = random_tokens(length, engine.config().vocab);
      const std::vector<float> before = run(engine, tokens, length - 1);
      for (int64_t i = std::max<int64_t>(0, length - 2 * window); i < length; ++i) {
        std::vector<int32_t> changed = tokens;
        int32_t& token = changed[static_cast<size_t>(i)];
        token = (token + 1) % static_cast<int32_t>(engine.config().vocab);
        EXPECT_EQ(run(engine, changed, length - 1) != before, i >= length - window) << "position " << i;
      }
    }
  }
}

// Three bytes in front put every 2- and 4-byte element at an odd address.
TEST(Loading, UnalignedSafetensors) {
  TemporaryDirectory directory;
  for (const DType type : {DType::F32, DType::BF16, DType::F16}) {
    const std::string plain = directory / "plain", odd = directory / "odd";
    write_tiny_model(plain, gemma4_json(), type);
    write_tiny_model(odd, gemma4_json(), type);
    {
      const Safetensors file(plain);
      std::vector<TensorSpec> specs = {{"padding", DType::U8, {3}}};
      for (const TensorView& t : file.tensors()) specs.push_back({t.name, t.dtype, t.shape});
      SafetensorsWriter writer(odd + "/model.safetensors", specs);
      writer.append("abc", 3);
      for (const TensorView& t : file.tensors()) writer.append(t.bytes.data(), t.bytes.size());
      writer.commit();
    }
    for (const bool reference : {true, false}) {
      Engine a(load_weights(plain), with_threads(1, reference)), b(load_weights(odd), with_threads(1, reference));
      const std::vector<int32_t> tokens = random_tokens(10, a.config().vocab);
      EXPECT_EQ(run(a, tokens), run(b, tokens));
    }
  }
}

TEST(Loading, RefusesWhatItCannotRun) {
  TemporaryDirectory directory;
  const std::string path = directory / "model", gguf = directory / "model.gguf";
  write_tiny_model(path, llama_json(true), DType::F32);
  export_gguf_float(path, DType::F32, gguf);
  // Rewrites the file with one tensor changed.
  const auto rewrite = [&](const std::string& name, DType type, std::vector<int64_t> shape) {
    const GgufFile file(gguf);
    std::vector<GgufTensorSpec> specs;
    for (const GgufTensor& t : file.tensors())
      specs.push_back(t.name == name ? GgufTensorSpec{name, type, shape} : GgufTensorSpec{t.name, t.dtype, t.shape});
    const std::string out = directory / "changed.gguf";
    GgufWriter writer(out, file.metadata(), specs);
    for (const GgufTensorSpec& spec : specs) {
      int64_t rows = 1;
      for (size_t i = 0; i + 1 < spec.shape.size(); ++i) rows *= spec.shape[i];
      const std::vector<uint8_t> zeros(row_bytes(spec.dtype, spec.shape.back()) * static_cast<size_t>(rows));
      writer.append(zeros.data(), zeros.size());
    }
    writer.commit();
    return out;
  };
  expect_error(
      [&] {
        load_weights(rewrite("blk.1.ffn_up.weight", DType::Q4_1, {96, 64}));
      },
      "tensor blk.1.ffn_up.weight is Q4_1, which the engine does not run");
  expect_error(
      [&] {
        load_weights(rewrite("blk.1.ffn_up.weight", DType::F32, {64, 96}));
      },
      "tensor blk.1.ffn_up.weight: expected shape [96, 64], found [64, 96]");
  expect_error([&] { load_weights(rewrite("blk.0.attn_norm.weight", DType::F32, {32})); },
               "blk.0.attn_norm.weight: expected shape [64], found [32]");
  load_weights(rewrite("", DType::F32, {}));
}

// Rows of an embedding table that is not the head are read as they are needed.
TEST(EngineErrors, AFileThatWasCutWhileTheModelRuns) {
  TemporaryDirectory dir;
  write_tiny_model(dir / "model", gemma4_json(), DType::BF16);
  const Weights loaded = load_weights(dir / "model");
  ASSERT_NE(loaded.ple_embedding.file, nullptr);
  EXPECT_EQ(loaded.ple_embedding.scale_file, nullptr);
  EXPECT_EQ(loaded.embedding.file, nullptr) << "the head, which is read whole";
  // The table is another file's, so that cutting it takes nothing from the matrices.
  std::filesystem::copy(dir / "model", dir / "copy");
  Weights w = load_weights(dir / "copy");
  w.ple_embedding = loaded.ple_embedding;
  Engine engine(w, with_threads(2));
  const std::vector<int32_t> tokens = random_tokens(12, engine.config().vocab);
  KvCache cache(engine, 20);
  const MappedFile& file = *loaded.ple_embedding.file;
  std::filesystem::resize_file(file.path(), static_cast<uintmax_t>(w.ple_embedding.data - file.bytes().data()));
  expect_error([&] { engine.forward(tokens, cache, tokens.size(), nullptr); }, "ends at");
  EXPECT_EQ(cache.length(), 0);
}

TEST(EngineErrors, TokensAndLengthsAreChecked) {
  TemporaryDirectory directory;
  const std::string path = directory / "model";
  write_tiny_model(path, gemma4_json(), DType::F32);
  Engine engine(load_weights(path), with_threads(1));
  std::vector<float> logits(static_cast<size_t>(engine.config().vocab) * 4);
  KvCache cache(engine, 3);
  const std::vector<int32_t> negative = {-1}, beyond = {260}, four = {1, 2, 3, 4};
  expect_error([&] { engine.forward(negative, cache, 0, logits.data()); },
               "token id -1 is outside the model's vocabulary of 260");
  expect_error([&] { engine.forward(beyond, cache, 0, logits.data()); }, "token id 260 is outside");
  expect_error([&] { engine.forward(four, cache, 0, logits.data()); }, "longer than its KV cache of 3 positions");
  EXPECT_EQ(cache.length(), 0);
  std::vector<KvCache*> caches = {&cache};
  expect_error([&] { engine.decode_batch(beyond, caches, logits.data()); }, "token id 260 is outside");
}

TEST(IsaSelection, TheEnvironmentForcesOne) {
  const char* before = std::getenv("QAT_ISA");
  const std::string saved = before == nullptr ? "" : before;
  setenv("QAT_ISA", "scalar", 1);
  EXPECT_EQ(select_isa(), Isa::scalar);
  setenv("QAT_ISA", "mmx", 1);
  expect_error([] { select_isa(); }, "QAT_ISA=mmx: expected scalar, portable");
  for (const Isa isa : built_isas()) {
    setenv("QAT_ISA", isa_name(isa), 1);
    if (isa_supported(isa)) {
      EXPECT_EQ(select_isa(), isa);
    } else {
      expect_error([] { select_isa(); }, "this processor does not have ");
    }
  }
  unsetenv("QAT_ISA");
  EXPECT_NE(select_isa(), Isa::scalar);
  if (before == nullptr) {
    unsetenv("QAT_ISA");
  } else {
    setenv("QAT_ISA", saved.c_str(), 1);
  }
}

}  // namespace
}  // namespace qat
