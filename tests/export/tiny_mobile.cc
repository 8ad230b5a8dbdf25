#include "tests/export/tiny_mobile.h"

#include <cstring>

#include "format/channel_grid.h"

namespace qat {

int tiny_mobile_bits(const TensorInfo& info, size_t layers) {
  switch (info.role) {
    case Role::token_embedding:
    case Role::output: return 2;
    case Role::ple_gate:
    case Role::ple_projection: return 8;
    case Role::ple_model_projection: return 0;
    case Role::gate:
    case Role::up:
    case Role::down: return 2 * static_cast<size_t>(info.layer) >= layers ? 2 : 4;
    default: return info.kind == TensorKind::linear || info.kind == TensorKind::embedding ? 4 : 0;
  }
}

TinyMobile quantize_tiny_mobile(const std::string& hf_directory) {
  const FloatCheckpoint source(hf_directory);
  TinyMobile model;
  const size_t layers = source.config().layers.size();
  model.table = mobile_table(source.config());
  model.cache_scales.resize(layers);
  for (const TensorInfo& info : model.table) {
    const bool head = info.role == Role::output && source.config().tied;
    const TensorInfo& from = *find_tensor_info(source.table(), head ? Role::token_embedding : info.role, info.layer);
    std::vector<float> values = source.read(from);
    MobileSpec spec;
    std::vector<uint8_t> data(4 * values.size());
    if (const int bits = tiny_mobile_bits(info, layers)) {
      spec.dtype = code_type(bits);
      spec.scales_per_row = info.role == Role::ple_embedding ? static_cast<int64_t>(layers) : 1;
      const int64_t group = info.shape[1] / spec.scales_per_row;
      std::vector<int8_t> codes(values.size());
      for (int64_t at = 0; at < static_cast<int64_t>(values.size()); at += group) {
        const float scale = search_scale(bits, values.data() + at, nullptr, group);
        spec.scales.push_back(scale);
        encode_channel(bits, values.data() + at, group, scale, codes.data() + at);
        decode_channel(codes.data() + at, group, scale, values.data() + at);
      }
      data.resize(static_cast<size_t>(info.shape[0]) * row_bytes(spec.dtype, info.shape[1]));
      pack_codes(bits, codes.data(), info.shape[0], info.shape[1], data.data());
    } else {
      std::memcpy(data.data(), values.data(), data.size());
    }
    model.specs.push_back(spec);
    model.data.push_back(data);
    model.values.push_back(values);
  }
  return model;
}

void write_tiny_mobile(const TinyMobile& model, const std::string& hf_directory, const std::string& out,
                       const MobileQuantization& quantization) {
  MobileWriter writer(out, hf_directory, model.table, model.specs, model.cache_scales, quantization);
  for (const size_t i : writer.order()) {
    const int64_t rows = model.table[i].shape.size() == 2 ? model.table[i].shape[0] : 1;
    const size_t stride = model.data[i].size() / static_cast<size_t>(rows);
    writer.append_rows(i, model.data[i].data(), rows / 2);  // in two pieces
    writer.append_rows(i, model.data[i].data() + static_cast<size_t>(rows / 2) * stride, rows - rows / 2);
  }
  writer.commit();
}

void write_tiny_mobile(const TinyMobile& model, const std::string& hf_directory, const std::string& out) {
  write_tiny_mobile(model, hf_directory, out, describe_widths(model.table, model.specs));
}

}  // namespace qat
