#include "export/gguf_export.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/mobile.h"
#include "format/number.h"

namespace qat {
namespace {

constexpr size_t kSlabBytes = size_t{4} << 20;  // of output held in memory at a time
constexpr const char* kRopeFreqs = "rope_freqs.weight";

// llama.cpp's rotary embedding for arch "llama" pairs neighbours (2j, 2j + 1), HF's pairs (j, j + head_dim/2): the rows
// of q and k change places within each head. Every other architecture keeps HF's order.
bool rows_are_interleaved(const ModelConfig& config, const TensorInfo& info) {
  return config.arch == Arch::llama && (info.role == Role::q || info.role == Role::k);
}

// Row h * head_dim + 2j + s of `out` is row h * head_dim + s * head_dim/2 + j of `rows`; count is a multiple of
// head_dim.
void interleave_rows(const uint8_t* rows, int64_t count, int64_t head_dim, size_t row_size, uint8_t* out) {
  for (int64_t row = 0; row < count; ++row) {
    const int64_t head = row / head_dim * head_dim, inside = row % head_dim;
    const int64_t source = head + (inside % 2) * (head_dim / 2) + inside / 2;
    std::memcpy(out + static_cast<size_t>(row) * row_size, rows + static_cast<size_t>(source) * row_size, row_size);
  }
}

// Where the file's tensors come from: the type each is written in, and rows of it in that type.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual DType type(const TensorInfo& info) const = 0;  // of a matrix
  virtual void read_matrix_rows(const TensorInfo& info, int64_t row, int64_t count, uint8_t* out) const = 0;
  virtual std::vector<float> read_vector(const TensorInfo& info) const = 0;
};

class FloatSource : public TensorSource {
 public:
  FloatSource(const FloatCheckpoint& checkpoint, DType type) : checkpoint_(checkpoint), type_(type) {}
  DType type(const TensorInfo&) const override { return type_; }
  void read_matrix_rows(const TensorInfo& info, int64_t row, int64_t count, uint8_t* out) const override {
    const int64_t cols = info.shape[1];
    std::vector<float> values(static_cast<size_t>(count * cols));
    checkpoint_.read_rows(info, row, count, values.data());
    if (type_ == DType::F16) check_range(info, row, cols, values);
    encode_rows(type_, values.data(), count, cols, out);
  }
  std::vector<float> read_vector(const TensorInfo& info) const override { return checkpoint_.read(info); }

 private:
  // A finite weight must not become an infinity in the file.
  void check_range(const TensorInfo& info, int64_t first_row, int64_t cols, const std::vector<float>& values) const {
    for (size_t i = 0; i < values.size(); ++i) {
      if (!(std::fabs(values[i]) >= 65520.0f) || std::isinf(values[i])) continue;
      fail(checkpoint_.directory(), ": ", info.name, ": row ", first_row + static_cast<int64_t>(i) / cols, ", column ",
           static_cast<int64_t>(i) % cols, ": expected a weight that F16 can hold (below 65520), found ", values[i],
           "; BF16 and F32 can hold it");
    }
  }

  const FloatCheckpoint& checkpoint_;
  DType type_;
};

class QuantizedSource : public TensorSource {
 public:
  explicit QuantizedSource(const QuantizedCheckpoint& checkpoint) : checkpoint_(checkpoint) {}
  DType type(const TensorInfo& info) const override { return checkpoint_.grid(info); }
  void read_matrix_rows(const TensorInfo& info, int64_t row, int64_t count, uint8_t* out) const override {
    checkpoint_.read_blocks(info, row, count, out);
  }
  std::vector<float> read_vector(const TensorInfo& info) const override {
    const int64_t size = info.shape[0];
    const DType grid = checkpoint_.grid(info);
    std::vector<uint8_t> stored(row_bytes(grid, size));
    checkpoint_.read_blocks(info, 0, 1, stored.data());
    std::vector<float> values(static_cast<size_t>(size));
    decode_rows(grid, stored.data(), 1, size, values.data());
    return values;
  }

 private:
  const QuantizedCheckpoint& checkpoint_;
};

// Every tensor of the file; type(info): of a matrix.
template <class Type>
std::vector<GgufTensorSpec> tensor_specs(const std::vector<TensorInfo>& table, size_t rope_divisors, const Type& type) {
  std::vector<GgufTensorSpec> specs;
  if (rope_divisors > 0) specs.push_back({kRopeFreqs, DType::F32, {static_cast<int64_t>(rope_divisors)}});
  for (const TensorInfo& info : table)
    specs.push_back({info.gguf, info.shape.size() == 2 ? type(info) : DType::F32, info.shape});
  return specs;
}

// Writes one file from one source, tensor by tensor, rows in slabs.
class GgufExport {
 public:
  GgufExport(const ModelConfig& config, const std::vector<TensorInfo>& table, const TensorSource& source,
             const ExportProgress& progress)
      : config_(config), table_(table), source_(source), progress_(progress), divisors_(rope_divisors(config)) {}

  void write(const std::string& out, const GgufMetadata& metadata) {
    const std::vector<GgufTensorSpec> specs =
        tensor_specs(table_, divisors_.size(), [&](const TensorInfo& info) { return source_.type(info); });
    for (const GgufTensorSpec& spec : specs) total_ += spec_bytes(spec);
    GgufWriter writer(out, metadata, specs);
    if (!divisors_.empty()) append(writer, divisors_.data(), divisors_.size() * sizeof(float));
    for (const TensorInfo& info : table_) {
      if (info.shape.size() == 2) write_matrix(writer, info);
      else write_vector(writer, info);
    }
    writer.commit();
  }

 private:
  static uint64_t spec_bytes(const GgufTensorSpec& spec) {
    const uint64_t rows = spec.shape.size() == 2 ? static_cast<uint64_t>(spec.shape[0]) : 1;
    return rows * row_bytes(spec.dtype, spec.shape.back());
  }

  void append(GgufWriter& writer, const void* data, size_t size) {
    writer.append(data, size);
    done_ += size;
    if (progress_) progress_(done_, total_);
  }

  void write_vector(GgufWriter& writer, const TensorInfo& info) {
    std::vector<float> values = source_.read_vector(info);
    if (config_.norm_plus_one && info.kind == TensorKind::norm)
      for (float& value : values) value += 1.0f;
    append(writer, values.data(), values.size() * sizeof(float));
  }

  void write_matrix(GgufWriter& writer, const TensorInfo& info) {
    const int64_t rows = info.shape[0];
    const size_t row_size = row_bytes(source_.type(info), info.shape[1]);
    const int64_t unit =
        rows_are_interleaved(config_, info) ? config_.layers[static_cast<size_t>(info.layer)].head_dim : 1;
    const int64_t units = std::max<int64_t>(1, static_cast<int64_t>(kSlabBytes / row_size) / unit);
    const int64_t slab = std::min(rows, units * unit);
    std::vector<uint8_t> bytes(static_cast<size_t>(slab) * row_size);
    std::vector<uint8_t> interleaved(unit > 1 ? bytes.size() : 0);
    for (int64_t row = 0; row < rows; row += slab) {
      const int64_t count = std::min(slab, rows - row);
      source_.read_matrix_rows(info, row, count, bytes.data());
      if (unit > 1) interleave_rows(bytes.data(), count, unit, row_size, interleaved.data());
      append(writer, unit > 1 ? interleaved.data() : bytes.data(), static_cast<size_t>(count) * row_size);
    }
  }

  const ModelConfig& config_;
  const std::vector<TensorInfo>& table_;
  const TensorSource& source_;
  const ExportProgress& progress_;
  const std::vector<float> divisors_;
  uint64_t done_ = 0, total_ = 0;
};

// Codes of the mobile schema in blocks that repeat their row's scale.
class MobileSource : public TensorSource {
 public:
  explicit MobileSource(const MobileCheckpoint& checkpoint) : checkpoint_(checkpoint) {}

  DType type(const TensorInfo& info) const override {
    const MobileTensor& tensor = checkpoint_.tensor(info);
    const int bits = code_bits(tensor.dtype);
    if (bits == 0) {
      if (tensor.dtype == DType::F64)
        fail(checkpoint_.directory(), ": tensor ", info.name, ": expected F32, F16 or BF16, found F64");
      return tensor.dtype;
    }
    const int64_t group = info.shape[1] / tensor.scales_per_row;
    if (bits == 2 && group % dtype_info(DType::Q2_0).block_size == 0) return DType::Q2_0;
    if (group % kBlockSize != 0) return DType::F16;
    return bits == 8 ? DType::Q8_0 : DType::Q4_0;
  }

  void read_matrix_rows(const TensorInfo& info, int64_t row, int64_t count, uint8_t* out) const override {
    const MobileTensor& tensor = checkpoint_.tensor(info);
    const int bits = code_bits(tensor.dtype);
    const size_t stride = row_bytes(tensor.dtype, info.shape[1]);
    const uint8_t* stored = tensor.data.data() + static_cast<size_t>(row) * stride;
    if (bits == 0) {
      std::copy_n(stored, static_cast<size_t>(count) * stride, out);
      return;
    }
    CodedRows coded;
    coded.grid = type(info);
    coded.rows = 1;
    coded.cols = info.shape[1];
    coded.codes.resize(static_cast<size_t>(coded.cols));
    for (int64_t r = row; r < row + count; ++r, stored += stride) {
      unpack_codes(bits, stored, 1, coded.cols, coded.codes.data());
      if (coded.grid == DType::F16) encode_f16(info, r, coded, out);
      else encode_blocks(info, r, &coded, out);
      out += row_bytes(coded.grid, coded.cols);
    }
  }

  std::vector<float> read_vector(const TensorInfo& info) const override { return checkpoint_.read(info); }

 private:
  // Of the scale that element `column` of a row has.
  float scale(const TensorInfo& info, int64_t row, int64_t column) const {
    const MobileTensor& tensor = checkpoint_.tensor(info);
    return scale_at(tensor.scales, row * tensor.scales_per_row + column / (info.shape[1] / tensor.scales_per_row));
  }

  void encode_blocks(const TensorInfo& info, int64_t row, CodedRows* coded, uint8_t* out) const {
    const int64_t block = dtype_info(coded->grid).block_size;
    coded->scales.clear();
    for (int64_t column = 0; column < coded->cols; column += block) {
      const float exact = scale(info, row, column);
      coded->scales.push_back(f32_to_f16(exact));
      if (f16_to_f32(coded->scales.back()) != exact)
        fail(checkpoint_.directory(), ": tensor ", info.name, ": row ", row, ": expected a scale that ",
             dtype_name(coded->grid), " holds exactly (float16), found ", exact);
      if (coded->grid != DType::Q2_0) continue;
      const BlockQ2_0 packed = pack_q2_0(coded->codes.data() + column, exact);
      std::memcpy(out + static_cast<size_t>(column / block) * sizeof packed, &packed, sizeof packed);
    }
    if (coded->grid != DType::Q2_0) pack_rows(*coded, out);
  }

  void encode_f16(const TensorInfo& info, int64_t row, const CodedRows& coded, uint8_t* out) const {
    for (int64_t column = 0; column < coded.cols; ++column) {
      const float exact = static_cast<float>(coded.codes[static_cast<size_t>(column)]) * scale(info, row, column);
      const uint16_t half = f32_to_f16(exact);
      if (f16_to_f32(half) != exact)
        fail(checkpoint_.directory(), ": tensor ", info.name, ": row ", row, ", column ", column,
             ": expected a weight that F16 holds exactly (no block type divides ", coded.cols, " columns), found ",
             exact);
      std::memcpy(out + 2 * column, &half, sizeof half);
    }
  }

  const MobileCheckpoint& checkpoint_;
};

// What the file is "mostly": the type of most linear layers. (Not of most weights: in a Gemma 4 E2B the per-layer
// embedding outweighs them all, and llama-quantize still calls the file by its target.)
DType prevailing_type(const TensorSource& source, const std::vector<TensorInfo>& table) {
  std::map<DType, int> counts;
  for (const TensorInfo& info : table)
    if (info.kind == TensorKind::linear && info.quantizable) ++counts[source.type(info)];
  QAT_CHECK(!counts.empty());
  const auto most =
      std::max_element(counts.begin(), counts.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most->first;
}

bool same_weights(const MobileTensor& a, const MobileTensor& b) {
  const auto same = [](Span<const uint8_t> x, Span<const uint8_t> y) {
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
  };
  return a.dtype == b.dtype && a.scales_per_row == b.scales_per_row && same(a.data, b.data) && same(a.scales, b.scales);
}

// With the head tied to the embedding where it is a copy of it.
ModelConfig config_for_gguf(const MobileCheckpoint& checkpoint) {
  ModelConfig config = checkpoint.config();
  if (config.tied) return config;
  config.tied = same_weights(checkpoint.tensor(*find_tensor_info(checkpoint.table(), Role::token_embedding)),
                             checkpoint.tensor(*find_tensor_info(checkpoint.table(), Role::output)));
  return config;
}

}  // namespace

void export_gguf(const std::string& quantized_checkpoint, const std::string& out, const ExportProgress& progress) {
  const QuantizedCheckpoint checkpoint(quantized_checkpoint);
  const QuantizedSource source(checkpoint);
  const GgufMetadata metadata = gguf_metadata(checkpoint.config(), quantized_checkpoint,
                                              gguf_file_type(prevailing_type(source, checkpoint.table())));
  GgufExport(checkpoint.config(), checkpoint.table(), source, progress).write(out, metadata);
}

uint64_t gguf_bytes(const FloatCheckpoint& checkpoint, const std::map<std::string, DType>& types) {
  const GgufMetadata metadata = gguf_metadata(checkpoint.config(), checkpoint.directory(), gguf_file_type(DType::Q4_0));
  return gguf_file_bytes(metadata, tensor_specs(checkpoint.table(), rope_divisors(checkpoint.config()).size(),
                                                [&](const TensorInfo& info) { return types.at(info.name); }));
}

void export_gguf_mobile(const std::string& mobile_directory, const std::string& out, const ExportProgress& progress) {
  const MobileCheckpoint checkpoint(mobile_directory);
  const MobileSource source(checkpoint);
  const ModelConfig config = config_for_gguf(checkpoint);
  const std::vector<TensorInfo> table = tensor_table(config);
  const GgufMetadata metadata = gguf_metadata(config, mobile_directory, gguf_file_type(prevailing_type(source, table)));
  GgufExport(config, table, source, progress).write(out, metadata);
}

void export_gguf_float(const std::string& hf_directory, DType float_type, const std::string& out,
                       const ExportProgress& progress) {
  QAT_CHECK(float_type == DType::F32 || float_type == DType::F16 || float_type == DType::BF16);
  const FloatCheckpoint checkpoint(hf_directory);
  const GgufMetadata metadata = gguf_metadata(checkpoint.config(), hf_directory, gguf_file_type(float_type));
  const FloatSource source(checkpoint, float_type);
  GgufExport(checkpoint.config(), checkpoint.table(), source, progress).write(out, metadata);
}

}  // namespace qat
