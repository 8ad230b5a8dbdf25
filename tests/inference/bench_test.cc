// What `qat bench` says: the bytes of a token against a count by hand and against the file's own size, the work that is
// timed, and a bandwidth that is one.
#include "inference/bench.h"

#include <gtest/gtest.h>

#include <map>

#include "format/safetensors.h"
#include "tests/export/tiny_model.h"

namespace qat {
namespace {

const uint8_t kSomewhere = 0;  // matrices of which only the shape counts

Matrix q4_0(int64_t rows, int64_t cols) { return {DType::Q4_0, rows, cols, &kSomewhere}; }

Matrix channel(DType type, int64_t rows, int64_t cols, int64_t scales_per_row = 1) {
  Matrix m = {type, rows, cols, &kSomewhere};
  m.scales = &kSomewhere;
  m.scales_per_row = scales_per_row;
  return m;
}

// Four layers 64 wide: sliding (window 8) and full, then one of each that reads the K and V of those two.
Weights four_layers() {
  Weights w;
  ModelConfig& c = w.config;
  c.hidden = 64;
  c.heads = 4;
  c.vocab = 100;
  c.sliding_window = 8;
  for (int64_t i = 0; i < 4; ++i) {
    LayerConfig layer;
    layer.sliding = i % 2 == 0;
    layer.kv_heads = layer.sliding ? 2 : 1;
    layer.head_dim = layer.sliding ? 16 : 32;
    layer.ffn = 96;
    layer.kv_source = i % 2;
    c.layers.push_back(layer);
  }
  w.layers.resize(4);
  for (LayerWeights& l : w.layers) {
    l.q = q4_0(64, 64);
    l.o = q4_0(64, 64);
    l.gate = q4_0(96, 64);
    l.up = q4_0(96, 64);
    l.down = q4_0(64, 96);
  }
  for (size_t i = 0; i < 2; ++i) {
    w.layers[i].k = q4_0(32, 64);
    w.layers[i].v = q4_0(32, 64);
  }
  static const uint8_t elsewhere = 0;
  w.embedding = q4_0(100, 64);
  w.output = q4_0(100, 64);
  w.output.data = &elsewhere;
  return w;
}
// A row of 64 is two blocks of 18 bytes, one of 96 three: q, o, gate, up, down; the two k and v; the head; a row.
constexpr int64_t kFourLayers = 4 * (64 * 36 + 64 * 36 + 2 * 96 * 36 + 64 * 54) + 2 * 2 * 32 * 36 + 100 * 36 + 36;

TEST(DecodeBytes, WeightsByHand) {
  Weights w = four_layers();
  EXPECT_EQ(decode_bytes(w, {}, 0, 1).weights, kFourLayers);
  // Tied: the embedding is the head.
  w.output = w.embedding;
  EXPECT_EQ(decode_bytes(w, {}, 0, 1).weights, kFourLayers - 36);
  // Per-layer embeddings: one row of the table, with a scale for each layer; gates and projections with one per row.
  w.config.ple = 10;
  w.ple_embedding = channel(DType::I4, 100, 40, 4);
  w.ple_model_projection = {DType::F32, 40, 64, &kSomewhere};
  w.layers[3].ple_gate = channel(DType::I8, 10, 64);
  w.layers[3].ple_projection = channel(DType::I2, 64, 10);  // 20 bits: 3 bytes
  EXPECT_EQ(decode_bytes(w, {}, 0, 1).weights,
            kFourLayers - 36 + (20 + 4 * 4) + 40 * 64 * 4 + 10 * (64 + 4) + 64 * (3 + 4));
}

TEST(DecodeBytes, CacheByHand) {
  Weights w = four_layers();
  // Floats: 2 layers of each kind, K and V, 32 values a position.
  constexpr int64_t kPosition = 2 * 32 * 4;
  EXPECT_EQ(decode_bytes(w, {}, 0, 1).cache, 4 * kPosition);                        // itself
  EXPECT_EQ(decode_bytes(w, {}, 6, 1).cache, 2 * kPosition * (7 + 7));              // nothing out of the window yet
  EXPECT_EQ(decode_bytes(w, {}, 100, 1).cache, 2 * kPosition * (8 + 101));          // the window is full
  EXPECT_EQ(decode_bytes(w, {}, 6, 4).cache, 2 * kPosition * (31 + 34) / 4);        // 7 8 8 8 and 7 8 9 10
  EXPECT_EQ(decode_bytes(w, {}, 100, 3).cache, 2 * kPosition * (3 * 8 + 306) / 3);  // 101 102 103
  // Codes: the owners' widths are their readers' too. 2 heads of 16 at 8 bits, a head of 32 at 4.
  w.layers[0].cache = {0.1f, 0.1f, 8};
  w.layers[1].cache = {0.1f, 0.1f, 4};
  EXPECT_EQ(decode_bytes(w, {}, 100, 1).cache, 2 * (2 * 32 * 8 + 2 * 16 * 101));
  EngineOptions floats;
  floats.float_cache = true;
  EXPECT_EQ(decode_bytes(w, floats, 100, 1).cache, 2 * kPosition * (8 + 101));
  w.layers[1].cache.v = 0.0f;  // only the keys are codes
  EXPECT_EQ(decode_bytes(w, {}, 100, 1).cache, 2 * (2 * 32 * 8 + (16 + 32 * 4) * 101));
  EngineOptions blocks;
  blocks.cache_type = DType::Q8_0;
  EXPECT_EQ(decode_bytes(w, blocks, 100, 1).cache, 2 * (2 * 32 * 8 + (16 + 34) * 101));
}

// All that a file holds is read, but for norms and the rows of tables that are not the token's.
TEST(DecodeBytes, IsTheFileWithoutNormsAndTheRestOfTheTables) {
  TemporaryDirectory directory;
  for (const auto& [name, json] : std::map<std::string, std::string>{{"llama", llama_json(false)},
                                                                     {"llama_tied", llama_json(true)},
                                                                     {"gemma4", gemma4_json()},
                                                                     {"k_eq_v", gemma4_k_eq_v_json()}}) {
    const std::string path = directory / name;
    write_tiny_model(path, json, DType::BF16);
    const Weights w = load_weights(path);
    const Safetensors file(path);
    int64_t expected = 0;
    for (const TensorView& t : file.tensors()) {
      const bool table = t.name.find("embed_tokens") != std::string::npos;
      const bool head = w.config.tied && t.name == "model.embed_tokens.weight";
      if (t.shape.size() < 2) continue;
      expected += static_cast<int64_t>(t.bytes.size()) / (table && !head ? t.shape[0] : 1);
    }
    EXPECT_EQ(decode_bytes(w, {}, 0, 1).weights, expected) << name;
  }
}

// The rows that pass through the first linear and through the head, counted by the engine itself.
struct Rows {
  int64_t first = 0, head = 0, single = 0;
};

Rows count_rows(Engine& engine, const BenchOptions& options, BenchResult* result) {
  Rows rows;
  engine.set_activation_hook([&](const Observed& seen) {
    if (seen.kind != Activation::input) return;
    if (seen.layer == 0 && seen.name.find("q_proj") != std::string::npos) {
      rows.first += seen.rows;
      rows.single += seen.rows == 1;
    }
    if (seen.layer < 0 && seen.name.find("per_layer") == std::string::npos) rows.head += seen.rows;
  });
  *result = run_benchmark(engine, options);
  engine.set_activation_hook({});
  return rows;
}

TEST(Benchmark, DoesTheWorkItTimes) {
  TemporaryDirectory directory;
  const std::string path = directory / "model";
  write_tiny_model(path, gemma4_json(), DType::BF16);
  EngineOptions threads;
  threads.threads = 2;
  Engine engine(load_weights(path), threads);
  for (const int64_t context : {20, 0, 700}) {  // as long as the prompt; none; more than a pass and than the model
    BenchOptions options;
    options.prompt = 20;
    options.tokens = 6;
    options.contexts = {context};
    options.repeat = 3;
    options.bandwidth_bytes = 1 << 22;
    BenchResult result;
    const Rows rows = count_rows(engine, options, &result);
    const int64_t filling = context == 20 ? 0 : context;
    EXPECT_EQ(rows.first, filling + 4 * (20 + 6)) << context;
    EXPECT_EQ(rows.single, 4 * 6) << context;
    EXPECT_EQ(rows.head, 4 * (1 + 6)) << context;
    EXPECT_EQ(result.prefill.tokens, 20);
    EXPECT_EQ(result.prefill.seconds.size(), 3u);
    ASSERT_EQ(result.decode.size(), 1u);
    EXPECT_EQ(result.decode[0].tokens, 6);
    EXPECT_EQ(result.decode[0].seconds.size(), 3u);
    EXPECT_GT(result.decode[0].slowest(), 0.0);
    EXPECT_GT(result.read_bandwidth, 0.0);
    EXPECT_GT(result.peak_rss_bytes, 1 << 20);
    EXPECT_EQ(result.threads, 2);
  }
}

TEST(Benchmark, DecodesAfterEachContext) {
  TemporaryDirectory directory;
  write_tiny_model(directory / "model", gemma4_json(), DType::BF16);
  Engine engine(load_weights(directory / "model"));
  BenchOptions options;
  options.prompt = 20;
  options.tokens = 6;
  options.contexts = {20, 600, 3};
  options.repeat = 2;
  options.bandwidth_bytes = 1 << 22;
  BenchResult result;
  const Rows rows = count_rows(engine, options, &result);
  EXPECT_EQ(rows.first, 603 + 3 * (20 + 3 * 6));
  EXPECT_EQ(rows.single, 3 * 3 * 6);
  EXPECT_EQ(rows.head, 3 * (1 + 3 * 6));
  ASSERT_EQ(result.decode.size(), 3u);
  for (const Speed& decode : result.decode) EXPECT_EQ(decode.seconds.size(), 2u);
}

TEST(Benchmark, ReportsProgressAndStopsWhenToldTo) {
  TemporaryDirectory directory;
  write_tiny_model(directory / "model", llama_json(true), DType::BF16);
  Engine engine(load_weights(directory / "model"));
  BenchOptions options;
  options.prompt = 10;
  options.contexts = {10};
  options.tokens = 5;
  options.repeat = 2;
  options.bandwidth_bytes = 1 << 22;
  std::vector<int64_t> done;
  run_benchmark(engine, options, [&](int64_t d, int64_t total) {
    EXPECT_EQ(total, 3 * 15);
    done.push_back(d);
  });
  EXPECT_EQ(done.size(), 3u * 6);
  EXPECT_EQ(done.back(), 45);
  EXPECT_THROW(run_benchmark(engine, options,
                             [](int64_t d, int64_t) {
                               if (d > 11) throw 1;
                             }),
               int);
}

TEST(Speed, MedianAndSpread) {
  const Speed odd = {100, {2.0, 1.0, 5.0}}, even = {100, {4.0, 1.0, 2.0, 8.0}};
  EXPECT_DOUBLE_EQ(odd.median(), 50.0);
  EXPECT_DOUBLE_EQ(odd.slowest(), 20.0);
  EXPECT_DOUBLE_EQ(odd.fastest(), 100.0);
  EXPECT_DOUBLE_EQ(even.median(), 100.0 / 3.0);
}

TEST(Speed, RatioIsOfTheSameRepetitions) {
  const Speed fast = {100, {1.0, 4.0, 2.0}}, slow = {50, {2.0, 1.0, 1.0}};
  EXPECT_DOUBLE_EQ(median_ratio(fast, slow), 1.0);  // of 4, 0.5 and 1
  EXPECT_DOUBLE_EQ(median_ratio(slow, fast), 1.0);
  EXPECT_DOUBLE_EQ(median_ratio(slow, slow), 1.0);
}

TEST(ReadBandwidth, OfOneThreadAndOfSeveral) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const double speed = median(ReadBandwidth(5 << 20).measure(pool, 2));  // that every word is read: checked inside
    EXPECT_GT(speed, 0.01);
    EXPECT_LT(speed, 1e5);
  }
}

}  // namespace
}  // namespace qat
