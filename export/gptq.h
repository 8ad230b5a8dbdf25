// Rounding that makes up for its own errors: GPTQ (arXiv 2210.17323) in the form of LDLQ (QuIP, arXiv 2307.13304).
//
// A linear whose inputs have second moments H = mean x x^T loses e H e^T per row by an error e of its weights. With
// H = L L^T that is the sum over columns j of (sum over k >= j of e_k L_kj)^2: rounding from the last column to the
// first, column j can take back what the errors of the columns behind it cost, by aiming at
// w_j + (sum over k > j of e_k L_kj) / L_jj instead of w_j.
#pragma once

#include <cstdint>
#include <vector>

#include "format/dtype.h"
#include "inference/isa.h"
#include "inference/thread_pool.h"

namespace qat {

// Second moments of the inputs of a linear, and their factor: width^2 floats.
class InputMoments {
 public:
  explicit InputMoments(int64_t width);
  int64_t width() const { return width_; }
  // Adds rows of inputs, x [rows, width]. The sums do not depend on the number of threads.
  void add(ThreadPool& pool, Isa isa, const float* x, int64_t rows);
  // Once all rows are in: H becomes their mean, plus `damping` times its mean diagonal, and L. Inputs that never spoke
  // leave a multiple of the identity. Throws Error when a sum is not finite.
  void factorize(double damping = 0.01);

  // After factorize(). L [width, width], row-major; above its diagonal stands nothing of use.
  const float* factor() const { return values_.data(); }

 private:
  bool try_factorize();
  int64_t width_ = 0, rows_ = 0;
  std::vector<float> values_;
  std::vector<float> transposed_, products_;  // of the rows being added
};

// Rounds rows of weights [rows, moments.width()] onto Q4_0 or Q8_0 blocks (row_bytes each). A block's scale is chosen
// when its turn comes, for the weights as they are compensated by then: searched (search_q4_0, weighted by L's squared
// diagonal) or Q8_0's own rule, then fitted to the codes that came of it, as long as that gains. Weights must be
// finite; the result does not depend on the number of threads.
void gptq_blocks(const InputMoments& moments, DType grid, const float* weights, int64_t rows, uint8_t* out);

// The same onto a channel-wise grid (format/channel_grid.h): storable scales [rows] and codes [rows, width]. A row's
// scale is searched for the weights alone, then fitted to the codes by the whole of H, as long as that gains.
void gptq_channels(const InputMoments& moments, int bits, const float* weights, int64_t rows, float* scales,
                   int8_t* codes);

}  // namespace qat
