#include "qat/train/results.h"

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>

#include "export/mobile_export.h"
#include "format/channel_grid.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/number.h"

namespace qat {
namespace {

torch::Tensor on_host(const Parameter& parameter) { return parameter.effective().detach().cpu().contiguous(); }

// config.json says in which type transformers loads the weights.
void set_config_dtype(const std::string& directory) {
  const std::string path = directory + "/config.json";
  auto config = nlohmann::ordered_json::parse(read_file(path));
  const auto set = [](nlohmann::ordered_json& object) {
    const char* key = object.contains("torch_dtype") && !object.contains("dtype") ? "torch_dtype" : "dtype";
    object[key] = "float32";
  };
  set(config);
  if (config.contains("text_config") && config["text_config"].is_object()) set(config["text_config"]);
  write_file(path, config.dump(2) + "\n");
}

void append_floats(SafetensorsWriter& file, const torch::Tensor& tensor) {
  file.append(tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel()) * sizeof(float));
}

// The head of a tied model is its embedding.
const Parameter& stored_parameter(const Model& model, const TensorInfo& info) {
  for (const Role role : {info.role, Role::token_embedding})
    for (const Parameter& p : model.parameters())
      if (p.info.role == role && p.info.layer == info.layer) return p;
  QAT_CHECK(false);
}

// Rows of a parameter as the mobile schema stores them: packed codes, or floats.
void encode_parameter(const Parameter& p, int64_t rows, int64_t cols, uint8_t* out) {
  const int bits = code_bits(p.grid);
  if (bits == 0) return encode_rows(p.grid, on_host(p).data_ptr<float>(), rows, cols, out);
  const torch::Tensor codes = p.codes();
  pack_codes(bits, codes.data_ptr<int8_t>(), rows, cols, out);
}

// Rows as they stand in the GGUF layout.
class BlockRows {
 public:
  explicit BlockRows(const Parameter& p) : grid_(p.grid), cols_(p.info.shape.back()) {
    if (!p.log_scale.defined()) {
      weights_ = on_host(p);
      return;
    }
    codes_ = p.codes();
    scales_ = p.scales().cpu().contiguous();
  }
  void encode(int64_t row, int64_t count, uint8_t* out) const {
    if (weights_.defined()) return encode_rows(grid_, weights_.data_ptr<float>() + row * cols_, count, cols_, out);
    CodedRows coded;
    coded.grid = grid_;
    coded.rows = count;
    coded.cols = cols_;
    const int8_t* codes = codes_.data_ptr<int8_t>() + row * cols_;
    const float* scales = scales_.data_ptr<float>() + row * cols_ / kBlockSize;
    coded.codes.assign(codes, codes + count * cols_);
    std::transform(scales, scales + count * cols_ / kBlockSize, std::back_inserter(coded.scales), f32_to_f16);
    pack_rows(coded, out);
  }

 private:
  DType grid_;
  int64_t cols_;
  torch::Tensor weights_;         // grids with a rule for their scales
  torch::Tensor codes_, scales_;  // learned scales
};

}  // namespace

void write_quantized(const Model& model, const Plan& plan, const std::map<std::string, PlanEntry>& resolved,
                     const std::string& source_directory, const std::string& directory) {
  QuantizedCheckpointWriter writer(directory, source_directory, model.table(), plan, resolved);
  constexpr int64_t kWeightsPerPiece = 1 << 22;
  for (const Parameter& parameter : model.parameters()) {
    const BlockRows source(parameter);
    const int64_t cols = parameter.info.shape.back(), rows = parameter.master.numel() / cols;
    const int64_t piece = std::max<int64_t>(1, kWeightsPerPiece / cols);
    std::vector<uint8_t> blocks;
    for (int64_t row = 0; row < rows; row += piece) {
      const int64_t count = std::min(piece, rows - row);
      blocks.resize(static_cast<size_t>(count) * row_bytes(parameter.grid, cols));
      source.encode(row, count, blocks.data());
      writer.append_rows(parameter.info, blocks.data(), count);
    }
  }
  writer.commit();
}

void write_mobile(const Model& model, const std::string& source_directory, const std::string& directory) {
  const std::vector<TensorInfo> table = mobile_table(model.config());
  std::vector<MobileSpec> specs;
  std::vector<const Parameter*> sources;
  for (const TensorInfo& info : table) {
    const Parameter& p = stored_parameter(model, info);
    sources.push_back(&p);
    MobileSpec spec;
    spec.dtype = p.grid;
    if (code_bits(p.grid) != 0) {
      const torch::Tensor scales = p.scales().cpu().contiguous();
      spec.scales.assign(scales.data_ptr<float>(), scales.data_ptr<float>() + scales.numel());
      spec.scales_per_row = mobile_scales_per_row(model.config(), info);
      spec.input_scale = model.static_grids().input_scale(info);
      spec.output_scale = model.static_grids().output_scale(info);
    }
    specs.push_back(std::move(spec));
  }
  std::vector<CacheScales> caches;
  for (size_t i = 0; i < model.config().layers.size(); ++i)
    caches.push_back(model.static_grids().cache_scales(static_cast<int>(i)));
  MobileWriter writer(directory, source_directory, table, specs, caches, describe_widths(table, specs));
  for (const size_t i : writer.order()) {
    const int64_t cols = table[i].shape.back(), rows = sources[i]->master.numel() / cols;
    std::vector<uint8_t> stored(static_cast<size_t>(rows) * row_bytes(specs[i].dtype, cols));
    encode_parameter(*sources[i], rows, cols, stored.data());
    writer.append_rows(i, stored.data(), rows);
  }
  writer.commit();
}

void write_hf(const Model& model, const FloatCheckpoint& source, const std::string& directory) {
  AtomicDirectory result(directory);
  copy_model_files(source.directory(), result.path());
  set_config_dtype(result.path());
  std::vector<TensorSpec> specs;
  for (const Parameter& p : model.parameters()) specs.push_back({source.tensor(p.info).name, DType::F32, p.info.shape});
  SafetensorsWriter file(result.path() + "/model.safetensors", specs);
  for (const Parameter& p : model.parameters()) append_floats(file, on_host(p));
  file.commit();
  result.commit();
}

void write_forward_weights(const Model& model, const std::string& path) {
  std::vector<TensorSpec> specs;
  for (const Parameter& p : model.parameters()) specs.push_back({p.info.name, DType::F32, p.info.shape});
  SafetensorsWriter file(path, specs);
  const ForwardWeights weights = model.forward_weights();
  for (const Parameter& p : model.parameters()) append_floats(file, weights.at(p.info).cpu().contiguous());
  file.commit();
}

}  // namespace qat
