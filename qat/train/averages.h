// A running mean of what is trained, along the steps: of weights that swing about the edge of their grid's cells it is
// the place that they swing about. It is what is evaluated, whose codes freeze, and what is written in the end.
#pragma once

#include <cstdint>
#include <vector>

#include "fakequant/libtorch.h"

namespace qat {

class Averages {
 public:
  // decay 0: off, nothing is kept. Shares the tensors: update() reads them, exchange() writes them.
  Averages(std::vector<torch::Tensor> tensors, double decay);

  // mean += (tensor - mean) * (1 - d), d = min(decay, (n - 1) / (n + 9)) at the n-th update since restart(): at first
  // it is close to the tensors themselves, which are far from where they will be.
  void update();
  // The mean begins again at the tensors as they are, which stay.
  void restart();
  // Tensors and means change places; a second call changes them back.
  void exchange();
  bool on() const { return decay_ > 0.0; }

  // State, in the order of the tensors; updates counts since restart().
  std::vector<torch::Tensor>& means() { return means_; }
  int64_t updates = 0;

 private:
  std::vector<torch::Tensor> tensors_, means_;
  double decay_;
};

// Exchanged for as long as it lives.
class AveragedModel {
 public:
  explicit AveragedModel(Averages& averages) : averages_(averages) { averages_.exchange(); }
  ~AveragedModel() { averages_.exchange(); }
  AveragedModel(const AveragedModel&) = delete;
  AveragedModel& operator=(const AveragedModel&) = delete;

 private:
  Averages& averages_;
};

}  // namespace qat
