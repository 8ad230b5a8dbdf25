// Products of activations with stored matrices, over the threads of a pool.
#pragma once

#include <cstdint>
#include <vector>

#include "inference/engine.h"
#include "inference/huge_pages.h"
#include "inference/kernels.h"
#include "inference/pieces.h"
#include "inference/thread_pool.h"

namespace qat {

// What the products of a matrix are made of.
struct Arithmetic {
  Isa isa = Isa::scalar;
  // Activations that meet quantized weights are rounded, and codes are multiplied, which is several times as fast as
  // floats. GGUF's types: to 8 bits, kCodeBlock neighbours to a scale, as llama.cpp does. A lone row that meets packed
  // codes without a static grid (the mobile schema's head): to 16 bits. Not in the reference, which has no such
  // kernels.
  bool round_activations = false;
};

// A matrix and where its product goes: y [rows of the input, w->rows].
struct Product {
  const Matrix* w = nullptr;
  float* y = nullptr;
};

// y [rows of the input, gate->rows] = activate(gate, up), elementwise: products with two matrices alike in shape, each
// rounded to its output_scale if it has one.
struct GatedProduct {
  const Matrix* gate = nullptr;
  const Matrix* up = nullptr;
  void (*activate)(float* gate, const float* up, int64_t n) = nullptr;  // leaves the result in gate
  float* y = nullptr;
};

struct CodeBlock;  // some rows of a matrix

// Whether w is met by kernels that take activations in 8 bits.
bool meets_codes(const Arithmetic& how, const Matrix& w);

// Rows of activations on their way into one or more matrices: brought into the forms that products want once, used as
// often as they are needed (q, k and v share an input). Keeps its memory from use to use.
class MatmulInput {
 public:
  // x [rows, cols] must stay valid and unchanged until the next set().
  void set(const float* x, int64_t rows, int64_t cols);
  const float* x() const { return x_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

 private:
  friend void matmul(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, Span<const Product> products);
  friend bool matmul_gated(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, const GatedProduct& product);
  // Forms. Each returns at once when it is there already.
  void pack(Isa isa, ThreadPool& pool);
  void round(ThreadPool& pool, float scale);
  void encode(Isa isa, ThreadPool& pool, float scale);
  void arrange(void (*kernel)(const int8_t* codes, int64_t cols, int8_t* out));
  void pack_codes(const CodePanelKernel& kernel, ThreadPool& pool);
  void encode_digits(const ChannelKernel& kernel);
  // Products.
  void multiply_by_row(Isa isa, ThreadPool& pool, const float* x, const Matrix& w, float* y);
  void multiply_by_panel(Isa isa, ThreadPool& pool, const Matrix& w, float* y);
  void dot_blocks(const BlockKernel& kernel, ThreadPool& pool, Span<const Product> products);
  void multiply_codes(const ChannelKernel& kernel, ThreadPool& pool, Span<const Product> products);
  void multiply_digits(const ChannelKernel& kernel, ThreadPool& pool, const Matrix& w, float* y);
  void multiply_code_panels(const CodePanelKernel& kernel, ThreadPool& pool, const Matrix& w, float* y);
  void multiply_gated_panels(const CodePanelKernel& kernel, ThreadPool& pool, const GatedProduct& product);
  void store_panel(const CodePanelKernel& kernel, const float* sums, int64_t r, const CodeBlock& block, float* y,
                   int64_t y_stride) const;
  int64_t code_room(const CodePanelKernel& kernel) const;
  template <class Before, class After>
  void multiply_code_block(const CodePanelKernel& kernel, const CodeBlock& block, const CodeBlock& next, float* sums,
                           float* room, const Before& before, const After& after) const;
  template <class Multiply>
  void for_code_blocks(ThreadPool& pool, const Matrix& w, int64_t products, const Multiply& multiply) const;
  void multiply_rounded(Isa isa, ThreadPool& pool, Span<const Product> products);
  void multiply(const Arithmetic& how, ThreadPool& pool, Span<const Product> products);
  float* scratch(int worker) { return scratch_.data() + static_cast<size_t>(worker) * scratch_stride_; }
  void reserve_scratch(int workers, int64_t floats);

  const float* x_ = nullptr;
  int64_t rows_ = 0, cols_ = 0;
  bool is_packed_ = false;
  HugeVector<float> packed_;  // panels
  float rounded_scale_ = 0.0f;
  HugeVector<float> rounded_;  // x on the grid of that scale; 0: not yet
  // In 8 bits, by coded_scale_ or, 0, by blocks.
  bool is_coded_ = false, has_code_panels_ = false;
  float coded_scale_ = 0.0f;
  int64_t code_stride_ = 0;                                  // cols rounded up to kCodeBlock; what is added is 0
  HugeVector<int8_t> codes_, panel_codes_;                   // [rows, code_stride_]; in panels
  HugeVector<float> block_scales_, block_sums_, half_sums_;  // as encode_blocks leaves them, of all rows
  HugeVector<float> panel_scales_, panel_sums_;
  HugeVector<double> code_scales_;  // per row: coded_scale_, or NaN where the row has one; rounded up to panels
  HugeVector<int32_t> code_sums_;   // per row: sum of codes, rounded up likewise
  void (*arranged_by_)(const int8_t* codes, int64_t cols, int8_t* out) = nullptr;
  HugeVector<int8_t> arranged_;  // rows, arranged_bytes(cols) apart; or the two digits of one
  bool has_digits_ = false;
  double digit_scale_ = 0.0;
  HugeVector<float> scratch_;  // per worker: weights decoded or unpacked, sums
  size_t scratch_stride_ = 0;
};

// Elements [first, first + count) of a row, as floats: bit for bit what decode_rows says, or code * scale.
void decode_row(Isa isa, const Matrix& w, int64_t row, int64_t first, int64_t count, float* out);
// Of a row with its scales, as stored.
size_t stored_row_bytes(const Matrix& w);
// A whole row of a table of which single rows are used: read from its file if it lies in one, through `room` of
// stored_row_bytes(). Throws Error as MappedFile::read.
void read_table_row(Isa isa, const Matrix& table, int64_t row, uint8_t* room, float* out);

// y[r, o] = sum_k x[r, k] * w[o, k], y [rows, w.rows]. w.cols must be the input's. Where w has an input_scale, x is
// first rounded to that grid, and products of codes are added as integers (the reference: as the floats they mean);
// what y is rounded to is the caller's business. The result does not depend on the number of threads, and that of a
// row not on the other rows (as long as there are two or more: a single row takes the dot product's order).
// Several products of one input are computed as if one after the other; those of a lone row with neighbours alike in
// type and grid are one loop over the rows of all, since threads would otherwise wait for each other more often.
void matmul(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, Span<const Product> products);
inline void matmul(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, const Matrix& w, float* y) {
  const Product product = {&w, y};
  matmul(how, pool, input, {&product, 1});
}

// The same as two products, a rounding of each and activate(), without the memory for both. False, and nothing done,
// unless one kernel of 8-bit codes meets both with many rows: not for a lone row (static grid: up to kCodeRows), two
// types, shapes or grids, weights that are met by floats, or the reference.
bool matmul_gated(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, const GatedProduct& product);

}  // namespace qat
