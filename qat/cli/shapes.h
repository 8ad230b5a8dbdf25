// Shapes of known models, as the config.json texts that `qat init` begins a new model from.
#pragma once

#include <string>
#include <vector>

namespace qat {

struct ShapeInfo {
  const char* name;
  const char* about;
};
std::vector<ShapeInfo> shape_list();
// The config.json text of a shape; throws Error listing the names.
std::string shape_config(const std::string& name);

}  // namespace qat
