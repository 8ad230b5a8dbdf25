// qat inspect: what is in a file or directory, tensor by tensor, with bits per weight.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "format/safetensors.h"
#include "qat/cli/commands.h"
#include "qat/cli/summary.h"
#include "qat/progress.h"

namespace qat {
namespace {

struct InspectOptions {
  std::string path;
  bool tensors = true, metadata = false, json = false;
};

double bits(uint64_t bytes, uint64_t weights) { return Totals{1, weights, bytes}.bits_per_weight(); }

const char* kind_text(const std::string& kind) {
  if (kind == "gguf") return "GGUF file";
  if (kind == "hf_directory") return "Hugging Face directory";
  if (kind == "mobile") return "Hugging Face directory, mobile schema";
  return kind == "quantized_checkpoint" ? "quantized checkpoint" : "safetensors";
}

std::string text_of(const std::string& text) { return text; }
std::string text_of(int64_t number) { return std::to_string(number); }

// "64", or "64 (layers 0-2), 128 (layers 3-5)": a number or word per layer, as runs.
template <class F>
std::string per_layer(const ModelConfig& config, F&& value) {
  struct Run {
    std::string value;
    std::vector<std::string> ranges;
  };
  std::vector<Run> runs;
  const size_t n = config.layers.size();
  for (size_t begin = 0, end; begin < n; begin = end) {
    end = begin + 1;
    const std::string v = text_of(value(config.layers[begin]));
    while (end < n && text_of(value(config.layers[end])) == v) ++end;
    const std::string range = std::to_string(begin) + (end - begin > 1 ? "-" + std::to_string(end - 1) : "");
    auto run = std::find_if(runs.begin(), runs.end(), [&](const Run& r) { return r.value == v; });
    if (run == runs.end()) run = runs.insert(runs.end(), Run{v, {}});
    run->ranges.push_back(range);
  }
  if (runs.size() == 1) return runs[0].value;
  std::string text;
  for (const Run& run : runs) {
    text += (text.empty() ? "" : ", ") + run.value + " (layers ";
    for (size_t i = 0; i < run.ranges.size(); ++i) text += (i == 0 ? "" : " ") + run.ranges[i];
    text += ")";
  }
  return text;
}

// Label and text of what the configuration says.
std::vector<std::pair<std::string, std::string>> config_rows(const ModelConfig& c) {
  std::vector<std::pair<std::string, std::string>> rows;
  const auto add = [&](const char* label, const std::string& text) { rows.emplace_back(label, text); };
  const auto sliding = std::count_if(c.layers.begin(), c.layers.end(), [](const LayerConfig& l) { return l.sliding; });
  add("architecture", arch_name(c.arch));
  std::string layers = std::to_string(c.layers.size());
  if (sliding > 0) layers += " (" + std::to_string(sliding) + " see " + std::to_string(c.sliding_window) + " tokens)";
  if (c.kv_shared_layers > 0)
    layers += ", the last " + std::to_string(c.kv_shared_layers) + " without K/V of their own";
  add("layers", layers);
  add("hidden", std::to_string(c.hidden));
  add("feed-forward", per_layer(c, [](const LayerConfig& l) { return l.ffn; }));
  add("heads", std::to_string(c.heads));
  add("K/V heads", per_layer(c, [](const LayerConfig& l) { return l.kv_heads; }));
  add("head size", per_layer(c, [](const LayerConfig& l) { return l.head_dim; }));
  if (c.ple > 0) add("per-layer input", std::to_string(c.ple));
  add("vocabulary", std::to_string(c.vocab) + (c.tied ? ", output tied to the embedding" : ""));
  add("context", std::to_string(c.context));
  return rows;
}

// Of a static grid: bits, and what a step is worth.
std::string width_text(int bits) { return bits == 0 ? "float" : std::to_string(bits); }
std::string scale_text(float scale) {
  if (scale == 0.0f) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", static_cast<double>(scale));
  return text;
}

// Widths of the KV cache; layers without K and V of their own read their source's.
std::string cache_widths(const ModelSummary& summary) {
  return per_layer(*summary.config, [&](const LayerConfig& layer) {
    for (const CacheSummary& cache : summary.caches)
      if (cache.layer == layer.kv_source) return width_text(cache.bits);
    return std::string("none");
  });
}

// How many of the linears round what goes in or out.
std::string activation_text(const ModelSummary& summary) {
  size_t rounded = 0;
  for (const TensorSummary& t : summary.tensors) rounded += t.input_scale > 0.0f || t.output_scale > 0.0f ? 1 : 0;
  return rounded == 0 ? "float" : "8 bits, static, around " + std::to_string(rounded) + " linears";
}

void print_row(const std::string& label, const std::string& text) {
  std::printf("%-16s %s\n", label.c_str(), text.c_str());
}

void print_types(const ModelSummary& summary) {
  std::printf("\n%-6s %8s %14s %14s %12s\n", "type", "tensors", "weights", "bytes", "bits/weight");
  for (const auto& [type, t] : summary.totals_by_type()) {
    std::printf("%-6s %8llu %14llu %14llu %12.3f\n", type.c_str(), static_cast<unsigned long long>(t.tensors),
                static_cast<unsigned long long>(t.weights), static_cast<unsigned long long>(t.bytes),
                t.bits_per_weight());
  }
}

void print_tensors(const ModelSummary& summary) {
  size_t name_width = 6, shape_width = 5;
  for (const TensorSummary& t : summary.tensors) {
    name_width = std::max(name_width, printable(t.name).size());
    shape_width = std::max(shape_width, shape_text(t.shape).size());
  }
  const int names = static_cast<int>(name_width), shapes = static_cast<int>(shape_width);
  const bool mobile = summary.kind == "mobile";
  std::printf("\n%-*s  %-*s  %-6s %14s %12s%s\n", names, "tensor", shapes, "shape", "type", "bytes", "bits/weight",
              mobile ? "  input scale  output scale" : "");
  for (const TensorSummary& t : summary.tensors) {
    std::printf("%-*s  %-*s  %-6s %14llu %12.3f", names, printable(t.name).c_str(), shapes, shape_text(t.shape).c_str(),
                dtype_name(t.dtype), static_cast<unsigned long long>(t.bytes), bits(t.bytes, t.weights));
    if (mobile) std::printf(" %12s %13s", scale_text(t.input_scale).c_str(), scale_text(t.output_scale).c_str());
    std::printf("\n");
  }
}

void print_caches(const ModelSummary& summary) {
  std::printf("\n%-6s %8s %12s %12s\n", "layer", "K/V bits", "K scale", "V scale");
  for (const CacheSummary& cache : summary.caches) {
    std::printf("%-6d %8s %12s %12s\n", cache.layer, width_text(cache.bits).c_str(), scale_text(cache.k_scale).c_str(),
                scale_text(cache.v_scale).c_str());
  }
}

void print_summary(const ModelSummary& summary, const InspectOptions& options) {
  const Totals totals = summary.totals();
  print_row("path", summary.path);
  print_row("kind", kind_text(summary.kind));
  if (summary.config) {
    for (const auto& [label, text] : config_rows(*summary.config)) print_row(label, text);
  }
  if (summary.kind == "mobile") {
    print_row("activations", activation_text(summary));
    print_row("K/V cache bits", cache_widths(summary));
  }
  char size[96];
  std::snprintf(size, sizeof size, "%llu weights in %llu tensors", static_cast<unsigned long long>(totals.weights),
                static_cast<unsigned long long>(totals.tensors));
  print_row("tensors", size);
  std::snprintf(size, sizeof size, "%s on disk, %.3f bits per weight", bytes_text(summary.file_bytes).c_str(),
                totals.bits_per_weight());
  print_row("size", size);
  if (options.metadata) std::printf("\n");
  for (const auto& [key, value] : options.metadata ? summary.metadata : decltype(summary.metadata){})
    std::printf("%s = %s\n", printable(key).c_str(), printable(value).c_str());
  print_types(summary);
  if (options.tensors) print_tensors(summary);
  if (options.tensors && !summary.caches.empty()) print_caches(summary);
}

using Json = nlohmann::ordered_json;

Json totals_json(const Totals& t) {
  return {{"tensors", t.tensors}, {"weights", t.weights}, {"bytes", t.bytes}, {"bits_per_weight", t.bits_per_weight()}};
}

Json config_json(const ModelConfig& c) {
  Json json = {{"architecture", arch_name(c.arch)},
               {"layers", c.layers.size()},
               {"hidden", c.hidden},
               {"heads", c.heads},
               {"vocab", c.vocab},
               {"context", c.context},
               {"tied", c.tied}};
  for (const LayerConfig& l : c.layers) {
    json["per_layer"].push_back({{"sliding", l.sliding},
                                 {"ffn", l.ffn},
                                 {"kv_heads", l.kv_heads},
                                 {"head_dim", l.head_dim},
                                 {"kv_source", l.kv_source}});
  }
  return json;
}

Json summary_json(const ModelSummary& summary, const InspectOptions& options) {
  Json json = {{"path", summary.path}, {"kind", summary.kind}};
  if (summary.config) json["config"] = config_json(*summary.config);
  json["notices"] = summary.notices;
  json["file_bytes"] = summary.file_bytes;
  json.update(totals_json(summary.totals()));
  for (const auto& [type, t] : summary.totals_by_type()) json["types"][type] = totals_json(t);
  if (options.metadata) {
    json["metadata"] = Json::object();
    for (const auto& [key, value] : summary.metadata) json["metadata"][key] = value;
  }
  if (options.tensors) {
    json["tensor_list"] = Json::array();
    for (const TensorSummary& t : summary.tensors) {
      json["tensor_list"].push_back({{"name", t.name},
                                     {"type", dtype_name(t.dtype)},
                                     {"shape", t.shape},
                                     {"weights", t.weights},
                                     {"bytes", t.bytes},
                                     {"bits_per_weight", bits(t.bytes, t.weights)}});
      if (summary.kind != "mobile") continue;
      json["tensor_list"].back()["input_scale"] = t.input_scale;
      json["tensor_list"].back()["output_scale"] = t.output_scale;
    }
  }
  for (const CacheSummary& cache : summary.caches)
    json["kv_cache"].push_back(
        {{"layer", cache.layer}, {"bits", cache.bits}, {"k_scale", cache.k_scale}, {"v_scale", cache.v_scale}});
  return json;
}

void run_inspect(const InspectOptions& options) {
  const ModelSummary summary = summarize(options.path);
  for (const std::string& notice : summary.notices) std::fprintf(stderr, "%s\n", notice.c_str());
  if (options.json)
    std::printf("%s\n", summary_json(summary, options).dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  else print_summary(summary, options);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand("inspect", "What is in a file or directory");
  command
      ->add_option("MODEL", options->path,
                   "GGUF file, Hugging Face directory (float or mobile), quantized checkpoint, or any safetensors file")
      ->required();
  command->add_flag("--tensors,!--no-tensors", options->tensors,
                    "The table of tensors (it is there unless --no-tensors)");
  command->add_flag("--metadata", options->metadata, "Also the metadata of a GGUF or safetensors file");
  command->add_flag("--json", options->json,
                    "Print JSON: path, kind, config, totals, types, tensor_list; of a mobile directory kv_cache");
  command->footer("Example:\n  qat inspect gemma-q4_0.gguf --metadata --no-tensors");
  command->callback([options] { run_inspect(*options); });
}

}  // namespace qat
