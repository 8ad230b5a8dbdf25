#include "qat/cli/dynamic_plan.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "export/gguf_export.h"
#include "export/sensitivity.h"
#include "format/error.h"
#include "qat/cli/options.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct SizeUnit {
  const char* name;
  double bytes;
};
constexpr SizeUnit kSizeUnits[] = {{"B", 1.0},  {"kB", 1e3},     {"KB", 1e3},        {"MB", 1e6},
                                   {"GB", 1e9}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}};

struct Budget {
  double bits_per_weight = 0.0;  // or
  double file_bytes = 0.0;       // or
  std::string plan;              // whose file may not be exceeded
};

Budget parse_budget(const std::string& text) {
  Budget budget;
  if (is_plan_name(text) && text != "none" && text != "mobile") {
    budget.plan = text;
    return budget;
  }
  char* end = nullptr;
  const double number = text.empty() || text[0] < '0' || text[0] > '9' ? 0.0 : std::strtod(text.c_str(), &end);
  const std::string unit = end == nullptr ? "" : end;
  if (number > 0.0 && number <= 32.0 && unit.empty()) budget.bits_per_weight = number;
  for (const SizeUnit& known : kSizeUnits)
    if (number > 0.0 && number * known.bytes < 1e18 && unit == known.name) budget.file_bytes = number * known.bytes;
  if (budget.bits_per_weight == 0.0 && budget.file_bytes == 0.0)
    fail("--budget: expected bits per weight (4.5), a file's size (700MB) or a plan of that size (q4_0), found \"",
         text, "\"");
  return budget;
}

using Types = std::map<std::string, DType>;

Types types_of(const std::map<std::string, PlanEntry>& resolved) {
  Types types;
  for (const auto& [name, entry] : resolved) types[name] = entry.grid;
  return types;
}

// Where a set of choices stands.
struct Sum {
  double weights = 0.0, cost = 0.0;
  uint64_t bytes = 0;
  double bits() const { return 8.0 * static_cast<double>(bytes) / weights; }
};

Sum sum_of(const std::vector<TensorChoices>& tensors, const std::vector<size_t>& chosen) {
  Sum sum;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TypeCost& choice = tensors[i].choices[chosen[i]];
    sum.weights += static_cast<double>(tensors[i].info.shape[0] * tensors[i].info.shape[1]);
    sum.bytes += choice.bytes;
    sum.cost += choice.cost;
  }
  return sum;
}

// Bytes of the matrices that may be chosen for.
uint64_t choosable_bytes(const std::string& text, const FloatCheckpoint& checkpoint, const Plan& plan,
                         const std::vector<TensorChoices>& tensors) {
  const Sum smallest = sum_of(tensors, std::vector<size_t>(tensors.size(), 0));
  const Budget budget = parse_budget(text);
  double bytes = budget.bits_per_weight * smallest.weights / 8.0;
  std::string least = std::to_string(smallest.bits());
  least = least.substr(0, least.find('.') + 4) + " bits per weight";
  if (budget.bits_per_weight == 0.0) {
    Types types = types_of(resolve_plan(plan, checkpoint.table(), checkpoint.dtypes()));
    for (const TensorChoices& tensor : tensors) types[tensor.info.name] = tensor.choices.front().type;
    const uint64_t smallest_file = gguf_bytes(checkpoint, types);
    double file = budget.file_bytes;
    if (!budget.plan.empty())
      file = static_cast<double>(gguf_bytes(
          checkpoint, types_of(resolve_plan(plan_from_name(budget.plan), checkpoint.table(), checkpoint.dtypes()))));
    bytes = file - static_cast<double>(smallest_file - smallest.bytes);
    least = bytes_text(smallest_file) + " as a file, " + least;
  }
  if (bytes < static_cast<double>(smallest.bytes))
    fail("--budget ", text, ": ", checkpoint.directory(), " takes at least ", least);
  return static_cast<uint64_t>(bytes);
}

// The types of plan q4_0 as choices, to compare with; none where it takes a type that cannot be chosen.
std::optional<Sum> plain_sum(const FloatCheckpoint& checkpoint, const std::vector<TensorChoices>& tensors) {
  const Types plain = types_of(resolve_plan(plan_from_name("q4_0"), checkpoint.table(), checkpoint.dtypes()));
  std::vector<size_t> chosen;
  for (const TensorChoices& tensor : tensors) {
    const auto same = std::find_if(tensor.choices.begin(), tensor.choices.end(),
                                   [&](const TypeCost& choice) { return choice.type == plain.at(tensor.info.name); });
    if (same == tensor.choices.end()) return std::nullopt;
    chosen.push_back(static_cast<size_t>(same - tensor.choices.begin()));
  }
  return sum_of(tensors, chosen);
}

void print_choice(const Plan& plan, size_t users_rules, const Sum& chosen, const std::optional<Sum>& plain) {
  std::printf("types chosen: %.3f bits per weight, KLD of about %.3g", chosen.bits(), chosen.cost);
  if (plain) std::printf(" (plan q4_0: %.3f, %.3g)", plain->bits(), plain->cost);
  std::printf("\n");
  for (size_t i = users_rules; i < plan.rules.size(); ++i)
    std::printf("  %s=%s\n", plan.rules[i].pattern.c_str(), dtype_name(plan.rules[i].grid));
}

}  // namespace

void check_budget(const std::string& budget) { parse_budget(budget); }

Plan choose_types(const std::string& model, const Plan& plan, const std::string& budget, const PtqOptions& options) {
  const FloatCheckpoint checkpoint(model);
  std::vector<TensorChoices> tensors = type_choices(checkpoint, plan);
  const uint64_t bytes = choosable_bytes(budget, checkpoint, plan, tensors);
  std::unique_ptr<ProgressBar> bar;
  measure_costs(checkpoint, options, &tensors, [&](int64_t done, int64_t total) {
    if (!bar) bar = std::make_unique<ProgressBar>("measure", total);
    bar->update(done);
    throw_if_interrupted();
  });
  if (bar) bar->finish();
  std::vector<std::vector<TypeCost>> choices;
  for (const TensorChoices& tensor : tensors) choices.push_back(tensor.choices);
  const std::vector<size_t> chosen = allocate_types(choices, bytes);
  Plan result = plan_of_choices(plan, checkpoint, tensors, chosen);
  result.name = kDynamicPlan;
  print_choice(result, plan.rules.size(), sum_of(tensors, chosen), plain_sum(checkpoint, tensors));
  return result;
}

}  // namespace qat
