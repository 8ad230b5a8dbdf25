#include "export/ptq.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "export/gptq_layers.h"
#include "export/parallel.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/number.h"

namespace qat {
namespace {

constexpr int64_t kSlabWeights = int64_t{1} << 20;   // encoded between two writes
constexpr int64_t kChunkWeights = int64_t{1} << 16;  // held as floats by a thread at a time

// Sum of w * (x - value)^2 for the values that a block means.
double block_error(const BlockQ4_0& block, const float* x, const float* w) {
  float values[kBlockSize];
  decode_block(block, values);
  double error = 0.0;
  for (int j = 0; j < kBlockSize; ++j) {
    const double difference = static_cast<double>(x[j]) - values[j];
    error += (w != nullptr ? w[j] : 1.0f) * difference * difference;
  }
  return error;
}

// Finds the scale of one sign that fits a block best, by least weighted squared error: sweeps the inverse scale t
// upwards over every point (level + 0.5) / |x| at which a code changes. With codes q fixed the best scale is sum(wxq) /
// sum(wqq), and the error is sum(wxx) less the gain sum(wxq)^2 / sum(wqq). Weights are taken relative to the largest,
// so t is the largest one's level before rounding.
class ScaleSweep {
 public:
  // `largest`: the greatest magnitude among weights that count (w > 0).
  ScaleSweep(const float* x, const float* w, float largest, double sign) {
    // Halving a scale whose codes stay within 3 gives a finer grid that holds all its points: start where level 4
    // begins.
    constexpr double kStart = 3.5;
    for (int j = 0; j < kBlockSize; ++j) {
      events_[j] = kNever;
      magnitude_[j] = std::fabs(x[j]) / static_cast<double>(largest);
      weight_[j] = w != nullptr ? w[j] : 1.0;
      if (!(magnitude_[j] > 0.0) || !(weight_[j] > 0.0)) continue;
      last_level_[j] = x[j] * sign < 0.0 ? 8 : 7;
      level_[j] = static_cast<int>(magnitude_[j] * kStart + 0.5);
      inverse_[j] = 1.0 / magnitude_[j];
      energy_ += weight_[j] * magnitude_[j] * magnitude_[j];
      wxq_ += weight_[j] * magnitude_[j] * level_[j];
      wqq_ += weight_[j] * level_[j] * level_[j];
      schedule(j);
    }
    keep_if_better();
  }

  // The best scale, relative to the largest weight.
  double run() {
    for (;;) {
      int32_t event = kNever;
      for (const int32_t other : events_) event = std::min(event, other);
      if (event == kNever) break;
      const double t = float_from_bits(static_cast<uint32_t>(event & ~kIndexBits));
      // Weights beyond the grid cost more the smaller the scale: once they alone cost more than the best error, it is
      // over.
      if (out_qq_ - 2.0 * t * out_xq_ + t * t * out_xx_ > t * t * (energy_ - best_gain_)) break;
      const int j = event & kIndexBits;
      if (level_[j] == last_level_[j]) leave(j);
      else step(j);
    }
    return best_scale_;
  }

 private:
  static constexpr int32_t kNever = 0x7fffffff;
  static constexpr int32_t kIndexBits = kBlockSize - 1;

  // When weight j changes its code next, or, on its last level, begins to lie beyond the grid. Positive floats order
  // like the integers of their bits; the last five bits make room for j.
  void schedule(int j) {
    const double t = (level_[j] < last_level_[j] ? level_[j] + 0.5 : level_[j]) * inverse_[j];
    events_[j] = static_cast<int32_t>(float_bits(static_cast<float>(t)) & ~static_cast<uint32_t>(kIndexBits)) | j;
  }

  void step(int j) {
    wxq_ += weight_[j] * magnitude_[j];
    wqq_ += weight_[j] * (2 * level_[j] + 1);
    ++level_[j];
    keep_if_better();
    schedule(j);
  }

  void leave(int j) {
    out_xx_ += weight_[j] * magnitude_[j] * magnitude_[j];
    out_xq_ += weight_[j] * magnitude_[j] * level_[j];
    out_qq_ += weight_[j] * level_[j] * level_[j];
    events_[j] = kNever;
  }

  void keep_if_better() {
    if (wxq_ * wxq_ <= best_gain_ * wqq_) return;
    best_gain_ = wxq_ * wxq_ / wqq_;
    best_scale_ = wxq_ / wqq_;
  }

  int32_t events_[kBlockSize];
  double magnitude_[kBlockSize], inverse_[kBlockSize], weight_[kBlockSize];
  int level_[kBlockSize], last_level_[kBlockSize];
  double energy_ = 0.0, wxq_ = 0.0, wqq_ = 0.0;
  double best_gain_ = 0.0, best_scale_ = 0.0;
  double out_xx_ = 0.0, out_xq_ = 0.0, out_qq_ = 0.0;  // the sums over weights beyond the grid
};

// The largest magnitude a grid's scale can still carry as a finite float16 (65520 and above become infinity).
float magnitude_limit(DType grid) {
  switch (grid) {
    case DType::Q2_0:  // the largest may be its scale
    case DType::F16: return 65520.0f;
    case DType::Q4_0: return 65520.0f * 8;
    case DType::Q8_0: return 65520.0f * 127;
    default: return INFINITY;
  }
}

// Encodes the rows of one tensor.
class TensorEncoder {
 public:
  TensorEncoder(const FloatCheckpoint& checkpoint, const TensorInfo& info, DType grid, const PtqOptions& options)
      : checkpoint_(checkpoint),
        info_(info),
        grid_(grid),
        searched_(grid == DType::Q4_0 && options.method != PtqMethod::reference) {
    rows_ = info.shape.size() == 2 ? info.shape[0] : 1;
    cols_ = info.shape.back();
    row_size_ = row_bytes(grid, cols_);
    if (!searched_ || options.importance == nullptr) return;
    const auto found = options.importance->find(info.name);
    if (found == options.importance->end()) return;
    QAT_CHECK(static_cast<int64_t>(found->second.size()) == cols_);
    importance_ = found->second.data();
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  size_t row_size() const { return row_size_; }
  DType grid() const { return grid_; }

  // All rows, with the errors of columns made up for in those before them.
  std::vector<uint8_t> encode_all(const InputMoments* moments) const {
    std::vector<uint8_t> blocks(static_cast<size_t>(rows_) * row_size_);
    if (moments != nullptr && (grid_ == DType::Q4_0 || grid_ == DType::Q8_0)) {
      const std::vector<float> values = checkpoint_.read(info_);
      check_values(0, rows_, values.data());
      gptq_blocks(*moments, grid_, values.data(), rows_, blocks.data());
    } else {
      encode(0, rows_, blocks.data());
    }
    return blocks;
  }

  // Throws Error for a weight that the grid cannot hold: in the rule gptq before the layer is run, where it would show
  // in the activations first.
  void check() const {
    std::vector<float> values;
    const int64_t chunk = std::max<int64_t>(1, kChunkWeights / cols_);
    for (int64_t row = 0; row < rows_; row += chunk) {
      const int64_t count = std::min(chunk, rows_ - row);
      values.resize(static_cast<size_t>(count * cols_));
      checkpoint_.read_rows(info_, row, count, values.data());
      check_values(row, count, values.data());
    }
  }

  void encode(int64_t row, int64_t count, uint8_t* out) const {
    const int64_t chunk = std::max<int64_t>(1, kChunkWeights / cols_);
    parallel_parts(count, chunk, [&](int64_t begin, int64_t end) {
      std::vector<float> values(static_cast<size_t>(std::min(chunk, end - begin) * cols_));
      for (int64_t i = begin; i < end; i += chunk) {
        const int64_t n = std::min(chunk, end - i);
        checkpoint_.read_rows(info_, row + i, n, values.data());
        check_values(row + i, n, values.data());
        uint8_t* blocks = out + static_cast<size_t>(i) * row_size_;
        if (searched_) search_rows(values.data(), n, blocks);
        else encode_rows(grid_, values.data(), n, cols_, blocks);
      }
    });
    const Span<const uint8_t> bytes = checkpoint_.tensor(info_).bytes;
    const size_t stride = bytes.size() / static_cast<size_t>(rows_);
    release_pages(bytes.data() + static_cast<size_t>(row) * stride, static_cast<size_t>(count) * stride);
  }

 private:
  void check_values(int64_t first_row, int64_t count, const float* values) const {
    const float limit = magnitude_limit(grid_);
    for (int64_t i = 0; i < count * cols_; ++i) {
      if (std::fabs(values[i]) < limit) continue;  // false for NaN
      fail(checkpoint_.directory(), ": ", info_.name, ": row ", first_row + i / cols_, ", column ", i % cols_,
           ": expected a finite weight that ", dtype_name(grid_), " can hold, found ", values[i]);
    }
  }

  void search_rows(const float* values, int64_t count, uint8_t* out) const {
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t c = 0; c < cols_; c += kBlockSize) {
        const BlockQ4_0 block = search_q4_0(values + r * cols_ + c, importance_ != nullptr ? importance_ + c : nullptr);
        std::memcpy(out + static_cast<size_t>(r) * row_size_ + static_cast<size_t>(c / kBlockSize) * sizeof block,
                    &block, sizeof block);
      }
    }
  }

  const FloatCheckpoint& checkpoint_;
  const TensorInfo& info_;
  const DType grid_;
  const bool searched_;
  const float* importance_ = nullptr;
  int64_t rows_ = 0, cols_ = 0;
  size_t row_size_ = 0;
};

// Encodes and writes a tensor in slabs of rows; done(weights) after each.
template <class Done>
void write_tensor(const TensorInfo& info, const TensorEncoder& encoder, const QuantizedRows& rows, const Done& done) {
  std::vector<uint8_t> blocks;
  const int64_t slab = std::max<int64_t>(1, kSlabWeights / encoder.cols());
  for (int64_t row = 0; row < encoder.rows(); row += slab) {
    const int64_t count = std::min(slab, encoder.rows() - row);
    blocks.resize(static_cast<size_t>(count) * encoder.row_size());
    encoder.encode(row, count, blocks.data());
    rows(info, blocks.data(), count);
    done(count * encoder.cols());
  }
}

template <class EncoderOf>
void write_tensors(const FloatCheckpoint& checkpoint, const EncoderOf& encoder_of, const QuantizedRows& rows,
                   const PtqProgress& progress) {
  int64_t total = 0, done = 0;
  for (const TensorInfo& info : checkpoint.table()) total += checkpoint.tensor(info).count();
  for (const TensorInfo& info : checkpoint.table())
    write_tensor(info, encoder_of(info), rows, [&](int64_t weights) {
      if (progress) progress(done += weights, total);
    });
}

// By the rule gptq: the tables, then layer by layer.
template <class EncoderOf>
void write_layers(const FloatCheckpoint& checkpoint, const EncoderOf& encoder_of, const PtqOptions& options,
                  const QuantizedRows& rows, const PtqProgress& progress) {
  GptqLayers layers(checkpoint.directory(), options.calibration, options.threads, progress);
  int current = -1;
  for (const TensorInfo& info : checkpoint.table()) {
    const TensorEncoder encoder = encoder_of(info);
    if (info.layer != current) {
      if (current >= 0) layers.finish(current);
      current = info.layer;
      for (const TensorInfo& other : checkpoint.table())
        if (current >= 0 && other.layer == current) encoder_of(other).check();
      if (current >= 0) layers.measure(current);
    }
    if (info.kind == TensorKind::embedding)
      layers.install_table(info, encoder.grid(), 0,
                           [&](int64_t row, uint8_t* data, float*) { encoder.encode(row, 1, data); });
    const InputMoments* moments = layers.moments(info);
    if (moments == nullptr) {
      write_tensor(info, encoder, rows, [&](int64_t weights) { layers.count_weights(weights); });
      continue;
    }
    std::vector<uint8_t> blocks = encoder.encode_all(moments);
    rows(info, blocks.data(), encoder.rows());
    layers.install(info, encoder.grid(), std::move(blocks));
    release_pages(checkpoint.tensor(info).bytes.data(), checkpoint.tensor(info).bytes.size());
  }
}

}  // namespace

BlockQ4_0 search_q4_0(const float* x, const float* w) {
  // Inputs that never spoke say nothing about which weights matter: then all do.
  if (w != nullptr && std::none_of(w, w + kBlockSize, [](float v) { return v > 0.0f; })) w = nullptr;
  BlockQ4_0 best = encode_q4_0(x);
  double best_error = block_error(best, x, w);
  float largest = 0.0f;
  for (int j = 0; j < kBlockSize; ++j)
    if (w == nullptr || w[j] > 0.0f) largest = std::max(largest, std::fabs(x[j]));
  if (largest == 0.0f) return best;
  for (const double sign : {1.0, -1.0}) {
    const BlockQ4_0 block =
        encode_q4_0_with_scale(x, static_cast<float>(sign * largest * ScaleSweep(x, w, largest, sign).run()));
    if (!std::isfinite(f16_to_f32(block.d))) continue;
    const double error = block_error(block, x, w);
    if (error < best_error) {
      best_error = error;
      best = block;
    }
  }
  return best;
}

void check_calibration(const std::vector<std::vector<int32_t>>& calibration, const std::string& what) {
  int64_t tokens = 0;
  for (const std::vector<int32_t>& sequence : calibration) tokens += static_cast<int64_t>(sequence.size());
  if (tokens == 0) fail(what, " a calibration text");
  if (tokens < kLeastCalibrationTokens)
    fail("the calibration text is too short: expected at least ", kLeastCalibrationTokens, " tokens, found ", tokens);
}

void quantize_tensors(const FloatCheckpoint& checkpoint, const std::map<std::string, PlanEntry>& resolved,
                      const PtqOptions& options, const QuantizedRows& rows, const PtqProgress& progress) {
  if (options.method == PtqMethod::gptq) check_calibration(options.calibration, "rule gptq takes");
  const auto encoder_of = [&](const TensorInfo& info) {
    return TensorEncoder(checkpoint, info, resolved.at(info.name).grid, options);
  };
  if (options.method == PtqMethod::gptq) write_layers(checkpoint, encoder_of, options, rows, progress);
  else write_tensors(checkpoint, encoder_of, rows, progress);
}

void encode_checkpoint_rows(const FloatCheckpoint& checkpoint, const TensorInfo& info, DType grid,
                            const PtqOptions& options, int64_t row, int64_t count, uint8_t* out) {
  TensorEncoder(checkpoint, info, grid, options).encode(row, count, out);
}

void quantize_checkpoint(const std::string& hf_directory, const Plan& plan, const PtqOptions& options,
                         const std::string& out, const PtqProgress& progress) {
  const FloatCheckpoint checkpoint(hf_directory);
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, checkpoint.table(), checkpoint.dtypes());
  if (options.method == PtqMethod::gptq) check_calibration(options.calibration, "rule gptq takes");
  QuantizedCheckpointWriter writer(out, hf_directory, checkpoint.table(), plan, resolved);
  const auto append = [&](const TensorInfo& info, const uint8_t* blocks, int64_t rows) {
    writer.append_rows(info, blocks, rows);
  };
  quantize_tensors(checkpoint, resolved, options, append, progress);
  writer.commit();
}

}  // namespace qat
