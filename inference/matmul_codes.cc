// Products of activations in 8 bits: on a matrix's static grid (the mobile schema), or rounded in blocks (GGUF's
// types).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/channel_grid.h"
#include "format/error.h"
#include "inference/matmul.h"
#include "inference/pieces.h"

namespace qat {

struct CodeBlock {
  const Matrix* w;
  int64_t first, outputs;  // rows [first, first + outputs)
};

namespace {

constexpr int64_t kCodesPerFloat = 8;      // products of codes in the time of one of floats
constexpr int64_t kNearResults = 1 << 20;  // floats, about what caches hold beside weights
// Of outputs in a piece: neighbours in a row of results are better one core's than two cores'.
constexpr int64_t kMostBlocks = 4;
constexpr int64_t kGroupsPerRow = kCodeDepth / 16;

float scale_of(const Matrix& w, int64_t row) {
  float scale;
  std::memcpy(&scale, w.scales + 4 * row, sizeof scale);
  return scale;
}

const uint8_t* row_of(const Matrix& w, int64_t row) {
  return w.data + static_cast<size_t>(row) * row_bytes(w.dtype, w.cols);
}

template <class T>
T* grown(HugeVector<T>& buffer, int64_t count) {
  if (buffer.size() < static_cast<size_t>(count)) buffer.resize(static_cast<size_t>(count));
  return buffer.data();
}

// use(o, sums of its rows, its scale) for outputs [begin, end), many at a time: kernels read from several places at
// once.
constexpr int64_t kManyOutputs = 1024;
template <class Use>
void for_outputs(const ChannelKernel& kernel, const Matrix& w, const int8_t* arranged, int64_t rows, int64_t begin,
                 int64_t end, Use use) {
  const size_t stride = row_bytes(w.dtype, w.cols);
  for (int64_t o = begin; o < end; o += kManyOutputs) {
    const int64_t outputs = std::min(kManyOutputs, end - o);
    int32_t sums[kManyOutputs * kCodeRows];
    kernel.multiply(w.data + static_cast<size_t>(o) * stride, static_cast<int64_t>(stride), outputs, arranged, rows,
                    w.cols, sums);
    for (int64_t i = 0; i < outputs; ++i) use(o + i, sums + i * rows, static_cast<double>(scale_of(w, o + i)));
  }
}

// use(product, begin, end) for pieces of the rows of all products. Their width is the same.
template <class Use>
void for_products(ThreadPool& pool, Span<const Product> products, int64_t work_per_output, const Use& use) {
  int64_t outputs = 0;
  for (const Product& product : products) outputs += product.w->rows;
  pool.parallel_for(outputs, pieces_of(outputs, work_per_output, 1, pool.size()), [&](int64_t begin, int64_t end, int) {
    int64_t first = 0;  // of the product's, among all
    for (const Product& product : products) {
      const int64_t rows = product.w->rows, from = std::max(begin - first, int64_t{0});
      const int64_t to = std::min(end - first, rows);
      if (from < to) use(product, from, to);
      first += rows;
    }
  });
}

}  // namespace

// NaN has no code; the row's scale (or the block's) carries it into every product.
void MatmulInput::encode(Isa isa, ThreadPool& pool, float scale) {
  if (is_coded_ && coded_scale_ == scale) return;
  is_coded_ = true;
  has_code_panels_ = has_digits_ = false;
  arranged_by_ = nullptr;
  coded_scale_ = scale;
  code_stride_ = round_up(cols_, kCodeBlock);
  const CodeKernels& kernels = *find_code_kernels(isa);
  int8_t* codes = grown(codes_, rows_ * code_stride_);
  const int64_t blocks = cols_ / kCodeBlock;
  float* scales = grown(block_scales_, rows_ * blocks);
  float* sums = grown(block_sums_, rows_ * blocks);
  float* half_sums = grown(half_sums_, rows_ * 2 * blocks);
  double* row_scales = grown(code_scales_, round_up(rows_, kLanes));
  int32_t* row_sums = grown(code_sums_, round_up(rows_, kLanes));
  pool.parallel_for(rows_, piece_of(rows_, cols_, 1, pool.size()), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = x_ + r * cols_;
      int8_t* out = codes + r * code_stride_;
      if (scale == 0.0f) {
        kernels.encode_blocks(x, cols_, out, scales + r * blocks, sums + r * blocks, half_sums + r * 2 * blocks);
        continue;
      }
      const bool is_finite = kernels.encode_static(x, cols_, scale, out);
      if (!is_finite) std::fill_n(out, cols_, int8_t{0});
      std::fill(out + cols_, out + code_stride_, int8_t{0});
      row_scales[r] = static_cast<double>(is_finite ? scale : NAN);
      int32_t sum = 0;
      for (int64_t k = 0; k < cols_; ++k) sum += out[k];
      row_sums[r] = sum;
    }
  });
}

void MatmulInput::arrange(void (*kernel)(const int8_t* codes, int64_t cols, int8_t* out)) {
  if (arranged_by_ == kernel) return;
  arranged_by_ = kernel;
  const int64_t stride = arranged_bytes(cols_);
  int8_t* out = grown(arranged_, std::max(rows_ * stride, arranged_block_bytes(cols_)));  // of blocks there is one row
  for (int64_t r = 0; r < rows_; ++r) kernel(codes_.data() + r * code_stride_, cols_, out + r * stride);
}

// The float kernel moves words of 32 bits: four codes are one.
void MatmulInput::pack_codes(const CodePanelKernel& kernel, ThreadPool& pool) {
  if (has_code_panels_) return;
  has_code_panels_ = true;
  const PanelKernel& floats = *find_panel_kernel(kernel.isa);
  const int64_t panel_rows = kernel.panel_rows;
  const int64_t height = round_up(rows_, kLanes), blocks = cols_ / kCodeBlock;
  auto* codes = reinterpret_cast<float*>(grown(panel_codes_, height * code_stride_));
  const auto* from = reinterpret_cast<const float*>(codes_.data());
  float* scales = grown(panel_scales_, height * blocks);
  float* sums = grown(panel_sums_, height * 2 * blocks);
  const int64_t words = code_stride_ / 4, panels = (rows_ + panel_rows - 1) / panel_rows;
  pool.parallel_for(panels, piece_of(panels, panel_rows * words, 1, pool.size()), [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * panel_rows, rows = std::min(panel_rows, rows_ - first);
      floats.pack(from + first * words, words, rows, words, codes + first * words);
      if (coded_scale_ != 0.0f) continue;
      floats.pack(block_scales_.data() + first * blocks, blocks, rows, blocks, scales + first * blocks);
      floats.pack(half_sums_.data() + first * 2 * blocks, 2 * blocks, rows, 2 * blocks, sums + first * 2 * blocks);
    }
  });
}

// A lone row with rows of blocks.
void MatmulInput::dot_blocks(const BlockKernel& kernel, ThreadPool& pool, Span<const Product> products) {
  if (kernel.arrange != nullptr) arrange(kernel.arrange);
  const CodedRow x = {kernel.arrange != nullptr ? arranged_.data() : codes_.data(), block_scales_.data(),
                      block_sums_.data(), half_sums_.data()};
  for_products(pool, products, cols_ / kCodesPerFloat, [&](const Product& product, int64_t begin, int64_t end) {
    const size_t stride = row_bytes(product.w->dtype, cols_);
    kernel.multiply(product.w->data + static_cast<size_t>(begin) * stride, static_cast<int64_t>(stride), end - begin, x,
                    cols_, product.y + begin);
  });
}

// A lone row of floats with rows of packed codes: as two rows of codes, x = scale * (256 * high + low). What is lost is
// 2^-16 of the row's largest number.
void MatmulInput::encode_digits(const ChannelKernel& kernel) {
  if (has_digits_ && arranged_by_ == kernel.arrange) return;
  const int64_t stride = arranged_bytes(cols_);
  float most = 0.0f;
  bool is_finite = true;
  for (int64_t k = 0; k < cols_; ++k) {
    is_finite &= std::isfinite(x_[k]);
    most = std::max(most, std::fabs(x_[k]));
  }
  digit_scale_ = is_finite ? static_cast<double>(most) / 32512 : NAN;  // 127 * 256: the high digit fits 8 bits
  const double inverse = digit_scale_ > 0 ? 1.0 / digit_scale_ : 0.0;
  int8_t* high = grown(codes_, 2 * cols_);
  int8_t* low = high + cols_;
  for (int64_t k = 0; k < cols_; ++k) {
    const auto level = static_cast<int32_t>(std::lrint(static_cast<double>(is_finite ? x_[k] : 0.0f) * inverse));
    high[k] = static_cast<int8_t>((level + 128) >> 8);
    low[k] = static_cast<int8_t>(level - 256 * high[k]);
  }
  is_coded_ = false;
  has_digits_ = true;
  arranged_by_ = kernel.arrange;
  int8_t* out = grown(arranged_, 2 * stride);
  kernel.arrange(high, cols_, out);
  kernel.arrange(low, cols_, out + stride);
}

void MatmulInput::multiply_digits(const ChannelKernel& kernel, ThreadPool& pool, const Matrix& w, float* y) {
  encode_digits(kernel);
  const ThreadPool::Pieces pieces = pieces_of(w.rows, w.cols / kCodesPerFloat, 1, pool.size());
  pool.parallel_for(w.rows, pieces, [&](int64_t begin, int64_t end, int) {
    for_outputs(kernel, w, arranged_.data(), 2, begin, end, [&](int64_t o, const int32_t* sums, double scale) {
      y[o] = static_cast<float>((256.0 * sums[0] + sums[1]) * (digit_scale_ * scale));
    });
  });
}

// Up to kCodeRows rows with rows of packed codes.
void MatmulInput::multiply_codes(const ChannelKernel& kernel, ThreadPool& pool, Span<const Product> products) {
  arrange(kernel.arrange);
  for_products(pool, products, rows_ * cols_ / kCodesPerFloat, [&](const Product& product, int64_t begin, int64_t end) {
    const Matrix& w = *product.w;
    for_outputs(kernel, w, arranged_.data(), rows_, begin, end, [&](int64_t o, const int32_t* sums, double scale) {
      for (int64_t r = 0; r < rows_; ++r)
        product.y[r * w.rows + o] = static_cast<float>(sums[r] * (code_scales_[static_cast<size_t>(r)] * scale));
    });
  });
}

namespace {

// Asks for what part `part` of `parts` of the rows of a block has of columns [k, k + kCodeDepth): while one block of
// weights meets the panels, memory brings the next, of which each row is too short a run for the hardware to see it
// coming.
void prefetch_block(const CodeBlock& block, int64_t k, int64_t part, int64_t parts) {
  const Matrix& w = *block.w;
  const auto stride = static_cast<int64_t>(row_bytes(w.dtype, w.cols));
  const auto bytes = static_cast<int64_t>(row_bytes(w.dtype, std::min(kCodeDepth, w.cols - k)));
  const int64_t begin = std::min(block.first + block.outputs * part / parts, w.rows);
  const int64_t end = std::min(block.first + block.outputs * (part + 1) / parts, w.rows);
  const uint8_t* from = w.data + begin * stride + static_cast<int64_t>(row_bytes(w.dtype, k));
  for (int64_t row = begin; row < end; ++row, from += stride)
    for (int64_t byte = 0; byte < bytes + 63; byte += 64) __builtin_prefetch(from + std::min(byte, bytes - 1), 0, 2);
}

// Asks for what a panel is about to write, a few numbers to each of rows that lie far from each other.
void prefetch_results(const float* y, int64_t rows, int64_t outputs, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < outputs; o += 16) __builtin_prefetch(y + r * stride + o, 1);
}

}  // namespace

// What a panel's sums with rows of weights come to, in rows of y, y_stride apart, from the panel's first row, r, on.
void MatmulInput::store_panel(const CodePanelKernel& kernel, const float* sums, int64_t r, const CodeBlock& block,
                              float* y, int64_t y_stride) const {
  const CodeKernels& kernels = *find_code_kernels(kernel.isa);
  const int64_t width = std::min(kernel.panel_rows, round_up(rows_, kLanes) - r), rows = std::min(width, rows_ - r);
  if (kernel.group != 0) return kernels.store_floats(sums, width, rows, block.outputs, y, y_stride);
  float row_scales[kCodeOutputs];
  for (int64_t i = 0; i < block.outputs; ++i) row_scales[i] = scale_of(*block.w, block.first + i);
  kernels.store_sums(reinterpret_cast<const int32_t*>(sums), width, rows, block.outputs, kernel.offset,
                     code_sums_.data() + r, code_scales_.data() + r, row_scales, y, y_stride);
}

int64_t MatmulInput::code_room(const CodePanelKernel& kernel) const {
  return kCodeOutputs * (kGroupsPerRow + kernel.planes * kCodeDepth / 4);
}

// Some rows of weights with all rows of activations: sums [panel][output][width], floats or int32. `next`: the block
// that this thread likely takes next. room: code_room(). before(r) and after(r): just before the sums of the panel
// whose first row is r are whole, and then.
template <class Before, class After>
void MatmulInput::multiply_code_block(const CodePanelKernel& kernel, const CodeBlock& block, const CodeBlock& next,
                                      float* sums, float* room, const Before& before, const After& after) const {
  const Matrix& w = *block.w;
  const int64_t height = round_up(rows_, kLanes), blocks = w.cols / kCodeBlock;
  const int64_t panels = (rows_ + kernel.panel_rows - 1) / kernel.panel_rows;
  const size_t stride = row_bytes(w.dtype, w.cols);
  float* scales = room;
  auto* codes = reinterpret_cast<uint8_t*>(scales + kCodeOutputs * kGroupsPerRow);
  for (int64_t k = 0; k < w.cols; k += kCodeDepth) {
    const int64_t depth = std::min(kCodeDepth, w.cols - k);
    const bool is_last = k + depth == w.cols;
    const uint8_t* row = row_of(w, block.first) + row_bytes(w.dtype, k);
    for (int64_t i = 0; i < block.outputs; ++i, row += stride)
      kernel.unpack(row, depth, codes + i * kernel.planes * kCodeDepth, scales + i * kGroupsPerRow);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t r = p * kernel.panel_rows, width = std::min(kernel.panel_rows, height - r);
      const CodePanel panel = {panel_codes_.data() + r * code_stride_ + k * width, width,
                               panel_scales_.data() + r * blocks + k / kCodeBlock * width,
                               panel_sums_.data() + 2 * r * blocks + k / 16 * width};
      float* panel_sums = sums + r * kCodeOutputs;
      if (k == 0) std::fill_n(panel_sums, kCodeOutputs * width, 0.0f);
      if (is_last) before(r);
      prefetch_block(is_last ? next : block, is_last ? 0 : k + depth, p, panels);
      kernel.multiply(panel, depth, codes, scales, block.outputs, panel_sums, width);
      if (is_last) after(r);
    }
  }
}

// multiply(block, next, worker) for the rows of w, some at a time, over the threads. Some rows of weights are unpacked,
// kCodeDepth columns at a time (second level of the cache), and meet every panel of activations (first level).
template <class Multiply>
void MatmulInput::for_code_blocks(ThreadPool& pool, const Matrix& w, int64_t products, const Multiply& multiply) const {
  ThreadPool::Pieces pieces = pieces_of(w.rows, products * rows_ * w.cols / kCodesPerFloat, 8, pool.size());
  if (pieces.most > kCodeOutputs) {
    pieces.most = std::min(round_up(pieces.most, kCodeOutputs), kMostBlocks * kCodeOutputs);
    pieces.least = std::min(round_up(pieces.least, kCodeOutputs), pieces.most);
  }
  pool.parallel_for(w.rows, pieces, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t o = begin; o < end; o += kCodeOutputs) {
      const int64_t outputs = std::min(kCodeOutputs, end - o);
      // Threads that are as fast as each other take pieces in turn.
      const int64_t next = o + outputs < end ? o + outputs : begin + (end - begin) * pool.size();
      multiply(CodeBlock{&w, o, outputs}, CodeBlock{&w, std::min(next, w.rows), outputs}, worker);
    }
  });
}

void MatmulInput::multiply_code_panels(const CodePanelKernel& kernel, ThreadPool& pool, const Matrix& w, float* y) {
  const int64_t sums = kCodeOutputs * round_up(rows_, kLanes);
  reserve_scratch(pool.size(), sums + code_room(kernel));
  const bool are_far = rows_ * w.rows > kNearResults;
  for_code_blocks(pool, w, 1, [&](const CodeBlock& block, const CodeBlock& next, int worker) {
    float* room = scratch(worker);
    const auto expect = [&](int64_t r) {
      const int64_t rows = std::min(kernel.panel_rows, rows_ - r);
      if (are_far) prefetch_results(y + r * w.rows + block.first, rows, block.outputs, w.rows);
    };
    const auto store = [&](int64_t r) {
      store_panel(kernel, room + r * kCodeOutputs, r, block, y + r * w.rows + block.first, w.rows);
    };
    multiply_code_block(kernel, block, next, room, room + sums, expect, store);
  });
}

// A block of gate and the same of up, one after the other; what they come to is combined a panel at a time, before it
// leaves the first level of the cache.
void MatmulInput::multiply_gated_panels(const CodePanelKernel& kernel, ThreadPool& pool, const GatedProduct& product) {
  const Matrix &gate = *product.gate, &up = *product.up;
  const VectorKernels& ops = vector_kernels(kernel.isa);
  const int64_t sums = kCodeOutputs * round_up(rows_, kLanes), tile = kMostPanelRows * kCodeOutputs;
  reserve_scratch(pool.size(), 2 * sums + code_room(kernel) + 2 * tile);
  const bool are_far = rows_ * gate.rows > kNearResults;
  for_code_blocks(pool, gate, 2, [&](const CodeBlock& block, const CodeBlock& next, int worker) {
    float* gate_sums = scratch(worker);
    float* up_sums = gate_sums + sums;
    float* room = up_sums + sums;
    float* gate_tile = room + code_room(kernel);
    float* up_tile = gate_tile + tile;
    const CodeBlock up_block = {&up, block.first, block.outputs};
    const auto nothing = [](int64_t) {};
    const auto expect = [&](int64_t r) {
      const int64_t rows = std::min(kernel.panel_rows, rows_ - r);
      if (are_far) prefetch_results(product.y + r * gate.rows + block.first, rows, block.outputs, gate.rows);
    };
    const auto combine = [&](int64_t r) {
      const int64_t rows = std::min(kernel.panel_rows, rows_ - r), count = rows * block.outputs;
      store_panel(kernel, gate_sums + r * kCodeOutputs, r, block, gate_tile, block.outputs);
      store_panel(kernel, up_sums + r * kCodeOutputs, r, up_block, up_tile, block.outputs);
      if (gate.output_scale != 0.0f) ops.round_to_grid(gate_tile, count, gate.output_scale);
      if (up.output_scale != 0.0f) ops.round_to_grid(up_tile, count, up.output_scale);
      product.activate(gate_tile, up_tile, count);
      float* y = product.y + r * gate.rows + block.first;
      for (int64_t i = 0; i < rows; ++i) std::copy_n(gate_tile + i * block.outputs, block.outputs, y + i * gate.rows);
    };
    multiply_code_block(kernel, block, up_block, gate_sums, room, nothing, nothing);
    multiply_code_block(kernel, up_block, next, up_sums, room, expect, combine);
  });
}

namespace {

// What kernels of codes take a static grid for granted with.
void check_static(const Matrix& w) {
  if (w.input_scale != 0.0f) QAT_CHECK(code_bits(w.dtype) != 0 && w.scales_per_row == 1 && w.cols <= kMostCodes);
}

}  // namespace

void MatmulInput::multiply_rounded(Isa isa, ThreadPool& pool, Span<const Product> products) {
  const Matrix& w = *products[0].w;
  const bool is_static = w.input_scale != 0.0f;
  for (const Product& product : products) check_static(*product.w);
  encode(isa, pool, w.input_scale);
  if (is_static && rows_ <= kCodeRows) return multiply_codes(*find_channel_kernel(w.dtype, isa), pool, products);
  if (rows_ == 1) return dot_blocks(*find_block_kernel(w.dtype, isa), pool, products);
  QAT_CHECK(products.size() == 1);
  const CodePanelKernel& kernel = *find_code_panel_kernel(w.dtype, isa);
  pack_codes(kernel, pool);
  multiply_code_panels(kernel, pool, w, products[0].y);
}

bool matmul_gated(const Arithmetic& how, ThreadPool& pool, MatmulInput& input, const GatedProduct& product) {
  QAT_CHECK(product.gate->cols == input.cols_);
  const Matrix &gate = *product.gate, &up = *product.up;
  const bool are_alike =
      gate.dtype == up.dtype && gate.rows == up.rows && gate.cols == up.cols && gate.input_scale == up.input_scale;
  const int64_t few = gate.input_scale != 0.0f ? kCodeRows : 1;
  if (!are_alike || input.rows_ <= few || !meets_codes(how, gate)) return false;
  check_static(gate);
  check_static(up);
  const CodePanelKernel& kernel = *find_code_panel_kernel(gate.dtype, how.isa);
  input.encode(how.isa, pool, gate.input_scale);
  input.pack_codes(kernel, pool);
  input.multiply_gated_panels(kernel, pool, product);
  return true;
}

}  // namespace qat
