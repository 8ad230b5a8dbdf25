#include "inference/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/channel_grid.h"
#include "format/error.h"

namespace qat {
namespace {

constexpr int64_t kDepth = 256;   // columns per pass: a panel of activations (24 KiB) stays in the first-level cache
constexpr int64_t kOutputs = 64;  // weight rows decoded at a time (64 KiB): they stay in the second level
constexpr int64_t kCodesPerFloat = 8;       // products of codes in the time of one of floats
constexpr int64_t kWorthAThread = 1 << 15;  // multiply-adds below which a loop is not worth sharing

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Items per piece: enough to be worth a thread, few enough to give every thread some pieces.
int64_t piece_of(int64_t items, int64_t work_per_item, int64_t step, int workers) {
  const int64_t least = round_up(std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work_per_item)), step);
  return std::max(least, round_up(items / (4 * workers), step));
}

float scale_of(const Matrix& w, int64_t index) {
  float scale;
  std::memcpy(&scale, w.scales + 4 * index, sizeof scale);
  return scale;
}

}  // namespace

void decode_row(Isa isa, const Matrix& w, int64_t row, int64_t first, int64_t count, float* out) {
  const uint8_t* data = w.data + static_cast<size_t>(row) * row_bytes(w.dtype, w.cols);
  if (w.scales == nullptr) return find_row_kernel(w.dtype, isa)->decode(data + row_bytes(w.dtype, first), count, out);
  const ChannelKernel& kernel = *find_channel_kernel(w.dtype, isa);
  const int64_t group = w.cols / w.scales_per_row, bits = code_bits(w.dtype);
  while (count > 0) {
    const int64_t index = first / group, n = std::min(count, (index + 1) * group - first);
    const float scale = scale_of(w, row * w.scales_per_row + index);
    if (first * bits % 8 == 0) {
      kernel.decode(data + first * bits / 8, n, scale, out);
    } else {
      decode_packed(static_cast<int>(bits), data, first, n, scale, out);
    }
    first += n;
    count -= n;
    out += n;
  }
}

void MatmulInput::reserve_scratch(int workers, int64_t floats) {
  scratch_stride_ = std::max(scratch_stride_, static_cast<size_t>(round_up(floats, 16)));
  if (scratch_.size() < scratch_stride_ * static_cast<size_t>(workers))
    scratch_.resize(scratch_stride_ * static_cast<size_t>(workers));
}

void MatmulInput::set(const float* x, int64_t rows, int64_t cols) {
  x_ = x;
  rows_ = rows;
  cols_ = cols;
  is_packed_ = false;
  rounded_scale_ = 0.0f;
  coded_for_ = nullptr;
}

void MatmulInput::pack(Isa isa, ThreadPool& pool) {
  if (is_packed_) return;
  is_packed_ = true;
  const PanelKernel& kernel = *find_panel_kernel(isa);
  const size_t size = static_cast<size_t>(round_up(rows_, kLanes) * cols_);
  if (packed_.size() < size) packed_.resize(size);
  const int64_t panels = (rows_ + kPanelRows - 1) / kPanelRows;
  const int64_t piece = piece_of(panels, 2 * kPanelRows * cols_, 1, pool.size());
  pool.parallel_for(panels, piece, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanelRows;
      kernel.pack(x_ + first * cols_, cols_, std::min(kPanelRows, rows_ - first), cols_,
                  packed_.data() + first * cols_);
    }
  });
}

void MatmulInput::round(ThreadPool& pool, float scale) {
  if (rounded_scale_ == scale) return;
  rounded_scale_ = scale;
  rounded_.resize(static_cast<size_t>(rows_ * cols_));
  pool.parallel_for(rows_, piece_of(rows_, cols_, 1, pool.size()), [&](int64_t begin, int64_t end, int) {
    round_activations(x_ + begin * cols_, (end - begin) * cols_, scale, rounded_.data() + begin * cols_);
  });
}

// NaN has no code; the row's scale carries it into every product.
void MatmulInput::encode(const ChannelKernel& kernel, ThreadPool& pool, float scale) {
  if (coded_for_ == &kernel && coded_scale_ == scale) return;
  coded_for_ = &kernel;
  coded_scale_ = scale;
  const int64_t stride = arranged_bytes(cols_);
  codes_.resize(static_cast<size_t>(rows_ * stride));
  code_scales_.resize(static_cast<size_t>(rows_));
  reserve_scratch(pool.size(), cols_);
  pool.parallel_for(rows_, piece_of(rows_, 4 * cols_, 1, pool.size()), [&](int64_t begin, int64_t end, int worker) {
    auto* codes = reinterpret_cast<int8_t*>(scratch(worker));
    for (int64_t r = begin; r < end; ++r) {
      const float* x = x_ + r * cols_;
      bool nan = false;
      for (int64_t k = 0; k < cols_; ++k) nan |= x[k] != x[k];
      code_scales_[static_cast<size_t>(r)] = static_cast<double>(nan ? NAN : scale);
      if (nan) std::fill_n(codes, cols_, int8_t{0});
      else encode_channel(8, x, cols_, scale, codes);
      kernel.arrange(codes, cols_, codes_.data() + r * stride);
    }
  });
}

// One weight row at a time: a dot product with each row of x.
void MatmulInput::multiply_by_row(Isa isa, ThreadPool& pool, const float* x, const Matrix& w, float* y) {
  const RowKernel* kernel = find_row_kernel(w.dtype, isa);
  const ChannelKernel* packed = find_channel_kernel(w.dtype, isa);
  const RowKernel& floats = *find_row_kernel(DType::F32, isa);
  const size_t stride = row_bytes(w.dtype, w.cols);
  reserve_scratch(pool.size(), w.cols);
  const auto multiply = [&](int64_t o, int worker) {
    const uint8_t* row = w.data + static_cast<size_t>(o) * stride;
    if (rows_ == 1 && kernel != nullptr) {
      y[o] = kernel->dot(row, x, w.cols);
    } else if (rows_ == 1 && w.scales_per_row == 1) {
      y[o] = packed->dot(row, w.cols, scale_of(w, o), x);
    } else {
      decode_row(isa, w, o, 0, w.cols, scratch(worker));
      const auto* decoded = reinterpret_cast<const uint8_t*>(scratch(worker));
      for (int64_t r = 0; r < rows_; ++r) y[r * w.rows + o] = floats.dot(decoded, x + r * w.cols, w.cols);
    }
  };
  pool.parallel_for(w.rows, piece_of(w.rows, rows_ * w.cols, 1, pool.size()),
                    [&](int64_t begin, int64_t end, int worker) {
                      for (int64_t o = begin; o < end; ++o) multiply(o, worker);
                    });
}

// Some rows of weights (second level of the cache) meet a few rows of activations (first level) at a time.
void MatmulInput::multiply_codes(const ChannelKernel& kernel, ThreadPool& pool, const Matrix& w, float* y) {
  const size_t w_stride = row_bytes(w.dtype, w.cols);
  const int64_t x_stride = arranged_bytes(w.cols);
  const auto multiply = [&](int64_t o, int64_t first) {
    const int64_t rows = std::min(kCodeRows, rows_ - first);
    int32_t sums[kCodeRows];
    kernel.multiply(w.data + static_cast<size_t>(o) * w_stride, codes_.data() + first * x_stride, rows, w.cols, sums);
    const double scale = static_cast<double>(scale_of(w, o));
    for (int64_t r = first; r < first + rows; ++r)
      y[r * w.rows + o] = static_cast<float>(sums[r - first] * (code_scales_[static_cast<size_t>(r)] * scale));
  };
  const int64_t wanted = piece_of(w.rows, rows_ * w.cols / kCodesPerFloat, 1, pool.size());
  const int64_t piece = rows_ <= kCodeRows ? wanted : std::min(kOutputs, wanted);
  pool.parallel_for(w.rows, piece, [&](int64_t begin, int64_t end, int) {
    for (int64_t first = 0; first < rows_; first += kCodeRows)
      for (int64_t o = begin; o < end; ++o) multiply(o, first);
  });
}

// A block of weight rows is decoded once per kDepth columns and meets every panel of activations.
void MatmulInput::multiply_by_panel(Isa isa, ThreadPool& pool, const Matrix& w, float* y) {
  const PanelKernel& kernel = *find_panel_kernel(isa);
  reserve_scratch(pool.size(), kOutputs * kDepth);
  const int64_t piece = std::min(kOutputs, piece_of(w.rows, rows_ * w.cols, kOutputStep, pool.size()));
  pool.parallel_for(w.rows, piece, [&](int64_t begin, int64_t end, int worker) {
    float* block = scratch(worker);
    for (int64_t o = begin; o < end; o += kOutputs) {
      const int64_t outputs = std::min(kOutputs, end - o);
      for (int64_t k = 0; k < w.cols; k += kDepth) {
        const int64_t depth = std::min(kDepth, w.cols - k);
        for (int64_t i = 0; i < outputs; ++i) decode_row(isa, w, o + i, k, depth, block + i * kDepth);
        for (int64_t first = 0; first < rows_; first += kPanelRows) {
          const int64_t rows = std::min(kPanelRows, rows_ - first);
          kernel.multiply(packed_.data() + first * cols_ + k * round_up(rows, kLanes), rows, depth, block, kDepth,
                          outputs, y + first * w.rows + o, w.rows, k > 0);
        }
      }
    }
  });
}

void matmul(Isa isa, ThreadPool& pool, MatmulInput& input, const Matrix& w, float* y) {
  QAT_CHECK(w.cols == input.cols_);
  const bool panels = find_panel_kernel(isa) != nullptr;  // else the reference
  if (w.input_scale != 0.0f && panels) {
    QAT_CHECK(code_bits(w.dtype) != 0 && w.scales_per_row == 1 && w.cols <= kMostCodes);
    const ChannelKernel& kernel = *find_channel_kernel(w.dtype, isa);
    input.encode(kernel, pool, w.input_scale);
    return input.multiply_codes(kernel, pool, w, y);
  }
  if (w.input_scale != 0.0f) {
    input.round(pool, w.input_scale);
    return input.multiply_by_row(isa, pool, input.rounded_.data(), w, y);
  }
  if (input.rows_ < 2 || !panels) return input.multiply_by_row(isa, pool, input.x_, w, y);
  input.pack(isa, pool);
  input.multiply_by_panel(isa, pool, w, y);
}

}  // namespace qat
