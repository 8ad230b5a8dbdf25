// What training minimizes: divergences from a frozen teacher, cross-entropy, or a weighted sum of them. Logits exist
// for `chunk` tokens at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "fakequant/libtorch.h"
#include "qat/recipe.h"

namespace qat {

// The last step of a model: logits = softcap(hidden * weight^T).
struct HeadInput {
  torch::Tensor hidden;  // (tokens, hidden)
  torch::Tensor weight;  // (vocab, hidden)
  double softcap = 0.0;
};

// Of a teacher's distribution over the vocabulary: the k largest probabilities and the mass of all others together (the
// tail). The logarithms are natural ones, at the temperature of the loss. The student's tail is likewise one outcome.
struct TopK {
  torch::Tensor ids;       // (tokens, k) int64, no id twice in a row
  torch::Tensor log_p;     // (tokens, k) float32
  torch::Tensor log_tail;  // (tokens) float32; of no meaning when k is the whole vocabulary
};

// With p the teacher's probabilities and q the student's, both softmax(logits / temperature), and
// m = jsd_beta p + (1 - jsd_beta) q:
//   temperature^2 (kl KL(p || q) + reverse_kl KL(q || p) + jsd (jsd_beta KL(p || m) + (1 - jsd_beta) KL(q || m)))
//   + ce cross-entropy at temperature 1, each a mean over tokens.
struct LossOptions {
  double kl = 1.0, ce = 0.0;
  double temperature = 1.0;
  int64_t chunk = 256;  // tokens
  bool loops = true;    // where uses_cpu_loops() (ops.h); false: tensor operations, to compare with
  double reverse_kl = 0.0, jsd = 0.0, jsd_beta = 0.5;
  int64_t top_k = 0;  // the divergences see the teacher as TopK; 0: all its logits
};
LossOptions loss_options(const Recipe& recipe);

struct Losses {
  torch::Tensor total;  // differentiable
  // Means over tokens at the temperature, nats, unweighted; 0 without a teacher. With top_k: between distributions over
  // k + 1 outcomes, which is at most what it is between the full ones.
  double kl = 0.0;
  double reverse_kl = 0.0, jsd = 0.0;  // 0 when their weight is 0: not computed
  double cross_entropy = 0.0;          // mean over tokens with a target, nats
};

// Student logits, teacher logits, losses and the gradients with respect to student.hidden and student.weight are
// computed chunk by chunk in the forward pass; backward only scales them. teacher: nullptr when there is none (only
// options.ce counts then). targets: (tokens) int64, negative where a token has none (the last of each sequence): those
// count for the divergences only.
Losses head_losses(const HeadInput& student, const HeadInput* teacher, const torch::Tensor& targets,
                   const LossOptions& options);
// The same against a teacher that has run before: its top k at options.temperature.
Losses head_losses(const HeadInput& student, const TopK& teacher, const torch::Tensor& targets,
                   const LossOptions& options);

// How far what layers pass on is from the teacher's: squared error relative to the teacher's square, mean over tokens
// and layers. Both: per layer (batch, length, hidden). Differentiable in `student`.
torch::Tensor hidden_loss(const std::vector<torch::Tensor>& student, const std::vector<torch::Tensor>& teacher);

// The k largest probabilities at the temperature, normalized over the whole vocabulary (k at most its size).
TopK teacher_top_k(const HeadInput& teacher, int64_t k, double temperature, int64_t chunk);

}  // namespace qat
