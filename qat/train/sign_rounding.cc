#include "qat/train/sign_rounding.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "format/error.h"
#include "format/number.h"

namespace qat {
namespace {

constexpr int64_t kBlocksPerTask = 512;
constexpr float kCell = 0.45f;          // of a level, to either side of a code: where its weight may begin
constexpr float kMostOffset = 0.5f;     // of v, in levels
constexpr float kMostLog = 0.6931472f;  // of b: a scale at most doubles or halves

template <typename Work>
void for_each_block(int64_t blocks, const Work& work) {
  at::parallel_for(0, blocks, kBlocksPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

float sign_of(float x) { return static_cast<float>((x > 0.0f) - (x < 0.0f)); }

}  // namespace

SignRounding::SignRounding(std::vector<float> weights, const BlockQ4_0* start) : weights_(std::move(weights)) {
  QAT_CHECK(!weights_.empty() && weights_.size() % kBlockSize == 0);
  const size_t blocks = weights_.size() / kBlockSize;
  offsets_.assign(weights_.size(), 0.0f);
  blocks_.assign(start, start + blocks);
  log_factors_.assign(blocks, 0.0f);
  first_scales_.resize(blocks);
  for_each_block(static_cast<int64_t>(blocks), [&](int64_t i) {
    const float d = f16_to_f32(blocks_[static_cast<size_t>(i)].d), room = kCell * std::fabs(d);
    first_scales_[static_cast<size_t>(i)] = d;
    float levels[kBlockSize];
    decode_block(blocks_[static_cast<size_t>(i)], levels);
    float* w = weights_.data() + i * kBlockSize;
    for (int j = 0; j < kBlockSize; ++j) w[j] = levels[j] + std::clamp(w[j] - levels[j], -room, room);
  });
}

void SignRounding::values(float* out) const {
  for_each_block(static_cast<int64_t>(blocks_.size()),
                 [&](int64_t i) { decode_block(blocks_[static_cast<size_t>(i)], out + i * kBlockSize); });
}

void SignRounding::encode_block(int64_t block) {
  const auto i = static_cast<size_t>(block);
  const float wanted = first_scales_[i] * std::exp(log_factors_[i]);
  const float d = f16_to_f32(f32_to_f16(wanted));
  if (d == 0.0f || !std::isfinite(d)) return;  // beyond float16: the block stays as it is
  const float *w = weights_.data() + block * kBlockSize, *v = offsets_.data() + block * kBlockSize;
  float moved[kBlockSize];
  for (int j = 0; j < kBlockSize; ++j) moved[j] = w[j] + v[j] * d;
  blocks_[i] = encode_q4_0_with_scale(moved, d);
}

void SignRounding::step_block(int64_t block, const float* gradient, float lr, float scale_lr) {
  const auto i = static_cast<size_t>(block);
  const float d = f16_to_f32(blocks_[i].d);
  if (d == 0.0f) return;  // nothing but zeros
  const float* w = weights_.data() + block * kBlockSize;
  float* v = offsets_.data() + block * kBlockSize;
  float of_scale = 0.0f;
  for (int j = 0; j < kBlockSize; ++j) {
    const float plain = w[j] / d, level = plain + v[j];
    const bool inside = level >= -8.5f && level < 7.5f;
    const float code = std::clamp(std::floor(level + 0.5f), -8.0f, 7.0f);
    of_scale += gradient[j] * (code - (inside ? plain : 0.0f));
    if (inside) v[j] = std::clamp(v[j] - lr * sign_of(gradient[j] * d), -kMostOffset, kMostOffset);
  }
  log_factors_[i] = std::clamp(log_factors_[i] - scale_lr * sign_of(of_scale * d), -kMostLog, kMostLog);
}

void SignRounding::step(const float* gradient, double lr, double scale_lr) {
  for_each_block(static_cast<int64_t>(blocks_.size()), [&](int64_t i) {
    step_block(i, gradient + i * kBlockSize, static_cast<float>(lr), static_cast<float>(scale_lr));
    encode_block(i);
  });
}

}  // namespace qat
