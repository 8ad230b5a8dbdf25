// qat quantize: post-training quantization of a Hugging Face directory into a quantized checkpoint.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "export/ptq.h"
#include "format/error.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct QuantizeOptions {
  std::string model, out;
  PlanOptions plan;
  std::vector<std::string> rules;             // --rule: a way to choose scales, or PATTERN=TYPE
  std::vector<std::string> importance_texts;  // text whose activations weigh the squared error
  int64_t importance_chunks = -1;             // of 512 tokens; -1: all of the text
  EngineOptions engine;
};

constexpr int64_t kImportanceContext = 512;  // tokens per forward pass

// "llama.cpp" and "reference" name the same rule, as do "search" and "mse"; what has an "=" belongs to the plan.
PtqMethod take_method(QuantizeOptions& options) {
  bool searched = !options.importance_texts.empty(), named = false;
  for (const std::string& rule : options.rules) {
    if (rule.find('=') != std::string::npos) {
      options.plan.rules.push_back(rule);
      continue;
    }
    const bool reference = rule == "llama.cpp" || rule == "reference", search = rule == "search" || rule == "mse";
    if (!reference && !search) fail("--rule: expected llama.cpp, search or PATTERN=TYPE, found \"", rule, "\"");
    if (named && search != searched) fail("--rule: both llama.cpp and search were given");
    if (reference && !options.importance_texts.empty())
      fail("--rule llama.cpp takes no --importance-text: use --rule search");
    searched = search;
    named = true;
  }
  return searched ? PtqMethod::mse : PtqMethod::reference;
}

// Sums of squares of each linear's inputs.
struct ActivationSums {
  struct Sum {
    std::vector<double> squares;
    int64_t rows = 0;
  };
  std::map<std::string, Sum> by_name;

  void add(const Observed& observed) {
    if (observed.kind != Activation::input) return;
    Sum& sum = by_name[observed.name];
    sum.squares.resize(static_cast<size_t>(observed.cols));
    const float* x = observed.data;
    for (int64_t r = 0; r < observed.rows; ++r, x += observed.cols) {
      for (int64_t c = 0; c < observed.cols; ++c)
        sum.squares[static_cast<size_t>(c)] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    }
    sum.rows += observed.rows;
  }

  Importance mean() const {
    Importance importance;
    for (const auto& [name, sum] : by_name) {
      std::vector<float>& mean = importance[name];
      for (const double square : sum.squares)
        mean.push_back(static_cast<float>(square / static_cast<double>(sum.rows)));
    }
    return importance;
  }
};

Importance collect_importance(const QuantizeOptions& options) {
  RunningModel model = run_model(options.model, options.engine);
  std::vector<int32_t> ids;
  for (const std::string& path : options.importance_texts) {
    const std::vector<int32_t> more = model.tokenizer->encode(read_text(path), false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  const bool bos = model.tokenizer->add_bos();
  const int64_t step = kImportanceContext - (bos ? 1 : 0), length = static_cast<int64_t>(ids.size());
  int64_t chunks = (length + step - 1) / step;
  if (options.importance_chunks >= 0) chunks = std::min(chunks, options.importance_chunks);
  ActivationSums sums;
  model.engine->set_activation_hook([&](const Observed& observed) { sums.add(observed); });
  KvCache cache(model.engine->config(), kImportanceContext);
  std::vector<float> logits(static_cast<size_t>(model.engine->config().vocab));
  ProgressBar bar("activations", chunks);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    std::vector<int32_t> tokens;
    if (bos) tokens.push_back(model.tokenizer->bos_id());
    tokens.insert(tokens.end(), ids.begin() + chunk * step, ids.begin() + std::min(length, (chunk + 1) * step));
    cache.clear();
    model.engine->forward(tokens, cache, tokens.size() - 1, logits.data());
    bar.update(chunk + 1);
    throw_if_interrupted();
  }
  return sums.mean();
}

void run_quantize(QuantizeOptions options) {
  PtqOptions ptq;
  ptq.method = take_method(options);
  const Plan plan = make_plan(options.plan);
  check_output_directory(options.out, "qat_plan.json");
  std::error_code ignored;
  if (std::filesystem::equivalent(options.model, options.out, ignored))
    fail("--out: ", options.out, " is the model itself");
  const InterruptGuard guard;
  Importance importance;
  if (!options.importance_texts.empty()) {
    importance = collect_importance(options);
    ptq.importance = &importance;
  }
  ProgressBar bar("quantize", static_cast<int64_t>(summarize(options.model).totals().weights));
  quantize_checkpoint(options.model, plan, ptq, options.out, [&](int64_t done, int64_t) {
    bar.update(done);
    throw_if_interrupted();
  });
  bar.finish();
  const Totals totals = summarize(options.out).totals();
  char bits[32];
  std::snprintf(bits, sizeof bits, "%.3f", totals.bits_per_weight());
  std::printf("%s: %s, %s bits per weight\n", options.out.c_str(), bytes_text(totals.bytes).c_str(), bits);
}

}  // namespace

void add_quantize_command(CLI::App& app) {
  auto options = std::make_shared<QuantizeOptions>();
  CLI::App* command = app.add_subcommand("quantize", "Quantize a checkpoint without training (PTQ)");
  command->add_option("HF_DIR", options->model, "Hugging Face directory: config.json, *.safetensors, tokenizer")
      ->required();
  command
      ->add_option("--plan", options->plan.name,
                   "Which type each tensor gets, as llama-quantize chooses: q4_0, q8_0, bf16, f16, f32")
      ->required()
      ->type_name("NAME");
  command->add_option("--out", options->out, "Directory of the quantized checkpoint")->required()->type_name("DIR");
  command
      ->add_option("--rule,--method", options->rules,
                   "How Q4_0 scales are chosen: llama.cpp (its reference rule, the default; also: reference) or search "
                   "(least squared "
                   "error; also: mse). Or PATTERN=TYPE, as --tensor-type; may be repeated")
      ->allow_extra_args(false)
      ->type_name("RULE");
  command
      ->add_option("--tensor-type", options->plan.rules,
                   "Tensors whose name matches the regular expression get this type; may be repeated")
      ->allow_extra_args(false)
      ->type_name("PATTERN=TYPE");
  command->add_option("--token-embedding-type", options->plan.embedding_type, "Type of the embedding tables")
      ->type_name("TYPE");
  command->add_option("--output-tensor-type", options->plan.output_type, "Type of the output matrix")
      ->type_name("TYPE");
  command->add_flag("--pure", options->plan.pure, "Every matrix gets the plan's type, embeddings and output too");
  command
      ->add_option(
          "--importance-text", options->importance_texts,
          "Weigh squared errors by the activations that these texts cause (chooses --rule search); one or more")
      ->type_name("FILE");
  command
      ->add_option("--importance-chunks", options->importance_chunks,
                   "Use at most so many chunks of 512 tokens of them")
      ->check(whole_number(1))
      ->type_name("N");
  add_engine_options(*command, options->engine, false);
  command->footer(
      "Example:\n  qat quantize gemma/ --plan q4_0 --rule search --importance-text calibration.txt --out gemma-q4");
  command->callback([options] { run_quantize(*options); });
}

}  // namespace qat
