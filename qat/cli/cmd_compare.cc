// qat compare: a float model and its quantized versions through the same evaluation, as one self-contained report.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <set>

#include "format/error.h"
#include "format/file_io.h"
#include "format/run_directory.h"
#include "inference/generate.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/cli/utf8_stream.h"
#include "qat/nearest.h"
#include "qat/progress.h"
#include "qat/report/report.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kSampleTokens = 64;

struct CompareOptions {
  std::string base, text, out, tensor, prompt;
  std::vector<std::string> models, labels;  // as given; "PATH=NAME"
  int64_t context = 512, chunks = -1;       // -1: all
  EngineOptions engine;
};

// --- What was asked for ---

// What a MODEL stands for: itself, or the result of a run of `qat train`.
struct ModelSource {
  std::string given, path, run, label;  // run: empty when it is none
};

ModelSource find_source(const std::string& given) {
  ModelSource source = {given, given, "", ""};
  if (!is_run(given)) return source;
  source.run = given;
  const std::vector<std::string> results = run_results(given);
  if (results.empty())
    fail(given, ": a run of `qat train` without a result (no quantized/): finish it with `qat train --resume --out ",
         given, "`");
  source.path = results.front();
  return source;
}

// "runs/q4/quantized" -> "q4", "files/model.gguf" -> "model".
std::string default_label(const std::string& path) {
  fs::path name = fs::absolute(path).lexically_normal();
  if (name.filename().empty()) name = name.parent_path();
  for (const char* result : kRunResults) {
    if (name.filename() != result) continue;
    name = name.parent_path();
    break;
  }
  if (name.extension() == ".gguf") name = name.stem();
  return name.filename().empty() ? path : name.filename().string();
}

void set_labels(const CompareOptions& options, std::vector<ModelSource>* sources) {
  std::set<std::string> seen, twice;
  for (ModelSource& source : *sources) {
    source.label = default_label(source.given);
    if (!seen.insert(source.label).second) twice.insert(source.label);
  }
  for (ModelSource& source : *sources)
    if (twice.count(source.label) == 1) source.label = source.given;
  for (const std::string& assignment : options.labels) {
    bool found = false;
    for (ModelSource& source : *sources) {
      if (assignment.rfind(source.given + "=", 0) != 0 || assignment.size() == source.given.size() + 1) continue;
      source.label = assignment.substr(source.given.size() + 1);
      found = true;
    }
    if (!found)
      fail("--label: expected PATH=NAME with the PATH of a model as it is given here, found \"", assignment, "\"");
  }
}

std::string quoted(const std::string& argument) {
  const char* const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./=,:+-";
  if (!argument.empty() && argument.find_first_not_of(plain) == std::string::npos) return argument;
  std::string out = "'";
  for (const char c : argument) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

std::string command_text(const CompareOptions& options) {
  std::string text = "qat compare " + quoted(options.base);
  for (const std::string& model : options.models) text += " " + quoted(model);
  text += " --text " + quoted(options.text) + " --out " + quoted(options.out) + " --context " +
          std::to_string(options.context);
  if (options.chunks >= 0) text += " --chunks " + std::to_string(options.chunks);
  if (!options.tensor.empty()) text += " --tensor " + quoted(options.tensor);
  if (!options.prompt.empty()) text += " --prompt " + quoted(options.prompt);
  for (const std::string& label : options.labels) text += " --label " + quoted(label);
  return text;
}

// The text's first words; of a text without spaces, its first characters.
std::string first_words(const std::string& text) {
  constexpr size_t kWords = 8, kBytes = 100;
  const char* const space = " \t\r\n";
  const size_t begin = std::min(text.find_first_not_of(space), text.size());
  size_t end = begin;
  for (size_t words = 0; words < kWords && end < text.size(); ++words) {
    const size_t word = text.find_first_not_of(space, end);
    const size_t next = std::min(text.find_first_of(space, word), text.size());
    if (word == std::string::npos || next - begin > kBytes) break;
    end = next;
  }
  if (end == begin) end = std::min(begin + kBytes, text.size());
  while (end > begin && end < text.size() && (text[end] & 0xc0) == 0x80) --end;  // not in the middle of a character
  return text.substr(begin, end - begin);
}

// Canonical name of the matrix that --tensor means.
std::string find_tensor(const ModelConfig& config, const std::string& name) {
  std::vector<std::string> names;
  for (const TensorInfo& info : tensor_table(config)) {
    if (info.shape.size() != 2) continue;
    if (name == info.name || name == info.gguf) return info.name;
    names.push_back(info.name);
    names.push_back(info.gguf);
  }
  const std::string hint = suggestion(name, names);
  fail("--tensor: the float model has no matrix \"", name, "\"", hint.empty() ? "; `qat inspect` lists them" : hint);
}

// --- Running ---

struct Contestants {
  RunningModel base;
  std::vector<RunningModel> models;
  EvalChunks chunks;
};

Contestants load(const CompareOptions& options, const std::vector<ModelSource>& sources, const std::string& text) {
  Contestants all;
  all.base = run_model(options.base, options.engine);
  all.chunks = make_chunks(*all.base.tokenizer, text, options.text, options.context, options.chunks);
  warn_about_context(options.base, all.base.engine->config(), options.context);
  for (const ModelSource& source : sources) {
    all.models.push_back(run_model(source.path, options.engine));
    check_same_vocabulary(all.models.back(), all.base);
    check_same_tokens(make_chunks(*all.models.back().tokenizer, text, options.text, options.context, options.chunks),
                      source.path, all.chunks, options.base);
  }
  return all;
}

std::vector<KlResult> evaluate(Contestants& all) {
  ProgressBar bar("evaluate", all.chunks.count());
  std::vector<Engine*> engines;
  for (const RunningModel& model : all.models) engines.push_back(model.engine.get());
  auto results = kl_divergences(engines, *all.base.engine, all.chunks, [&](int64_t done, int64_t, double) {
    bar.update(done, std::to_string(all.models.size() + 1) + " models side by side");
    throw_if_interrupted();
  });
  bar.finish();
  return results;
}

struct Sample {
  std::vector<int32_t> ids;
  std::vector<size_t> ends;  // bytes of the text after each token
  std::string text;
};

Sample write_sample(RunningModel& model, const std::string& prompt_text) {
  const std::vector<int32_t> prompt = model.tokenizer->encode_with_bos(prompt_text);
  if (prompt.empty()) fail("--prompt: expected text, found \"\" (and the tokenizer adds no BOS)");
  Sample sample;
  Utf8Stream stream;
  SamplingOptions greedy;
  greedy.temperature = 0.0f;
  generate(*model.engine, *model.tokenizer, prompt, kSampleTokens, greedy, [&](int32_t id) {
    sample.ids.push_back(id);
    sample.text += stream.add(model.tokenizer->decode_token(id));
    sample.ends.push_back(sample.text.size());
    throw_if_interrupted();
  });
  sample.text += stream.finish();
  return sample;
}

void write_samples(Contestants& all, Report* report) {
  ProgressBar bar("generate", static_cast<int64_t>(all.models.size()) + 1);
  const Sample base = write_sample(all.base, report->prompt);
  report->float_sample = base.text;
  report->float_sample_tokens = static_cast<int64_t>(base.ids.size());
  for (size_t i = 0; i < all.models.size(); ++i) {
    bar.update(static_cast<int64_t>(i) + 1);
    const Sample own = write_sample(all.models[i], report->prompt);
    size_t equal = 0;
    while (equal < own.ids.size() && equal < base.ids.size() && own.ids[equal] == base.ids[equal]) ++equal;
    ReportModel& model = report->models[i];
    model.sample = own.text;
    model.sample_tokens = static_cast<int64_t>(own.ids.size());
    model.sample_equal = static_cast<int64_t>(equal);
    model.sample_equal_bytes = equal == 0 ? 0 : own.ends[equal - 1];
  }
  bar.finish();
}

// --- Weights ---

// Of the tensors that some model has in codes, the one with the largest error; empty: none.
std::string worst_tensor(const Report& report) {
  std::string name;
  double worst = 0.0;
  for (const ReportModel& m : report.models) {
    if (!m.weights) continue;
    for (const TensorError& t : m.weights->tensors) {
      if (!t.coded || t.relative <= worst) continue;
      worst = t.relative;
      name = t.info.name;
    }
  }
  return name;
}

void add_histograms(const Weights& base, const std::vector<Weights>& models, Report* report) {
  if (report->histogram_tensor.empty()) report->histogram_tensor = worst_tensor(*report);
  for (size_t i = 0; i < models.size(); ++i) {
    report->histograms.emplace_back();
    if (!report->models[i].weights) continue;
    for (const TensorError& t : report->models[i].weights->tensors)
      if (t.info.name == report->histogram_tensor) report->histograms.back() = level_histogram(base, models[i], t.info);
  }
}

void compare_weights(const CompareOptions& options, const std::vector<ModelSource>& sources, Report* report) {
  const Weights base = load_weights(options.base);
  std::vector<Weights> models;
  for (const ModelSource& source : sources) models.push_back(load_weights(source.path));
  std::vector<std::pair<size_t, size_t>> pairs;  // untrained, trained; comparable
  int64_t total = 0, done = 0;
  for (size_t i = 0; i < models.size(); ++i) {
    ReportModel& m = report->models[i];
    if (!same_shapes(base, models[i])) {
      std::fprintf(stderr, "%s: its tensors have other shapes than the float model's; its weights are not compared\n",
                   sources[i].path.c_str());
      m.trained = true;
      continue;
    }
    m.trained = !m.metrics.empty() || !sources[i].run.empty() || norms_differ(base, models[i]);
    m.weights.emplace();
    total += matrix_weights(models[i]);
  }
  for (size_t a = 0; a < models.size(); ++a)
    for (size_t b = 0; b < models.size(); ++b)
      if (!report->models[a].trained && report->models[b].trained && same_types(models[a], models[b]))
        pairs.emplace_back(a, b), total += matrix_weights(models[a]);

  ThreadPool pool(options.engine.threads);
  ProgressBar bar("weights", total);
  const WeightProgress progress = [&](int64_t weights) {
    bar.update(done += weights);
    throw_if_interrupted();
  };
  for (size_t i = 0; i < models.size(); ++i)
    if (report->models[i].weights) report->models[i].weights = weight_error(base, models[i], pool, progress);
  for (const auto& [a, b] : pairs) report->moved.push_back({a, b, moved_codes(models[a], models[b], pool, progress)});
  add_histograms(base, models, report);
  bar.finish();
}

// --- The report ---

void describe_files(const CompareOptions& options, const std::vector<ModelSource>& sources, Report* report) {
  const auto tensor_totals = [](const std::string& path) { return summarize(path).totals(); };
  const Totals base = tensor_totals(options.base);
  report->float_label = sources.front().label;
  report->float_path = options.base;
  report->float_size_bytes = model_size_bytes(options.base);
  report->float_tensor_bytes = base.bytes;
  report->float_bits_per_weight = base.bits_per_weight();
  for (size_t i = 1; i < sources.size(); ++i) {
    const Totals totals = tensor_totals(sources[i].path);
    ReportModel model;
    model.label = sources[i].label;
    model.path = sources[i].path;
    model.size_bytes = model_size_bytes(sources[i].path);
    model.tensor_bytes = totals.bytes;
    model.bits_per_weight = totals.bits_per_weight();
    if (!sources[i].run.empty()) model.metrics = read_run_metrics(sources[i].run + "/metrics.jsonl");
    report->models.push_back(std::move(model));
  }
}

void print_summary(const Report& report, const std::string& out) {
  std::printf("%-28s %14s %12s %12s %10s\n", "model", "size (bytes)", "perplexity", "mean KLD", "same top");
  const auto row = [](const std::string& label, uint64_t size, double perplexity, double kld, double top) {
    std::printf("%-28s %14llu %12.4f %12.5f %9.2f%%\n", printable(label, 60).c_str(),
                static_cast<unsigned long long>(size), perplexity, kld, 100 * top);
  };
  row(report.float_label, report.float_size_bytes, report.models.front().kl.ppl_base.value, 0.0, 1.0);
  for (const ReportModel& m : report.models)
    row(m.label, m.size_bytes, m.kl.ppl_q.value, m.kl.kld.value, m.kl.same_top.value);
  std::printf("%s/report.html (and report.json, report.md)\n", out.c_str());
}

void run_compare(const CompareOptions& options) {
  check_output_directory(options.out, "");
  std::vector<ModelSource> sources = {{options.base, options.base, "", ""}};
  for (const std::string& model : options.models) sources.push_back(find_source(model));
  set_labels(options, &sources);
  const std::string text = read_text(options.text);

  Report report;
  report.text = options.text;
  report.command = command_text(options);
  report.context = options.context;
  report.prompt = options.prompt.empty() ? first_words(text) : options.prompt;
  report.sample_tokens = kSampleTokens;
  const std::vector<ModelSource> compared(sources.begin() + 1, sources.end());
  const InterruptGuard guard;
  std::optional<Contestants> all = load(options, compared, text);
  if (!options.tensor.empty()) {
    report.histogram_tensor = find_tensor(all->base.engine->config(), options.tensor);
    report.histogram_chosen = true;
  }
  describe_files(options, sources, &report);
  AtomicDirectory directory(options.out);
  report.chunks = all->chunks.count();
  const std::vector<KlResult> results = evaluate(*all);
  for (size_t i = 0; i < results.size(); ++i) report.models[i].kl = results[i];
  write_samples(*all, &report);
  all.reset();  // the engines' memory
  compare_weights(options, compared, &report);
  compare_with_baselines(&report);

  write_file(directory.path() + "/report.json", report_json(report));
  write_file(directory.path() + "/report.md", report_markdown(report));
  write_file(directory.path() + "/report.html", report_html(report));
  directory.commit();
  print_summary(report, options.out);
}

}  // namespace

void add_compare_command(CLI::App& app) {
  auto options = std::make_shared<CompareOptions>();
  options->engine.cache_type = DType::F16;  // as `qat eval`, so that the figures are the same
  CLI::App* command = app.add_subcommand("compare", "Float model against quantized ones, as a report to read");
  command->add_option("FLOAT_MODEL", options->base, "What the others are held against, evaluated once for all of them")
      ->required();
  command
      ->add_option("MODEL", options->models,
                   "One or more: GGUF file, Hugging Face directory, quantized checkpoint, or the --out directory of a "
                   "`qat train` run")
      ->required();
  command->add_option("--text", options->text, "Text to score, as in `qat eval`")->required()->type_name("FILE");
  command->add_option("--out", options->out, "New directory: report.html, report.json, report.md")
      ->required()
      ->type_name("DIR");
  command->add_option("--context", options->context, "Tokens per chunk; the second half of each is scored")
      ->check(whole_number(4, 1 << 24))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--chunks", options->chunks, "At most so many chunks")->check(whole_number(1))->type_name("N");
  command->add_option("--tensor", options->tensor, "Matrix for the histogram; else the one with the largest error")
      ->type_name("NAME");
  command->add_option("--prompt", options->prompt, "What the models continue; else the first words of the text")
      ->type_name("TEXT");
  command->add_option("--label", options->labels, "What to call the model at PATH; may be repeated")
      ->allow_extra_args(false)
      ->type_name("PATH=NAME");
  add_engine_options(*command, options->engine, false);
  command->footer(
      "All models stay in memory and read the text chunk by chunk, the float model once for all.\n"
      "report.html is one file without scripts or links to elsewhere; a model counts as trained when it is\n"
      "a run, or when its norms are not the float model's.\n\n"
      "Example:\n  qat compare gemma/ ptq.gguf runs/gemma-q4 --text wiki.txt --label ptq.gguf='Q4_0, PTQ' --out "
      "report");
  command->callback([options] { run_compare(*options); });
}

}  // namespace qat
