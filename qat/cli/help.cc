#include "qat/cli/help.h"

#include <sstream>

namespace qat {
namespace {

constexpr size_t kNames = 34;   // columns of the names
constexpr size_t kWidth = 100;  // columns in all

// "  --tokens N [128]    what it is", the text wrapped beside the names.
std::string entry(const std::string& names, const std::string& description) {
  std::string out = "  " + names;
  if (out.size() + 2 > kNames) out += "\n" + std::string(kNames, ' ');
  else out.append(kNames - out.size(), ' ');
  size_t column = kNames;
  std::istringstream words(description);
  for (std::string word; words >> word;) {
    const bool first = column == kNames;
    if (!first && column + 1 + word.size() > kWidth) {
      out += "\n" + std::string(kNames, ' ') + word;
      column = kNames + word.size();
    } else {
      out += (first ? "" : " ") + word;
      column += word.size() + (first ? 0 : 1);
    }
  }
  return out + "\n";
}

}  // namespace

std::string HelpFormatter::make_usage(const CLI::App* app, std::string name) const {
  std::string usage = "\nUsage: " + name;
  for (const CLI::Option* option : app->get_options([](const CLI::Option* o) { return o->get_positional(); })) {
    const std::string text = option->get_name(true, false);
    usage += option->get_required() ? " " + text : " [" + text + "]";
  }
  for (const CLI::Option* option :
       app->get_options([](const CLI::Option* o) { return !o->get_positional() && o->get_required(); })) {
    usage += " --" + option->get_lnames().front() + " " + option->get_type_name();
  }
  const bool has_commands = !app->get_subcommands([](const CLI::App*) { return true; }).empty();
  return usage + (has_commands ? " COMMAND ..." : " [options]") + "\n";
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  std::string names;
  if (is_positional) {
    names = option->get_name(true, false);
  } else {
    for (const std::string& name : option->get_snames()) names += (names.empty() ? "-" : ", -") + name;
    for (const std::string& name : option->get_lnames()) names += (names.empty() ? "--" : ", --") + name;
    const bool takes_value = option->get_items_expected_max() > 0;
    if (takes_value) names += " " + option->get_type_name();
    if (takes_value && !option->get_default_str().empty()) names += " [" + option->get_default_str() + "]";
  }
  return entry(names, option->get_description());
}

std::string HelpFormatter::make_subcommand(const CLI::App* command) const {
  return entry(command->get_name(), command->get_description());
}

}  // namespace qat
