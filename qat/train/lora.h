// LoRA inside the fake-quantizer (Hu et al., arXiv 2106.09685): the weights of the model stay, and what is rounded is
// W + (alpha / rank) * B A, of which A and B are trained. So the file holds codes of the sum, rounded once: merging
// adapters into codes that were trained without them would round a second time.
//
// Adapted: every matrix of a decoder layer that the plan puts on a grid. Everything else (embeddings, head, norms)
// stays as the model has it; the learned scales of adapted matrices are trained, those of others stay too, since
// embeddings and head would need a gradient as large as themselves.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "fakequant/libtorch.h"
#include "format/plan.h"

namespace qat {

struct Parameter;

struct Adapter {
  torch::Tensor a;     // (rank, in) float32, uniform within 1 / sqrt(in) at the start, as PEFT has it
  torch::Tensor b;     // (out, rank) float32, zeros at the start
  double scale = 0.0;  // alpha / rank
  bool defined() const { return a.defined(); }
};

struct AdapterOptions {
  int64_t rank = 0;
  double alpha = 16.0;
  uint64_t seed = 1;
};

bool takes_adapter(const TensorInfo& info, DType grid);
// Throws Error: no tensor takes an adapter; a rank that is not below both sides of each that does.
void check_rank(const std::vector<TensorInfo>& table, const std::map<std::string, PlanEntry>& resolved, int64_t rank);
// info: (out, in). Draws `a` from `random`.
Adapter make_adapter(const TensorInfo& info, const AdapterOptions& options, std::mt19937_64& random,
                     torch::Device device);

// w + scale * B A, (out, in). Differentiable in A and B.
torch::Tensor adapted(const torch::Tensor& w, const Adapter& adapter);

// parameter.quantized() of an adapted parameter, for any number of forward and backward passes: their
// gradients are added to A's, B's and log_scale's grad(). Keeps neither the sum nor its gradient: both are computed
// again in each backward pass, a matrix at a time.
torch::Tensor quantized_for_step(const Parameter& parameter);

}  // namespace qat
