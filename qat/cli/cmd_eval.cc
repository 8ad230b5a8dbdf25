// qat eval: perplexity of a text, and what quantization changed against a base model; as a table or as JSON.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "format/error.h"
#include "inference/evaluate.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"
#include "qat/report/report.h"

namespace qat {
namespace {

struct EvalOptions {
  std::string model, text, base, save_base;
  int64_t context = 0;  // 0: that of a saved base, or 512
  int64_t chunks = -1;  // -1: all
  bool json = false;
  EngineOptions engine;
};

struct EvalReport {
  PerplexityResult model;
  std::optional<KlResult> kl;  // against the base
  int64_t context = 0, chunks = 0;
  uint64_t size_bytes = 0;
  double bits_per_weight = 0.0;
  double seconds = 0.0;
};

// --- Running ---

KlResult run_against_model(RunningModel& model, const EvalOptions& options, const std::string& text,
                           const EvalChunks& chunks, const EvalProgress& progress) {
  RunningModel base = run_model(options.base, options.engine);
  check_same_vocabulary(model, base);
  check_same_tokens(chunks, options.model,
                    make_chunks(*base.tokenizer, text, options.text, options.context, options.chunks), options.base);
  return kl_divergence(*model.engine, *base.engine, chunks, progress);
}

// The tokens come from the file; a text or a context, when given, must be the one it was made from.
EvalChunks saved_chunks(const RunningModel& model, const EvalOptions& options) {
  const EvalChunks saved = read_base_chunks(options.base, *model.tokenizer);
  if (options.context != 0 && options.context != saved.context)
    fail("--context ", options.context, ": ", options.base, " was saved with ", saved.context);
  if (options.chunks >= 0) fail("--chunks: the saved base ", options.base, " is compared whole");
  if (options.text.empty()) return saved;
  check_same_tokens(make_chunks(*model.tokenizer, read_text(options.text), options.text, saved.context, saved.count()),
                    options.model, saved, options.base);
  return saved;
}

EvalReport evaluate(const EvalOptions& options, bool saved) {
  if (options.text.empty() && !saved) fail("--text is required: a text file");
  if (!options.save_base.empty() && !options.base.empty())
    fail("--save-base and --base exclude each other: the first writes the logits that the second compares with");
  if (!options.save_base.empty()) check_output_file(options.save_base);
  RunningModel model = run_model(options.model, options.engine);
  const std::string text = saved ? "" : read_text(options.text);
  const EvalChunks chunks = saved ? saved_chunks(model, options)
                                  : make_chunks(*model.tokenizer, text, options.text, options.context, options.chunks);
  warn_about_context(options.model, model.engine->config(), chunks.context);

  const InterruptGuard guard;
  ProgressBar bar("eval", chunks.count());
  const auto start = std::chrono::steady_clock::now();
  const EvalProgress progress = [&](int64_t done, int64_t, double ppl) {
    char shown[48];
    std::snprintf(shown, sizeof shown, "perplexity %.4f", ppl);
    bar.update(done, shown);
    throw_if_interrupted();
  };
  EvalReport report;
  if (saved) report.kl = kl_divergence(*model.engine, options.base, progress);
  else if (!options.base.empty()) report.kl = run_against_model(model, options, text, chunks, progress);
  else if (!options.save_base.empty()) report.model = save_base(*model.engine, chunks, options.save_base, progress);
  else report.model = perplexity(*model.engine, chunks, progress);
  bar.finish();
  if (report.kl) report.model = {report.kl->ppl_q, std::log(report.kl->ppl_q.value), report.kl->tokens};
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.context = chunks.context;
  report.chunks = chunks.count();
  report.size_bytes = model_size_bytes(options.model);
  report.bits_per_weight = summarize(options.model).totals().bits_per_weight();
  return report;
}

double tokens_per_second(const EvalReport& report) {
  return static_cast<double>(report.chunks * report.context) / std::max(report.seconds, 1e-9);
}

// --- JSON ---

using Json = nlohmann::ordered_json;

Json percentiles_json(const std::vector<KlResult::Percentile>& percentiles) {
  Json json;
  for (const KlResult::Percentile& p : percentiles) json[percentile_key(p.fraction)] = p.value;
  return json;
}

void put(Json& json, const std::string& key, const Estimate& estimate) {
  json[key] = estimate.value;
  json[key + "_error"] = estimate.error;
}

constexpr const char* kJsonKeys = R"(Keys of --json:
  model, base, text, context, chunks
  tokens                    scored
  perplexity, mean_nll      nats per token
  size_bytes, bits_per_weight, seconds, tokens_per_second
and with a base:
  base_perplexity, ppl_ratio (model / base), ln_ppl_ratio, ppl_difference, ppl_correlation
  mean_kld                  nats per token
  kld_percentiles           {max, p99.9, p99, p95, p90, p50, p10, p5, p1, p0.1, min}
  mean_delta_p, rms_delta_p, delta_p_percentiles, same_top    fractions of 1
Estimates have a second key with _error at its end: one standard error.)";

Json report_json(const EvalOptions& options, const EvalReport& report) {
  Json json;
  json["model"] = options.model;
  if (!options.base.empty()) json["base"] = options.base;
  json["text"] = options.text;
  json["context"] = report.context;
  json["chunks"] = report.chunks;
  json["tokens"] = report.model.tokens;
  put(json, "perplexity", report.model.perplexity);
  json["mean_nll"] = report.model.mean_nll;
  if (report.kl) {
    for (const Figure& figure : kl_figures(*report.kl)) {
      if (!figure.percentiles.empty()) json[figure.key] = percentiles_json(figure.percentiles);
      else if (figure.error) put(json, figure.key, {figure.value, *figure.error});
      else json[figure.key] = figure.value;
    }
  }
  json["size_bytes"] = report.size_bytes;
  json["bits_per_weight"] = report.bits_per_weight;
  json["seconds"] = report.seconds;
  json["tokens_per_second"] = tokens_per_second(report);
  return json;
}

// --- Table ---

std::string percentile_label(double fraction) {
  if (fraction >= 1.0) return "maximum";
  if (fraction <= 0.0) return "minimum";
  if (fraction == 0.5) return "median";
  char text[16];
  std::snprintf(text, sizeof text, "%5.1f %%", fraction * 100);
  return text;
}

// How a block of rows shows its values: nats and perplexities, or fractions as percent.
struct Unit {
  double scale;
  int decimals;
  const char* suffix;
};
constexpr Unit kPlain = {1.0, 6, ""};
constexpr Unit kPercent = {100.0, 3, " %"};

void row(const std::string& label, const Estimate& e, const Unit& unit = kPlain) {
  std::printf("  %-28s %12.*f%s ± %.*f%s\n", label.c_str(), unit.decimals, unit.scale * e.value, unit.suffix,
              unit.decimals, unit.scale * e.error, unit.suffix);
}
void row(const std::string& label, double value, const Unit& unit = kPlain) {
  std::printf("  %-28s %12.*f%s\n", label.c_str(), unit.decimals, unit.scale * value, unit.suffix);
}

void print_report(const EvalOptions& options, const EvalReport& report) {
  std::printf("%s: %s, %.3f bits per weight\n", options.model.c_str(), bytes_text(report.size_bytes).c_str(),
              report.bits_per_weight);
  if (report.kl) std::printf("against %s\n", options.base.c_str());
  std::printf("%s: %lld chunks of %lld tokens, %lld tokens scored\n\n",
              options.text.empty() ? options.base.c_str() : options.text.c_str(), static_cast<long long>(report.chunks),
              static_cast<long long>(report.context), static_cast<long long>(report.model.tokens));
  std::printf("Perplexity\n");
  row("of the model", report.model.perplexity);
  if (report.kl) {
    const KlResult& kl = *report.kl;
    row("of the base", kl.ppl_base);
    row("ratio", kl.ratio);
    row("ln(ratio)", kl.ln_ratio);
    row("difference", kl.difference);
    row("correlation of logarithms", kl.nll_correlation, kPercent);
    std::printf("\nKL divergence, nats per token\n");
    row("mean", kl.kld);
    for (const KlResult::Percentile& p : kl.kld_percentiles) row(percentile_label(p.fraction), p.value);
    std::printf("\nProbability of the text's token, change (Δp)\n");
    row("mean", kl.delta_p, kPercent);
    for (const KlResult::Percentile& p : kl.delta_p_percentiles) row(percentile_label(p.fraction), p.value, kPercent);
    row("root mean square", kl.rms_delta_p, kPercent);
    std::printf("\nTop token\n");
    row("same", kl.same_top, kPercent);
  }
  std::fprintf(stderr, "%s, %.0f tokens/s\n", duration_text(report.seconds).c_str(), tokens_per_second(report));
}

void run_eval(EvalOptions options) {
  const bool saved = !options.base.empty() && is_saved_base(options.base);
  if (options.context == 0 && !saved) options.context = 512;
  const EvalReport report = evaluate(options, saved);
  if (options.json)
    std::printf("%s\n", report_json(options, report).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  else print_report(options, report);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Perplexity, and KL divergence to a base model");
  command->add_option("MODEL", options->model, kModelHelp)->required();
  command->add_option("--text", options->text, "Text to score, as llama-perplexity -f (not needed with a saved base)")
      ->type_name("FILE");
  command->add_option("--context", options->context, "Tokens per chunk; the second half of each is scored")
      ->check(whole_number(4, 1 << 24))
      ->type_name("N")
      ->default_str("512");
  command
      ->add_option("--base", options->base,
                   "Float model to compare with, or a file of --save-base or llama-perplexity --kl-divergence-base")
      ->type_name("MODEL|FILE");
  command
      ->add_option("--save-base", options->save_base, "Also write the logits in llama-perplexity's format, for --base")
      ->type_name("FILE");
  command->add_option("--chunks", options->chunks, "At most so many chunks")->check(whole_number(1))->type_name("N");
  command->add_flag("--json", options->json, "Print JSON instead of the table");
  add_engine_options(*command, options->engine, true);
  command->footer(std::string(kJsonKeys) +
                  "\n\nExample:\n  qat eval gemma-q4_0.gguf --base gemma/ --text text.txt --context 512 --json");
  command->callback([options] { run_eval(*options); });
}

}  // namespace qat
