// Products of activations with stored matrices, over the threads of a pool.
#pragma once

#include <cstdint>
#include <vector>

#include "inference/engine.h"
#include "inference/kernels.h"
#include "inference/thread_pool.h"

namespace qat {

// Rows of activations on their way into one or more matrices: packed once, multiplied as often as they are needed (q, k
// and v share an input). Keeps its memory from use to use.
class MatmulInput {
 public:
  // x [rows, cols] must stay valid and unchanged until the next set().
  void set(Isa isa, ThreadPool& pool, const float* x, int64_t rows, int64_t cols);
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

 private:
  friend void matmul(Isa isa, ThreadPool& pool, MatmulInput& input, const Matrix& w, float* y);
  void multiply_by_row(Isa isa, ThreadPool& pool, const Matrix& w, float* y);
  void multiply_by_panel(Isa isa, ThreadPool& pool, const Matrix& w, float* y);
  float* scratch(int worker) { return scratch_.data() + static_cast<size_t>(worker) * scratch_stride_; }
  void reserve_scratch(int workers, int64_t floats);

  const float* x_ = nullptr;
  int64_t rows_ = 0, cols_ = 0;
  std::vector<float> packed_;   // panels; empty when rows are multiplied one by one
  std::vector<float> scratch_;  // per worker: decoded weights
  size_t scratch_stride_ = 0;
};

// Elements [first, first + count) of a row, as floats: bit for bit what decode_rows says, or code * scale.
void decode_row(Isa isa, const Matrix& w, int64_t row, int64_t first, int64_t count, float* out);

// y[r, o] = sum_k x[r, k] * w[o, k], y [rows, w.rows]. w.cols must be the input's. The result does not depend on the
// number of threads, and that of a row not on the other rows (as long as there are two or more: a single row takes the
// dot product's order).
void matmul(Isa isa, ThreadPool& pool, MatmulInput& input, const Matrix& w, float* y);

}  // namespace qat
