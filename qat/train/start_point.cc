#include "qat/train/start_point.h"

#include <algorithm>
#include <filesystem>

#include "format/error.h"

namespace qat {

std::unique_ptr<QuantizedCheckpoint> open_start_point(const std::string& directory, const FloatCheckpoint& model,
                                                      const std::map<std::string, PlanEntry>& resolved) {
  const std::string place = "recipe: [quantization] init = \"" + directory + "\"";
  if (!std::filesystem::exists(directory)) fail(place, ": no such directory");
  if (detect_model_kind(directory) != ModelKind::quantized_checkpoint)
    fail(place, ": expected a quantized checkpoint (qat quantize, qat train), found another kind of model");
  auto start = std::make_unique<QuantizedCheckpoint>(directory);
  for (const TensorInfo& info : model.table()) {
    const auto same = [&](const TensorInfo& other) { return other.name == info.name; };
    const auto found = std::find_if(start->table().begin(), start->table().end(), same);
    if (found == start->table().end())
      fail(place, ": another model's: expected tensor ", info.name, " of ", model.directory(), ", found none");
    if (found->shape != info.shape)
      fail(place, ": another model's: ", info.name, ": expected shape ", shape_text(info.shape), " as in ",
           model.directory(), ", found ", shape_text(found->shape));
    const DType wanted = resolved.at(info.name).grid, grid = start->grid(*found);
    if (grid != wanted)
      fail(place, ": another plan's: ", info.name, ": expected ", dtype_name(wanted), ", found ", dtype_name(grid));
  }
  if (start->table().size() != model.table().size())
    fail(place, ": another model's: expected ", model.table().size(), " tensors, found ", start->table().size());
  return start;
}

}  // namespace qat
