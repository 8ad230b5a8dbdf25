#include "qat/train/blockwise.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "export/ptq.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/run_directory.h"
#include "qat/progress.h"
#include "qat/train/data.h"
#include "qat/train/layer_rounding.h"
#include "qat/train/memory.h"
#include "qat/train/metrics.h"
#include "qat/train/start_point.h"
#include "qat/train/workers.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string layer_file(const std::string& out, size_t layer) {
  char name[64];
  std::snprintf(name, sizeof name, "/blocks/layer-%03zu.safetensors", layer);
  return out + name;
}

class Run {
 public:
  Run(const Recipe& recipe, const Plan& plan);
  TrainResult execute(bool resume);

 private:
  std::vector<std::vector<int32_t>> calibration();
  torch::Tensor calibration_ids();
  void open_start();
  TensorSource float_source() const;
  TensorSource quantized_source() const;
  std::vector<TensorInfo> tensors_of(size_t layer) const;
  TensorsByRole float_layer(size_t layer) const;
  LayerRows start_of(size_t layer) const;
  std::map<std::string, std::string> identity() const;  // what a finished layer's file says about its run
  void check_layer_file(const std::string& path, bool* other_threads) const;
  size_t finished_layers(bool resume) const;
  LayerRows read_layer(size_t layer) const;
  void write_layer(size_t layer, const LayerRows& rows) const;
  // false: stopped by a signal.
  bool round(size_t layer, const TensorsByRole& weights, LayerRows* rows);
  void assemble() const;
  void print_memory(double seconds) const;

  const Recipe& recipe_;
  const Plan plan_;
  const int64_t memory_before_ = resident_bytes();  // what reading the data took is free again, and used again
  int64_t threads_;
  FloatCheckpoint source_;
  std::map<std::string, PlanEntry> resolved_;
  std::map<std::string, DType> grids_;
  TrainingData data_;
  PtqOptions ptq_;
  std::unique_ptr<QuantizedCheckpoint> start_;  // when the run begins at one
  std::unique_ptr<LayerStream> floats_, quantized_;
  std::unique_ptr<MetricsLog> metrics_;
  std::unique_ptr<ProgressBar> bar_;
};

Run::Run(const Recipe& recipe, const Plan& plan)
    : recipe_(recipe),
      plan_(plan),
      threads_(set_threads(recipe.threads)),
      source_(recipe.model),
      resolved_(resolve_plan(plan_, source_.table(), source_.dtypes())),
      data_(load_training_data(recipe, source_.config())) {
  bool any = false;
  for (const TensorInfo& info : source_.table()) {
    grids_[info.name] = resolved_.at(info.name).grid;
    any = any || (info.layer >= 0 && info.kind == TensorKind::linear && grids_[info.name] == DType::Q4_0);
  }
  if (!any) fail("recipe: [train] blockwise: the plan ", recipe.plan, " has no linear of a layer on Q4_0");
  for (const std::string& notice : source_.notices()) std::fprintf(stderr, "%s\n", notice.c_str());
  announce_blockwise_memory(recipe_, plan_, source_, data_.train.count(), memory_before_, threads_);
  ptq_.method = recipe.init == "plain" ? PtqMethod::reference : PtqMethod::mse;
  ptq_.threads = static_cast<int>(recipe.threads);
}

std::vector<std::vector<int32_t>> Run::calibration() {
  std::vector<std::vector<int32_t>> sequences;
  DataOrder order(data_.train.count(), recipe_.seed);
  const int64_t count = std::min(recipe_.calibration_sequences, data_.train.count());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* row = data_.train.row(order.at(i));
    sequences.emplace_back(row, row + data_.train.length);
  }
  return sequences;
}

torch::Tensor Run::calibration_ids() {
  const std::vector<std::vector<int32_t>> sequences = calibration();
  torch::Tensor ids = torch::empty({static_cast<int64_t>(sequences.size()), data_.train.length}, torch::kInt64);
  int64_t* out = ids.data_ptr<int64_t>();
  for (const std::vector<int32_t>& sequence : sequences) out = std::copy(sequence.begin(), sequence.end(), out);
  return ids;
}

// GPTQ goes through the model on its own first, and leaves a quantized checkpoint to begin at.
void Run::open_start() {
  std::string directory = recipe_.init;
  if (recipe_.init == "gptq") {
    directory = recipe_.out + "/start";
    PtqOptions options = ptq_;
    options.method = PtqMethod::gptq;
    options.calibration = calibration();
    std::unique_ptr<ProgressBar> bar;
    if (!fs::exists(directory))
      quantize_checkpoint(recipe_.model, plan_, options, directory, [&](int64_t done, int64_t total) {
        if (!bar) bar = std::make_unique<ProgressBar>("init: gptq", total);
        bar->update(done);
      });
    if (bar) bar->finish();
  }
  if (recipe_.init == "gptq" || init_is_directory(recipe_.init))
    start_ = open_start_point(directory, source_, resolved_);
}

TensorSource Run::float_source() const {
  return [this](const TensorInfo& info) {
    const DType grid = source_.dtype(info) == DType::F64 ? DType::F32 : source_.dtype(info);
    return StoredRows{grid, [this, &info, grid](int64_t row, int64_t count, uint8_t* out) {
                        encode_checkpoint_rows(source_, info, grid, {}, row, count, out);
                      }};
  };
}

TensorSource Run::quantized_source() const {
  return [this](const TensorInfo& info) {
    const DType grid = grids_.at(info.name);
    return StoredRows{grid, [this, &info, grid](int64_t row, int64_t count, uint8_t* out) {
                        if (start_) start_->read_blocks(info, row, count, out);
                        else encode_checkpoint_rows(source_, info, grid, ptq_, row, count, out);
                      }};
  };
}

std::vector<TensorInfo> Run::tensors_of(size_t layer) const {
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& info : source_.table())
    if (info.layer == static_cast<int>(layer)) tensors.push_back(info);
  return tensors;
}

TensorsByRole Run::float_layer(size_t layer) const {
  TensorsByRole weights;
  for (const TensorInfo& info : tensors_of(layer)) {
    torch::Tensor& w = weights[info.role];
    w = torch::empty(info.shape);
    const int64_t rows = rows_of(info), cols = info.shape.back();
    at::parallel_for(0, rows, std::max<int64_t>(1, 65536 / cols), [&](int64_t begin, int64_t end) {
      source_.read_rows(info, begin, end - begin, w.data_ptr<float>() + begin * cols);
    });
    release_pages(source_.tensor(info).bytes.data(), source_.tensor(info).bytes.size());
    if (!torch::isfinite(w.sum()).item<bool>())
      fail(source_.directory(), ": tensor ", info.name, ": expected finite weights, found NaN or infinity");
  }
  return weights;
}

LayerRows Run::start_of(size_t layer) const {
  LayerRows rows;
  const TensorSource source = quantized_source();
  const std::vector<TensorInfo> tensors = tensors_of(layer);
  for (const TensorInfo& info : tensors) rows[info.name] = read_stored(info, source(info), 0, rows_of(info));
  return rows;
}

std::map<std::string, std::string> Run::identity() const {
  return {{"recipe", recipe_to_toml(recipe_)},
          {"data_hash", std::to_string(data_.hash)},
          {"threads", std::to_string(threads_)}};
}

void Run::check_layer_file(const std::string& path, bool* other_threads) const {
  const Safetensors file(path);
  const auto value = [&](const char* key) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? std::string() : found->second;
  };
  std::string conflicts;
  for (const std::string& conflict : recipe_conflicts(recipe_from_toml(value("recipe"), path + ": recipe"), recipe_))
    conflicts += (conflicts.empty() ? "" : "; ") + conflict;
  if (!conflicts.empty()) fail(path, ": a resumed run cannot change ", conflicts);
  if (value("data_hash") != std::to_string(data_.hash))
    fail(path, ": the training data is not what this run began with: expected hash ", value("data_hash"), ", found ",
         data_.hash);
  *other_threads = *other_threads || value("threads") != std::to_string(threads_);
}

size_t Run::finished_layers(bool resume) const {
  const size_t layers = source_.config().layers.size();
  size_t done = 0;
  while (done < layers && fs::exists(layer_file(recipe_.out, done))) ++done;
  if (done == 0) return 0;
  if (!resume)
    fail(recipe_.out, ": holds an unfinished run (layer ", done, " of ", layers, "): go on with --resume, or remove ",
         recipe_.out, "/blocks");
  bool other_threads = false;
  for (size_t layer = 0; layer < done; ++layer) check_layer_file(layer_file(recipe_.out, layer), &other_threads);
  if (other_threads)
    std::fprintf(stderr, "begun with another number of threads: the result will differ from an uninterrupted run's\n");
  std::fprintf(stderr, "resumed behind layer %zu of %zu\n", done, layers);
  return done;
}

LayerRows Run::read_layer(size_t layer) const {
  const Safetensors file(layer_file(recipe_.out, layer));
  LayerRows rows;
  for (const TensorInfo& info : tensors_of(layer)) {
    const Span<const uint8_t> bytes = file.at(info.name).bytes;
    const size_t expected = static_cast<size_t>(rows_of(info)) * row_bytes(grids_.at(info.name), info.shape.back());
    if (bytes.size() != expected)
      fail(file.path(), ": ", info.name, ": expected ", expected, " bytes, found ", bytes.size());
    rows[info.name].assign(bytes.begin(), bytes.end());
  }
  return rows;
}

void Run::write_layer(size_t layer, const LayerRows& rows) const {
  fs::create_directories(recipe_.out + "/blocks");
  std::vector<TensorSpec> specs;
  for (const auto& [name, bytes] : rows) specs.push_back({name, DType::U8, {static_cast<int64_t>(bytes.size())}});
  SafetensorsWriter file(layer_file(recipe_.out, layer), specs, identity());
  for (const auto& [name, bytes] : rows) file.append(bytes.data(), bytes.size());
  file.commit();
}

bool Run::round(size_t layer, const TensorsByRole& weights, LayerRows* rows) {
  RoundingOptions options;
  options.steps = recipe_.steps;
  options.batch = std::min(recipe_.batch, quantized_->sequences());
  options.lr = recipe_.relative_lr > 0.0 ? recipe_.relative_lr : 1.0 / static_cast<double>(recipe_.steps);
  options.scale_lr = recipe_.scale_lr;
  options.seed = recipe_.seed + layer;
  options.threads = threads_;
  const size_t layers = source_.config().layers.size();
  const auto report = [&](int64_t step, double loss) {
    char text[96];
    std::snprintf(text, sizeof text, "layer %zu of %zu, error %.3g", layer + 1, layers, loss);
    bar_->update(static_cast<int64_t>(layer) * recipe_.steps + step, text);
    return g_stop_signal == 0;
  };
  const Clock::time_point begun = Clock::now();
  RoundingErrors errors;
  if (!round_layer(tensors_of(layer), weights, grids_, floats_->hidden(), *quantized_, options, report, rows, &errors))
    return false;
  char text[160];
  std::snprintf(text, sizeof text, "layer %3zu  error of its output: %.5f -> %.5f  (%s)", layer + 1, errors.before,
                errors.after, duration_text(seconds_since(begun)).c_str());
  bar_->print(text);
  metrics_->add(static_cast<int64_t>(layer) + 1, {{"error_before", errors.before}, {"error", errors.after}});
  return true;
}

TrainResult Run::execute(bool resume) {
  fs::create_directories(recipe_.out);
  const Clock::time_point begun = Clock::now();
  const size_t layers = source_.config().layers.size(), done = finished_layers(resume);
  metrics_ = std::make_unique<MetricsLog>(recipe_.out, static_cast<int64_t>(done));
  open_start();
  const torch::Tensor ids = calibration_ids();
  floats_ = std::make_unique<LayerStream>(source_.config(), source_.table(), ids, float_source());
  quantized_ = std::make_unique<LayerStream>(source_.config(), source_.table(), ids, quantized_source());
  bar_ = std::make_unique<ProgressBar>("blocks", static_cast<int64_t>(layers) * recipe_.steps);
  for (size_t layer = 0; layer < layers; ++layer) {
    const TensorsByRole weights = float_layer(layer);
    floats_->enter(layer);
    floats_->advance(weights, recipe_.batch);
    quantized_->enter(layer);
    LayerRows rows = layer < done ? read_layer(layer) : start_of(layer);
    if (layer >= done) {
      if (!round(layer, weights, &rows))
        return {static_cast<int64_t>(layer), g_stop_signal, layer == 0 ? "" : layer_file(recipe_.out, layer - 1)};
      write_layer(layer, rows);
    }
    if (layer + 1 < layers) quantized_->advance(decode_layer(tensors_of(layer), grids_, rows), recipe_.batch);
    bar_->update(static_cast<int64_t>(layer + 1) * recipe_.steps);
  }
  bar_->finish();
  floats_.reset();
  quantized_.reset();
  assemble();
  print_memory(seconds_since(begun));
  return {static_cast<int64_t>(layers), 0, ""};
}

// The quantized checkpoint: tables as they are read, layers from their files.
void Run::assemble() const {
  constexpr int64_t kWeightsPerPiece = 1 << 22;
  const std::string result = run_result(recipe_.out, false);
  QuantizedCheckpointWriter writer(result, source_.directory(), source_.table(), plan_, resolved_);
  ProgressBar bar("writing", static_cast<int64_t>(source_.table().size()));
  const TensorSource source = quantized_source();
  LayerRows layer_rows;
  int current = -1;
  int64_t written = 0;
  for (const TensorInfo& info : source_.table()) {
    if (info.layer >= 0) {
      if (info.layer != current) layer_rows = read_layer(static_cast<size_t>(info.layer));
      current = info.layer;
      writer.append_rows(info, layer_rows.at(info.name).data(), rows_of(info));
    } else {
      const int64_t piece = std::max<int64_t>(1, kWeightsPerPiece / info.shape.back());
      for (int64_t row = 0; row < rows_of(info); row += piece) {
        const int64_t count = std::min(piece, rows_of(info) - row);
        writer.append_rows(info, read_stored(info, source(info), row, count).data(), count);
      }
    }
    bar.update(++written, info.name);
  }
  writer.commit();
  bar.finish();
  fs::remove_all(recipe_.out + "/blocks");
  fs::remove_all(recipe_.out + "/start");
  std::printf("quantized checkpoint: %s\nmetrics: %s/metrics.jsonl, %s/tensorboard\n", result.c_str(),
              recipe_.out.c_str(), recipe_.out.c_str());
  std::printf("next: qat export %s --format gguf --out model.gguf, or train on with init = \"%s\"\n", result.c_str(),
              result.c_str());
}

void Run::print_memory(double seconds) const {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(stderr, "%zu layers in %s, peak memory %s\n", source_.config().layers.size(),
               duration_text(seconds).c_str(), bytes_text(static_cast<uint64_t>(usage.ru_maxrss) * 1024).c_str());
}

}  // namespace

TrainResult train_blockwise(const TrainRequest& request, const Plan& plan) {
  return Run(request.recipe, plan).execute(request.resume);
}

}  // namespace qat
