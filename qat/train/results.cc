#include "qat/train/results.h"

#include <nlohmann/json.hpp>

#include "fakequant/fake_quantize.h"
#include "format/error.h"
#include "format/file_io.h"

namespace qat {
namespace {

torch::Tensor on_host(const Parameter& parameter) { return parameter.master.detach().cpu().contiguous(); }

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

}  // namespace

void write_quantized(const Model& model, const Plan& plan, const std::map<std::string, PlanEntry>& resolved,
                     const std::string& source_directory, const std::string& directory) {
  QuantizedCheckpointWriter writer(directory, source_directory, model.table(), plan, resolved);
  constexpr int64_t kWeightsPerPiece = 1 << 22;
  for (const Parameter& parameter : model.parameters()) {
    const torch::Tensor weights = on_host(parameter);
    const int64_t cols = weights.size(-1), rows = weights.numel() / cols;
    const int64_t piece = std::max<int64_t>(1, kWeightsPerPiece / cols);
    std::vector<uint8_t> blocks;
    for (int64_t row = 0; row < rows; row += piece) {
      const int64_t count = std::min(piece, rows - row);
      blocks.resize(static_cast<size_t>(count) * row_bytes(parameter.grid, cols));
      encode_rows(parameter.grid, weights.data_ptr<float>() + row * cols, count, cols, blocks.data());
      writer.append_rows(parameter.info, blocks.data(), count);
    }
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
