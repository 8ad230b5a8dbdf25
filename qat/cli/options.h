// What several commands share: options spelled alike everywhere, running a model, reading texts, writing over things,
// Ctrl-C.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "format/plan.h"
#include "inference/engine.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace qat {

struct EvalChunks;

// --- Options ---

constexpr const char* kModelHelp = "GGUF file, Hugging Face directory (float or mobile) or quantized checkpoint";

// Checks for CLI11 whose errors say what was expected and what was found.
using ValueCheck = std::function<std::string(const std::string&)>;
ValueCheck whole_number(int64_t min, int64_t max = std::numeric_limits<int64_t>::max());
ValueCheck number(double min, double max);
ValueCheck one_of(std::vector<std::string> names);

// --threads, and --reference where results may be wanted from the plain loops.
void add_engine_options(CLI::App& command, EngineOptions& options, bool reference);

// The flags that shape a plan, as `qat quantize` and llama-quantize spell them.
struct PlanOptions {
  std::string name;                         // --plan: a name, or where a chosen plan is
  std::vector<std::string> rules;           // "PATTERN=TYPE"
  std::string embedding_type, output_type;  // empty: the plan's
  bool pure = false;
  std::string activations, kv_bits;  // of the plan mobile: "on", "off"; "8,4", "float"; empty: the plan's
};
// Throws Error naming the flag, what it may be and what it was.
Plan make_plan(const PlanOptions& options);
// A type that tensors of a plan may have; `mobile`: in the mobile schema.
DType grid_from_name(const std::string& name, const std::string& flag, bool mobile = false);

// --- Models and texts ---

// A model ready to run, with its tokenizer. Refuses a pair whose sizes differ.
struct RunningModel {
  std::string path;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Engine> engine;
};
RunningModel run_model(const std::string& path, const EngineOptions& options);
// An engine, with a bar while the weights are read in.
std::unique_ptr<Engine> start_engine(Weights weights, const EngineOptions& options);

// Both sides must mean the same thing by a token id: the sizes, and what each tokenizer makes of the text.
void check_same_vocabulary(const RunningModel& model, const RunningModel& base);
void check_same_tokens(const EvalChunks& chunks, const std::string& path, const EvalChunks& base,
                       const std::string& base_path);
// Says so on stderr when `context` is more than the model was made for.
void warn_about_context(const std::string& path, const ModelConfig& config, int64_t context);

std::string read_text(const std::string& path);  // throws Error when it is empty

// --- Writing ---

// Refuses, before any work is done, to replace a directory that is not empty and does not hold `marker` (a file that
// this command writes; "": none is replaced).
void check_output_directory(const std::string& path, const std::string& marker);
// The same for a directory in the mobile schema, which may replace another one.
void check_mobile_output(const std::string& path);
void check_output_file(const std::string& path);  // its directory exists and takes files

// --- Ctrl-C ---

// While one lives, the first SIGINT or SIGTERM only raises a flag, and throw_if_interrupted() ends the command by an
// exception, so that half-written files are removed on the way out. A second signal kills.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
};
struct Interrupted {
  int signal = 0;
};
void throw_if_interrupted();  // throws Interrupted

}  // namespace qat
