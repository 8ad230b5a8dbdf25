// Q6_K: layout of the codes, and ggml's search for the scales (quantize_row_q6_K_ref): per group of 16 the scale that
// minimises the error weighted by x^2 among 19, then the group scales on an 8-bit grid of their own, then the codes.
#include <cmath>
#include <cstring>

#include "format/grid.h"
#include "format/number.h"

namespace qat {
namespace {

constexpr int kGroup = 16, kGroups = kSuperBlock / kGroup;
constexpr float kLowest = -32.0f, kHighest = 31.0f;
constexpr float kZeroGroup = 1e-15f;  // groups and blocks below it are stored as zeros
constexpr int kCandidates = 19;       // inverse scales -(32 + 0.1 k) / extreme, k = -9..9
constexpr int kFirst = 9;             // k = 0, which wins ties
constexpr int kLanes = 20;            // candidates, padded to whole vectors

// Nearest integer, ties to even, for |x| < 2^22: the addition leaves no room for a fraction in the mantissa.
float round_even(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23
  return (x + kMagic) - kMagic;
}

float clamp(float x, float low, float high) {
  const float bounded = x < high ? x : high;
  return bounded > low ? bounded : low;
}

float code_for(float scaled) { return clamp(round_even(clamp(scaled, -64.0f, 64.0f)), kLowest, kHighest); }

struct GroupFit {
  float scale = 0.0f;
  float inverse = 0.0f;  // of the candidate that won; gives the codes. 0: the group is zero
};

// Codes of a group whose stored scale is `scale`. Where that is zero the codes mean nothing; ggml keeps those of the
// search, and the lowest code in a group of zeros.
void encode_group(const float* x, const GroupFit& fit, float scale, int8_t* codes) {
  for (int i = 0; i < kGroup; ++i) {
    const float code = scale != 0.0f         ? code_for(x[i] / scale)
                       : fit.inverse != 0.0f ? code_for(x[i] * fit.inverse)
                                             : kLowest;
    codes[i] = static_cast<int8_t>(code);
  }
}

// Best scale of a group in the sense of sum x^2 (x - scale * l)^2, with l = code_for(x * inverse). The sums run over
// the elements in order, all candidates at once: the same bits as one candidate after the other.
GroupFit fit_group(const float* x) {
  float largest = 0.0f, extreme = 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    const float magnitude = std::fabs(x[i]);
    if (magnitude > largest) {
      largest = magnitude;
      extreme = x[i];
    }
  }
  if (largest < kZeroGroup) return {};
  float inverse[kLanes], sum_xl[kLanes] = {}, sum_ll[kLanes] = {};
  for (int k = 0; k < kLanes; ++k) inverse[k] = -(32.0f + 0.1f * static_cast<float>(k - kFirst)) / extreme;
  for (int i = 0; i < kGroup; ++i) {
    const float weight = x[i] * x[i], weighted = weight * x[i];
    for (int k = 0; k < kLanes; ++k) {
      const float l = clamp(round_even(inverse[k] * x[i]), kLowest, kHighest);
      sum_xl[k] += weighted * l;
      sum_ll[k] += weight * l * l;
    }
  }
  GroupFit fit;
  fit.inverse = inverse[kFirst];
  fit.scale = sum_ll[kFirst] != 0.0f ? sum_xl[kFirst] / sum_ll[kFirst] : 0.0f;
  float best = fit.scale * sum_xl[kFirst];
  for (int k = 0; k < kCandidates; ++k) {
    if (k == kFirst || !(sum_ll[k] > 0.0f && sum_xl[k] * sum_xl[k] > best * sum_ll[k])) continue;
    fit.inverse = inverse[k];
    fit.scale = sum_xl[k] / sum_ll[k];
    best = fit.scale * sum_xl[k];
  }
  return fit;
}

}  // namespace

// Position in the block of (half, k, l): element 128*half + 32*k + l, k = 0..3, l = 0..31.
// Its low bits: ql[64*half + l + 32*(k & 1)], low nibble for k < 2, else high. Its high bits: qh[32*half + l], bits 2k.
void unpack_q6_k_codes(const BlockQ6_K& block, int8_t* codes) {
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 4; ++k)
      for (int l = 0; l < 32; ++l) {
        const int low = (block.ql[64 * half + l + 32 * (k & 1)] >> (k < 2 ? 0 : 4)) & 15;
        const int high = (block.qh[32 * half + l] >> (2 * k)) & 3;
        codes[128 * half + 32 * k + l] = static_cast<int8_t>((low | (high << 4)) - 32);
      }
}

void pack_q6_k_codes(const int8_t* codes, BlockQ6_K* block) {
  for (uint8_t& b : block->ql) b = 0;
  for (uint8_t& b : block->qh) b = 0;
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 4; ++k)
      for (int l = 0; l < 32; ++l) {
        const int code = codes[128 * half + 32 * k + l] + 32;
        uint8_t& low = block->ql[64 * half + l + 32 * (k & 1)];
        uint8_t& high = block->qh[32 * half + l];
        low = static_cast<uint8_t>(low | ((code & 15) << (k < 2 ? 0 : 4)));
        high = static_cast<uint8_t>(high | ((code >> 4) << (2 * k)));
      }
}

void decode_block(const BlockQ6_K& block, float* out) {
  int8_t codes[kSuperBlock];
  unpack_q6_k_codes(block, codes);
  const float d = f16_to_f32(block.d);
  for (int i = 0; i < kSuperBlock; ++i)
    out[i] = d * static_cast<float>(block.scales[i / 16]) * static_cast<float>(codes[i]);
}

BlockQ6_K encode_q6_k(const float* x) {
  GroupFit fits[kGroups];
  float largest = 0.0f, extreme = 0.0f;
  for (int g = 0; g < kGroups; ++g) {
    fits[g] = fit_group(x + kGroup * g);
    const float magnitude = std::fabs(fits[g].scale);
    if (magnitude > largest) {
      largest = magnitude;
      extreme = fits[g].scale;
    }
  }
  BlockQ6_K block;
  std::memset(&block, 0, sizeof block);
  if (largest < kZeroGroup) return block;
  const float inverse = -128.0f / extreme;
  block.d = f32_to_f16(1.0f / inverse);
  const float d = f16_to_f32(block.d);
  int8_t codes[kSuperBlock];
  for (int g = 0; g < kGroups; ++g) {
    block.scales[g] = static_cast<int8_t>(clamp(round_even(inverse * fits[g].scale), -128.0f, 127.0f));
    encode_group(x + kGroup * g, fits[g], d * static_cast<float>(block.scales[g]), codes + kGroup * g);
  }
  pack_q6_k_codes(codes, &block);
  return block;
}

}  // namespace qat
