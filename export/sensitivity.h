// What each type would cost each tensor: how far the model's output moves when that one tensor is rounded and all else
// stays float. The costs of tensors add up well enough to choose by (export/README.md), which allocate.h does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export/allocate.h"
#include "export/ptq.h"

namespace qat {

// A matrix that a plan may quantize, and the types it may get, the smallest first. Costs: mean KL divergence of the
// output, nats per token; 0 until they are measured.
struct TensorChoices {
  TensorInfo info;
  std::vector<TypeCost> choices;
};

// The types whose blocks divide the tensor's rows: Q2_0, Q4_0, Q6_K, Q8_0, and BF16 or F16, as the checkpoint has it.
// One choice where a rule of `plan` decides or no block fits. Bytes: as stored in a GGUF file, filled up to 32.
std::vector<TensorChoices> type_choices(const FloatCheckpoint& checkpoint, const Plan& plan);

// Fills in the costs by running the checkpoint over options.calibration (sequences as PtqOptions has them; from the
// front, so many tokens that their logits take a gigabyte). Rounded is as options.method does it (gptq: as mse, less
// what gptq was seen to gain). Run are Q2_0 and Q4_0, from the tensor's layer on; finer types are taken to cost less
// than Q4_0 as their squared error is less. Memory: besides the logits, those of one tensor's rows that are read, and
// the residual stream.
void measure_costs(const FloatCheckpoint& checkpoint, const PtqOptions& options, std::vector<TensorChoices>* tensors,
                   const PtqProgress& progress = {});

// The plan q4_0 with `plan`'s rules and, after them, those that give each tensor its chosen type.
Plan plan_of_choices(const Plan& plan, const FloatCheckpoint& checkpoint, const std::vector<TensorChoices>& tensors,
                     const std::vector<size_t>& chosen);

}  // namespace qat
