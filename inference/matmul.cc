#include "inference/matmul.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/file_io.h"
#include "inference/pieces.h"

namespace qat {
namespace {

constexpr int64_t kDepth = 256;   // columns per pass: a panel of activations (24 KiB) stays in the first-level cache
constexpr int64_t kOutputs = 64;  // weight rows decoded at a time (64 KiB): they stay in the second level

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

size_t stored_row_bytes(const Matrix& w) {
  const size_t scales = w.scales == nullptr ? 0 : static_cast<size_t>(w.scales_per_row) * sizeof(float);
  return row_bytes(w.dtype, w.cols) + scales;
}

void read_table_row(Isa isa, const Matrix& table, int64_t row, uint8_t* room, float* out) {
  if (table.file == nullptr && table.scale_file == nullptr) return decode_row(isa, table, row, 0, table.cols, out);
  const auto fetch = [row](const MappedFile* file, const uint8_t* rows, size_t bytes, uint8_t* to) {
    const uint8_t* from = rows + static_cast<size_t>(row) * bytes;
    if (file != nullptr && file->holds(from, bytes)) file->read(from, bytes, to);
    else std::memcpy(to, from, bytes);
  };
  Matrix alone = table;
  alone.rows = 1;
  alone.data = room;
  const size_t bytes = row_bytes(table.dtype, table.cols);
  fetch(table.file, table.data, bytes, room);
  if (table.scales != nullptr) {
    alone.scales = room + bytes;
    fetch(table.scale_file, table.scales, stored_row_bytes(table) - bytes, room + bytes);
  }
  decode_row(isa, alone, 0, 0, table.cols, out);
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
  is_coded_ = has_digits_ = false;
  arranged_by_ = nullptr;
}

void MatmulInput::pack(Isa isa, ThreadPool& pool) {
  if (is_packed_) return;
  is_packed_ = true;
  const PanelKernel& kernel = *find_panel_kernel(isa);
  const size_t size = static_cast<size_t>(round_up(rows_, kLanes) * cols_);
  if (packed_.size() < size) packed_.resize(size);
  const int64_t panels = (rows_ + kernel.rows - 1) / kernel.rows;
  const int64_t piece = piece_of(panels, 2 * kernel.rows * cols_, 1, pool.size());
  pool.parallel_for(panels, piece, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kernel.rows;
      kernel.pack(x_ + first * cols_, cols_, std::min(kernel.rows, rows_ - first), cols_,
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
  pool.parallel_for(w.rows, pieces_of(w.rows, rows_ * w.cols, 1, pool.size()),
                    [&](int64_t begin, int64_t end, int worker) {
                      for (int64_t o = begin; o < end; ++o) multiply(o, worker);
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
        for (int64_t first = 0; first < rows_; first += kernel.rows) {
          const int64_t rows = std::min(kernel.rows, rows_ - first);
          kernel.multiply(packed_.data() + first * cols_ + k * round_up(rows, kLanes), rows, depth, block, kDepth,
                          outputs, y + first * w.rows + o, w.rows, k > 0);
        }
      }
    }
  });
}

bool meets_codes(const Arithmetic& how, const Matrix& w) {
  return find_panel_kernel(how.isa) != nullptr &&
         (w.input_scale != 0.0f || (how.round_activations && find_block_kernel(w.dtype, how.isa) != nullptr));
}

// The products are one, or alike (see below).
void MatmulInput::multiply(const Arithmetic& how, ThreadPool& pool, Span<const Product> products) {
  const Isa isa = how.isa;
  const Matrix& w = *products[0].w;
  float* y = products[0].y;
  const bool vectors = find_panel_kernel(isa) != nullptr;  // else the reference
  if (w.input_scale != 0.0f && !vectors) {
    round(pool, w.input_scale);
    return multiply_by_row(isa, pool, rounded_.data(), w, y);
  }
  if (meets_codes(how, w)) return multiply_rounded(isa, pool, products);
  if (how.round_activations && vectors && rows_ == 1 && code_bits(w.dtype) != 0 && w.scales_per_row == 1 &&
      w.cols <= kMostCodes)
    return multiply_digits(*find_channel_kernel(w.dtype, isa), pool, w, y);
  if (rows_ < 2 || !vectors) return multiply_by_row(isa, pool, x_, w, y);
  pack(isa, pool);
  multiply_by_panel(isa, pool, w, y);
}

void matmul(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, Span<const Product> products) {
  for (size_t i = 0, count = 1; i < products.size(); i += count, count = 1) {
    const Matrix& first = *products[i].w;
    QAT_CHECK(first.cols == input.cols_);
    const bool can_join = input.rows_ == 1 && meets_codes(how, first);
    for (; can_join && i + count < products.size(); ++count) {
      const Matrix& next = *products[i + count].w;
      if (next.dtype != first.dtype || next.cols != first.cols || next.input_scale != first.input_scale) break;
    }
    input.multiply(how, pool, {products.data() + i, count});
  }
}

}  // namespace qat
