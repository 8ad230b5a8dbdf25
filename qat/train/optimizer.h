// AdamW with the numbers of torch.optim.AdamW, its state as plain tensors, or as 8-bit codes (adam8bit.h); the learning
// rate's schedule; the gradient's norm.
#pragma once

#include <cstdint>
#include <vector>

#include "fakequant/libtorch.h"
#include "qat/train/adam8bit.h"

namespace qat {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.0;  // decoupled: w *= 1 - lr * weight_decay
  bool eight_bit = false;     // both means as codes, for parameters of at least kLeastCoded elements
};

// Norms and single scales keep float32, as in the paper: they are few, and all of the model hangs on each.
constexpr int64_t kLeastCoded = 4096;

// Of one parameter.
struct ParameterRule {
  double relative_lr = 1.0;  // its learning rate as a multiple of the step's
  bool decays = true;        // weight_decay acts on it
  // When defined: element i has the learning rate times exp(log_unit[i / (elements per unit)]), as it stands at the
  // step.
  torch::Tensor log_unit;
};

class AdamW {
 public:
  // rules: one for each parameter, or none: the defaults.
  AdamW(std::vector<torch::Tensor> parameters, const AdamWOptions& options, std::vector<ParameterRule> rules = {});
  // One update from the parameters' grad(), each multiplied by gradient_scale; a parameter without a gradient is left
  // alone.
  void step(double lr, double gradient_scale = 1.0);
  void zero_grad();  // drops the gradients

  // State, in the order of the parameters: running means of the gradient and of its square. `steps` counts updates.
  std::vector<Moment>& means() { return means_; }
  std::vector<Moment>& squares() { return squares_; }
  int64_t steps = 0;

 private:
  std::vector<torch::Tensor> parameters_;
  std::vector<Moment> means_, squares_;
  AdamWOptions options_;
  std::vector<ParameterRule> rules_;
};

// sqrt of the sum of squares of all gradients, in double.
double gradient_norm(const std::vector<torch::Tensor>& parameters);

// Linear warm-up from 0 over `warmup` steps, then a cosine from lr to lr * min_ratio at step `steps`. step counts
// from 1.
double scheduled_lr(double lr, double min_ratio, int64_t warmup, int64_t steps, int64_t step);

}  // namespace qat
