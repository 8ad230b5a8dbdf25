// qat generate: prompt in, text out. qat sample: a model's own training data.
#include <CLI/CLI.hpp>

#include "format/error.h"
#include "inference/generate.h"
#include "qat/cli/commands.h"
#include "qat/cli/options.h"
#include "qat/cli/samples.h"
#include "qat/cli/utf8_stream.h"

namespace qat {
namespace {

struct GenerateOptions {
  std::string model, prompt;
  int64_t tokens = 128;
  bool no_echo = false;
  SamplingOptions sampling;
  EngineOptions engine;
};

struct SampleOptions {
  std::string model, out;
  SampleRequest request;
  EngineOptions engine;
};

void print_now(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void run_generate(const GenerateOptions& options) {
  RunningModel model = run_model(options.model, options.engine);
  const std::vector<int32_t> prompt = model.tokenizer->encode_with_bos(options.prompt);
  if (prompt.empty()) fail("--prompt: expected text, found \"\" (and the tokenizer adds no BOS)");
  const InterruptGuard guard;
  if (!options.no_echo) print_now(options.prompt);
  Utf8Stream stream;
  int64_t count = 0;
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  Clock::time_point first = start;
  bool stopped = false;
  try {
    generate(*model.engine, *model.tokenizer, prompt, options.tokens, options.sampling, [&](int32_t id) {
      if (count++ == 0) first = Clock::now();
      print_now(stream.add(model.tokenizer->decode_token(id)));
      throw_if_interrupted();
    });
  } catch (const Interrupted&) {
    stopped = true;  // what was generated stands: stopping early is no fault
  }
  print_now(stream.finish() + "\n");
  const double reading = std::chrono::duration<double>(first - start).count();
  const double writing = std::chrono::duration<double>(Clock::now() - first).count();
  std::fprintf(stderr, "%zu prompt tokens in %.3g s, %lld tokens in %.3g s", prompt.size(), reading,
               static_cast<long long>(count), writing);
  if (count > 1 && writing > 0) std::fprintf(stderr, ", %.1f tokens/s", static_cast<double>(count - 1) / writing);
  std::fprintf(stderr, "%s\n", stopped ? " (interrupted)" : "");
}

void run_sample(const SampleOptions& options) {
  check_output_file(options.out);
  write_samples(options.model, options.request, options.engine, options.out);
  std::printf("%s: %lld sequences of %lld tokens\n", options.out.c_str(), static_cast<long long>(options.request.count),
              static_cast<long long>(options.request.length));
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Continue a prompt");
  command->add_option("MODEL", options->model, kModelHelp)->required();
  command->add_option("--prompt", options->prompt, "Text to continue")->required()->type_name("TEXT");
  command->add_option("--tokens", options->tokens, "Tokens to write at most")
      ->check(whole_number(1))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--temperature", options->sampling.temperature, "0: always the likeliest token")
      ->check(number(0, 100))
      ->type_name("T")
      ->capture_default_str();
  command->add_option("--top-k", options->sampling.top_k, "Only the K likeliest tokens; 0: all")
      ->check(whole_number(0, 1 << 24))
      ->type_name("K")
      ->capture_default_str();
  command->add_option("--top-p", options->sampling.top_p, "Only the likeliest tokens that together have probability P")
      ->check(number(0, 1))
      ->type_name("P")
      ->capture_default_str();
  command->add_option("--seed", options->sampling.seed, "The same seed gives the same text")
      ->check(whole_number(0))
      ->type_name("S")
      ->capture_default_str();
  command->add_flag("--no-echo", options->no_echo, "Do not print the prompt before its continuation");
  add_engine_options(*command, options->engine, true);
  command->footer(
      "Example:\n  qat generate model.gguf --prompt \"Once upon a time\" --tokens 200 --temperature 0.7 --seed 1");
  command->callback([options] { run_generate(*options); });
}

void add_sample_command(CLI::App& app) {
  auto options = std::make_shared<SampleOptions>();
  CLI::App* command = app.add_subcommand("sample", "Let a model write its own training data");
  command->add_option("MODEL", options->model, kModelHelp)->required();
  command->add_option("--count", options->request.count, "Sequences")
      ->required()
      ->check(whole_number(1, int64_t{1} << 40))
      ->type_name("N");
  command->add_option("--length", options->request.length, "Tokens of each, BOS included")
      ->required()
      ->check(whole_number(2, int64_t{1} << 24))
      ->type_name("L");
  command->add_option("--seed", options->request.seed, "Sequence i depends on S + i only")
      ->check(whole_number(0))
      ->type_name("S")
      ->capture_default_str();
  command->add_option("--out", options->out, "Safetensors file: input_ids I32 [N, L]")->required()->type_name("FILE");
  add_engine_options(*command, options->engine, false);
  command->footer(
      "Example:\n  qat sample gemma/ --count 4000 --length 256 --seed 1 --out samples.safetensors\n"
      "(`qat train` does this itself when its data contains \"teacher\".)");
  command->callback([options] { run_sample(*options); });
}

}  // namespace qat
