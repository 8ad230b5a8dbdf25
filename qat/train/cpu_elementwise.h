// The element-wise pieces of a training step on the CPU, each one pass over memory where tensor operations make three
// to twenty: norms, rotary embedding, gated activations, and what lies between logits and their gradient. All arrays
// are float32, rows one after the other.
#pragma once

#include <cstdint>

namespace qat {

bool cpu_elementwise_available();  // the processor has AVX2 and FMA

// out = x * inverse[r] * (offset + weight), inverse[r] = 1 / sqrt(mean(x^2) + eps); weight nullptr: x * inverse[r].
void cpu_rms_norm(const float* x, const float* weight, float offset, int64_t rows, int64_t cols, double eps, float* out,
                  float* inverse);
// dx for dout; with dweight, adds to it what these rows contribute.
void cpu_rms_norm_backward(const float* x, const float* weight, float offset, const float* inverse, const float* dout,
                           int64_t rows, int64_t cols, float* dx, float* dweight);

// out = gelu_tanh(gate) * up, or silu(gate) * up; and its gradients.
void cpu_gated(const float* gate, const float* up, bool gelu, int64_t count, float* out);
void cpu_gated_backward(const float* gate, const float* up, const float* dout, bool gelu, int64_t count, float* dgate,
                        float* dup);

// The pairs (i, i + half) of `heads` heads of 2 * half numbers, turned by (cos[i], sin[i]); `inverse`: back, which is
// the gradient.
void cpu_rotate(const float* x, const float* cos, const float* sin, int64_t heads, int64_t half, bool inverse,
                float* out);

// One token's logits, `vocab` numbers before the softcap (0: none). The terms are those of losses.h at temperature 1.
struct TokenLosses {
  float softcap = 0.0f;
  float kl_weight = 0.0f, ce_weight = 0.0f;           // in the gradient
  int64_t target = -1;                                // negative: none
  float reverse_kl_weight = 0.0f, jsd_weight = 0.0f;  // likewise; 0: the term is not computed either
  float jsd_beta = 0.5f;                              // the teacher's share in the mean distribution
};
struct TokenLoss {
  double kl = 0.0, cross_entropy = 0.0, reverse_kl = 0.0, jsd = 0.0;  // nats, unweighted
};
// student and teacher are overwritten; with `gradient`, student with d(loss)/d(student before the softcap). teacher:
// nullptr when there is none.
TokenLoss cpu_token_losses(const TokenLosses& options, float* student, float* teacher, int64_t vocab, bool gradient);

// The teacher's largest probabilities, and the mass of all others (as in losses.h, TopK).
struct TokenTopK {
  const int64_t* ids = nullptr;  // (count), each below vocab
  const float* log_p = nullptr;  // (count)
  int64_t count = 0;             // 1 to vocab
  float log_tail = 0.0f;
};
TokenLoss cpu_token_losses(const TokenLosses& options, const TokenTopK& teacher, float* student, int64_t vocab,
                           bool gradient);

}  // namespace qat
