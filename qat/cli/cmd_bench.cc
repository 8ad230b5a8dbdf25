// qat bench: tokens per second of a model, and how much of the memory's bandwidth they take; as a table or as JSON.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "inference/bench.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct BenchCommand {
  std::string model;
  BenchOptions bench;
  bool json = false;
  EngineOptions engine;
};

struct BenchReport {
  BenchResult result;
  std::vector<DecodeBytes> bytes;  // after each context
  double gb_per_s(size_t i) const { return static_cast<double>(bytes[i].total()) * result.decode[i].median() / 1e9; }
  double share(size_t i) const { return gb_per_s(i) / result.read_bandwidth; }
  double of_first(size_t i) const { return median_ratio(result.decode[i], result.decode[0]); }
};

BenchReport measure(const BenchCommand& command) {
  Weights weights = load_weights(command.model);
  const BenchOptions& bench = command.bench;
  BenchReport report;
  for (const int64_t context : bench.contexts)
    report.bytes.push_back(decode_bytes(weights, command.engine, context, bench.tokens));
  const std::unique_ptr<Engine> started = start_engine(std::move(weights), command.engine);
  Engine& engine = *started;
  const int64_t last = *std::max_element(bench.contexts.begin(), bench.contexts.end());
  const int64_t longest = std::max(bench.prompt, last + bench.tokens), made_for = engine.config().context;
  if (made_for > 0 && longest > made_for) {
    std::fprintf(stderr, "%s: %lld positions are more than the %lld the model was made for; the speed stands\n",
                 command.model.c_str(), static_cast<long long>(longest), static_cast<long long>(made_for));
  }
  const InterruptGuard guard;
  std::unique_ptr<ProgressBar> bar;
  report.result = run_benchmark(engine, bench, [&](int64_t done, int64_t total) {
    if (!bar) bar = std::make_unique<ProgressBar>("bench", total);
    bar->update(done);
    throw_if_interrupted();
  });
  return report;
}

// --- JSON ---

constexpr const char* kJsonKeys = R"(Keys of --json:
  model, threads, isa, prompt, tokens, context (the first), repeat
  prefill_tokens_per_s, prefill_tokens_per_s_min, prefill_tokens_per_s_max    median, slowest, fastest
  decode_tokens_per_s, decode_tokens_per_s_min, decode_tokens_per_s_max
  prefill_seconds, decode_seconds    [of each repetition]
  weight_bytes_per_token    read to decode one token: every matrix, one row of embedding tables
  cache_bytes_per_token     keys and values that it sees, the mean of the tokens
  bytes_per_token           the sum
  decode_gb_per_s           bytes_per_token at the median speed; GB: 1e9 bytes
  read_bandwidth_gb_per_s   the same threads reading half a gigabyte of memory, between repetitions: the median
  read_bandwidth_share      decode / read; above 1 where a model fits in a cache
  peak_rss_bytes            of the process, mapped weights included
  contexts                  [of each, where there are several: context; as above decode_tokens_per_s, its _min and _max,
                            decode_seconds, cache_bytes_per_token, bytes_per_token, decode_gb_per_s,
                            read_bandwidth_share; of_first_context, its speed beside the first context's: the median
                            of the repetitions])";

using Json = nlohmann::ordered_json;

void put(Json& json, const std::string& name, const Speed& speed) {
  json[name + "_tokens_per_s"] = speed.median();
  json[name + "_tokens_per_s_min"] = speed.slowest();
  json[name + "_tokens_per_s_max"] = speed.fastest();
  json[name + "_seconds"] = speed.seconds;
}

void put_decode(Json& json, const BenchReport& report, size_t i) {
  put(json, "decode", report.result.decode[i]);
  json["cache_bytes_per_token"] = report.bytes[i].cache;
  json["bytes_per_token"] = report.bytes[i].total();
  json["decode_gb_per_s"] = report.gb_per_s(i);
  json["read_bandwidth_share"] = report.share(i);
}

Json report_json(const BenchCommand& command, const BenchReport& report) {
  Json json;
  json["model"] = command.model;
  json["threads"] = report.result.threads;
  json["isa"] = isa_name(report.result.isa);
  json["prompt"] = command.bench.prompt;
  json["tokens"] = command.bench.tokens;
  json["context"] = command.bench.contexts[0];
  json["repeat"] = command.bench.repeat;
  put(json, "prefill", report.result.prefill);
  json["weight_bytes_per_token"] = report.bytes[0].weights;
  json["read_bandwidth_gb_per_s"] = report.result.read_bandwidth;
  json["peak_rss_bytes"] = report.result.peak_rss_bytes;
  put_decode(json, report, 0);
  for (size_t i = 0; i < report.bytes.size() && report.bytes.size() > 1; ++i) {
    Json of_context;
    of_context["context"] = command.bench.contexts[i];
    put_decode(of_context, report, i);
    of_context["of_first_context"] = report.of_first(i);
    json["contexts"].push_back(of_context);
  }
  return json;
}

// --- Table ---

void row(const std::string& name, const Speed& speed) {
  std::printf("  %-36s %10.1f %10.1f ... %.1f\n", name.c_str(), speed.median(), speed.slowest(), speed.fastest());
}

std::string tokens_text(int64_t count) { return std::to_string(count) + (count == 1 ? " token" : " tokens"); }

void print_report(const BenchCommand& command, const BenchReport& report) {
  const BenchResult& result = report.result;
  std::printf("%s: %s, %d %s, %s\n\n", command.model.c_str(), bytes_text(model_size_bytes(command.model)).c_str(),
              result.threads, result.threads == 1 ? "thread" : "threads", isa_name(result.isa));
  std::printf("  %-36s %10s %10s ... fastest of %lld\n", "tokens/s", "median", "slowest",
              static_cast<long long>(command.bench.repeat));
  row("prefill, " + tokens_text(command.bench.prompt), result.prefill);
  const std::vector<int64_t>& contexts = command.bench.contexts;
  for (size_t i = 0; i < contexts.size(); ++i)
    row("decode, " + tokens_text(command.bench.tokens) + " after " + std::to_string(contexts[i]), result.decode[i]);
  std::printf("\n");
  for (size_t i = 0; i < contexts.size(); ++i) {
    const std::string after = contexts.size() > 1 ? " after " + std::to_string(contexts[i]) : "";
    std::printf("A token decoded%s reads %s (weights %s, KV cache %s): %.1f GB/s, %.0f %% of the %.1f GB/s %s here.\n",
                after.c_str(), bytes_text(static_cast<uint64_t>(report.bytes[i].total())).c_str(),
                bytes_text(static_cast<uint64_t>(report.bytes[i].weights)).c_str(),
                bytes_text(static_cast<uint64_t>(report.bytes[i].cache)).c_str(), report.gb_per_s(i),
                100 * report.share(i), result.read_bandwidth,
                result.threads == 1 ? "that one thread reads" : "that these threads read");
  }
  for (size_t i = 1; i < contexts.size(); ++i)
    std::printf("Decoding after %lld has %.2f of the speed after %lld.\n", static_cast<long long>(contexts[i]),
                report.of_first(i), static_cast<long long>(contexts[0]));
  std::printf("Peak resident memory: %s.\n", bytes_text(static_cast<uint64_t>(result.peak_rss_bytes)).c_str());
}

void run_bench(BenchCommand command) {
  if (command.bench.contexts.empty()) command.bench.contexts = {command.bench.prompt};
  const BenchReport report = measure(command);
  if (command.json)
    std::printf("%s\n", report_json(command, report).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  else print_report(command, report);
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<BenchCommand>();
  options->bench.contexts.clear();
  CLI::App* command = app.add_subcommand("bench", "Speed of a model here, and the share of the memory's bandwidth");
  constexpr int64_t kMost = 1 << 24;
  command->add_option("MODEL", options->model, kModelHelp)->required();
  command->add_option("--prompt", options->bench.prompt, "Tokens of a prefill, which begins with an empty cache")
      ->check(whole_number(1, kMost))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--tokens", options->bench.tokens, "Tokens decoded one by one")
      ->check(whole_number(1, kMost))
      ->type_name("N")
      ->capture_default_str();
  command
      ->add_option("--context", options->bench.contexts,
                   "Positions in the cache before decoding begins; as many as --prompt when left out. Of several, "
                   "64,4096, each has its row, measured by turns. The length the model was made for is no limit: speed "
                   "does not depend on sense")
      ->check(whole_number(0, kMost))
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("N");
  command->add_option("--repeat", options->bench.repeat, "Measured repetitions, after an unmeasured one")
      ->check(whole_number(1, 1 << 20))
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON instead of the table");
  add_engine_options(*command, options->engine, true);
  command->footer(std::string(kJsonKeys) +
                  "\n\nExample:\n  qat bench gemma-q4_0.gguf --threads 2 --prompt 512 --tokens 64");
  command->callback([options] { run_bench(*options); });
}

}  // namespace qat
