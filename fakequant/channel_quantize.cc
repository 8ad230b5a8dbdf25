#include "fakequant/channel_quantize.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace qat {
namespace {

using torch::Tensor;

// Rows that make a task worth a thread.
int64_t rows_per_task(int64_t cols) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(cols, 1)); }

}  // namespace

torch::Tensor search_log_scales(const torch::Tensor& w, int64_t cols, int bits, const torch::Tensor& importance) {
  QAT_CHECK(w.scalar_type() == torch::kFloat32 && cols > 0 && w.numel() % cols == 0);
  QAT_CHECK(!importance.defined() || (importance.scalar_type() == torch::kFloat32 && importance.numel() == cols));
  const Tensor x = w.detach().cpu().contiguous();
  const Tensor weight = importance.defined() ? importance.detach().cpu().contiguous() : Tensor();
  const float* importances = weight.defined() ? weight.data_ptr<float>() : nullptr;
  const int64_t rows = x.numel() / cols;
  Tensor out = torch::empty({rows});
  const float* from = x.data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, rows, rows_per_task(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) to[r] = std::log(search_scale(bits, from + r * cols, importances, cols));
  });
  return out.to(w.device());
}

torch::Tensor channel_quantize(const torch::Tensor& w, const torch::Tensor& log_scale, int bits) {
  QAT_CHECK(log_scale.numel() > 0);
  return lsq_quantize(w, log_scale, bits, {lsq_factor(w.numel() / log_scale.numel(), bits), /*pass_clipped=*/true});
}

torch::Tensor channel_codes(const torch::Tensor& w, const torch::Tensor& log_scale, int bits) {
  QAT_CHECK(w.scalar_type() == torch::kFloat32 && log_scale.numel() > 0 && w.numel() % log_scale.numel() == 0);
  const Tensor x = w.detach().cpu().contiguous(), scales = storable_scales(log_scale).cpu().contiguous();
  const int64_t rows = scales.numel(), cols = x.numel() / rows;
  Tensor codes = torch::empty_like(x, torch::kInt8);
  const float *from = x.data_ptr<float>(), *scale = scales.data_ptr<float>();
  int8_t* to = codes.data_ptr<int8_t>();
  at::parallel_for(0, rows, rows_per_task(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) encode_channel(bits, from + r * cols, cols, scale[r], to + r * cols);
  });
  return codes;
}

torch::Tensor frozen_channel_quantize(const torch::Tensor& codes, const torch::Tensor& log_scale, int bits) {
  QAT_CHECK(codes.scalar_type() == torch::kInt8 && codes.is_contiguous());
  QAT_CHECK(log_scale.numel() > 0 && codes.numel() % log_scale.numel() == 0);
  return codes_times_scales(codes, log_scale, storable_scales(log_scale),
                            lsq_factor(codes.numel() / log_scale.numel(), bits));
}

}  // namespace qat
