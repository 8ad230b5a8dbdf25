#include "qat/cli/options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <csignal>
#include <filesystem>
#include <map>
#include <sstream>

#include "format/channel_grid.h"
#include "format/checkpoint.h"
#include "format/error.h"
#include "format/file_io.h"
#include "inference/evaluate.h"
#include "qat/progress.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

volatile std::sig_atomic_t g_signal = 0;

extern "C" void note_signal(int signal) { g_signal = signal; }

void set_handler(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

std::string expected(const std::string& what, const std::string& found) {
  return "expected " + what + ", found \"" + found + "\"";
}

// Shortest decimal text: "0.95", "100".
std::string plain(double x) {
  std::ostringstream text;
  text << x;
  return text.str();
}

}  // namespace

ValueCheck whole_number(int64_t min, int64_t max) {
  return [min, max](const std::string& text) -> std::string {
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    if (whole && value >= min && value <= max) return "";
    const bool bounded = max != std::numeric_limits<int64_t>::max();
    return expected(bounded ? "a whole number from " + std::to_string(min) + " to " + std::to_string(max)
                            : "a whole number, at least " + std::to_string(min),
                    text);
  };
}

ValueCheck number(double min, double max) {
  return [min, max](const std::string& text) -> std::string {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool all = error == std::errc() && end == text.data() + text.size();
    if (all && value >= min && value <= max) return "";
    return expected("a number from " + plain(min) + " to " + plain(max), text);
  };
}

ValueCheck one_of(std::vector<std::string> names) {
  return [names = std::move(names)](const std::string& text) -> std::string {
    std::string all;
    for (const std::string& name : names) {
      if (name == text) return "";
      all += (all.empty() ? "" : ", ") + name;
    }
    return expected(all, text);
  };
}

void add_engine_options(CLI::App& command, EngineOptions& options, bool reference) {
  command.add_option("--threads", options.threads, "Processor threads; 0: all")
      ->check(whole_number(0, 4096))
      ->type_name("N");
  if (!reference) return;
  command.add_flag("--reference", options.reference, "Plain loops over floats instead of the fast kernels");
  command.add_flag("--no-mmap", options.copy_weights,
                   "Copy the weights into memory, in pages of megabytes, instead of reading them where the file is "
                   "mapped: decodes faster where the page cache holds the file in small pages");
  options.cache_type = DType::F16;
  command.add_flag("--exact", options.float_activations,
                   "Floats everywhere (but in --kv-cache q8_0); else activations that meet quantized weights are "
                   "rounded to 8 bits, 32 to a scale, and K and V are float16, as in llama.cpp");
  command
      .add_option_function<std::string>(
          "--kv-cache",
          [&options](const std::string& kind) {
            options.float_cache = kind == "float";
            options.cache_type = kind == "float" ? DType::F32 : kind == "q8_0" ? DType::Q8_0 : DType::F16;
          },
          "K and V. file: as the model's file says (a mobile directory's static grids; else float16); q8_0: what has "
          "no static grid in 8 bits, as llama.cpp's -ctk q8_0 -ctv q8_0 without its Hadamard rotation "
          "(LLAMA_ATTN_ROT_DISABLE=1); float: all in 32 bits")
      ->check(one_of({"file", "q8_0", "float"}))
      ->type_name("KIND")
      ->default_str("file");
}

DType grid_from_name(const std::string& name, const std::string& flag, bool mobile) {
  const DTypeInfo* info = find_dtype_by_name(name);
  const bool known = info != nullptr && (is_grid(info->id) || (mobile && code_bits(info->id) != 0));
  if (!known || (mobile && has_codes(info->id)))
    fail(flag, ": expected one of ",
         mobile ? "i2, i4, i8, f32, f16, bf16 (plan mobile)" : "f32, f16, bf16, q8_0, q6_k, q4_0, q2_0", ", found \"",
         name, "\"");
  return info->id;
}

namespace {

// "8,4": of sliding and of global layers; one number or word for both.
void set_kv_bits(const std::string& text, Plan* plan) {
  const size_t comma = text.find(',');
  const auto width = [&](const std::string& part) {
    static const std::map<std::string, int> kWidths = {{"2", 2}, {"4", 4}, {"8", 8}, {"float", 0}};
    const auto found = kWidths.find(part);
    if (found == kWidths.end())
      fail("--kv-bits: expected 2, 4, 8 or float, for sliding and for global layers (\"8,4\"), found \"", text, "\"");
    return found->second;
  };
  plan->kv_sliding_bits = width(text.substr(0, comma));
  plan->kv_global_bits = comma == std::string::npos ? plan->kv_sliding_bits : width(text.substr(comma + 1));
}

void set_mobile_options(const PlanOptions& options, Plan* plan) {
  const auto unknown = [&](const std::string& flag) {
    fail(flag, ": the plan ", plan->name, " does not have it; the plan mobile does");
  };
  if (plan->mobile && options.pure) fail("--pure: the plan mobile has a width for each kind of tensor; use --rule");
  if (!options.activations.empty()) {
    if (!plan->mobile) unknown("--activations");
    plan->activations = options.activations == "on";
  }
  if (!options.kv_bits.empty()) {
    if (!plan->mobile) unknown("--kv-bits");
    set_kv_bits(options.kv_bits, plan);
  }
}

}  // namespace

Plan make_plan(const PlanOptions& options) {
  Plan plan = plan_from_name_or_file(options.name);
  const auto type = [&](const std::string& name, const std::string& flag) {
    return grid_from_name(name, flag, plan.mobile);
  };
  for (const std::string& rule : options.rules) {
    const size_t equals = rule.rfind('=');
    if (equals == std::string::npos || equals == 0) fail("--tensor-type: expected PATTERN=TYPE, found \"", rule, "\"");
    plan.rules.push_back({rule.substr(0, equals), type(rule.substr(equals + 1), "--tensor-type " + rule)});
  }
  plan.has_embedding_type = !options.embedding_type.empty();
  if (plan.has_embedding_type) plan.embedding_type = type(options.embedding_type, "--token-embedding-type");
  plan.has_output_type = !options.output_type.empty();
  if (plan.has_output_type) plan.output_type = type(options.output_type, "--output-tensor-type");
  plan.pure = options.pure;
  set_mobile_options(options, &plan);
  return plan;
}

std::unique_ptr<Engine> start_engine(Weights weights, const EngineOptions& options) {
  std::unique_ptr<ProgressBar> bar;
  EngineOptions with_bar = options;
  with_bar.load_progress = [&](int64_t done, int64_t total) {
    if (!bar) bar = std::make_unique<ProgressBar>("load", total);
    bar->update(done);
  };
  return std::make_unique<Engine>(std::move(weights), with_bar);
}

RunningModel run_model(const std::string& path, const EngineOptions& options) {
  RunningModel model;
  model.path = path;
  Weights weights = load_weights(path);
  model.tokenizer = load_tokenizer(path);
  if (model.tokenizer->vocab_size() != weights.config.vocab) {
    fail(path, ": the tokenizer has ", model.tokenizer->vocab_size(), " tokens, the model has ", weights.config.vocab);
  }
  model.engine = start_engine(std::move(weights), options);
  return model;
}

void check_same_vocabulary(const RunningModel& model, const RunningModel& base) {
  const int64_t vocab = model.engine->config().vocab, base_vocab = base.engine->config().vocab;
  if (vocab != base_vocab)
    fail(base.path, ": the vocabulary has ", base_vocab, " tokens, that of ", model.path, " has ", vocab);
}

void check_same_tokens(const EvalChunks& chunks, const std::string& path, const EvalChunks& base,
                       const std::string& base_path) {
  if (base.tokens.size() != chunks.tokens.size() || base.context != chunks.context) {
    fail(base_path, ": ", base.count(), " chunks of ", base.context, " tokens, but the text is ", chunks.count(),
         " of ", chunks.context, " for ", path);
  }
  for (size_t i = 0; i < chunks.tokens.size(); ++i) {
    if (chunks.tokens[i] == base.tokens[i]) continue;
    fail(base_path, ": token ", i, " of the text is ", base.tokens[i], ", but ", chunks.tokens[i], " for ", path,
         ": not the same tokenizer, or not the same text");
  }
}

void warn_about_context(const std::string& path, const ModelConfig& config, int64_t context) {
  if (config.context > 0 && context > config.context) {
    std::fprintf(stderr, "%s: --context %lld is more than the %lld tokens the model was made for\n", path.c_str(),
                 static_cast<long long>(context), static_cast<long long>(config.context));
  }
}

std::string read_text(const std::string& path) {
  std::string text = read_file(path, size_t{1} << 34);
  if (text.empty()) fail(path, ": the text is empty");
  return text;
}

void check_output_directory(const std::string& path, const std::string& marker) {
  if (path.empty()) fail("--out: expected a directory, found \"\"");
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return;
  if (!fs::is_directory(path, ignored)) fail(path, ": expected a directory to write, found a file");
  if (fs::is_empty(path, ignored)) return;
  if (!marker.empty() && fs::exists(fs::path(path) / marker, ignored)) return;
  fail(path, ": the directory exists and is not empty", marker.empty() ? "" : " (and holds no " + marker + ")",
       "; it is not replaced: remove it, or choose another --out");
}

void check_mobile_output(const std::string& path) {
  std::error_code ignored;
  const bool model = !path.empty() && fs::exists(fs::path(path) / "config.json", ignored);
  if (!model || detect_model_kind(path) != ModelKind::mobile) check_output_directory(path, "");
}

void check_output_file(const std::string& path) {
  if (path.empty()) fail("--out: expected a file, found \"\"");
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) fail(path, ": expected a file to write, found a directory");
  const fs::path parent = fs::path(path).parent_path();
  const std::string directory = parent.empty() ? "." : parent.string();
  if (!fs::is_directory(directory, ignored)) fail(path, ": its directory ", directory, " does not exist");
  if (access(directory.c_str(), W_OK) != 0) fail(path, ": its directory ", directory, " is not writable");
}

InterruptGuard::InterruptGuard() {
  g_signal = 0;
  set_handler(note_signal, static_cast<int>(SA_RESETHAND));
}
InterruptGuard::~InterruptGuard() { set_handler(SIG_DFL, 0); }

void throw_if_interrupted() {
  if (g_signal != 0) throw Interrupted{g_signal};
}

}  // namespace qat
