// A step's sequences, trained side by side. Between the many small operations of a small model threads mostly wait for
// each other; a thread that has sequences of its own does not: gemma4-mini trains 1.3 times as fast on two processors.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "qat/train/model.h"

namespace qat {

// The threads of every operation from here on: LibTorch's, and those that OpenBLAS keeps beside them, since how it
// splits a product decides the last bits. 0: one for each processor. Returns their number.
int64_t set_threads(int64_t wanted);

// How many workers share a round of `batch` sequences: one to a thread, at most one to a sequence; a single one on a
// device other than the CPU, and where gradients (which each worker has its own of, gradient_bytes) would take more
// than a quarter of a gigabyte more: there, products are large enough for all threads to share.
int64_t workers_for(int64_t threads, int64_t batch, int64_t gradient_bytes, torch::Device device);

// work(0) ... work(workers - 1), each on a thread of its own whose operations are single-threaded; a single one on the
// caller's, with all `threads`. Grad mode is the default in each. The first exception is thrown on.
void run_workers(int64_t workers, int64_t threads, const std::function<void(int64_t)>& work);

// Weights that several workers use at once: the first has the originals, the others leaves that share their memory but
// not their gradients.
class WorkerWeights {
 public:
  WorkerWeights(const ForwardWeights& original, int64_t workers);
  const ForwardWeights& of(int64_t worker) const {
    return worker == 0 ? original_ : copies_[size_t(worker) - 1].weights;
  }
  // Adds the gradients of all workers to the originals', in the order of the workers, and forgets them.
  void gather();

 private:
  struct Leaf {
    torch::Tensor original, copy;
  };
  struct Copy {
    ForwardWeights weights;
    std::vector<Leaf> leaves;
  };
  const ForwardWeights& original_;
  std::vector<Copy> copies_;
};

}  // namespace qat
