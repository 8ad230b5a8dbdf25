// How `qat --help` looks: CLI11's layout without its type names, validators and REQUIRED, wrapped to a readable width.
#pragma once

#include <CLI/CLI.hpp>

namespace qat {

class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter() { keep_footer_lines(this, 0); }
  std::string make_usage(const CLI::App* app, std::string name) const override;
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* command) const override;

 private:
  // CLI11 from 2.4 on fills footers like paragraphs, which joins an example's lines; older ones have no such switch.
  template <class Formatter>
  static auto keep_footer_lines(Formatter* f, int) -> decltype(f->enable_footer_formatting(false)) {
    return f->enable_footer_formatting(false);
  }
  template <class Formatter>
  static void keep_footer_lines(Formatter*, long) {}
};

}  // namespace qat
