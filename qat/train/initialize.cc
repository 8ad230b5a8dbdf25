#include "qat/train/initialize.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "export/ptq.h"
#include "fakequant/block_scale.h"
#include "format/error.h"
#include "format/number.h"
#include "qat/progress.h"
#include "qat/train/start_point.h"

namespace qat {
namespace {

// Of a cell, to either side of a code: what a master may differ from its code's value and still have it.
constexpr double kCell = 0.45;

// The blocks of one tensor while they come in.
struct Blocks {
  torch::Tensor values;  // float32, the master's shape: what the blocks mean
  torch::Tensor scales;  // float32, one per block
  int64_t rows = 0;      // so far
};

void take_rows(const uint8_t* stored, int64_t rows, int64_t cols, Blocks* blocks) {
  decode_rows(DType::Q4_0, stored, rows, cols, blocks->values.data_ptr<float>() + blocks->rows * cols);
  float* scales = blocks->scales.data_ptr<float>() + blocks->rows * cols / kBlockSize;
  for (int64_t i = 0; i < rows * cols / kBlockSize; ++i) {
    BlockQ4_0 block;
    std::memcpy(&block, stored + static_cast<size_t>(i) * sizeof block, sizeof block);
    scales[i] = f16_to_f32(block.d);
  }
  blocks->rows += rows;
}

void begin_at(const Blocks& blocks, bool keep_codes, Parameter* p) {
  const torch::NoGradGuard no_grad;
  const BlockScales scales = block_scales_of(blocks.scales);
  p->log_scale.detach().copy_(scales.log_scale);
  p->scale_sign.copy_(scales.sign);
  if (!keep_codes) return;
  const torch::Tensor master = p->master.detach();
  const torch::Tensor values = blocks.values.to(master.device()).view({-1, kBlockSize});
  const torch::Tensor room = blocks.scales.to(master.device()).abs().mul_(kCell).view({-1, 1});
  const torch::Tensor away = master.view({-1, kBlockSize}) - values;
  master.copy_((values + torch::minimum(torch::maximum(away, -room), room)).view_as(master));
}

// The rows of Q4_0 tensors, as a quantized checkpoint has them.
void read_start_point(const QuantizedCheckpoint& start, const std::map<std::string, Parameter*>& wanted,
                      const QuantizedRows& take) {
  constexpr int64_t kWeightsPerPiece = 1 << 22;
  std::vector<uint8_t> stored;
  for (const auto& [name, parameter] : wanted) {
    const int64_t cols = parameter->info.shape.back(), rows = parameter->master.numel() / cols;
    const int64_t piece = std::max<int64_t>(1, kWeightsPerPiece / cols);
    for (int64_t row = 0; row < rows; row += piece) {
      const int64_t count = std::min(piece, rows - row);
      stored.resize(static_cast<size_t>(count) * row_bytes(DType::Q4_0, cols));
      start.read_blocks(parameter->info, row, count, stored.data());
      take(parameter->info, stored.data(), count);
    }
  }
}

void check_length(const std::vector<std::vector<int32_t>>& calibration) {
  int64_t tokens = 0;
  for (const std::vector<int32_t>& sequence : calibration) tokens += static_cast<int64_t>(sequence.size());
  if (tokens < kLeastCalibrationTokens)
    fail("recipe: [quantization] init = \"gptq\": the calibration text is too short: expected at least ",
         kLeastCalibrationTokens, " tokens, found ", tokens, ": raise calibration_sequences, or give more data");
}

}  // namespace

void initialize_blocks(Model& model, const FloatCheckpoint& checkpoint,
                       const std::map<std::string, PlanEntry>& resolved, const Recipe& recipe,
                       std::vector<std::vector<int32_t>> calibration) {
  const bool gptq = recipe.init == "gptq", from_start = init_is_directory(recipe.init);
  PtqOptions options;
  options.method = gptq ? PtqMethod::gptq : recipe.init == "search" ? PtqMethod::mse : PtqMethod::reference;
  options.threads = static_cast<int>(recipe.threads);
  options.calibration = std::move(calibration);
  std::map<std::string, Parameter*> wanted;
  for (Parameter& p : model.parameters())
    if (p.scale_sign.defined()) wanted[p.info.name] = &p;
  if (wanted.empty())
    fail("recipe: [quantization] init = \"", recipe.init, "\": the plan ", recipe.plan, " has no tensor on Q4_0");
  Blocks blocks;
  const auto take = [&](const TensorInfo& info, const uint8_t* stored, int64_t rows) {
    const auto found = wanted.find(info.name);
    if (found == wanted.end()) return;
    if (!blocks.values.defined())
      blocks = {torch::empty(info.shape), torch::empty(found->second->log_scale.sizes()), 0};
    take_rows(stored, rows, info.shape.back(), &blocks);
    if (blocks.rows * info.shape.back() < found->second->master.numel()) return;
    begin_at(blocks, gptq || from_start, found->second);
    blocks = {};
  };
  if (from_start) return read_start_point(*open_start_point(recipe.init, checkpoint, resolved), wanted, take);
  if (gptq) check_length(options.calibration);
  std::unique_ptr<ProgressBar> bar;
  quantize_tensors(checkpoint, resolved, options, take, [&](int64_t done, int64_t total) {
    if (!bar) bar = std::make_unique<ProgressBar>("init: " + recipe.init, total);
    bar->update(done);
  });
  if (bar) bar->finish();
}

}  // namespace qat
