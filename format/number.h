// Bit-exact conversions between float32 and the two 16-bit floats. Rounding is to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace qat {

inline uint32_t float_bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

inline float float_from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

// bfloat16 is the upper half of a float32. NaN stays NaN (made quiet).
inline float bf16_to_f32(uint16_t h) { return float_from_bits(static_cast<uint32_t>(h) << 16); }

inline uint16_t f32_to_bf16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// condition ? a : b, without a branch that would keep a loop from being vectorised.
inline uint32_t select_bits(bool condition, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (a & mask) | (b & ~mask);
}

// IEEE half: 1 sign, 5 exponent (bias 15), 10 mantissa bits; subnormals, infinities and NaN included. Both directions
// compute every case and select, so that loops over them vectorise.
inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = h & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;  // infinities and NaN
  const uint32_t subnormal = float_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);  // exact
  const uint32_t finite = select_bits(magnitude >= 0x400u, normal, subnormal);
  return float_from_bits(sign | select_bits(magnitude >= 0x7c00u, special, finite));
}

// Values of magnitude >= 65520 become infinity.
inline uint16_t f32_to_f16(float x) {
  const uint32_t u = float_bits(x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal half: adding 0.5 in float32 leaves round-to-even(x * 2^24) in the low mantissa bits.
  const uint32_t subnormal = float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = select_bits(magnitude > 0x7f800000u, 0x7e00u | ((magnitude >> 13) & 0x3ffu), 0x7c00u);
  const uint32_t finite = select_bits(magnitude < 0x38800000u, subnormal, normal);
  return static_cast<uint16_t>(sign | select_bits(magnitude >= 0x477ff000u, special, finite));
}

}  // namespace qat
