// The checkpoints of a run: one file each, OUT/checkpoints/step-00000100.safetensors, written whole or not at all.
//
// Per trained tensor T: T (float32 master), adam_mean.T, adam_square.T, both float32 or 8-bit codes, those with
// adam_mean_scale.T, adam_square_scale.T; with a running mean average.T; per tensor on Q4_0 T.scale_sign; what
// CodeWatch keeps. With adapters T is trained as T.lora_A and T.lora_B, and T itself is there only where it is not the
// model's any more (moved by GPTQ, or frozen codes); scales that are not trained are there too. The header's metadata
// holds the step, the recipe, a hash of the data, with adapters one of the model, and the thread count. The order of
// the data and the learning rate follow from the step, and nothing in a training step draws random numbers, so that is
// all the state there is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qat/recipe.h"
#include "qat/train/averages.h"
#include "qat/train/code_watch.h"
#include "qat/train/model.h"
#include "qat/train/optimizer.h"

namespace qat {

struct RunInfo {
  int64_t step = 0;  // optimizer steps done
  Recipe recipe;
  uint64_t data_hash = 0;
  uint64_t model_hash = 0;  // of the weights that adapters are added to; 0: the checkpoint holds all weights
  int64_t threads = 1;
};

// Of all masters, in table order.
uint64_t hash_weights(const Model& model);

// Writes the checkpoint of info.step and removes all but the newest recipe.keep_checkpoints. Returns its path.
std::string save_run(const RunInfo& info, const Model& model, AdamW& optimizer, Averages& averages,
                     const CodeWatch& watch);

// The newest checkpoint in OUT that can be read; "" when there is none. Files that cannot be read are named in
// `notices`.
std::string newest_checkpoint(const std::string& out, std::vector<std::string>* notices = nullptr);
RunInfo read_run_info(const std::string& path);
// Fills the masters, the optimizer's state, the averages and what is watched. Throws Error: tensor missing or of
// another shape.
void load_run(const std::string& path, Model& model, AdamW& optimizer, Averages& averages, const CodeWatch& watch);

}  // namespace qat
