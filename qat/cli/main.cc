// The `qat` command: parses, runs one command, prints one error.
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <new>

#include "format/error.h"
#include "qat/cli/commands.h"
#include "qat/cli/help.h"
#include "qat/cli/options.h"
#include "qat/nearest.h"

namespace qat {
namespace {

int report(const std::string& text) {
  std::string line = text;
  for (char& c : line) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) c = ' ';  // names in files are not trusted to leave the terminal alone
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  std::cout.flush();
  std::fflush(stdout);
  std::fprintf(stderr, "qat: error: %s\n", line.c_str());
  return 1;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

std::vector<std::string> flag_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// CLI11's own words for most mistakes; better ones for a misspelt command or flag.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<CLI::App*> chosen = app.get_subcommands();
  if (chosen.empty()) {
    const std::vector<std::string> extras = app.remaining();
    if (extras.empty()) return std::string(error.what()) + "; see `qat --help`";
    const bool flag = extras[0][0] == '-';
    const std::string hint = suggestion(extras[0], flag ? flag_names(app) : command_names(app));
    return std::string(flag ? "unknown option \"" : "unknown command \"") + extras[0] + "\"" +
           (hint.empty() ? "; see `qat --help`" : hint);
  }
  const CLI::App& command = *chosen.front();
  const std::string see = "; see `qat " + command.get_name() + " --help`";
  const std::vector<std::string> extras = command.remaining();
  if (dynamic_cast<const CLI::ExtrasError*>(&error) == nullptr || extras.empty())
    return command.get_name() + ": " + error.what() + see;
  if (extras[0][0] != '-') return command.get_name() + ": unexpected argument \"" + extras[0] + "\"" + see;
  const std::string hint = suggestion(extras[0], flag_names(command));
  return command.get_name() + ": unknown option \"" + extras[0] + "\"" + (hint.empty() ? see : hint);
}

void add_commands(CLI::App& app) {
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_version_flag("--version", "qat " QAT_VERSION, "Print the version and exit");
  app.get_option("--help")->description("Print this help and exit");
  app.require_subcommand(1);
  add_train_command(app);
  add_quantize_command(app);
  add_export_command(app);
  add_eval_command(app);
  add_compare_command(app);
  add_bench_command(app);
  add_generate_command(app);
  add_inspect_command(app);
  add_logits_command(app);
  add_sample_command(app);
  add_init_command(app);
  add_recipe_command(app);
  for (CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    command->get_option("--help")->description("Print this help and exit");
  }
}

int parse_and_run(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    app.exit(help_or_version, std::cout, std::cerr);
  } catch (const CLI::ParseError& error) {
    return report(usage_error(app, error));
  }
  std::cout.flush();
  if (!std::cout || std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    return report("standard output: cannot write (device full?)");
  return 0;
}

int run(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is then a failed write, which is reported
  CLI::App app(
      "Quantization-aware training and export of language models.\n"
      "MODEL is a GGUF file, a Hugging Face directory or a quantized checkpoint, told apart by content.",
      "qat");
  app.footer(
      "Example: from a checkpoint to a Q4_0 file, and what it cost\n"
      "  qat quantize gemma/ --plan q4_0 --out gemma-q4\n"
      "  qat export gemma-q4 --format gguf --out gemma-q4_0.gguf\n"
      "  qat eval gemma-q4_0.gguf --base gemma/ --text text.txt\n"
      "`qat COMMAND --help` says more about each.");
  add_commands(app);
  if (argc == 1) {
    std::cerr << app.help();
    return 1;
  }
  try {
    return parse_and_run(app, argc, argv);
  } catch (const Error& error) {
    return report(error.what());
  } catch (const Interrupted& interrupted) {
    report("interrupted; nothing was written");
    return 128 + interrupted.signal;
  } catch (const std::filesystem::filesystem_error& error) {
    return report(error.what());
  } catch (const std::bad_alloc&) {
    return report("out of memory");
  } catch (const std::exception& error) {
    return report(std::string("internal: ") + error.what());
  }
}

}  // namespace
}  // namespace qat

int main(int argc, char** argv) { return qat::run(argc, argv); }
