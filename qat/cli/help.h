// How `qat --help` looks: CLI11's layout without its type names, validators and REQUIRED, wrapped to a readable width.
#pragma once

#include <CLI/CLI.hpp>

namespace qat {

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string name) const override;
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* command) const override;
};

}  // namespace qat
