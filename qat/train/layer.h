// One decoder layer by itself, and what feeds it: for who goes through a model layer by layer (blockwise.h).
#pragma once

#include <vector>

#include "fakequant/libtorch.h"
#include "format/model_config.h"
#include "qat/train/model.h"

namespace qat {

struct LayerOutput {
  torch::Tensor h;     // (batch, length, hidden)
  torch::Tensor k, v;  // (batch, length, kv_heads, head_dim), normalized and rotated
};

// Rows of a table scaled: (batch, length, width). ids: (batch, length) int64, < rows of the table.
torch::Tensor embed_rows(const torch::Tensor& table, const torch::Tensor& ids, double scale);

// What one layer gets of the per-layer embeddings, (batch, length, ple). table: (rows, ple) and projection: (ple,
// hidden), that layer's part of each; norm: (ple); embedded: what embed_rows() made of the ids' tokens.
torch::Tensor per_layer_input(const ModelConfig& config, const torch::Tensor& table, const torch::Tensor& projection,
                              const torch::Tensor& norm, const torch::Tensor& ids, const torch::Tensor& embedded);

// forward_hidden()'s layer of that index with float activations. ple: undefined when the model has none; k, v: those of
// the source layer, undefined when the layer owns its own.
LayerOutput decoder_layer(const ModelConfig& config, size_t index, const TensorsByRole& weights,
                          const Positions& positions, const torch::Tensor& h, const torch::Tensor& ple,
                          const torch::Tensor& k, const torch::Tensor& v);

}  // namespace qat
