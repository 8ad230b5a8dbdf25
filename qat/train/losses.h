// What training minimizes: forward KL to a frozen teacher, cross-entropy, or a mix. Logits exist for `chunk` tokens at
// a time.
#pragma once

#include <cstdint>

#include "fakequant/libtorch.h"

namespace qat {

// The last step of a model: logits = softcap(hidden * weight^T).
struct HeadInput {
  torch::Tensor hidden;  // (tokens, hidden)
  torch::Tensor weight;  // (vocab, hidden)
  double softcap = 0.0;
};

struct LossOptions {
  double kl = 1.0, ce = 0.0;  // weights of the two terms
  double temperature = 1.0;   // of the KL: both distributions are softmax(logits / temperature)
  int64_t chunk = 256;        // tokens
  bool loops = true;          // where uses_cpu_loops() (ops.h); false: tensor operations, to compare with
};

struct Losses {
  torch::Tensor total;  // kl * temperature^2 * mean KL + ce * mean cross-entropy; differentiable
  double kl = 0.0;      // mean over tokens of KL(teacher || student) at the temperature, nats; 0 without a teacher
  double cross_entropy = 0.0;  // mean over tokens with a target, nats
};

// Student logits, teacher logits, losses and the gradients with respect to student.hidden and student.weight are
// computed chunk by chunk in the forward pass; backward only scales them. teacher: nullptr when there is none
// (options.kl is then ignored). targets: (tokens) int64, negative where a token has none (the last of each sequence):
// those count for the KL only.
Losses head_losses(const HeadInput& student, const HeadInput* teacher, const torch::Tensor& targets,
                   const LossOptions& options);

}  // namespace qat
