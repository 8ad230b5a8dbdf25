#include "qat/train/run_state.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "format/error.h"
#include "format/safetensors.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

constexpr const char* kPrefix = "step-";
constexpr const char* kSuffix = ".safetensors";

std::string directory_of(const std::string& out) { return out + "/checkpoints"; }

std::string file_name(int64_t step) {
  char name[64];
  std::snprintf(name, sizeof name, "%s%08lld%s", kPrefix, static_cast<long long>(step), kSuffix);
  return name;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Newest first. What a killed run left half-written ends differently (AtomicFile's temporary names).
std::vector<std::string> checkpoints(const std::string& out) {
  std::vector<std::string> found;
  if (!fs::is_directory(directory_of(out))) return found;
  for (const auto& entry : fs::directory_iterator(directory_of(out))) {
    const std::string name = entry.path().filename().string();
    if (name.rfind(kPrefix, 0) == 0 && ends_with(name, kSuffix)) found.push_back(entry.path().string());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// Leftovers of a killed run: nobody else writes into this directory.
void remove_half_written(const std::string& out) {
  for (const auto& entry : fs::directory_iterator(directory_of(out)))
    if (!ends_with(entry.path().filename().string(), kSuffix)) fs::remove(entry.path());
}

struct StateTensor {
  std::string name;
  torch::Tensor tensor;
};

void add_moment(const std::string& kind, const std::string& name, const Moment& moment,
                std::vector<StateTensor>* state) {
  state->push_back({kind + "." + name, moment.values});
  if (moment.scales.defined()) state->push_back({kind + "_scale." + name, moment.scales});
}

DType dtype_of(const torch::Tensor& t) { return t.scalar_type() == torch::kUInt8 ? DType::U8 : DType::F32; }

std::vector<StateTensor> state_tensors(const Model& model, AdamW& optimizer, Averages& averages,
                                       const CodeWatch& watch) {
  std::vector<StateTensor> state;
  size_t i = 0;
  for (const Trained& t : model.trained()) {
    state.push_back({t.name, t.tensor.detach()});
    add_moment("adam_mean", t.name, optimizer.means()[i], &state);
    add_moment("adam_square", t.name, optimizer.squares()[i], &state);
    if (averages.on()) state.push_back({"average." + t.name, averages.means()[i]});
    ++i;
  }
  for (const Parameter& p : model.parameters()) {
    if (p.scale_sign.defined()) state.push_back({p.info.name + ".scale_sign", p.scale_sign});
    if (p.log_scale.defined() && !p.learns_scale()) state.push_back({p.info.name + ".log_scale", p.log_scale});
    if (!p.trained && p.master_moved) state.push_back({p.info.name, p.master.detach()});
  }
  for (const auto& [name, tensor] : watch.state()) state.push_back({name, tensor});
  return state;
}

const std::string& metadata_value(const Safetensors& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end())
    fail(file.path(), ": metadata: expected ", key, ", found none: not a checkpoint of a training run");
  return found->second;
}

uint64_t metadata_number(const Safetensors& file, const std::string& key) {
  const std::string& text = metadata_value(file, key);
  try {
    return std::stoull(text);
  } catch (const std::exception&) {
    fail(file.path(), ": metadata ", key, ": expected a number, found \"", text, "\"");
  }
}

}  // namespace

uint64_t hash_weights(const Model& model) {
  uint64_t hash = 0;
  for (const Parameter& p : model.parameters()) {
    const torch::Tensor host = p.master.detach().cpu().contiguous();
    hash = XXH3_64bits_withSeed(host.data_ptr(), host.nbytes(), hash);
  }
  return hash;
}

std::string save_run(const RunInfo& info, const Model& model, AdamW& optimizer, Averages& averages,
                     const CodeWatch& watch) {
  const std::string& out = info.recipe.out;
  fs::create_directories(directory_of(out));
  remove_half_written(out);
  const std::vector<StateTensor> state = state_tensors(model, optimizer, averages, watch);
  std::vector<TensorSpec> specs;
  for (const StateTensor& s : state) specs.push_back({s.name, dtype_of(s.tensor), s.tensor.sizes().vec()});
  const std::string path = directory_of(out) + "/" + file_name(info.step);
  SafetensorsWriter file(path, specs,
                         {{"step", std::to_string(info.step)},
                          {"recipe", recipe_to_toml(info.recipe)},
                          {"data_hash", std::to_string(info.data_hash)},
                          {"model_hash", std::to_string(info.model_hash)},
                          {"threads", std::to_string(info.threads)},
                          {"averaged", std::to_string(averages.updates)}});
  for (const StateTensor& s : state) {
    const torch::Tensor host = s.tensor.cpu().contiguous();
    file.append(host.data_ptr(), host.nbytes());
  }
  file.commit();
  const std::vector<std::string> all = checkpoints(out);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(info.recipe.keep_checkpoints, 1)); i < all.size(); ++i)
    fs::remove(all[i]);
  return path;
}

std::string newest_checkpoint(const std::string& out, std::vector<std::string>* notices) {
  for (const std::string& path : checkpoints(out)) {
    try {
      read_run_info(path);
      return path;
    } catch (const Error& error) {
      if (notices != nullptr) notices->push_back(error.what());
    }
  }
  return "";
}

RunInfo read_run_info(const std::string& path) {
  const Safetensors file(path);
  RunInfo info;
  info.step = static_cast<int64_t>(metadata_number(file, "step"));
  info.recipe = recipe_from_toml(metadata_value(file, "recipe"), path + ": recipe");
  info.data_hash = metadata_number(file, "data_hash");
  if (file.metadata().count("model_hash") > 0) info.model_hash = metadata_number(file, "model_hash");
  info.threads = static_cast<int64_t>(metadata_number(file, "threads"));
  return info;
}

void load_run(const std::string& path, Model& model, AdamW& optimizer, Averages& averages, const CodeWatch& watch) {
  const Safetensors file(path);
  for (StateTensor& s : state_tensors(model, optimizer, averages, watch)) {
    const TensorView& view = file.at(s.name);
    if (view.dtype != dtype_of(s.tensor) || view.shape != s.tensor.sizes().vec())
      fail(path, ": tensor ", s.name, ": expected ", dtype_name(dtype_of(s.tensor)), " ",
           shape_text(s.tensor.sizes().vec()), ", found ", dtype_name(view.dtype), " ", shape_text(view.shape));
    torch::Tensor host = torch::empty(view.shape, s.tensor.scalar_type());
    std::memcpy(host.data_ptr(), view.bytes.data(), view.bytes.size());
    s.tensor.copy_(host);
  }
  optimizer.steps = read_run_info(path).step;
  if (averages.on()) averages.updates = static_cast<int64_t>(metadata_number(file, "averaged"));
  model.static_grids().refresh();
}

}  // namespace qat
