// Safetensors as LibTorch tensors, for tests.
#pragma once

#include <cstdint>
#include <string>

#include "fakequant/libtorch.h"
#include "format/safetensors.h"

namespace qat {

inline torch::Tensor float_tensor(const Safetensors& file, const std::string& name) {
  const TensorView& view = file.at(name);
  std::vector<float> values = to_floats(view, file.path());
  return torch::tensor(values).view(view.shape);
}

inline torch::Tensor int_tensor(const Safetensors& file, const std::string& name) {
  const TensorView& view = file.at(name);
  const std::vector<int64_t> values = to_ints(view, file.path());
  return torch::tensor(values, torch::kInt64).view(view.shape);
}

}  // namespace qat
