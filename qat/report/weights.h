// What quantization did to the weights themselves, read from the files row by row and matched by the one table of
// tensors (format/tensor_table.h), whatever kind of file they are in.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "inference/engine.h"
#include "inference/thread_pool.h"

namespace qat {

// "attention q", "MLP down", ...: the tensors of one role, over the layers.
const char* role_label(Role role);

struct TensorError {
  TensorInfo info;
  std::string type;       // as stored
  bool coded = false;     // false for float types
  double relative = 0.0;  // ||w_hat - w|| / ||w||, Frobenius; w: the float model's
};
struct WeightError {
  std::vector<TensorError> tensors;  // matrices, in table order
  double relative = 0.0;             // of all matrices together
};

// Called with rows of how many weights have been read since the last call; may throw to stop.
using WeightProgress = std::function<void(int64_t weights)>;

// Every matrix of `model` against the float model's. They have passed same_shapes().
WeightError weight_error(const Weights& base, const Weights& model, ThreadPool& pool,
                         const WeightProgress& progress = {});
bool same_shapes(const Weights& base, const Weights& model);
// Weights in the matrices, all that weight_error() reads of a model.
int64_t matrix_weights(const Weights& weights);

// Training moves norms, rounding does not: true when one is neither the float model's nor that rounded to float16 or
// bfloat16.
bool norms_differ(const Weights& base, const Weights& model);

// Distribution of one tensor over the levels of its grid: a weight divided by the size of its own step (the scale of
// its block or row). Of a big tensor, some million weights of evenly spread rows.
struct Histogram {
  std::string type;             // of the tensor, as stored
  int lowest = 0, highest = 0;  // levels of the grid, both signs of the scale counted
  std::vector<double> levels;   // share of the codes at each level; empty: the tensor has no codes
  int bins_per_level = 8;       // fewer for few weights, 1 on grids of many levels
  // Share of the float weights, divided by the same steps, in bins from lowest - 1.5 to highest + 1.5; what is beyond
  // is in the outermost.
  std::vector<double> floats;
};
Histogram level_histogram(const Weights& base, const Weights& model, const TensorInfo& info);

// Levels (code times the sign of its scale) that differ between two models.
struct MovedCodes {
  uint64_t codes = 0, moved = 0;
  struct Part {
    Role role;
    uint64_t codes = 0, moved = 0;
  };
  std::vector<Part> parts;  // by role
};
MovedCodes moved_codes(const Weights& a, const Weights& b, ThreadPool& pool, const WeightProgress& progress = {});
// Every matrix in the same type and shape, and some of them in codes: what moved_codes() takes.
bool same_types(const Weights& a, const Weights& b);

}  // namespace qat
