// Training layer by layer ([train] blockwise): each decoder layer's rounding is optimised by the error of its own
// output (layer_rounding.h), in model order, on what the layers before it, already quantized, make of the training
// sequences. Memory is one layer's weights and the residual streams: for models that do not fit.
#pragma once

#include "format/plan.h"
#include "qat/train/trainer.h"

namespace qat {

// Into recipe.out: metrics.jsonl and tensorboard/ (a step per layer), blocks/layer-000.safetensors for each finished
// layer, and at the end quantized/ instead of blocks/. Tensors other than Q4_0 linears of layers are rounded as
// recipe.init says (a search, llama-quantize's rule, or read from a quantized checkpoint). A resumed run goes on after
// the last finished layer and ends in the same bytes, given the same thread count. TrainResult::step: layers done.
// Throws Error: anything wrong with recipe, model or data; a finished layer of another run.
TrainResult train_blockwise(const TrainRequest& request, const Plan& plan);

}  // namespace qat
