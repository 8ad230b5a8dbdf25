#include "inference/matmul.h"

#include <algorithm>
#include <cstring>

#include "format/channel_grid.h"
#include "format/error.h"

namespace qat {
namespace {

constexpr int64_t kDepth = 256;   // columns per pass: a panel of activations (24 KiB) stays in the first-level cache
constexpr int64_t kOutputs = 64;  // weight rows decoded at a time (64 KiB): they stay in the second level
constexpr int64_t kWorthAThread = 1 << 15;  // multiply-adds below which a loop is not worth sharing

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Items per piece: enough to be worth a thread, few enough to give every thread some pieces.
int64_t piece_of(int64_t items, int64_t work_per_item, int64_t step, int workers) {
  const int64_t least = round_up(std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work_per_item)), step);
  return std::max(least, round_up(items / (4 * workers), step));
}

}  // namespace

void decode_row(Isa isa, const Matrix& w, int64_t row, int64_t first, int64_t count, float* out) {
  const uint8_t* data = w.data + static_cast<size_t>(row) * row_bytes(w.dtype, w.cols);
  if (w.scales == nullptr) return find_row_kernel(w.dtype, isa)->decode(data + row_bytes(w.dtype, first), count, out);
  const int64_t group = w.cols / w.scales_per_row;
  while (count > 0) {
    const int64_t index = first / group, n = std::min(count, (index + 1) * group - first);
    float scale;
    std::memcpy(&scale, w.scales + 4 * (row * w.scales_per_row + index), sizeof scale);
    decode_packed(code_bits(w.dtype), data, first, n, scale, out);
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

void MatmulInput::set(Isa isa, ThreadPool& pool, const float* x, int64_t rows, int64_t cols) {
  x_ = x;
  rows_ = rows;
  cols_ = cols;
  const PanelKernel* kernel = find_panel_kernel(isa);
  if (kernel == nullptr || rows < 2) return;
  const size_t size = static_cast<size_t>(round_up(rows, kLanes) * cols);
  if (packed_.size() < size) packed_.resize(size);
  const int64_t panels = (rows + kPanelRows - 1) / kPanelRows;
  pool.parallel_for(
      panels, piece_of(panels, 2 * kPanelRows * cols, 1, pool.size()), [&](int64_t begin, int64_t end, int) {
        for (int64_t panel = begin; panel < end; ++panel) {
          const int64_t first = panel * kPanelRows;
          kernel->pack(x + first * cols, cols, std::min(kPanelRows, rows - first), cols, packed_.data() + first * cols);
        }
      });
}

// One weight row at a time: a dot product with each row of x.
void MatmulInput::multiply_by_row(Isa isa, ThreadPool& pool, const Matrix& w, float* y) {
  const RowKernel* kernel = find_row_kernel(w.dtype, isa);  // nullptr for channel-wise grids
  const RowKernel& floats = *find_row_kernel(DType::F32, isa);
  const size_t stride = row_bytes(w.dtype, w.cols);
  reserve_scratch(pool.size(), w.cols);
  pool.parallel_for(w.rows, piece_of(w.rows, rows_ * w.cols, 1, pool.size()),
                    [&](int64_t begin, int64_t end, int worker) {
                      for (int64_t o = begin; o < end; ++o) {
                        if (rows_ == 1 && kernel != nullptr) {
                          y[o] = kernel->dot(w.data + static_cast<size_t>(o) * stride, x_, w.cols);
                          continue;
                        }
                        decode_row(isa, w, o, 0, w.cols, scratch(worker));
                        const auto* decoded = reinterpret_cast<const uint8_t*>(scratch(worker));
                        for (int64_t r = 0; r < rows_; ++r)
                          y[r * w.rows + o] = floats.dot(decoded, x_ + r * w.cols, w.cols);
                      }
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
  if (input.rows_ < 2 || find_panel_kernel(isa) == nullptr) return input.multiply_by_row(isa, pool, w, y);
  input.multiply_by_panel(isa, pool, w, y);
}

}  // namespace qat
