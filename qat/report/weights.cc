#include "qat/report/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>

#include "format/channel_grid.h"
#include "format/grid.h"
#include "inference/isa.h"
#include "inference/matmul.h"

namespace qat {
namespace {

// --- Rows in the order of the table ---

// llama.cpp keeps the rows of q and k interleaved within a head (Weights::rope_interleaved); the table has HF's order.
int64_t stored_row(const Weights& weights, const TensorInfo& info, int64_t row) {
  if (!weights.rope_interleaved || (info.role != Role::q && info.role != Role::k)) return row;
  const int64_t head_dim = weights.config.layers[static_cast<size_t>(info.layer)].head_dim;
  const int64_t head = row / head_dim * head_dim, inside = row % head_dim, half = head_dim / 2;
  return head + 2 * (inside % half) + inside / half;
}

// One row after the other of one tensor, with room for one.
class RowReader {
 public:
  RowReader(const Weights& weights, const TensorInfo& info)
      : weights_(weights),
        info_(info),
        matrix_(*find_matrix(weights, info)),
        values_(static_cast<size_t>(matrix_.cols)) {}

  const std::vector<float>& read(int64_t row) {
    decode_row(Isa::scalar, matrix_, stored_row(weights_, info_, row), 0, matrix_.cols, values_.data());
    return values_;
  }
  const uint8_t* bytes(int64_t row) const {
    return matrix_.data +
           static_cast<size_t>(stored_row(weights_, info_, row)) * row_bytes(matrix_.dtype, matrix_.cols);
  }
  float channel_scale(int64_t row, int64_t column) const {
    const int64_t group = column / (matrix_.cols / matrix_.scales_per_row);
    float scale;
    std::memcpy(&scale, matrix_.scales + 4 * (stored_row(weights_, info_, row) * matrix_.scales_per_row + group),
                sizeof scale);
    return scale;
  }
  const Matrix& matrix() const { return matrix_; }

 private:
  const Weights& weights_;
  const TensorInfo& info_;
  const Matrix& matrix_;
  std::vector<float> values_;
};

// --- Levels ---

// Levels that a type has, both signs of its scale counted; {0, 0}: no codes.
struct LevelRange {
  int lowest = 0, highest = 0;
};
LevelRange level_range(DType type) {
  switch (type) {
    case DType::Q4_0: return {-8, 8};
    case DType::Q8_0: return {-127, 127};
    case DType::Q6_K: return {-32, 32};
    case DType::Q2_0: return {-2, 2};
    case DType::I2: return {-2, 1};
    case DType::I4: return {-8, 7};
    case DType::I8: return {-128, 127};
    default: return {};
  }
}
bool is_coded(DType type) { return level_range(type).highest != 0; }

// A row as levels and steps: value = level * step, step >= 0.
struct Levels {
  std::vector<int8_t> codes;
  std::vector<int> levels;
  std::vector<float> steps;
};

void set_level(Levels* out, size_t k, int code, float scale) {
  out->levels[k] = std::signbit(scale) ? -code : code;
  out->steps[k] = std::abs(scale);
}

float half_to_float(uint16_t bits) {
  float value;
  decode_rows(DType::F16, reinterpret_cast<const uint8_t*>(&bits), 1, 1, &value);
  return value;
}

void read_channel_levels(const RowReader& reader, int64_t row, Levels* out) {
  const Matrix& m = reader.matrix();
  out->codes.resize(static_cast<size_t>(m.cols));
  unpack_codes(code_bits(m.dtype), reader.bytes(row), 1, m.cols, out->codes.data());
  for (int64_t k = 0; k < m.cols; ++k)
    set_level(out, static_cast<size_t>(k), out->codes[static_cast<size_t>(k)], reader.channel_scale(row, k));
}

void read_q2_0_levels(const RowReader& reader, int64_t row, Levels* out) {
  const size_t cols = static_cast<size_t>(reader.matrix().cols);
  for (size_t k = 0; k < cols; ++k) {
    BlockQ2_0 block;
    std::memcpy(&block, reader.bytes(row) + k / kBlockQ2_0 * sizeof block, sizeof block);
    const size_t j = k % kBlockQ2_0;
    set_level(out, k, (block.qs[j / 4] >> (2 * (j % 4)) & 3) - 1, half_to_float(block.d));
  }
}

void read_block_levels(const RowReader& reader, int64_t row, Levels* out) {
  const Matrix& m = reader.matrix();
  const CodedRows coded = unpack_rows(m.dtype, reader.bytes(row), 1, m.cols);
  const size_t block = static_cast<size_t>(dtype_info(m.dtype).block_size);
  for (size_t k = 0; k < coded.codes.size(); ++k) {
    float scale = half_to_float(coded.scales[k / block]);
    if (!coded.sub_scales.empty()) scale *= static_cast<float>(coded.sub_scales[k / 16]);
    set_level(out, k, coded.codes[k], scale);
  }
}

void read_levels(const RowReader& reader, int64_t row, Levels* out) {
  const DType type = reader.matrix().dtype;
  out->levels.resize(static_cast<size_t>(reader.matrix().cols));
  out->steps.resize(out->levels.size());
  if (code_bits(type) != 0) read_channel_levels(reader, row, out);
  else if (type == DType::Q2_0) read_q2_0_levels(reader, row, out);
  else read_block_levels(reader, row, out);
}

// --- Sums ---

struct Squares {
  double difference = 0.0, base = 0.0;
};

double ratio(const Squares& s) { return s.base > 0.0 ? std::sqrt(s.difference / s.base) : 0.0; }

// Row sums are added in the order of rows, so that the result does not depend on the threads.
Squares squared_error(const Weights& base, const Weights& model, const TensorInfo& info, ThreadPool& pool,
                      const WeightProgress& progress) {
  const Matrix& matrix = *find_matrix(model, info);
  constexpr int64_t kWeightsPerPiece = 1 << 22;
  const int64_t piece = std::max<int64_t>(1, kWeightsPerPiece / matrix.cols);
  Squares sum;
  std::vector<Squares> rows;
  for (int64_t first = 0; first < matrix.rows; first += piece) {
    const int64_t count = std::min(piece, matrix.rows - first);
    rows.assign(static_cast<size_t>(count), {});
    pool.parallel_for(count, 16, [&](int64_t begin, int64_t end, int) {
      RowReader a(base, info), b(model, info);
      for (int64_t i = begin; i < end; ++i) {
        const std::vector<float>&w = a.read(first + i), &w_hat = b.read(first + i);
        Squares& row = rows[static_cast<size_t>(i)];
        for (size_t k = 0; k < w.size(); ++k) {
          const double x = static_cast<double>(w[k]), d = static_cast<double>(w_hat[k]) - x;
          row.difference += d * d;
          row.base += x * x;
        }
      }
    });
    for (const Squares& row : rows) {
      sum.difference += row.difference;
      sum.base += row.base;
    }
    if (progress) progress(count * matrix.cols);
  }
  return sum;
}

std::vector<TensorInfo> matrices_of(const Weights& weights) {
  std::vector<TensorInfo> list;
  for (const TensorInfo& info : tensor_table(weights.config))
    if (find_matrix(weights, info) != nullptr) list.push_back(info);
  return list;
}

// `b` is `a`, or what rounding to a shorter float makes of it; `one` is what was added after rounding.
bool is_rounded(float a, float b, float one) {
  const float bare = a - one;
  for (const DType type : {DType::F32, DType::F16, DType::BF16}) {
    float rounded, rounded_bare;
    fake_quantize_rows(type, &a, 1, 1, &rounded);
    fake_quantize_rows(type, &bare, 1, 1, &rounded_bare);
    if (b == rounded || b == rounded_bare + one) return true;
  }
  return false;
}

}  // namespace

const char* role_label(Role role) {
  switch (role) {
    case Role::token_embedding: return "token embedding";
    case Role::output: return "head";
    case Role::ple_embedding: return "per-layer embedding";
    case Role::ple_model_projection: return "per-layer model projection";
    case Role::q: return "attention q";
    case Role::k: return "attention k";
    case Role::v: return "attention v";
    case Role::o: return "attention o";
    case Role::gate: return "MLP gate";
    case Role::up: return "MLP up";
    case Role::down: return "MLP down";
    case Role::ple_gate: return "per-layer gate";
    case Role::ple_projection: return "per-layer projection";
    default: return "norm";
  }
}

bool same_shapes(const Weights& base, const Weights& model) {
  if (base.layers.size() != model.layers.size()) return false;
  for (const TensorInfo& info : matrices_of(model)) {
    const Matrix *a = find_matrix(base, info), *b = find_matrix(model, info);
    if (!*a || a->rows != b->rows || a->cols != b->cols) return false;
  }
  return true;
}

int64_t matrix_weights(const Weights& weights) {
  int64_t count = 0;
  for (const TensorInfo& info : matrices_of(weights)) count += info.shape[0] * info.shape[1];
  return count;
}

WeightError weight_error(const Weights& base, const Weights& model, ThreadPool& pool, const WeightProgress& progress) {
  WeightError error;
  Squares all;
  for (const TensorInfo& info : matrices_of(model)) {
    const Squares s = squared_error(base, model, info, pool, progress);
    const DType type = find_matrix(model, info)->dtype;
    error.tensors.push_back({info, dtype_name(type), is_coded(type), ratio(s)});
    all.difference += s.difference;
    all.base += s.base;
  }
  error.relative = ratio(all);
  return error;
}

bool norms_differ(const Weights& base, const Weights& model) {
  const float one = base.config.norm_plus_one || model.config.norm_plus_one ? 1.0f : 0.0f;
  for (const TensorInfo& info : tensor_table(model.config)) {
    const std::vector<float>*a = find_norm(base, info), *b = find_norm(model, info);
    if (a == nullptr || b == nullptr || a->size() != b->size()) continue;
    for (size_t i = 0; i < a->size(); ++i)
      if (!is_rounded((*a)[i], (*b)[i], one)) return true;
  }
  return false;
}

Histogram level_histogram(const Weights& base, const Weights& model, const TensorInfo& info) {
  RowReader floats(base, info);
  const RowReader coded(model, info);
  const Matrix& matrix = coded.matrix();
  const int lowest = level_range(matrix.dtype).lowest, highest = level_range(matrix.dtype).highest;
  Histogram h;
  h.type = dtype_name(matrix.dtype);
  if (!is_coded(matrix.dtype)) return h;
  h.lowest = lowest;
  h.highest = highest;
  const int64_t weights = matrix.rows * matrix.cols;
  h.bins_per_level = highest - lowest > 100 ? 1 : weights < 20000 ? 2 : weights < 200000 ? 4 : 8;
  h.levels.resize(static_cast<size_t>(highest - lowest + 1));
  h.floats.resize(static_cast<size_t>((highest - lowest + 3) * h.bins_per_level));
  const double last = static_cast<double>(h.floats.size() - 1);
  constexpr int64_t kWeightsAtMost = 1 << 22;
  const int64_t stride = std::max<int64_t>(1, weights / kWeightsAtMost);
  double count = 0.0;
  Levels row;
  for (int64_t r = 0; r < matrix.rows; r += stride) {
    const std::vector<float>& w = floats.read(r);
    read_levels(coded, r, &row);
    for (size_t k = 0; k < w.size(); ++k) {
      if (row.steps[k] == 0.0f) continue;  // a block of zeros has no step
      const double place = static_cast<double>(w[k]) / static_cast<double>(row.steps[k]) - (lowest - 1.5);
      if (!std::isfinite(place)) continue;
      h.levels[static_cast<size_t>(std::clamp(row.levels[k], lowest, highest) - lowest)] += 1.0;
      h.floats[static_cast<size_t>(std::clamp(place * h.bins_per_level, 0.0, last))] += 1.0;
      count += 1.0;
    }
  }
  for (double& share : h.levels) share /= std::max(count, 1.0);
  for (double& share : h.floats) share /= std::max(count, 1.0);
  return h;
}

bool same_types(const Weights& a, const Weights& b) {
  if (a.config.tied != b.config.tied || !same_shapes(a, b)) return false;
  bool coded = false;
  for (const TensorInfo& info : matrices_of(a)) {
    const DType type = find_matrix(a, info)->dtype;
    if (type != find_matrix(b, info)->dtype) return false;
    coded |= is_coded(type);
  }
  return coded;
}

MovedCodes moved_codes(const Weights& a, const Weights& b, ThreadPool& pool, const WeightProgress& progress) {
  MovedCodes result;
  std::map<Role, MovedCodes::Part> parts;
  for (const TensorInfo& info : matrices_of(a)) {
    const Matrix& matrix = *find_matrix(a, info);
    const int64_t weights = matrix.rows * matrix.cols;
    if (is_coded(matrix.dtype)) {
      std::atomic<uint64_t> moved{0};
      pool.parallel_for(matrix.rows, 16, [&](int64_t begin, int64_t end, int) {
        const RowReader reader_a(a, info), reader_b(b, info);
        Levels of_a, of_b;
        uint64_t count = 0;
        for (int64_t row = begin; row < end; ++row) {
          read_levels(reader_a, row, &of_a);
          read_levels(reader_b, row, &of_b);
          for (size_t k = 0; k < of_a.levels.size(); ++k) count += of_a.levels[k] != of_b.levels[k] ? 1 : 0;
        }
        moved += count;
      });
      MovedCodes::Part& part = parts[info.role];
      part.role = info.role;
      part.codes += static_cast<uint64_t>(weights);
      part.moved += moved;
    }
    if (progress) progress(weights);
  }
  for (const auto& [role, part] : parts) {
    result.codes += part.codes;
    result.moved += part.moved;
    result.parts.push_back(part);
  }
  return result;
}

}  // namespace qat
