#include "export/gptq.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstring>

#include "export/parallel.h"
#include "export/ptq.h"
#include "format/channel_grid.h"
#include "format/error.h"
#include "format/number.h"
#include "inference/matmul.h"

namespace qat {
namespace {

// Everything is cut the same way whatever the number of threads, so that sums are added in the same order.
constexpr int64_t kTile = 256;         // of H, factorized tile by tile
constexpr int64_t kTileOfSums = 1024;  // columns of H that rows of inputs are added to at a time
constexpr int64_t kRowsTogether = 64;  // of weights: they meet L together
constexpr int64_t kBatch = 128;        // columns whose errors reach the columns before them in one product
constexpr int kBlock = kBlockSize;     // columns whose errors reach each other one by one
constexpr int kFits = 2;               // times that a scale is fitted to the codes it gave

using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatsRef = Eigen::Map<Floats>;
using ConstFloatsRef = Eigen::Map<const Floats>;

// ---- A block of columns of one row

// The part of L where a block's columns meet, its upper triangle zeros.
struct BlockFactor {
  int count = 0;  // columns, at most kBlock
  float lower[kBlock][kBlock] = {};
  float inverse[kBlock] = {};  // of the diagonal

  BlockFactor(const ConstFloatsRef& factor, int64_t begin, int64_t end) : count(static_cast<int>(end - begin)) {
    for (int j = 0; j < count; ++j) {
      for (int k = 0; k <= j; ++k) lower[j][k] = factor(begin + j, begin + k);
      inverse[j] = 1.0f / lower[j][j];
    }
  }
};

// A block of a row, rounded: residual[j] = sum over k >= j of e_k L_kj, whose squares are what it costs.
struct RoundedBlock {
  float error[kBlock], residual[kBlock];  // error = weight - value
  int8_t codes[kBlock];
  double cost = 0.0;
};

// carried[j]: sum of e_k L_kj over the columns behind the block. code_of(x): the code of the level nearest to x.
template <class CodeOf>
void round_block(const BlockFactor& factor, const float* weights, const float* carried, float scale,
                 const CodeOf& code_of, RoundedBlock* out) {
  float sums[kBlock] = {};
  std::copy_n(carried, factor.count, sums);
  for (int j = factor.count - 1; j >= 0; --j) {
    const int code = code_of(weights[j] + sums[j] * factor.inverse[j]);
    const float error = weights[j] - scale * static_cast<float>(code);
    out->codes[j] = static_cast<int8_t>(code);
    out->error[j] = error;
    for (int k = 0; k < kBlock; ++k) sums[k] += error * factor.lower[j][k];
  }
  std::copy_n(sums, kBlock, out->residual);
  out->cost = 0.0;
  for (const float sum : sums) out->cost += static_cast<double>(sum) * static_cast<double>(sum);
}

// The scale that costs a block with these codes least.
float fitted_scale(const BlockFactor& factor, const RoundedBlock& block, float scale) {
  float projected[kBlock] = {};  // codes * L: what the residual loses per unit of scale
  for (int j = 0; j < factor.count; ++j)
    for (int k = 0; k < kBlock; ++k) projected[k] += static_cast<float>(block.codes[j]) * factor.lower[j][k];
  double residual = 0.0, square = 0.0;
  for (int k = 0; k < kBlock; ++k) {
    residual += static_cast<double>(block.residual[k]) * static_cast<double>(projected[k]);
    square += static_cast<double>(projected[k]) * static_cast<double>(projected[k]);
  }
  return square > 0.0 ? static_cast<float>(scale + residual / square) : scale;
}

// ---- Rows

// Rows of weights on their way from the last column to the first, a batch of columns at a time. round(first, factor,
// carried [rows, stride]) rounds the block of columns from `first` on and leaves its errors.
struct Rows {
  const InputMoments& moments;
  const float* weights;
  int64_t count;
  Floats errors;  // [count, width], of the columns done

  template <class Round>
  void run(const Round& round) {
    const int64_t width = moments.width();
    const ConstFloatsRef factor(moments.factor(), width, width);
    Floats carried(count, kBatch);
    for (int64_t end = width; end > 0;) {
      const int64_t begin = (end - 1) / kBatch * kBatch, behind = width - end;
      carried.leftCols(end - begin).noalias() =
          errors.rightCols(behind) * factor.block(end, begin, behind, end - begin);
      for (int64_t last = end; last > begin;) {
        const int64_t first = (last - 1) / kBlock * kBlock;
        round(first, BlockFactor(factor, first, last), carried.data() + (first - begin), kBatch);
        carried.leftCols(first - begin).noalias() +=
            errors.middleCols(first, last - first) * factor.block(first, begin, last - first, first - begin);
        last = first;
      }
      end = begin;
    }
  }
};

// Calls body(first, count) for all rows, kRowsTogether at a time.
template <class Body>
void each_rows(int64_t rows, const Body& body) {
  const int64_t pieces = (rows + kRowsTogether - 1) / kRowsTogether;
  parallel_parts(pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i * kRowsTogether, std::min(kRowsTogether, rows - i * kRowsTogether));
  });
}

// ---- Blocks that have a scale each

struct BlockQ4 {
  using Stored = BlockQ4_0;
  // As encode_q4_0_with_scale has it.
  static int code(float x, float inverse) {
    return static_cast<int>(std::min(std::max(x * inverse + 8.5f, 0.0f), 15.0f)) - 8;
  }
  static uint16_t first_scale(const float* x, const float* importance) { return search_q4_0(x, importance).d; }
};

struct BlockQ8 {
  using Stored = BlockQ8_0;
  static int code(float x, float inverse) {
    return static_cast<int>(std::lround(std::min(std::max(x * inverse, -127.0f), 127.0f)));
  }
  static uint16_t first_scale(const float* x, const float*) { return encode_q8_0(x).d; }
};

template <class Grid>
void choose_block(const BlockFactor& factor, const float* weights, const float* carried, RoundedBlock* best,
                  uint16_t* best_scale) {
  const auto round = [&](uint16_t stored, RoundedBlock* out) {
    const float scale = f16_to_f32(stored), reciprocal = 1.0f / scale;
    const float inverse = std::isfinite(reciprocal) ? reciprocal : 0.0f;
    round_block(
        factor, weights, carried, scale, [&](float x) { return Grid::code(x, inverse); }, out);
  };
  // What the block costs as long as its columns do not make up for each other: sum of L_jj^2 (aim - value)^2.
  float aims[kBlock], importance[kBlock];
  for (int j = 0; j < kBlock; ++j) {
    aims[j] = weights[j] + carried[j] * factor.inverse[j];
    importance[j] = factor.lower[j][j] * factor.lower[j][j];
  }
  const float largest = *std::max_element(importance, importance + kBlock);
  for (float& w : importance) w /= largest;
  *best_scale = Grid::first_scale(aims, importance);
  round(*best_scale, best);
  for (int i = 0; i < kFits; ++i) {
    const uint16_t scale = f32_to_f16(fitted_scale(factor, *best, f16_to_f32(*best_scale)));
    if (scale == *best_scale || !std::isfinite(f16_to_f32(scale))) return;
    RoundedBlock other;
    round(scale, &other);
    if (!(other.cost < best->cost)) return;
    *best = other;
    *best_scale = scale;
  }
}

void store(const RoundedBlock& rounded, uint16_t scale, BlockQ4_0* out) {
  out->d = scale;
  for (int j = 0; j < 16; ++j)
    out->qs[j] = static_cast<uint8_t>((rounded.codes[j] + 8) | ((rounded.codes[j + 16] + 8) << 4));
}

void store(const RoundedBlock& rounded, uint16_t scale, BlockQ8_0* out) {
  out->d = scale;
  std::copy_n(rounded.codes, kBlock, out->qs);
}

template <class Grid>
void round_to_blocks(const InputMoments& moments, const float* weights, int64_t rows, uint8_t* out) {
  using Stored = typename Grid::Stored;
  const int64_t width = moments.width();
  QAT_CHECK(width % kBlock == 0);
  each_rows(rows, [&](int64_t first_row, int64_t count) {
    const float* mine = weights + first_row * width;
    Rows work{moments, mine, count, Floats::Zero(count, width)};
    work.run([&](int64_t first, const BlockFactor& factor, const float* carried, int64_t stride) {
      for (int64_t r = 0; r < count; ++r) {
        RoundedBlock rounded;
        uint16_t scale;
        choose_block<Grid>(factor, mine + r * width + first, carried + r * stride, &rounded, &scale);
        std::copy_n(rounded.error, kBlock, &work.errors(r, first));
        Stored stored;
        store(rounded, scale, &stored);
        std::memcpy(out + static_cast<size_t>((first_row + r) * width / kBlock + first / kBlock) * sizeof stored,
                    &stored, sizeof stored);
      }
    });
  });
}

// ---- Rows that have one scale

struct ChannelRows {
  std::vector<float> scales;
  std::vector<int8_t> codes;  // [count, width]
  Floats residuals;           // [count, width]: errors * L
  std::vector<double> costs;
};

void round_with_scales(const InputMoments& moments, int bits, const float* weights, int64_t count, ChannelRows* out) {
  const int64_t width = moments.width();
  out->codes.resize(static_cast<size_t>(count * width));
  out->residuals.resize(count, width);
  out->costs.assign(static_cast<size_t>(count), 0.0);
  Rows work{moments, weights, count, Floats::Zero(count, width)};
  work.run([&](int64_t first, const BlockFactor& factor, const float* carried, int64_t stride) {
    for (int64_t r = 0; r < count; ++r) {
      const float scale = out->scales[static_cast<size_t>(r)];
      const auto code_of = [&](float x) {
        int8_t code;
        encode_channel(bits, &x, 1, scale, &code);
        return static_cast<int>(code);
      };
      RoundedBlock rounded;
      round_block(factor, weights + r * width + first, carried + r * stride, scale, code_of, &rounded);
      std::copy_n(rounded.error, factor.count, &work.errors(r, first));
      std::copy_n(rounded.residual, factor.count, &out->residuals(r, first));
      std::copy_n(rounded.codes, factor.count, out->codes.data() + r * width + first);
      out->costs[static_cast<size_t>(r)] += rounded.cost;
    }
  });
}

void take_better(const ChannelRows& other, ChannelRows* best) {
  const int64_t width = other.residuals.cols();
  for (size_t r = 0; r < best->scales.size(); ++r) {
    if (!(other.costs[r] < best->costs[r])) continue;
    const auto row = static_cast<int64_t>(r);
    best->scales[r] = other.scales[r];
    best->costs[r] = other.costs[r];
    best->residuals.row(row) = other.residuals.row(row);
    std::copy_n(other.codes.begin() + row * width, width, best->codes.begin() + row * width);
  }
}

// The scale of each row that costs least with its codes.
std::vector<float> fitted_scales(const InputMoments& moments, const ChannelRows& rows) {
  const int64_t width = moments.width(), count = rows.residuals.rows();
  const Floats codes = Eigen::Map<const Eigen::Matrix<int8_t, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>(
                           rows.codes.data(), count, width)
                           .cast<float>();
  const ConstFloatsRef factor(moments.factor(), width, width);
  const Floats projected = codes * factor.triangularView<Eigen::Lower>();
  std::vector<float> scales = rows.scales;
  for (int64_t r = 0; r < count; ++r) {
    const double square = projected.row(r).cast<double>().squaredNorm();
    const double residual = rows.residuals.row(r).cast<double>().dot(projected.row(r).cast<double>());
    if (square > 0.0)
      scales[static_cast<size_t>(r)] =
          storable_scale(static_cast<float>(scales[static_cast<size_t>(r)] + residual / square));
  }
  return scales;
}

}  // namespace

InputMoments::InputMoments(int64_t width) : width_(width), values_(static_cast<size_t>(width * width)) {}

void InputMoments::add(ThreadPool& pool, Isa isa, const float* x, int64_t rows) {
  // Sums of x_i x_j are products of the transposed rows with each other: the engine's.
  transposed_.resize(static_cast<size_t>(width_ * rows));
  FloatsRef(transposed_.data(), width_, rows) = ConstFloatsRef(x, rows, width_).transpose();
  MatmulInput input;
  for (int64_t begin = 0; begin < width_; begin += kTileOfSums) {
    const int64_t cols = std::min(kTileOfSums, width_ - begin), below = width_ - begin;
    const float* tile = transposed_.data() + begin * rows;
    products_.resize(static_cast<size_t>(below * cols));
    input.set(tile, below, rows);
    matmul({isa, false}, pool, input, Matrix{DType::F32, cols, rows, reinterpret_cast<const uint8_t*>(tile)},
           products_.data());
    FloatsRef(values_.data(), width_, width_).block(begin, begin, below, cols) +=
        FloatsRef(products_.data(), below, cols);
  }
  rows_ += rows;
}

// L into the lower triangle, in tiles.
bool InputMoments::try_factorize() {
  FloatsRef h(values_.data(), width_, width_);
  for (int64_t begin = 0; begin < width_; begin += kTile) {
    const int64_t size = std::min(kTile, width_ - begin), end = begin + size,
                  tiles = (width_ - end + kTile - 1) / kTile;
    auto corner = h.block(begin, begin, size, size);
    const Eigen::LLT<Eigen::Ref<Floats>> factor(corner);
    if (factor.info() != Eigen::Success) return false;
    const auto tile = [&](int64_t i, int64_t column, int64_t cols) {
      return h.block(end + i * kTile, column, std::min(kTile, width_ - end - i * kTile), cols);
    };
    parallel_parts(tiles, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        corner.template triangularView<Eigen::Lower>().transpose().template solveInPlace<Eigen::OnTheRight>(
            tile(i, begin, size));
    });
    parallel_parts(tiles * (tiles + 1) / 2, 1, [&](int64_t first, int64_t last) {
      int64_t i = 0;  // the pair (i, j <= i) with the number `first`
      while ((i + 1) * (i + 2) / 2 <= first) ++i;
      int64_t j = first - i * (i + 1) / 2;
      for (int64_t pair = first; pair < last; ++pair) {
        const auto right = tile(j, begin, size);
        tile(i, end + j * kTile, right.rows()).noalias() -= tile(i, begin, size) * right.transpose();
        if (++j > i) j = 0, ++i;
      }
    });
  }
  return true;
}

void InputMoments::factorize(double damping) {
  transposed_ = products_ = {};
  FloatsRef h(values_.data(), width_, width_);
  h *= 1.0f / static_cast<float>(std::max<int64_t>(1, rows_));
  const Eigen::VectorXf diagonal = h.diagonal();
  const double mean = diagonal.cast<double>().mean();
  if (!std::isfinite(mean)) fail("the calibration text drives activations beyond the range of floats");
  // Above the diagonal, H stays: where rounding left it without a factor, more damping helps.
  h.triangularView<Eigen::StrictlyUpper>() = h.transpose();
  for (float added = mean > 0.0 ? static_cast<float>(damping * mean) : 1.0f;; added *= 10.0f) {
    h.diagonal() = diagonal.array() + added;
    if (try_factorize()) return;
    QAT_CHECK(std::isfinite(added));
    h.triangularView<Eigen::StrictlyLower>() = h.transpose();
  }
}

void gptq_blocks(const InputMoments& moments, DType grid, const float* weights, int64_t rows, uint8_t* out) {
  QAT_CHECK(grid == DType::Q4_0 || grid == DType::Q8_0);
  if (grid == DType::Q4_0) round_to_blocks<BlockQ4>(moments, weights, rows, out);
  else round_to_blocks<BlockQ8>(moments, weights, rows, out);
}

void gptq_channels(const InputMoments& moments, int bits, const float* weights, int64_t rows, float* scales,
                   int8_t* codes) {
  const int64_t width = moments.width();
  each_rows(rows, [&](int64_t first_row, int64_t count) {
    const float* mine = weights + first_row * width;
    ChannelRows best;
    for (int64_t r = 0; r < count; ++r) best.scales.push_back(search_scale(bits, mine + r * width, nullptr, width));
    round_with_scales(moments, bits, mine, count, &best);
    for (int i = 0; i < kFits; ++i) {
      ChannelRows other;
      other.scales = fitted_scales(moments, best);
      round_with_scales(moments, bits, mine, count, &other);
      take_better(other, &best);
    }
    std::copy_n(best.scales.begin(), count, scales + first_row);
    std::copy_n(best.codes.begin(), count * width, codes + first_row * width);
  });
}

}  // namespace qat
