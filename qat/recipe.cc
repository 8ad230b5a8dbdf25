#include "qat/recipe.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <set>
#include <variant>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/plan.h"
#include "qat/nearest.h"

namespace qat {
namespace {

using Field = std::variant<std::string Recipe::*, std::vector<std::string> Recipe::*, int64_t Recipe::*,
                           uint64_t Recipe::*, double Recipe::*, bool Recipe::*>;

enum OnResume { fixed, may_change };

struct Bounds {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};

struct Key {
  const char* section;
  const char* name;  // unique over all sections
  Field field;
  Bounds bounds;  // of numbers, inclusive
  OnResume on_resume;
  const char* doc;
};

constexpr double kMost = std::numeric_limits<double>::infinity();
constexpr double kMaxCount = 1e12;                  // of tokens, steps: far above any run, far below overflow
constexpr double kMaxSeed = 9223372036854774784.0;  // largest double that TOML's signed integers can hold
constexpr double kAlmostOne = 1.0 - 1e-9;

// The one table of keys, in the order in which they are written.
const std::vector<Key>& keys() {
  // clang-format off
  static const std::vector<Key> table = {
      {"model", "model", &Recipe::model, {}, fixed, "Hugging Face directory of the model to train"},
      {"model", "teacher", &Recipe::teacher, {}, fixed,
       "Hugging Face directory of the float teacher; empty: the model itself, frozen"},
      {"model", "out", &Recipe::out, {}, may_change,
       "output directory: result, checkpoints, metrics, the resolved recipe"},

      {"quantization", "plan", &Recipe::plan, {}, fixed,
       "which grid each tensor sits on: q4_0, q8_0, bf16, f16, f32; mobile; none: plain float training; or the directory "
       "of a plan chosen by qat quantize --plan dynamic"},
      {"quantization", "rules", &Recipe::rules, {}, fixed,
       "PATTERN=TYPE, tried before the plan: a regular expression found in the tensor's name; the first match wins"},
      {"quantization", "embedding_type", &Recipe::embedding_type, {}, fixed,
       "type of embedding tables (llama-quantize --token-embedding-type); empty: the plan's"},
      {"quantization", "output_type", &Recipe::output_type, {}, fixed,
       "type of the output matrix (llama-quantize --output-tensor-type); empty: the plan's"},
      {"quantization", "init", &Recipe::init, {}, fixed,
       "where Q4_0 codes and scales begin: plain (llama-quantize's), search (least squared error of weights), gptq "
       "(of outputs, on calibration_sequences), or a directory with a slash in its name: a quantized checkpoint of the "
       "same model and plan"},
      {"quantization", "activations", &Recipe::activations, {}, fixed,
       "mobile: static 8-bit activations into and out of each linear layer"},
      {"quantization", "kv_sliding_bits", &Recipe::kv_sliding_bits, {0, 8}, fixed,
       "mobile: static KV cache of sliding layers: 2, 4 or 8 bits; 0: float"},
      {"quantization", "kv_global_bits", &Recipe::kv_global_bits, {0, 8}, fixed, "mobile: the same of global layers"},
      {"quantization", "observer", &Recipe::observer, {}, fixed,
       "mobile: how calibration chooses static scales: mse (least squared error), percentile, max (moving average)"},
      {"quantization", "calibration_sequences", &Recipe::calibration_sequences, {1, kMaxCount}, fixed,
       "training sequences that calibration looks at: mobile's activations, where gptq begins, and all that blockwise "
       "sees"},
      {"quantization", "activations_after", &Recipe::activations_after, {0, 1}, fixed,
       "mobile: fraction of the steps before activations and KV cache are calibrated and become static"},
      {"quantization", "narrow_after", &Recipe::narrow_after, {0, 1}, fixed,
       "mobile: fraction of the steps in which 2-bit weights still have 4 bits; then a search finds their scales anew"},
      {"quantization", "freeze_after", &Recipe::freeze_after, {0, 1}, fixed,
       "q4_0, mobile: fraction of the steps after which codes stay and only scales and norms learn; 1: never"},
      {"quantization", "dampening", &Recipe::dampening, {0, 1}, fixed,
       "q4_0, mobile: draws weights to their levels against oscillation: the part of the way that they go each step, at "
       "the freeze; it rises from 0"},
      {"quantization", "scale_lr", &Recipe::scale_lr, {0, 10}, fixed,
       "q4_0, mobile: peak learning rate of the logarithms of weight scales"},
      {"quantization", "activation_lr", &Recipe::activation_lr, {0, 10}, fixed,
       "mobile: peak learning rate of the logarithms of activation and KV scales"},

      {"data", "data", &Recipe::data, {}, fixed,
       "text files, directories of text files, or \"teacher\": text that the teacher writes"},
      {"data", "teacher_tokens", &Recipe::teacher_tokens, {1, kMaxCount}, fixed, "tokens that \"teacher\" writes"},
      {"data", "text_share", &Recipe::text_share, {0, 0.99}, fixed,
       "share of the training sequences that are the texts', beside \"teacher\"'s: texts are repeated, cut elsewhere each "
       "time, until they have it; 0: each as long as it is"},
      {"data", "sequence", &Recipe::sequence, {2, 1 << 24}, fixed, "tokens per sequence"},
      {"data", "shift", &Recipe::shift, {}, fixed,
       "after the first epoch, sequences of a text begin elsewhere in it, each epoch at another place; not with teacher_cache"},
      {"data", "eval_text", &Recipe::eval_text, {}, fixed,
       "text file for evaluation during training; empty: the last 1 % of the data"},
      {"data", "eval_sequences", &Recipe::eval_sequences, {1, kMaxCount}, may_change,
       "sequences of it that each evaluation uses"},

      {"train", "steps", &Recipe::steps, {1, kMaxCount}, fixed, "optimizer steps"},
      {"train", "batch", &Recipe::batch, {1, 1 << 24}, fixed, "sequences per accumulation round"},
      {"train", "accumulate", &Recipe::accumulate, {1, 1 << 24}, fixed, "accumulation rounds per step"},
      {"train", "lr", &Recipe::lr, {0, 10}, fixed, "peak learning rate of AdamW"},
      {"train", "relative_lr", &Recipe::relative_lr, {0, 10}, fixed,
       "peak learning rate of weights on grids of learned scales, in units of their scale; 0: lr is theirs too"},
      {"train", "norm_lr", &Recipe::norm_lr, {0, 10}, fixed, "peak learning rate of norms; 0: lr is theirs too"},
      {"train", "lora_rank", &Recipe::lora_rank, {0, 4096}, fixed,
       "trains adapters of this rank (LoRA), inside the rounding, and weight scales, instead of weights; embeddings, head "
       "and norms stay; 0: weights are trained"},
      {"train", "lora_alpha", &Recipe::lora_alpha, {1e-3, 1e6}, fixed,
       "what adapters add to a weight is lora_alpha / lora_rank times their product"},
      {"train", "min_lr_ratio", &Recipe::min_lr_ratio, {0, 1}, fixed, "the cosine ends at this fraction of lr"},
      {"train", "warmup", &Recipe::warmup, {0, kMaxCount}, fixed, "steps in which the learning rate rises from 0"},
      {"train", "optimizer", &Recipe::optimizer, {}, fixed,
       "adamw; adamw8bit: its two running means in 8 bits each, 2 bytes per weight instead of 8"},
      {"train", "beta1", &Recipe::beta1, {0, kAlmostOne}, fixed, "AdamW: decay of the first moment"},
      {"train", "beta2", &Recipe::beta2, {0, kAlmostOne}, fixed, "AdamW: decay of the second moment"},
      {"train", "eps", &Recipe::eps, {1e-30, 1}, fixed, "AdamW: added to the root of the second moment"},
      {"train", "weight_decay", &Recipe::weight_decay, {0, 10}, fixed, "AdamW: decoupled weight decay"},
      {"train", "average", &Recipe::average, {0, kAlmostOne}, fixed,
       "decay of a running mean of weights and scales, which is what is evaluated, frozen and written; 0: none"},
      {"train", "clip", &Recipe::clip, {0, kMost}, fixed, "largest global gradient norm; 0: no clipping"},
      {"train", "kl", &Recipe::kl, {0, kMost}, fixed, "weight of the forward KL divergence to the teacher"},
      {"train", "reverse_kl", &Recipe::reverse_kl, {0, kMost}, fixed,
       "weight of the reverse KL divergence, student to teacher; beside kl: a mix of the two"},
      {"train", "jsd", &Recipe::jsd, {0, kMost}, fixed,
       "weight of the generalized Jensen-Shannon divergence: jsd_beta KL(teacher, m) + (1 - jsd_beta) KL(student, m)"},
      {"train", "jsd_beta", &Recipe::jsd_beta, {0.01, 0.99}, fixed,
       "of jsd: the teacher's share in the distribution m between teacher and student; 0.5 is the usual one"},
      {"train", "hidden", &Recipe::hidden, {0, kMost}, fixed,
       "weight of the relative squared error of what layers pass on, beside the teacher's; falls to 0 by half the run"},
      {"train", "ce", &Recipe::ce, {0, kMost}, fixed, "weight of the cross-entropy with the text"},
      {"train", "temperature", &Recipe::temperature, {0.01, 100}, fixed,
       "temperature of both distributions in kl, reverse_kl and jsd"},
      {"train", "teacher_top_k", &Recipe::teacher_top_k, {0, kMaxCount}, fixed,
       "the divergences see the teacher's k largest logits and all others as one tail; 0: every logit"},
      {"train", "teacher_cache", &Recipe::teacher_cache, {}, fixed,
       "the teacher runs once, before training, and its teacher_top_k logits per token are read from a file in out"},
      {"train", "gradient_checkpointing", &Recipe::gradient_checkpointing, {}, may_change,
       "recompute layers in the backward pass: less memory, a third more time"},
      {"train", "loss_chunk", &Recipe::loss_chunk, {1, kMaxCount}, may_change,
       "tokens whose logits exist at once: memory is loss_chunk x vocabulary"},
      {"train", "blockwise", &Recipe::blockwise, {}, fixed,
       "q4_0: layer by layer in the memory of one, by the error of each layer's output (SignRound): steps are then of "
       "each layer, batch in sequences of calibration_sequences, relative_lr (0: 1 / steps) and scale_lr fall to 0 in a "
       "line"},
      {"train", "seed", &Recipe::seed, {0, kMaxSeed}, fixed,
       "of data order and teacher text; the same seed gives the same run"},
      {"train", "eval_every", &Recipe::eval_every, {0, kMaxCount}, may_change,
       "steps between evaluations; 0: only at the end"},
      {"train", "checkpoint_every", &Recipe::checkpoint_every, {0, kMaxCount}, may_change,
       "steps between checkpoints; 0: only when interrupted"},
      {"train", "log_every", &Recipe::log_every, {0, kMaxCount}, may_change,
       "steps between lines of metrics; 0: never"},
      {"train", "keep_checkpoints", &Recipe::keep_checkpoints, {1, kMaxCount}, may_change,
       "newest checkpoints that are kept"},
      {"train", "threads", &Recipe::threads, {0, 4096}, may_change, "processor threads; 0: all"},
      {"train", "device", &Recipe::device, {}, may_change, "cpu, cuda, or cuda:N"},
      {"train", "tf32", &Recipe::tf32, {}, fixed,
       "on CUDA, matrix products in TF32: twice as fast, factors rounded to 11 bits"},
  };
  // clang-format on
  return table;
}

// --- Values as text ---

std::string number_text(double x) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, x).ptr;  // shortest that reads back to the same bits
  std::string text(buffer, end);
  const size_t exponent = text.find("e-0");  // 1e-04 is 1e-4
  if (exponent != std::string::npos) text.erase(exponent + 2, 1);
  return text;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04X", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// A value as TOML, which is also how errors show it.
std::string value_text(const std::string& value) { return quoted(value); }
std::string value_text(int64_t value) { return std::to_string(value); }
std::string value_text(uint64_t value) { return std::to_string(value); }
std::string value_text(bool value) { return value ? "true" : "false"; }
std::string value_text(double value) {
  std::string text = number_text(value);
  if (text.find_first_of(".einf") == std::string::npos) text += ".0";  // TOML tells 1.0 from 1
  return text;
}
std::string value_text(const std::vector<std::string>& list) {
  std::string text = "[";
  for (size_t i = 0; i < list.size(); ++i) text += (i == 0 ? "" : ", ") + quoted(list[i]);
  return text + "]";
}
std::string value_text(const Recipe& recipe, const Key& key) {
  return std::visit([&](auto member) { return value_text(recipe.*member); }, key.field);
}

std::string type_text(const Key& key) {
  static const char* const names[] = {"text",         "list of texts", "whole number",
                                      "whole number", "number",        "true or false"};
  return names[key.field.index()];
}

std::string bounds_text(const Bounds& bounds) {
  const bool low = std::isfinite(bounds.min), high = std::isfinite(bounds.max) && bounds.max < kMaxCount;
  if (low && high) return "from " + number_text(bounds.min) + " to " + number_text(bounds.max);
  if (low) return "at least " + number_text(bounds.min);
  return "";
}

std::string key_text(const Key& key) { return std::string("[") + key.section + "] " + key.name; }

// --- TOML to fields ---

std::string found_text(const toml::node& node) {
  if (const auto* text = node.as_string()) return "the text " + quoted(text->get());
  if (const auto* integer = node.as_integer()) return value_text(integer->get());
  if (const auto* number = node.as_floating_point()) return value_text(number->get());
  if (const auto* boolean = node.as_boolean()) return value_text(boolean->get());
  if (node.is_array()) return "a list";
  return node.is_table() ? "a table" : "a date or time";
}

[[noreturn]] void fail_type(const Key& key, const toml::node& node, const std::string& place) {
  fail(place, ": ", key_text(key), ": expected ", type_text(key), ", found ", found_text(node));
}

void check_bounds(const Key& key, double value, const std::string& shown, const std::string& place) {
  if (value >= key.bounds.min && value <= key.bounds.max) return;
  fail(place, ": ", key_text(key), ": expected ", type_text(key), " ", bounds_text(key.bounds), ", found ", shown);
}

// Reads the node into the field; `place` is "file:line" or the flag.
struct NodeReader {
  Recipe& recipe;
  const Key& key;
  const toml::node& node;
  const std::string& place;

  void operator()(std::string Recipe::*member) const {
    const auto* text = node.as_string();
    if (text == nullptr) fail_type(key, node, place);
    recipe.*member = text->get();
  }
  void operator()(std::vector<std::string> Recipe::*member) const {
    std::vector<std::string> list;
    if (const auto* text = node.as_string()) {
      list.push_back(text->get());
    } else if (const auto* array = node.as_array()) {
      for (const toml::node& element : *array) {
        const auto* item = element.as_string();
        if (item == nullptr)
          fail(place, ": ", key_text(key), ": expected texts in the list, found ", found_text(element));
        list.push_back(item->get());
      }
    } else {
      fail_type(key, node, place);
    }
    recipe.*member = std::move(list);
  }
  void operator()(int64_t Recipe::*member) const { recipe.*member = whole_number(); }
  void operator()(uint64_t Recipe::*member) const { recipe.*member = static_cast<uint64_t>(whole_number()); }
  void operator()(double Recipe::*member) const {
    const std::optional<double> number = node.value<double>();  // whole numbers too
    if (!number || node.is_boolean()) fail_type(key, node, place);
    check_bounds(key, *number, found_text(node), place);
    recipe.*member = *number;
  }
  void operator()(bool Recipe::*member) const {
    const auto* boolean = node.as_boolean();
    if (boolean == nullptr) fail_type(key, node, place);
    recipe.*member = boolean->get();
  }

 private:
  int64_t whole_number() const {
    const auto* integer = node.as_integer();
    if (integer == nullptr) fail_type(key, node, place);
    check_bounds(key, static_cast<double>(integer->get()), found_text(node), place);
    return integer->get();
  }
};

void read_node(Recipe& recipe, const Key& key, const toml::node& node, const std::string& place) {
  std::visit(NodeReader{recipe, key, node, place}, key.field);
}

const Key* find_key(const std::string& name) {
  for (const Key& key : keys()) {
    if (key.name == name) return &key;
  }
  return nullptr;
}

std::vector<std::string> key_names() {
  std::vector<std::string> names;
  for (const Key& key : keys()) names.emplace_back(key.name);
  return names;
}

bool is_section(const std::string& name) {
  for (const Key& key : keys()) {
    if (key.section == name) return true;
  }
  return false;
}

std::string sections_text() { return "[model], [quantization], [data], [train]"; }

// The key of this name in this section (any section when empty); throws Error with what was probably meant.
const Key& key_at(const std::string& section, const std::string& name, const std::string& place) {
  const Key* key = find_key(name);
  if (key == nullptr) {
    const std::string hint = suggestion(name, key_names());
    fail(place, ": unknown key \"", name, "\"", hint.empty() ? "; `qat recipe --explain` lists the keys" : hint);
  }
  if (!section.empty() && section != key->section)
    fail(place, ": \"", name, "\" belongs in [", key->section, "], found in [", section, "]");
  return *key;
}

toml::table parse_toml(const std::string& text, const std::string& origin) {
  try {
    return toml::parse(text, origin);
  } catch (const toml::parse_error& error) {
    fail(origin, ":", error.source().begin.line, ": not valid TOML: ", error.description());
  }
}

std::string place_of(const std::string& origin, const toml::node& node) {
  return origin + ":" + std::to_string(node.source().begin.line);
}

// --- Rules that span keys ---

void check_mobile(const Recipe& r) {
  for (const int64_t bits : {r.kv_sliding_bits, r.kv_global_bits})
    if (bits != 0 && bits != 2 && bits != 4 && bits != 8)
      fail("recipe: [quantization] kv_sliding_bits, kv_global_bits: expected 0, 2, 4 or 8, found ", bits);
  if (r.observer != "mse" && r.observer != "percentile" && r.observer != "max")
    fail("recipe: [quantization] observer: expected mse, percentile or max, found ", quoted(r.observer));
  if (r.plan == "mobile" && r.freeze_after < r.activations_after)
    fail("recipe: [quantization] freeze_after: expected at least activations_after = ", r.activations_after, ", found ",
         r.freeze_after);
  if (r.narrow_after > 0.0 && (r.plan != "mobile" || r.freeze_after <= r.narrow_after))
    fail("recipe: [quantization] narrow_after: expected 0, or with plan = \"mobile\" less than freeze_after = ",
         r.freeze_after, ", found ", r.narrow_after);
}

void check_type_name(const Recipe& r, const char* key, const std::string& name) {
  if (name.empty()) return;
  const DTypeInfo* info = find_dtype_by_name(name);
  const bool mobile = r.plan == "mobile";
  const auto allowed = [&](DType type) {
    if (!mobile) return is_grid(type);
    return code_bits(type) != 0 || (is_grid(type) && !has_codes(type));
  };
  if (info != nullptr && allowed(info->id)) return;
  fail("recipe: [quantization] ", key, ": expected one of f32, f16, bf16, ",
       mobile ? "i8, i4, i2" : "q8_0, q6_k, q4_0, q2_0", ", found \"", name, "\"");
}

void check_losses(const Recipe& r) {
  if (!distills(r) && r.ce == 0.0)
    fail("recipe: [train] kl, reverse_kl, jsd and ce are all 0: there is no loss to train on");
  if (!distills(r) && (r.teacher_top_k > 0 || r.teacher_cache))
    fail("recipe: [train] ", r.teacher_cache ? "teacher_cache" : "teacher_top_k",
         ": kl, reverse_kl and jsd are all 0: there is no teacher");
  if (r.hidden > 0.0 && (!distills(r) || r.teacher_cache || r.blockwise))
    fail("recipe: [train] hidden compares with what the teacher's layers pass on: expected 0 ",
         r.blockwise       ? "with blockwise, which compares layer by layer already"
         : r.teacher_cache ? "with teacher_cache, which holds logits only"
                           : "where kl, reverse_kl and jsd are all 0 and there is no teacher",
         ", found ", r.hidden);
  if (r.teacher_cache && r.teacher_top_k == 0)
    fail(
        "recipe: [train] teacher_cache: expected teacher_top_k of at least 1 (64, say), found 0: all logits of every "
        "token are too many to keep");
  const bool own_teacher = r.teacher.empty() || r.teacher == r.model;
  if (r.plan == "none" && r.ce == 0.0 && own_teacher) {
    fail(
        "recipe: [quantization] plan = \"none\" with the model as its own teacher: their KL is 0; set kl = 0 and ce = "
        "1, or another teacher");
  }
}

void check_init(const Recipe& r) {
  if (r.init != "plain" && r.init != "search" && r.init != "gptq" && !init_is_directory(r.init))
    fail("recipe: [quantization] init: expected plain, search or gptq, found ", quoted(r.init),
         "; a quantized checkpoint is given as a path with a slash");
  if (!r.blockwise) return;
  if (r.plan == "none" || r.plan == "mobile")
    fail("recipe: [train] blockwise: expected a plan with Q4_0 (q4_0), found ", quoted(r.plan));
  if (r.device != "cpu") fail("recipe: [train] blockwise runs on the cpu: device: found ", quoted(r.device));
  if (!r.teacher.empty() && r.teacher != r.model)
    fail("recipe: [train] blockwise: the model itself is what layers are compared with: teacher must be empty");
}

// Adapters have the learning rate lr: relative_lr and norm_lr are of what they leave alone, and say nothing here.
void check_lora(const Recipe& r) {
  if (r.lora_rank == 0) return;
  if (r.plan == "none")
    fail("recipe: [train] lora_rank: expected 0 with plan = \"none\", which has no grids to adapt weights to, found ",
         r.lora_rank);
  if (r.blockwise)
    fail("recipe: [train] blockwise moves roundings, not adapters: lora_rank: expected 0, found ", r.lora_rank);
  if (r.dampening > 0.0)
    fail("recipe: [quantization] dampening: expected 0 with lora_rank = ", r.lora_rank,
         ", since adapters cannot draw each weight to its level, found ", r.dampening);
}

void check_device(const std::string& device) {
  if (device == "cpu" || device == "cuda") return;
  const std::string prefix = "cuda:";
  const bool numbered = device.compare(0, prefix.size(), prefix) == 0 && device.size() > prefix.size() &&
                        device.find_first_not_of("0123456789", prefix.size()) == std::string::npos;
  if (!numbered) fail("recipe: [train] device: expected cpu, cuda or cuda:N, found \"", device, "\"");
}

void check_optimizer(const std::string& name) {
  const std::vector<std::string> names = {"adamw", "adamw8bit"};
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  fail("recipe: [train] optimizer: expected adamw or adamw8bit, found ", quoted(name), suggestion(name, names));
}

}  // namespace

Recipe recipe_from_toml(const std::string& text, const std::string& origin) {
  const toml::table root = parse_toml(text, origin);
  Recipe recipe;
  for (const auto& [section_key, node] : root) {
    const std::string section(section_key.str());
    const toml::table* table = node.as_table();
    if (table == nullptr || !is_section(section)) {
      const std::string place = place_of(origin, node);
      const Key* key = table == nullptr ? find_key(section) : nullptr;
      if (key != nullptr) fail(place, ": \"", section, "\" belongs in [", key->section, "], found outside any section");
      if (table == nullptr) key_at("", section, place);
      fail(place, ": unknown section [", section, "]: expected one of ", sections_text());
    }
    for (const auto& [name, value] : *table) {
      const std::string place = place_of(origin, value);
      read_node(recipe, key_at(section, std::string(name.str()), place), value, place);
    }
  }
  return recipe;
}

Recipe recipe_from_file(const std::string& path) { return recipe_from_toml(read_file(path, 1 << 20), path); }

void recipe_set(Recipe& recipe, const std::string& assignment) {
  const std::string place = "--set " + assignment;
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos) fail(place, ": expected KEY=VALUE");
  std::string name = assignment.substr(0, equals), section;
  const std::string value = assignment.substr(equals + 1);
  const size_t dot = name.find('.');
  if (dot != std::string::npos) {
    section = name.substr(0, dot);
    name = name.substr(dot + 1);
    if (!is_section(section)) fail(place, ": unknown section [", section, "]: expected one of ", sections_text());
  }
  const Key& key = key_at(section, name, place);
  const bool list = std::holds_alternative<std::vector<std::string> Recipe::*>(key.field);
  const bool text = std::holds_alternative<std::string Recipe::*>(key.field);
  const bool bare = (text && (value.empty() || (value[0] != '"' && value[0] != '\''))) ||
                    (list && (value.empty() || value[0] != '['));
  if (bare) {
    if (list && value.empty()) return read_node(recipe, key, toml::array{}, place);
    return read_node(recipe, key, toml::value<std::string>(value), place);
  }
  toml::table parsed;
  try {
    parsed = toml::parse("value = " + value);
  } catch (const toml::parse_error&) {
    fail(place, ": ", key_text(key), ": expected ", type_text(key), ", found ", quoted(value));
  }
  read_node(recipe, key, *parsed.get("value"), place);
}

void take_plan_file(Recipe& r) {
  if (is_plan_name(r.plan)) return;
  const Plan plan = plan_from_name_or_file(r.plan);
  for (const PlanRule& rule : plan.rules) r.rules.push_back(rule.pattern + "=" + dtype_name(rule.grid));
  r.plan = "q4_0";
}

bool init_is_directory(const std::string& init) { return init.find('/') != std::string::npos; }

void validate_recipe(const Recipe& r) {
  for (const Key& key : keys()) {
    const std::string shown = value_text(r, key);
    if (const auto* whole = std::get_if<int64_t Recipe::*>(&key.field))
      check_bounds(key, static_cast<double>(r.*(*whole)), shown, "recipe");
    if (const auto* seed = std::get_if<uint64_t Recipe::*>(&key.field))
      check_bounds(key, static_cast<double>(r.*(*seed)), shown, "recipe");
    if (const auto* number = std::get_if<double Recipe::*>(&key.field))
      check_bounds(key, r.*(*number), shown, "recipe");
  }
  if (r.model.empty()) fail("recipe: [model] model is missing: the Hugging Face directory to train (or --model DIR)");
  if (r.out.empty()) fail("recipe: [model] out is missing: the output directory (or --out DIR)");
  if (r.data.empty()) fail("recipe: [data] data is missing: text files, directories, or \"teacher\" (or --data FILE)");
  plan_from_name(r.plan);
  for (const std::string& rule : r.rules) {
    const size_t equals = rule.rfind('=');
    if (equals == std::string::npos || equals == 0)
      fail("recipe: [quantization] rules: expected PATTERN=TYPE, found \"", rule, "\"");
    check_type_name(r, "rules", rule.substr(equals + 1));
  }
  check_type_name(r, "embedding_type", r.embedding_type);
  check_type_name(r, "output_type", r.output_type);
  check_init(r);
  check_mobile(r);
  if (r.warmup > r.steps && !r.blockwise)
    fail("recipe: [train] warmup: expected at most steps = ", r.steps, ", found ", r.warmup,
         "; set it too: --set warmup=N");
  check_losses(r);
  check_optimizer(r.optimizer);
  check_lora(r);
  check_device(r.device);
}

std::string recipe_to_toml(const Recipe& recipe) {
  std::ostringstream out;
  std::string section;
  for (const Key& key : keys()) {
    if (key.section != section) {
      out << (section.empty() ? "" : "\n") << "[" << key.section << "]\n";
      section = key.section;
    }
    out << "# " << key.doc << "\n" << key.name << " = " << value_text(recipe, key) << "\n";
  }
  return out.str();
}

std::string explain_recipe() {
  const Recipe defaults;
  std::ostringstream out;
  out << "A recipe is a TOML file with the sections " << sections_text() << ".\n"
      << "`qat train --set key=value` changes one key. Keys marked * may change when a run is resumed.\n";
  std::string section;
  for (const Key& key : keys()) {
    if (key.section != section) out << "\n[" << key.section << "]\n";
    section = key.section;
    const std::string bounds = bounds_text(key.bounds);
    out << "  " << key.name << " = " << value_text(defaults, key) << (key.on_resume == may_change ? "  *" : "") << "\n"
        << "      " << type_text(key) << (bounds.empty() ? "" : ", " + bounds) << ". " << key.doc << "\n";
  }
  return out.str();
}

std::vector<std::string> recipe_conflicts(const Recipe& before, const Recipe& now) {
  std::vector<std::string> conflicts;
  for (const Key& key : keys()) {
    const std::string old_value = value_text(before, key), new_value = value_text(now, key);
    if (key.on_resume == fixed && old_value != new_value)
      conflicts.push_back(key_text(key) + ": " + old_value + " -> " + new_value);
  }
  return conflicts;
}

}  // namespace qat
