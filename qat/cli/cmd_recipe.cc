// qat recipe: the keys of a recipe, or a file with every default filled in.
#include <CLI/CLI.hpp>

#include "qat/cli/commands.h"
#include "qat/recipe.h"

namespace qat {
namespace {

struct RecipeOptions {
  std::string file;
  std::vector<std::string> assignments;
  bool explain = false;
};

void run_recipe(const RecipeOptions& options) {
  if (options.explain || (options.file.empty() && options.assignments.empty())) {
    std::fputs(explain_recipe().c_str(), stdout);
    return;
  }
  Recipe recipe = options.file.empty() ? Recipe() : recipe_from_file(options.file);
  for (const std::string& assignment : options.assignments) recipe_set(recipe, assignment);
  std::fputs(recipe_to_toml(recipe).c_str(), stdout);
}

}  // namespace

void add_recipe_command(CLI::App& app) {
  auto options = std::make_shared<RecipeOptions>();
  CLI::App* command =
      app.add_subcommand("recipe", "The keys of a training recipe, explained; or a recipe with all defaults filled in");
  command->add_option("RECIPE.toml", options->file, "Print this recipe with every key");
  command->add_option("--set", options->assignments, "Change one key; may be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->add_flag("--explain", options->explain, "Every key: type, default, bounds, meaning (also without a file)");
  command->footer("Example:\n  qat recipe --explain\n  qat recipe recipes/q4_0.toml --set steps=200 > mine.toml");
  command->callback([options] { run_recipe(*options); });
}

}  // namespace qat
