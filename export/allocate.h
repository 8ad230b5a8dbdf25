// Which type each tensor gets under a budget of bytes, given what each type costs it: the multiple-choice knapsack
// problem, solved exactly at the sizes that models have.
#pragma once

#include <cstdint>
#include <vector>

#include "format/dtype.h"

namespace qat {

// A type that a tensor may have.
struct TypeCost {
  DType type = DType::F32;
  uint64_t bytes = 0;
  double cost = 0.0;  // finite, not negative; summed over tensors
};

// Of each tensor's choices (at least one) the index of the one it gets: least sum of costs with a sum of bytes of at
// most `budget`; of equal sums, the smaller file. Throws Error when the smallest choices together do not fit.
std::vector<size_t> allocate_types(const std::vector<std::vector<TypeCost>>& tensors, uint64_t budget);

}  // namespace qat
