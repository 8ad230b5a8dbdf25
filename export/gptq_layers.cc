#include "export/gptq_layers.h"

#include <algorithm>
#include <set>

#include "format/error.h"
#include "format/file_io.h"

namespace qat {
namespace {

// Linears that read the same rows share their moments: those of the one that comes first.
Role reader_of(Role role) {
  switch (role) {
    case Role::k:
    case Role::v: return Role::q;
    case Role::up: return Role::gate;
    default: return role;
  }
}

bool is_measured(const TensorInfo& info) {
  return info.layer >= 0 && info.kind == TensorKind::linear && info.quantizable;
}

// What the steps cost, in multiply-adds; rounding and factors run at a half of the speed of the engine's products.
double run_work(const std::vector<TensorInfo>& table, int layer, int64_t tokens) {
  double work = 0.0;
  for (const TensorInfo& info : table)
    if (is_measured(info) && info.layer == layer)
      work += static_cast<double>(tokens) * static_cast<double>(info.shape[0] * info.shape[1]);
  return work;
}

double moments_work(const TensorInfo& info, int64_t tokens) {
  const auto width = static_cast<double>(info.shape[1]);
  return reader_of(info.role) == info.role ? width * width * (static_cast<double>(tokens) / 2 + width / 3) : 0.0;
}

double rounding_work(const TensorInfo& info) {
  return 2.0 * static_cast<double>(info.shape[0]) * static_cast<double>(info.shape[1] * info.shape[1]);
}

constexpr double kRoundingAWeight = 2000.0;  // by a rule without moments

}  // namespace

GptqLayers::GptqLayers(const std::string& hf_directory, const std::vector<std::vector<int32_t>>& sequences, int threads,
                       GptqProgress progress)
    : run_(load_weights(hf_directory), EngineOptions{threads}, sequences),
      table_(tensor_table(run_.config())),
      progress_(std::move(progress)) {
  std::set<int32_t> tokens;
  for (const std::vector<int32_t>& sequence : sequences) tokens.insert(sequence.begin(), sequence.end());
  tokens_.assign(tokens.begin(), tokens.end());
  for (const TensorInfo& info : table_) {
    if (is_measured(info)) total_ += moments_work(info, run_.tokens()) + rounding_work(info);
    else if (info.shape.size() == 2)
      total_ += kRoundingAWeight * static_cast<double>(info.shape[0]) * static_cast<double>(info.shape[1]);
  }
  const int layers = static_cast<int>(run_.config().layers.size());
  for (int layer = 0; layer < layers; ++layer)  // the last one is only measured
    total_ += (layer + 1 < layers ? 2.0 : 1.0) * run_work(table_, layer, run_.tokens());
}

void GptqLayers::report(double work) {
  constexpr double kUnit = 1e6;
  done_ = std::min(total_, done_ + work);
  if (progress_) progress_(static_cast<int64_t>(done_ / kUnit), static_cast<int64_t>(total_ / kUnit) + 1);
}

void GptqLayers::replace(const TensorInfo& info, DType type, const uint8_t* data, const float* scales,
                         int64_t scales_per_row) {
  Matrix& matrix = *find_matrix(run_.weights(), info);
  release_pages(matrix.data, static_cast<size_t>(matrix.rows) * row_bytes(matrix.dtype, matrix.cols));
  matrix.dtype = type;
  matrix.data = data;
  matrix.scales = reinterpret_cast<const uint8_t*>(scales);
  matrix.scales_per_row = scales_per_row;
}

void GptqLayers::install_table(const TensorInfo& info, DType type, int64_t scales_per_row, const EncodeRow& encode) {
  const size_t stride = row_bytes(type, info.shape[1]);
  Stored& stored = tables_.emplace_back();
  // Room for all rows, of which the kernel only gives what is written to.
  stored.data.reset(new uint8_t[static_cast<size_t>(info.shape[0]) * stride]);
  if (scales_per_row > 0) stored.scales.resize(static_cast<size_t>(info.shape[0] * scales_per_row));
  for (const int32_t token : tokens_)
    encode(token, stored.data.get() + static_cast<size_t>(token) * stride,
           stored.scales.data() + token * scales_per_row);
  replace(info, type, stored.data.get(), scales_per_row > 0 ? stored.scales.data() : nullptr,
          std::max<int64_t>(1, scales_per_row));
}

void GptqLayers::measure(int layer) {
  if (layer == 0) run_.embed();
  const std::vector<TensorInfo>& table = table_;
  double work = run_work(table, layer, run_.tokens());
  std::map<std::string, InputMoments*> by_name;
  for (const TensorInfo& info : table) {
    if (!is_measured(info) || info.layer != layer || reader_of(info.role) != info.role) continue;
    by_name[info.name] = &moments_.emplace(info.role, info.shape[1]).first->second;
    work += moments_work(info, run_.tokens());
  }
  run_.set_activation_hook([&](const Observed& seen) {
    const auto found = seen.kind == Activation::input ? by_name.find(seen.name) : by_name.end();
    if (found != by_name.end()) found->second->add(run_.pool(), run_.isa(), seen.data, seen.rows);
  });
  const auto tokens = static_cast<double>(run_.tokens());
  int64_t before = 0;
  run_.run_layer(static_cast<size_t>(layer), false, [&](int64_t done) {
    report(work * static_cast<double>(done - before) / tokens);
    before = done;
  });
  run_.set_activation_hook({});
  for (auto& [role, moments] : moments_) {
    moments.factorize();
    report(0.0);
  }
}

const InputMoments* GptqLayers::moments(const TensorInfo& info) const {
  if (!is_measured(info)) return nullptr;
  const auto found = moments_.find(reader_of(info.role));
  return found == moments_.end() ? nullptr : &found->second;
}

void GptqLayers::install(const TensorInfo& info, DType type, std::vector<uint8_t> rows, std::vector<float> scales) {
  Stored& stored = layer_.emplace_back();
  stored.rows = std::move(rows);
  stored.scales = std::move(scales);
  replace(info, type, stored.rows.data(), stored.scales.empty() ? nullptr : stored.scales.data(), 1);
  report(rounding_work(info));
}

void GptqLayers::count_weights(int64_t weights) { report(kRoundingAWeight * static_cast<double>(weights)); }

void GptqLayers::finish(int layer) {
  moments_.clear();
  const auto tokens = static_cast<double>(run_.tokens());
  const double work = run_work(table_, layer, run_.tokens());
  int64_t before = 0;
  if (layer + 1 < static_cast<int>(run_.config().layers.size())) {  // nobody reads what the last one makes
    run_.run_layer(static_cast<size_t>(layer), true, [&](int64_t done) {
      report(work * static_cast<double>(done - before) / tokens);
      before = done;
    });
  }
  for (const TensorInfo& info : table_)
    if (info.layer == layer && is_measured(info)) find_matrix(run_.weights(), info)->data = nullptr;
  layer_.clear();
}

}  // namespace qat
