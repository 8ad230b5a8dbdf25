// How many codes training moves, and how many swing: a weight that sits at the edge of its cell and changes its code
// there and back (oscillation, Nagel et al., arXiv 2203.11086). Looked at in a sample of each tensor, whenever
// observe() is called.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "qat/train/model.h"

namespace qat {

class CodeWatch {
 public:
  // Watches the tensors on grids of learned scales, up to kSample runs of weights with one scale of each, spread
  // evenly.
  explicit CodeWatch(const Model& model);
  static constexpr int64_t kSample = 256;

  struct Shares {
    double moved = 0.0;        // of the codes watched: other than at start()
    double oscillating = 0.0;  // changed since the last observation, against the direction of their last change
  };
  void start(const Model& model);  // the codes to compare with
  Shares observe(const Model& model);
  bool empty() const { return watched_.empty(); }

  // State by name: what a checkpoint holds so that a resumed run reports the same.
  std::vector<std::pair<std::string, torch::Tensor>> state() const;

 private:
  struct Watched {
    size_t parameter = 0;                  // index in Model::parameters()
    torch::Tensor runs;                    // (n) int64: the runs of the sample
    torch::Tensor first, last, direction;  // (n, length) float32 on the CPU: codes, and the sign of the last change
  };
  std::vector<Watched> watched_;
};

}  // namespace qat
