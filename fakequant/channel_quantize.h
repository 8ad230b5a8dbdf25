// Weights on the channel-wise grids of 2, 4 and 8 bits, with a scale per row that is searched first and learned after.
//
// Everywhere: w is float32 and finite, (rows, cols) or any shape of rows * cols elements in that order; log_scale is
// float32 with `rows` elements, each serving cols of them. For the per-layer embedding of (vocab, layers * width),
// log_scale is (vocab, layers): its rows are a token's part of a layer, cols = width. bits: 2, 4, 8.
#pragma once

#include "fakequant/learned_scale.h"

namespace qat {

// Logarithms (rows) of the scales that format/'s search_scale finds. importance: (cols), not negative, what an error
// in each column weighs; undefined: all the same.
torch::Tensor search_log_scales(const torch::Tensor& w, int64_t cols, int bits, const torch::Tensor& importance = {});

// w rounded to its grid. Differentiable in w and log_scale: lsq_quantize with the factor of a row, straight through for
// weights beyond the grid too: at 2 bits a good scale clips a quarter of a row.
torch::Tensor channel_quantize(const torch::Tensor& w, const torch::Tensor& log_scale, int bits);

// The codes of channel_quantize, int8, w's shape, on the CPU.
torch::Tensor channel_codes(const torch::Tensor& w, const torch::Tensor& log_scale, int bits);

// Codes that no longer change: codes * scale. codes: int8, w's shape. Differentiable in log_scale alone, with the
// factor of channel_quantize, so that a learning rate means the same before and after the freeze.
torch::Tensor frozen_channel_quantize(const torch::Tensor& codes, const torch::Tensor& log_scale, int bits);

}  // namespace qat
