// Gradient checkpointing: LibTorch has it in Python only.
#pragma once

#include <functional>

#include "fakequant/libtorch.h"

namespace qat {

using TensorFunction = std::function<torch::autograd::variable_list(const torch::autograd::variable_list&)>;

// function(inputs), keeping only the inputs for the backward pass, which computes the function again. The function must
// depend on no other tensor that needs a gradient and must give the same values each time. All inputs are defined float
// tensors.
torch::autograd::variable_list checkpointed(const TensorFunction& function,
                                            const torch::autograd::variable_list& inputs);

}  // namespace qat
