// What a training run needs at its peak, counted before it allocates anything large: the line it begins with, and the
// refusal where the machine has less. Within 15 % of what getrusage measures; figures: README.md.
#pragma once

#include <cstdint>
#include <string>

#include "fakequant/libtorch.h"
#include "format/checkpoint.h"
#include "qat/recipe.h"

namespace qat {

// Bytes.
struct MemoryNeed {
  int64_t process = 0;      // LibTorch itself, before it has done anything; 0 on a CUDA device
  int64_t data = 0;         // tokens of the training text; 0 on a CUDA device
  int64_t model = 0;        // masters, their scales, the step's weights on their grids, the mapped checkpoint
  int64_t optimizer = 0;    // running means of gradients, and of weights (average)
  int64_t gradients = 0;    // of all weights, for each worker
  int64_t activations = 0;  // what a round keeps between forward and backward pass, and its logits
  int64_t teacher = 0;      // its weights
  int64_t streams = 0;      // layer by layer: what all sequences are between two layers, float and quantized
  int64_t total() const { return process + data + model + optimizer + gradients + activations + teacher + streams; }
};

// teacher: nullptr for none. threads: as set_threads() gave them.
MemoryNeed memory_need(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& model,
                       const FloatCheckpoint* teacher, int64_t threads, torch::Device device);

// Of [train] blockwise: the largest layer with its roundings, and the streams. found: training sequences that the data
// has; before: resident_bytes() before they were read. Not counted: what GPTQ needs where it begins (init).
MemoryNeed blockwise_memory_need(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& model, int64_t found,
                                 int64_t before, int64_t threads);

// Of this process, now: before a run that is LibTorch with all that it loads.
int64_t resident_bytes();

// What this process may have, with what it has already: the least of MemAvailable and of what its control groups leave
// it; on a CUDA device what the driver says is free. -1: unknown.
int64_t free_memory(torch::Device device);

// "needs about 1.05 GB of memory (model 210 MB, ...); 22.1 GB are free"
std::string memory_text(const MemoryNeed& need, int64_t free);
// Throws Error, naming both figures and what would help, when the need is larger than what is free.
void check_memory(const MemoryNeed& need, int64_t free, const Recipe& recipe);

// Prints memory_text() of the run that the recipe describes, or refuses.
void announce_memory(const Recipe& recipe, const Plan& plan);
// The same of [train] blockwise, once its data are read.
void announce_blockwise_memory(const Recipe& recipe, const Plan& plan, const FloatCheckpoint& model, int64_t found,
                               int64_t before, int64_t threads);

// "about 4 min 10 s for 400 steps", from the time that the first `done` steps of them took.
std::string time_text(int64_t steps, int64_t done, double seconds);

}  // namespace qat
