// qat train: merges the recipe, lets the teacher write its data, and hands over to qat-train, which links LibTorch.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "format/checkpoint.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/run_directory.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/samples.h"
#include "qat/recipe.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

struct TrainOptions {
  std::string recipe;                                        // file
  std::vector<std::string> assignments;                      // --set
  std::string model, out, plan, steps, lr, device, threads;  // flags: the keys of the same name
  std::vector<std::string> data;
  bool resume = false;
};

constexpr const char* kTrainer = "qat-train";

// --- The recipe ---

Recipe merge_recipe(const TrainOptions& options) {
  const std::string resolved = options.out.empty() ? "" : options.out + "/" + kRunRecipe;
  Recipe recipe;
  if (!options.recipe.empty()) {
    recipe = recipe_from_file(options.recipe);
  } else if (options.resume) {
    if (options.out.empty()) fail("--resume: expected a RECIPE.toml, or --out DIR of the run to go on with");
    if (!fs::exists(resolved)) fail(resolved, ": not found: there is no run to resume in ", options.out);
    recipe = recipe_from_file(resolved);
  }
  for (const std::string& assignment : options.assignments) recipe_set(recipe, assignment);
  const std::pair<const char*, const std::string*> flags[] = {
      {"model", &options.model}, {"out", &options.out},       {"plan", &options.plan},      {"steps", &options.steps},
      {"lr", &options.lr},       {"device", &options.device}, {"threads", &options.threads}};
  for (const auto& [key, value] : flags) {
    if (!value->empty()) recipe_set(recipe, std::string(key) + "=" + *value);
  }
  if (!options.data.empty()) recipe.data = options.data;
  take_plan_file(recipe);
  validate_recipe(recipe);
  return recipe;
}

void check_resumable(const Recipe& recipe) {
  const std::string resolved = recipe.out + "/" + kRunRecipe;
  if (!fs::exists(resolved)) fail(resolved, ": not found: there is no run to resume in ", recipe.out);
  const std::vector<std::string> conflicts = recipe_conflicts(recipe_from_file(resolved), recipe);
  if (conflicts.empty()) return;
  std::string text;
  for (const std::string& conflict : conflicts) text += (text.empty() ? "" : "; ") + conflict;
  fail(resolved, ": a resumed run cannot change ", text, "; a new one needs another --out");
}

// The step of the newest checkpoint, OUT/checkpoints/step-00000100.safetensors; -1 when there is none.
int64_t newest_step(const std::string& out) {
  int64_t newest = -1;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(out + "/checkpoints", ignored)) {
    int64_t step = 0;
    int end = 0;  // where the pattern ended: a file that is being written has more behind its name
    const std::string name = entry.path().filename();
    if (std::sscanf(name.c_str(), "step-%" SCNd64 ".safetensors%n", &step, &end) == 1 && name.size() == size_t(end))
      newest = std::max(newest, step);
  }
  return newest;
}

// The result of the run in OUT, which is put there whole and last; "" when it has none, or there is no run.
std::string result_of(const std::string& out) {
  const std::string resolved = out + "/" + kRunRecipe;
  if (!fs::exists(resolved)) return "";
  const std::string result = run_result(out, recipe_from_file(resolved).plan == "none");
  return fs::exists(result) ? result : "";
}

// Neither a result nor the hours of an unfinished run are written over.
void check_startable(const Recipe& recipe) {
  check_output_directory(recipe.out, kRunRecipe);
  if (!result_of(recipe.out).empty())
    fail(recipe.out, ": holds a finished run: choose another --out, or remove ", recipe.out);
  for (const char* part : {"/blocks", "/start"}) {
    if (fs::exists(recipe.out + part))
      fail(recipe.out, ": holds an unfinished blockwise run: go on with --resume, or remove ", recipe.out);
  }
  const std::string resolved = recipe.out + "/" + kRunRecipe;
  const int64_t step = newest_step(recipe.out);
  if (step < 0 || !fs::exists(resolved)) return;
  fail(recipe.out, ": holds an unfinished run (step ", step, " of ", recipe_from_file(resolved).steps,
       "): go on with --resume, or remove ", recipe.out);
}

// What the trainer would find out only after the teacher has written its data.
void check_inputs(const Recipe& recipe) {
  const FloatCheckpoint model(recipe.model);
  if (!recipe.teacher.empty() && distills(recipe)) const FloatCheckpoint teacher(recipe.teacher);
  std::vector<std::string> texts = recipe.data;
  if (!recipe.eval_text.empty()) texts.push_back(recipe.eval_text);
  for (const std::string& text : texts) {
    if (text != "teacher" && !fs::exists(text)) fail(text, ": no such text file or directory");
  }
}

// --- The teacher's data ---

void write_teacher_data(const Recipe& recipe) {
  if (std::find(recipe.data.begin(), recipe.data.end(), "teacher") == recipe.data.end()) return;
  const std::string teacher = recipe.teacher.empty() ? recipe.model : recipe.teacher;
  const std::string file = recipe.out + "/teacher_samples.safetensors";
  SampleRequest request;
  request.length = recipe.sequence;
  request.count = (recipe.teacher_tokens + recipe.sequence - 1) / recipe.sequence;
  request.seed = recipe.seed;
  if (samples_match(file, teacher, request)) return;
  EngineOptions engine;
  engine.threads = static_cast<int>(recipe.threads);
  std::fprintf(stderr, "%s writes %lld sequences of %lld tokens to %s\n", teacher.c_str(),
               static_cast<long long>(request.count), static_cast<long long>(request.length), file.c_str());
  write_samples(teacher, request, engine, file);
}

// --- The trainer ---

bool is_program(const fs::path& path) { return fs::is_regular_file(path) && access(path.c_str(), X_OK) == 0; }

// Beside this executable, in ../libexec, or in PATH; empty when there is none.
fs::path find_trainer() {
  std::error_code ignored;
  const fs::path self = fs::read_symlink("/proc/self/exe", ignored);
  std::vector<fs::path> places;
  if (!self.empty()) {
    places.push_back(self.parent_path());
    places.push_back(self.parent_path().parent_path() / "libexec" / "qat");
    places.push_back(self.parent_path().parent_path() / "libexec");
  }
  const char* path = std::getenv("PATH");
  std::istringstream entries(path == nullptr ? "" : path);
  for (std::string entry; std::getline(entries, entry, ':');) places.emplace_back(entry);
  for (const fs::path& place : places) {
    if (is_program(place / kTrainer)) return place / kTrainer;
  }
  return {};
}

[[noreturn]] void start_trainer(const fs::path& trainer, const Recipe& recipe, bool resume) {
  const std::string program = trainer.string(), resolved = recipe.out + "/" + kRunRecipe;
  std::vector<const char*> arguments = {program.c_str(), "--recipe", resolved.c_str()};
  if (resume) arguments.push_back("--resume");
  arguments.push_back(nullptr);
  std::fflush(nullptr);
  execv(program.c_str(), const_cast<char**>(arguments.data()));
  fail(program, ": cannot start: ", std::strerror(errno));
}

void run_train(const TrainOptions& options) {
  const Recipe recipe = merge_recipe(options);
  const fs::path trainer = find_trainer();
  if (trainer.empty()) {
    fail(kTrainer,
         " is neither beside this program nor in PATH: this build has no training; install LibTorch and build with "
         "-DQAT_TRAINING=ON (README.md)");
  }
  if (options.resume) check_resumable(recipe);
  else check_startable(recipe);
  if (const std::string result = result_of(recipe.out); !result.empty()) {
    std::printf("%s: this run is finished; its result is %s\n", recipe.out.c_str(), result.c_str());
    return;
  }
  check_inputs(recipe);
  std::error_code error;
  fs::create_directories(recipe.out, error);
  if (error) fail(recipe.out, ": cannot create the directory: ", error.message());
  write_teacher_data(recipe);
  write_file(recipe.out + "/" + kRunRecipe, recipe_to_toml(recipe));
  start_trainer(trainer, recipe, options.resume);
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command =
      app.add_subcommand("train", "Fine-tune a checkpoint so that it survives quantization (QAT), or plainly");
  command->add_option("RECIPE.toml", options->recipe,
                      "What to do; `qat recipe --explain` lists its keys. Flags come on top of it");
  command->add_option("--set", options->assignments, "Change one key of the recipe; may be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->add_option("--model", options->model, "Hugging Face directory to train")->type_name("DIR");
  command->add_option("--out", options->out, "Directory of the result, its checkpoints and metrics")->type_name("DIR");
  command
      ->add_option("--plan", options->plan,
                   "q4_0, q8_0, ...; none: plain float training; a directory of qat quantize --plan dynamic: its types")
      ->type_name("NAME");
  command->add_option("--data", options->data, "Text file, directory of them, or \"teacher\"; may be repeated")
      ->allow_extra_args(false)
      ->type_name("FILE");
  command->add_option("--steps", options->steps, "Optimizer steps")->type_name("N");
  command->add_option("--lr", options->lr, "Peak learning rate")->type_name("X");
  command->add_option("--device", options->device, "cpu, cuda, cuda:1")->type_name("D");
  command->add_option("--threads", options->threads, "Processor threads; 0: all")->type_name("N");
  command->add_flag(
      "--resume", options->resume,
      "Go on from the last checkpoint in the output directory, with the recipe that is there; one that is "
      "given, model and data included, may change only what does not change the result");
  command->footer(
      "Example:\n  qat train recipes/q4_0.toml --model gemma/ --data text.txt --out runs/gemma-q4\n  qat train "
      "--resume --out runs/gemma-q4");
  command->callback([options] { run_train(*options); });
}

}  // namespace qat
