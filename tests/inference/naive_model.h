// The forward pass once more, in double, for one sequence, with no cache and no kernel: what the engine is compared
// with where no other program's output is at hand.
#pragma once

#include <cstdint>
#include <vector>

#include "inference/engine.h"

namespace qat {

// Logits [tokens, vocab].
std::vector<double> naive_logits(const Weights& weights, const std::vector<int32_t>& tokens);

}  // namespace qat
