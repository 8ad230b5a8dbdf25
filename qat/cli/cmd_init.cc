// qat init: a new Hugging Face directory with random weights, streamed to disk.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "export/mobile_export.h"
#include "format/channel_grid.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/grid.h"
#include "format/number.h"
#include "format/safetensors.h"
#include "format/tensor_table.h"
#include "format/tokenizer.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/shapes.h"
#include "qat/progress.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::json;

struct InitOptions {
  std::string config, shape, out;
  std::string dtype = "bf16";
  std::string plan = "none";  // or mobile
  std::string tokenizer = "bytes", tokenizer_from;
  int64_t vocab = 0;  // 0: the configuration's
  uint64_t seed = 1;
  EngineOptions engine;  // threads
};

// --- Random rows ---

// SplitMix64 (Steele, Lea, Flood 2014).
uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

struct RowId {
  uint64_t seed, tensor, row;
};

// Normal numbers (Box-Muller) that depend on the row's place only, never on threads or on what was drawn before.
void normal_row(const RowId& id, float deviation, int64_t count, float* out) {
  constexpr float kTwoPi = 6.28318530717958648f;
  uint64_t state = id.seed;
  state = next_random(state) ^ id.tensor;
  state = next_random(state) ^ id.row;
  for (int64_t i = 0; i < count; i += 2) {
    const uint64_t bits = next_random(state);
    const float u = static_cast<float>((bits >> 40) + 1) * 0x1p-24f;  // (0, 1]
    const float angle = kTwoPi * static_cast<float>(bits & 0xffffffu) * 0x1p-24f;
    const float radius = deviation * std::sqrt(-2.0f * std::log(u));
    out[i] = radius * std::cos(angle);
    if (i + 1 < count) out[i + 1] = radius * std::sin(angle);
  }
}

struct RowRange {
  uint64_t tensor;
  int64_t begin, end, cols;
};

void fill_rows(const InitOptions& options, float deviation, const RowRange& rows, float* out) {
  const int processors = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int wanted = options.engine.threads > 0 ? options.engine.threads : processors;
  const int threads = static_cast<int>(std::clamp<int64_t>((rows.end - rows.begin) * rows.cols / 65536, 1, wanted));
  const auto work = [&](int part) {
    for (int64_t row = rows.begin + part; row < rows.end; row += threads) {
      normal_row({options.seed, rows.tensor, static_cast<uint64_t>(row)}, deviation, rows.cols,
                 out + (row - rows.begin) * rows.cols);
    }
  };
  std::vector<std::thread> workers;
  for (int part = 1; part < threads; ++part) workers.emplace_back(work, part);
  work(0);
  for (std::thread& worker : workers) worker.join();
}

// --- The files ---

Json read_config(const InitOptions& options) {
  if (options.config.empty() == options.shape.empty()) fail("expected --shape NAME or --config FILE, one of the two");
  const std::string text = options.shape.empty() ? read_file(options.config) : shape_config(options.shape);
  Json config = Json::parse(text, nullptr, false);
  if (!config.is_object()) fail(options.config, ": not a JSON object");
  // A multimodal wrapper: the new model is its text part.
  if (config.contains("text_config") && config["text_config"].is_object()) config = Json(config["text_config"]);
  if (options.vocab > 0) {
    config["vocab_size"] = options.vocab;
    if (config.contains("vocab_size_per_layer_input")) config["vocab_size_per_layer_input"] = options.vocab;
  }
  config["dtype"] = options.dtype == "bf16" ? "bfloat16" : "float32";
  return config;
}

void check_tokenizer(const InitOptions& options, int64_t vocab) {
  constexpr int64_t kByteTokens = 260;
  if (!options.tokenizer_from.empty()) tokenizer_from_hf(options.tokenizer_from, vocab);
  else if (vocab < kByteTokens) fail("--tokenizer bytes has ", kByteTokens, " tokens, the model ", vocab);
}

void write_tokenizer_files(const InitOptions& options, const std::string& directory) {
  if (!options.tokenizer_from.empty()) {
    int copied = 0;
    for (const char* name : {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}) {
      const fs::path source = fs::path(options.tokenizer_from) / name;
      if (!fs::exists(source)) continue;
      copy_file_atomic(source.string(), directory + "/" + name);
      ++copied;
    }
    if (copied == 0) fail(options.tokenizer_from, ": expected tokenizer.json or tokenizer.model, found neither");
    return;
  }
  write_file(directory + "/tokenizer.json", byte_tokenizer_json());
  const Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                       {"bos_token", "<bos>"},
                       {"eos_token", "<eos>"},
                       {"unk_token", "<unk>"},
                       {"pad_token", "<pad>"},
                       {"add_bos_token", true},
                       {"add_eos_token", false},
                       {"clean_up_tokenization_spaces", false}};
  write_file(directory + "/tokenizer_config.json", config.dump(1) + "\n");
}

// The configuration must name the tokenizer's own special tokens.
void write_configs(Json config, const Tokenizer& tokenizer, const std::string& directory) {
  if (tokenizer.bos_id() >= 0) config["bos_token_id"] = tokenizer.bos_id();
  if (tokenizer.eos_id() >= 0) config["eos_token_id"] = tokenizer.eos_id();
  write_file(directory + "/config.json", config.dump(2) + "\n");
  Json generation = Json::object();
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (config.contains(key) && !config[key].is_null()) generation[key] = config[key];
  }
  write_file(directory + "/generation_config.json", generation.dump(2) + "\n");
}

float initial_constant(const ModelConfig& config, const TensorInfo& info) {
  return info.kind == TensorKind::norm && config.norm_plus_one ? 0.0f : 1.0f;
}

void append_floats(SafetensorsWriter& writer, DType dtype, const std::vector<float>& values, size_t count) {
  if (dtype == DType::F32) return writer.append(values.data(), count * sizeof(float));
  std::vector<uint16_t> halves(count);
  std::transform(values.begin(), values.begin() + static_cast<int64_t>(count), halves.begin(), f32_to_bf16);
  writer.append(halves.data(), count * sizeof(uint16_t));
}

// Returns the number of weights.
int64_t write_weights(const InitOptions& options, const ModelConfig& config, float deviation, const std::string& path) {
  const DType dtype = options.dtype == "bf16" ? DType::BF16 : DType::F32;
  const std::vector<TensorInfo> table = tensor_table(config);
  std::vector<TensorSpec> specs;
  int64_t total = 0, done = 0;
  for (const TensorInfo& info : table) {
    specs.push_back({info.name, dtype, info.shape});
    int64_t count = 1;
    for (const int64_t d : info.shape) count *= d;
    total += count;
  }
  constexpr int64_t kPiece = 1 << 23;  // weights in memory at once, roughly
  SafetensorsWriter writer(path, specs);
  ProgressBar bar("init", total);
  std::vector<float> values;
  for (size_t t = 0; t < table.size(); ++t) {
    const TensorInfo& info = table[t];
    const int64_t cols = info.shape.empty() ? 1 : info.shape.back(), rows = info.shape.size() < 2 ? 1 : info.shape[0];
    const int64_t step = std::max<int64_t>(1, kPiece / cols);
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t end = std::min(rows, row + step);
      const auto count = static_cast<size_t>((end - row) * cols);
      values.resize(std::max(values.size(), count));
      if (info.shape.size() < 2) std::fill(values.begin(), values.end(), initial_constant(config, info));
      else fill_rows(options, deviation, {t, row, end, cols}, values.data());
      append_floats(writer, dtype, values, count);
      done += static_cast<int64_t>(count);
      bar.update(done);
      throw_if_interrupted();
    }
  }
  writer.commit();
  bar.finish();
  return total;
}

// --- In the mobile schema ---

// Scales as if activations and K and V had unit variance: grids that reach 4. (With random weights nothing better is
// known; what matters is that they are on.)
constexpr float kActivationScale = 4.0f / 128;

// A tensor of random weights, quantized as it is drawn. One scale serves all rows, which are alike.
struct RandomCodes {
  const InitOptions& options;
  const TensorInfo& info;
  uint64_t tensor;  // of RowRange: the head has the embedding's
  DType type;
  float deviation, scale;

  void rows(int64_t begin, int64_t end, std::vector<float>* values, std::vector<uint8_t>* stored) const {
    const int64_t cols = info.shape.back();
    const size_t stride = row_bytes(type, cols);
    values->resize(static_cast<size_t>((end - begin) * cols));
    stored->resize(static_cast<size_t>(end - begin) * stride);
    fill_rows(options, deviation, {tensor, begin, end, cols}, values->data());
    const int bits = code_bits(type);
    if (bits == 0) return encode_rows(type, values->data(), end - begin, cols, stored->data());
    std::vector<int8_t> codes(values->size());
    encode_channel(bits, values->data(), static_cast<int64_t>(values->size()), scale, codes.data());
    pack_codes(bits, codes.data(), end - begin, cols, stored->data());
  }
};

// The best scale of normal numbers, from a few thousand of them.
float normal_scale(const InitOptions& options, int bits, float deviation) {
  std::vector<float> sample(8192);
  normal_row({options.seed, 0, 0}, deviation, static_cast<int64_t>(sample.size()), sample.data());
  return search_scale(bits, sample.data(), nullptr, static_cast<int64_t>(sample.size()));
}

std::vector<MobileSpec> random_specs(const InitOptions& options, const ModelConfig& config,
                                     const std::vector<TensorInfo>& table, float deviation) {
  std::map<std::string, DType> float_types;
  for (const TensorInfo& info : table) float_types[info.name] = options.dtype == "bf16" ? DType::BF16 : DType::F32;
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan_from_name(options.plan), table, float_types);
  std::vector<MobileSpec> specs;
  for (const TensorInfo& info : table) {
    MobileSpec& spec = specs.emplace_back();
    spec.dtype = resolved.at(info.name).grid;
    const int bits = code_bits(spec.dtype);
    if (bits == 0) continue;
    spec.scales_per_row = mobile_scales_per_row(config, info);
    spec.scales.assign(static_cast<size_t>(info.shape[0] * spec.scales_per_row),
                       normal_scale(options, bits, deviation));
    if (info.kind == TensorKind::linear && info.role != Role::output)
      spec.input_scale = spec.output_scale = kActivationScale;
  }
  return specs;
}

std::vector<CacheScales> random_cache_scales(const ModelConfig& config) {
  const Plan plan = plan_from_name("mobile");
  std::vector<CacheScales> scales;
  for (const LayerConfig& layer : config.layers) {
    const int bits = layer.sliding ? plan.kv_sliding_bits : plan.kv_global_bits;
    const float scale = storable_scale(4.0f / static_cast<float>(highest_code(bits)));
    scales.push_back({scale, scale, bits});
  }
  return scales;
}

// `source` has the configuration and the tokenizer. Returns the number of weights, without the copy that the head is.
int64_t write_mobile(const InitOptions& options, const ModelConfig& config, float deviation,
                     const std::string& source) {
  constexpr int64_t kPiece = 1 << 22;  // weights in memory at once, roughly
  const std::vector<TensorInfo> table = mobile_table(config);
  const std::vector<MobileSpec> specs = random_specs(options, config, table, deviation);
  MobileWriter writer(options.out, source, table, specs, random_cache_scales(config), describe_widths(table, specs));
  int64_t total = 0, done = 0;
  for (const TensorInfo& info : table) total += info.shape.size() < 2 ? info.shape[0] : info.shape[0] * info.shape[1];
  ProgressBar bar("init", total);
  std::vector<float> values;
  std::vector<uint8_t> stored;
  for (const size_t t : writer.order()) {
    const TensorInfo& info = table[t];
    const int64_t cols = info.shape.back(), rows = info.shape.size() < 2 ? 1 : info.shape[0];
    const int64_t step = std::max<int64_t>(1, kPiece / cols);
    const uint64_t random = info.role == Role::output && config.tied ? 0 : t;
    const RandomCodes source_rows = {options,        info,      random,
                                     specs[t].dtype, deviation, specs[t].scales.empty() ? 0.0f : specs[t].scales[0]};
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t end = std::min(rows, row + step);
      if (info.shape.size() < 2) {
        values.assign(static_cast<size_t>(cols), initial_constant(config, info));
        stored.resize(row_bytes(specs[t].dtype, cols));
        encode_rows(specs[t].dtype, values.data(), 1, cols, stored.data());
      } else {
        source_rows.rows(row, end, &values, &stored);
      }
      writer.append_rows(t, stored.data(), end - row);
      bar.update(done += (end - row) * cols);
      throw_if_interrupted();
    }
  }
  writer.commit();
  bar.finish();
  return config.tied ? total - config.vocab * config.hidden : total;
}

void run_init(const InitOptions& options) {
  const std::string origin = options.shape.empty() ? options.config : "--shape " + options.shape;
  const Json json = read_config(options);
  const ModelConfig config = model_config_from_json(json.dump(), origin);
  const float deviation = json.contains("initializer_range") && json["initializer_range"].is_number()
                              ? json["initializer_range"].get<float>()
                              : 0.02f;
  const bool mobile = options.plan == "mobile";
  check_output_directory(options.out, "");
  check_tokenizer(options, config.vocab);
  const InterruptGuard guard;
  AtomicDirectory directory(options.out + (mobile ? ".float" : ""));  // of a mobile model: what its writer copies
  write_tokenizer_files(options, directory.path());
  write_configs(json, *tokenizer_from_hf(directory.path(), config.vocab), directory.path());
  const int64_t weights = mobile ? write_mobile(options, config, deviation, directory.path())
                                 : write_weights(options, config, deviation, directory.path() + "/model.safetensors");
  if (!mobile) directory.commit();
  std::printf("%s: %s, %lld random weights (%s), vocabulary %lld\n", options.out.c_str(), arch_name(config.arch),
              static_cast<long long>(weights), mobile ? "plan mobile" : options.dtype.c_str(),
              static_cast<long long>(config.vocab));
}

}  // namespace

void add_init_command(CLI::App& app) {
  auto options = std::make_shared<InitOptions>();
  CLI::App* command = app.add_subcommand("init", "A new Hugging Face directory with random weights");
  command->add_option("--shape", options->shape, "One of the shapes below")->type_name("NAME");
  command->add_option("--config", options->config, "A config.json of llama, gemma3_text or gemma4_text instead")
      ->type_name("FILE");
  command->add_option("--out", options->out, "Directory to write; it must be new or empty")
      ->required()
      ->type_name("DIR");
  command->add_option("--seed", options->seed, "The same seed gives the same weights")
      ->check(whole_number(0))
      ->type_name("S")
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "bf16 or f32")
      ->check(one_of({"bf16", "f32"}))
      ->type_name("TYPE")
      ->capture_default_str();
  command
      ->add_option("--plan", options->plan,
                   "none, or mobile: quantized as it is drawn, with made-up static scales (to measure size and speed)")
      ->check(one_of({"none", "mobile"}))
      ->type_name("NAME")
      ->capture_default_str();
  command
      ->add_option("--vocab", options->vocab,
                   "Vocabulary size instead of the shape's; tokens that the tokenizer lacks stay unused")
      ->check(whole_number(1, int64_t{1} << 24))
      ->type_name("N");
  CLI::Option* kind = command->add_option("--tokenizer", options->tokenizer, "bytes: 256 bytes and 4 special tokens")
                          ->check(one_of({"bytes"}))
                          ->type_name("KIND")
                          ->capture_default_str();
  command
      ->add_option("--tokenizer-from", options->tokenizer_from,
                   "Copy the tokenizer of this Hugging Face directory instead")
      ->excludes(kind)
      ->type_name("DIR");
  command->add_option("--threads", options->engine.threads, "Processor threads; 0: all")
      ->check(whole_number(0, 4096))
      ->type_name("N");
  std::string shapes = "Shapes:\n";
  for (const ShapeInfo& shape : shape_list())
    shapes += "  " + std::string(shape.name) +
              std::string(14 - std::min<size_t>(13, std::string(shape.name).size()), ' ') + shape.about + "\n";
  command->footer(shapes + "\nExample:\n  qat init --shape gemma4-tiny --seed 1 --out tiny");
  command->callback([options] { run_init(*options); });
}

}  // namespace qat
