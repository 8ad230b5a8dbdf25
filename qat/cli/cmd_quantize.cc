// qat quantize: post-training quantization of a Hugging Face directory into a quantized checkpoint.
#include <CLI/CLI.hpp>
#include <filesystem>

#include "export/mobile_ptq.h"
#include "format/error.h"
#include "qat/cli/calibration.h"
#include "qat/cli/commands.h"
#include "qat/cli/dynamic_plan.h"
#include "qat/cli/options.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct QuantizeOptions {
  std::string model, out;
  PlanOptions plan;
  bool dynamic = false;  // plan dynamic: q4_0, and rules that are chosen
  std::string budget;
  std::vector<std::string> rules;             // --rule: a way to choose scales, or PATTERN=TYPE
  std::vector<std::string> importance_texts;  // text whose activations weigh the squared error
  int64_t importance_chunks = -1;             // of 512 tokens; -1: all of the text
  std::vector<std::string> calibration_texts;
  int64_t calibration_tokens = 16384;
  std::string observer = "mse";
  EngineOptions engine;
};

// How scales of weights are chosen, by name. "llama.cpp" and "reference" name the same rule, as do "search" and "mse";
// in the mobile schema, which llama.cpp has no rule for, the plain one is "max".
struct ScaleRule {
  const char* name;
  PtqMethod method;
  bool mobile, blocks;  // blocks: for the other plans
};
constexpr ScaleRule kScaleRules[] = {
    {"llama.cpp", PtqMethod::reference, false, true}, {"reference", PtqMethod::reference, false, true},
    {"search", PtqMethod::mse, true, true},           {"mse", PtqMethod::mse, true, true},
    {"max", PtqMethod::reference, true, false},       {"gptq", PtqMethod::gptq, true, true},
};

const ScaleRule& find_rule(const std::string& name, bool mobile) {
  for (const ScaleRule& rule : kScaleRules)
    if (name == rule.name && (mobile ? rule.mobile : rule.blocks)) return rule;
  fail("--rule: expected ", mobile ? "search, max, gptq" : "llama.cpp, search, gptq", " or PATTERN=TYPE, found \"",
       name, "\"");
}

// What has an "=" belongs to the plan.
PtqMethod take_method(QuantizeOptions& options) {
  const bool mobile = options.plan.name == "mobile", weighted = !options.importance_texts.empty();
  const ScaleRule* chosen = nullptr;
  for (const std::string& text : options.rules) {
    if (text.find('=') != std::string::npos) {
      options.plan.rules.push_back(text);
      continue;
    }
    const ScaleRule& rule = find_rule(text, mobile);
    if (chosen != nullptr && rule.method != chosen->method)
      fail("--rule: both ", chosen->name, " and ", rule.name, " were given");
    if (rule.method != PtqMethod::mse && weighted)
      fail("--rule ", text, " takes no --importance-text: use --rule search",
           rule.method == PtqMethod::gptq ? ", or --calibrate" : "");
    chosen = &rule;
  }
  if (chosen != nullptr) return chosen->method;
  return mobile || weighted ? PtqMethod::mse : PtqMethod::reference;
}

Importance importance_of(const QuantizeOptions& options) {
  if (options.importance_texts.empty()) return {};
  RunningModel model = run_model(options.model, options.engine);
  auto sequences = calibration_sequences(*model.tokenizer, options.importance_texts, -1);
  if (options.importance_chunks >= 0 && sequences.size() > static_cast<size_t>(options.importance_chunks))
    sequences.resize(static_cast<size_t>(options.importance_chunks));
  return collect_importance(*model.engine, sequences);
}

std::vector<std::vector<int32_t>> calibration_of(const QuantizeOptions& options) {
  if (options.calibration_texts.empty()) return {};
  return calibration_sequences(*load_tokenizer(options.model), options.calibration_texts, options.calibration_tokens);
}

void quantize_to_blocks(const QuantizeOptions& options, const Plan& plan, const PtqOptions& ptq) {
  std::unique_ptr<ProgressBar> bar;
  quantize_checkpoint(options.model, plan, ptq, options.out, [&](int64_t done, int64_t total) {
    if (!bar) bar = std::make_unique<ProgressBar>("quantize", total);
    bar->update(done);
    throw_if_interrupted();
  });
  if (bar) bar->finish();
}

Calibration observer_of(const std::string& observer) {
  if (observer == "max") return Calibration::maximum;
  return observer == "percentile" ? Calibration::percentile : Calibration::least_squares;
}

void quantize_to_mobile(const QuantizeOptions& options, const Plan& plan, const PtqOptions& ptq) {
  MobilePtqOptions mobile;
  mobile.method = ptq.method;
  mobile.importance = ptq.importance;
  mobile.observer = observer_of(options.observer);
  mobile.threads = options.engine.threads;
  mobile.calibration = ptq.calibration;
  std::string stage;
  std::unique_ptr<ProgressBar> bar;
  quantize_mobile(options.model, plan, mobile, options.out, [&](const char* name, int64_t done, int64_t total) {
    if (name != stage) {
      if (bar) bar->finish();
      bar = std::make_unique<ProgressBar>(stage = name, total);
    }
    bar->update(done);
    throw_if_interrupted();
  });
  if (bar) bar->finish();
}

void check_dynamic(const QuantizeOptions& options) {
  if (options.budget.empty())
    fail("plan dynamic chooses types under a size: give one (--budget 4.5, --budget 700MB, --budget q4_0)");
  check_budget(options.budget);
  if (options.calibration_texts.empty())
    fail("plan dynamic measures what each type costs: give a text to run (--calibrate TEXT)");
  if (options.plan.pure || !options.plan.embedding_type.empty() || !options.plan.output_type.empty())
    fail(
        "plan dynamic chooses types itself: no --pure, --token-embedding-type, --output-tensor-type; a rule "
        "PATTERN=TYPE settles a tensor's");
}

// Everything that can be said before the work begins.
void check_options(const QuantizeOptions& options, const Plan& plan, PtqMethod method) {
  if (plan.mobile) check_mobile_output(options.out);
  else check_output_directory(options.out, "qat_plan.json");
  const bool given = !options.calibration_texts.empty(), gptq = method == PtqMethod::gptq;
  if (gptq && !given) fail("--rule gptq measures what enters each linear: give a text to run (--calibrate TEXT)");
  if (options.dynamic) check_dynamic(options);
  else if (!options.budget.empty()) fail("--budget: the plan ", plan.name, " does not have it; the plan dynamic does");
  if (!plan.mobile && !gptq && !options.dynamic && given)
    fail("--calibrate: the plan ", plan.name,
         " has no static scales to calibrate; the plan mobile has, and --rule gptq takes a text");
  if (plan.mobile && needs_calibration(plan) && !given)
    fail(
        "plan mobile has static scales of activations and of the KV cache: give a text to calibrate them on "
        "(--calibrate TEXT), or leave them float (--activations off --kv-bits float)");
}

void run_quantize(QuantizeOptions options) {
  PtqOptions ptq;
  ptq.method = take_method(options);
  options.dynamic = options.plan.name == kDynamicPlan;
  if (options.dynamic) options.plan.name = "q4_0";
  Plan plan = make_plan(options.plan);
  check_options(options, plan, ptq.method);
  std::error_code ignored;
  if (std::filesystem::equivalent(options.model, options.out, ignored))
    fail("--out: ", options.out, " is the model itself");
  const InterruptGuard guard;
  const Importance importance = importance_of(options);
  if (!options.importance_texts.empty()) ptq.importance = &importance;
  ptq.threads = options.engine.threads;
  ptq.calibration = calibration_of(options);
  if (options.dynamic) plan = choose_types(options.model, plan, options.budget, ptq);
  if (plan.mobile) quantize_to_mobile(options, plan, ptq);
  else quantize_to_blocks(options, plan, ptq);
  const Totals totals = summarize(options.out).totals();
  char bits[32];
  std::snprintf(bits, sizeof bits, "%.3f", totals.bits_per_weight());
  std::printf("%s: %s, %s bits per weight\n", options.out.c_str(), bytes_text(totals.bytes).c_str(), bits);
}

void add_mobile_options(CLI::App& command, QuantizeOptions& options) {
  command
      .add_option(
          "--calibrate", options.calibration_texts,
          "Texts that are run to see activations. Plan mobile: its static scales of activations and KV cache are "
          "taken from them; --rule gptq: what enters each linear; plan dynamic: what types cost; one or more")
      ->type_name("FILE");
  command.add_option("--calibrate-tokens", options.calibration_tokens, "Use at most so many tokens of them")
      ->check(whole_number(kLeastCalibrationTokens))
      ->type_name("N")
      ->capture_default_str();
  command
      .add_option(
          "--observer", options.observer,
          "How a static scale follows from what was seen: mse (least squared error), percentile (99.99 % of the "
          "magnitudes fit), max (the mean over sequences of the largest does)")
      ->check(one_of({"mse", "percentile", "max"}))
      ->type_name("RULE")
      ->capture_default_str();
  command
      .add_option("--activations", options.plan.activations,
                  "Plan mobile: static 8-bit activations into and out of each linear: on (the default) or off")
      ->check(one_of({"on", "off"}))
      ->type_name("SWITCH");
  command
      .add_option(
          "--kv-bits", options.plan.kv_bits,
          "Plan mobile: bits of the KV cache in sliding and in global layers: 2, 4, 8 or float each, \"8,4\" when "
          "left out; one for both")
      ->type_name("BITS");
}

}  // namespace

void add_quantize_command(CLI::App& app) {
  auto options = std::make_shared<QuantizeOptions>();
  CLI::App* command = app.add_subcommand("quantize", "Quantize a checkpoint without training (PTQ)");
  command->add_option("HF_DIR", options->model, "Hugging Face directory: config.json, *.safetensors, tokenizer")
      ->required();
  command
      ->add_option(
          "--plan", options->plan.name,
          "Which type each tensor gets: as llama-quantize chooses (q4_0, q8_0, bf16, f16, f32); mobile: the widths, "
          "static activations and KV cache of Gemma 4's mobile checkpoints; dynamic: the types that cost least within "
          "--budget, measured; or the directory that --plan dynamic wrote, to use its types again")
      ->required()
      ->type_name("NAME");
  command
      ->add_option("--budget", options->budget,
                   "Plan dynamic: bits per weight of the quantized matrices (4.5), the size of the GGUF file (700MB), "
                   "or a plan whose file it may not exceed (q4_0)")
      ->type_name("SIZE");
  command
      ->add_option("--out", options->out,
                   "Directory of the quantized checkpoint; of the plan mobile, a Hugging Face directory")
      ->required()
      ->type_name("DIR");
  command
      ->add_option(
          "--rule,--method", options->rules,
          "How weights are rounded. Q4_0: llama.cpp (its reference rule, the default; also: reference) or search "
          "(scales of least squared error; also: mse). Plan mobile: search (the default) or max (the largest "
          "magnitude of a row is its highest code). Both: gptq (linears by the error of their outputs on the texts of "
          "--calibrate, layer after layer; slower, best). Or PATTERN=TYPE, as --tensor-type; may be repeated")
      ->allow_extra_args(false)
      ->type_name("RULE");
  command
      ->add_option(
          "--tensor-type", options->plan.rules,
          "Tensors whose name matches the regular expression get this type (of the plan mobile: i2, i4, i8, or a "
          "float type); may be repeated")
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
  add_mobile_options(*command, *options);
  add_engine_options(*command, options->engine, false);
  command->footer(
      "Example:\n  qat quantize gemma/ --plan q4_0 --rule search --importance-text calibration.txt --out gemma-q4\n  "
      "qat quantize gemma/ --plan q4_0 --rule gptq --calibrate calibration.txt --out gemma-q4\n  qat "
      "quantize gemma/ --plan dynamic --budget q4_0 --calibrate calibration.txt --out gemma-dynamic\n  qat "
      "quantize gemma/ --plan mobile --calibrate calibration.txt --out gemma-mobile\n  qat quantize gemma/ --plan "
      "mobile --rule 'mlp=i4' --activations off --kv-bits float --out gemma-w4");
  command->callback([options] { run_quantize(*options); });
}

}  // namespace qat
