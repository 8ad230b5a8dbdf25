#include "format/plan.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/pattern.h"

namespace qat {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormat = "qat_plan";
constexpr int kVersion = 1;
constexpr size_t kMostPlanBytes = size_t{1} << 26;

void require_grid(DType type, const std::string& place) {
  if (!is_grid(type))
    fail(place, ": expected a type that can be written (F32, F16, BF16, Q2_0, Q4_0, Q8_0, Q6_K), found ",
         dtype_name(type));
}

void require_grid(const Plan& plan, DType type, const std::string& place) {
  if (!plan.mobile) return require_grid(type, place);
  if (code_bits(type) == 0 && (!is_grid(type) || has_codes(type)))
    fail(place, ": expected a type of the mobile schema (I2, I4, I8, F32, F16, BF16), found ", dtype_name(type));
}

// llama-quantize's choice when no rule decides: types asked for by name, then its default mixture, which has a finer
// type for the head: the output matrix, or the embedding tables when the head is tied to one.
DType default_type(const Plan& plan, const TensorInfo& info, bool tied) {
  const bool embedding = info.kind == TensorKind::embedding, output = info.role == Role::output;
  if (embedding && plan.has_embedding_type) return plan.embedding_type;
  if (output && plan.has_output_type) return plan.output_type;
  const bool mixture = !plan.pure && has_codes(plan.target);
  if (!mixture || !(output || (embedding && tied))) return plan.target;
  if (plan.has_output_type) return plan.output_type;
  return plan.target == DType::Q8_0 ? DType::Q8_0 : DType::Q6_K;
}

DType mobile_default(const Plan& plan, const TensorInfo& info, const std::vector<TensorInfo>& table) {
  if (info.kind == TensorKind::embedding && plan.has_embedding_type) return plan.embedding_type;
  if (info.role == Role::output && plan.has_output_type) return plan.output_type;
  return mobile_grid(info, table);
}

// The wanted type, or what llama-quantize falls back to when the block does not divide the row.
PlanEntry fit_to_shape(DType wanted, int64_t cols) {
  PlanEntry entry;
  entry.grid = wanted;
  if (cols % dtype_info(entry.grid).block_size == 0) return entry;
  if (entry.grid == DType::Q6_K) entry.grid = DType::Q8_0;
  if (entry.grid == DType::Q2_0) entry.grid = DType::Q4_0;
  if (cols % dtype_info(entry.grid).block_size != 0) entry.grid = DType::F16;
  entry.note = std::to_string(cols) + " columns are no multiple of " + std::to_string(dtype_info(wanted).block_size) +
               ": " + dtype_name(entry.grid);
  return entry;
}

// A rule that can never decide is a slip of the pen, and one that costs a training run.
void require_match(const Pattern& pattern, const std::string& text, const std::vector<TensorInfo>& table) {
  for (const TensorInfo& info : table)
    if (info.quantizable && (pattern.found_in(info.name) || pattern.found_in(info.gguf))) return;
  fail("plan rule \"", text, "\": matches no tensor that can be quantized");
}

// Of the plans that are a type for all matrices; nullptr: of none.
const DType* target_of(const std::string& name) {
  static const std::map<std::string, DType> kTargets = {
      {"f32", DType::F32}, {"f16", DType::F16}, {"bf16", DType::BF16}, {"q8_0", DType::Q8_0}, {"q4_0", DType::Q4_0}};
  const auto found = kTargets.find(name);
  return found == kTargets.end() ? nullptr : &found->second;
}

Json plan_json(const std::string& text, const std::string& origin) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) fail(origin, ": expected JSON, found something else");
  if (!json.is_object() || json.value("format", Json()) != kFormat)
    fail(origin, ": expected an object with \"format\": \"", kFormat, "\"");
  if (json.value("version", Json()) != kVersion)
    fail(origin, ": version: expected ", kVersion, ", found ", json.value("version", Json()).dump());
  return json;
}

DType source_type(const std::map<std::string, DType>& source_types, const TensorInfo& info) {
  const auto found = source_types.find(info.name);
  return found == source_types.end() ? DType::F32 : found->second;
}

}  // namespace

Plan plan_from_name(const std::string& name) {
  Plan plan;
  plan.name = name;
  if (name == "none") plan.keep = true;
  else if (name == "mobile") plan.mobile = true;
  else if (const DType* target = target_of(name)) plan.target = *target;
  else
    fail(
        "plan \"", name,
        "\": expected none (no quantization), f32, f16, bf16, q8_0, q4_0, mobile or a directory of qat quantize --plan "
        "dynamic",
        name == kDynamicPlan ? ", which chooses types for a model: name that directory" : "");
  return plan;
}

bool is_plan_name(const std::string& name) { return name == "none" || name == "mobile" || target_of(name) != nullptr; }

Plan plan_from_name_or_file(const std::string& text) {
  std::error_code ignored;
  const bool file = !is_plan_name(text) && std::filesystem::exists(text, ignored);
  return file ? plan_from_file(text) : plan_from_name(text);
}

Plan plan_from_file(const std::string& path) {
  const std::string file = std::filesystem::is_directory(path) ? path + "/qat_plan.json" : path;
  if (!std::filesystem::exists(file))
    fail("plan ", path, ": expected a directory of qat quantize --plan dynamic, with ", file);
  const Json json = plan_json(read_file(file, kMostPlanBytes), file);
  Plan plan = plan_from_name("q4_0");
  plan.name = kDynamicPlan;
  if (json.value("name", Json()) != kDynamicPlan)
    fail(file, ": expected a plan of qat quantize --plan dynamic, found ", json.value("name", Json()).dump(),
         ", whose types follow from its name");
  const Json rules = json.value("rules", Json());
  if (!rules.is_array()) fail(file, ": rules: expected an array, found ", rules.dump());
  for (const Json& rule : rules) {
    const Json pattern = rule.is_object() ? rule.value("pattern", Json()) : Json();
    const Json grid = rule.is_object() ? rule.value("grid", Json()) : Json();
    const DTypeInfo* info = grid.is_string() ? find_dtype_by_name(grid.get_ref<const std::string&>()) : nullptr;
    if (!pattern.is_string() || info == nullptr || !is_grid(info->id))
      fail(file, ": rules: expected {\"pattern\": ..., \"grid\": a type}, found ", rule.dump());
    plan.rules.push_back({pattern.get<std::string>(), info->id});
  }
  return plan;
}

DType mobile_grid(const TensorInfo& info, const std::vector<TensorInfo>& table) {
  const auto shares_kv = [&](int layer) { return find_tensor_info(table, Role::k, layer) == nullptr; };
  const TensorInfo* first = find_tensor_info(table, Role::gate, 0);
  const bool double_wide = std::any_of(table.begin(), table.end(), [&](const TensorInfo& other) {
    return other.role == Role::gate && shares_kv(other.layer) && first != nullptr && other.shape[0] > first->shape[0];
  });
  if (!info.quantizable) return DType::F32;
  switch (info.role) {
    case Role::token_embedding:
    case Role::output: return DType::I2;
    case Role::ple_embedding: return double_wide ? DType::I4 : DType::I2;
    case Role::ple_gate:
    case Role::ple_projection: return DType::I8;
    case Role::gate:
    case Role::up:
    case Role::down: return double_wide && shares_kv(info.layer) ? DType::I2 : DType::I4;
    default: return DType::I4;
  }
}

std::map<std::string, PlanEntry> resolve_plan(const Plan& plan, const std::vector<TensorInfo>& table,
                                              const std::map<std::string, DType>& source_types) {
  std::vector<Pattern> patterns;
  for (const PlanRule& rule : plan.rules) {
    require_grid(plan, rule.grid, "plan rule \"" + rule.pattern + "\"");
    patterns.emplace_back(rule.pattern, "plan rule");
    require_match(patterns.back(), rule.pattern, table);
  }
  require_grid(plan.target, "plan target");
  if (plan.has_embedding_type) require_grid(plan, plan.embedding_type, "token embedding type");
  if (plan.has_output_type) require_grid(plan, plan.output_type, "output tensor type");

  const bool tied = find_tensor_info(table, Role::output) == nullptr;
  std::map<std::string, PlanEntry> resolved;
  for (const TensorInfo& info : table) {
    PlanEntry& entry = resolved[info.name];
    if (!info.quantizable) {
      const bool as_is = plan.keep || plan.mobile || info.shape.size() == 2;
      entry.grid = as_is ? source_type(source_types, info) : DType::F32;
      continue;
    }
    const auto rule = std::find_if(patterns.begin(), patterns.end(), [&](const Pattern& pattern) {
      return pattern.found_in(info.name) || pattern.found_in(info.gguf);
    });
    if (plan.mobile) {
      entry.grid = rule != patterns.end() ? plan.rules[static_cast<size_t>(rule - patterns.begin())].grid
                                          : mobile_default(plan, info, table);
      continue;
    }
    if (rule != patterns.end())
      entry = fit_to_shape(plan.rules[static_cast<size_t>(rule - patterns.begin())].grid, info.shape[1]);
    else if (plan.keep) entry.grid = source_type(source_types, info);
    else entry = fit_to_shape(default_type(plan, info, tied), info.shape[1]);
  }
  return resolved;
}

std::string plan_to_json(const Plan& plan, const std::map<std::string, PlanEntry>& resolved) {
  Json json;
  json["format"] = kFormat;
  json["version"] = kVersion;
  json["name"] = plan.name;
  json["rules"] = Json::array();
  for (const PlanRule& rule : plan.rules)
    json["rules"].push_back({{"pattern", rule.pattern}, {"grid", dtype_name(rule.grid)}});
  json["tensors"] = Json::object();
  json["notes"] = Json::object();
  for (const auto& [name, entry] : resolved) {
    json["tensors"][name] = dtype_name(entry.grid);
    if (!entry.note.empty()) json["notes"][name] = entry.note;
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::map<std::string, DType> resolved_plan_from_json(const std::string& text, const std::string& origin) {
  const Json json = plan_json(text, origin);
  const auto tensors = json.find("tensors");
  if (tensors == json.end() || !tensors->is_object())
    fail(origin, ": tensors: expected an object of tensor name to type");
  std::map<std::string, DType> resolved;
  for (const auto& [name, value] : tensors->items()) {
    const DTypeInfo* info = value.is_string() ? find_dtype_by_name(value.get_ref<const std::string&>()) : nullptr;
    if (info == nullptr) fail(origin, ": tensors: ", name, ": expected the name of a type, found ", value.dump());
    require_grid(info->id, origin + ": tensors: " + name);
    resolved[name] = info->id;
  }
  return resolved;
}

}  // namespace qat
