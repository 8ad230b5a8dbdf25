// A training run from a recipe to its files.
#pragma once

#include <csignal>
#include <cstdint>
#include <string>

#include "qat/recipe.h"

namespace qat {

struct TrainRequest {
  Recipe recipe;
  bool resume = false;       // go on from the newest checkpoint in recipe.out (from the start when there is none)
  std::string dump_weights;  // when set: the weights of the last forward pass, as it multiplied by them, as safetensors
};

struct TrainResult {
  int64_t step = 0;        // steps done
  int interrupted = 0;     // the signal that ended the run early, after saving; 0 when it ran to its end
  std::string checkpoint;  // saved on interruption
};

// Set by a signal handler: the run finishes its step, saves and returns.
extern volatile std::sig_atomic_t g_stop_signal;

// Writes into recipe.out: metrics.jsonl, tensorboard/, checkpoints/, and at the end quantized/ (a quantized checkpoint
// holding what the last evaluation's forward pass multiplied by), or hf/ (an HF directory in float32) when the plan is
// "none". Throws Error: anything wrong with recipe, model or data; a loss or gradient that is not finite.
TrainResult run_training(const TrainRequest& request);

}  // namespace qat
