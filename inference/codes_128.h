// How stored bytes become codes, 16 at a time: what rows, dot products and panels of 128 bits share. For the
// translation units that simd_128.h speaks of.
#pragma once

#include "inference/simd_128.h"

namespace qat {
namespace {

// BlockQ2_0, BlockQ4_0, BlockQ8_0, BlockQ6_K of format/grid.h
constexpr int64_t kQ2Bytes = 18, kQ4Bytes = 18, kQ8Bytes = 34, kQ6Bytes = 210;

// 4 bits, two neighbours to a byte: 32 codes in order.
struct Nibbles {
  u8x16 of[2];
};
inline Nibbles spread_4(u8x16 bytes) {
  const u8x16 even = bytes & 15, odd = bytes >> 4;
  return {{zip_low(even, odd), zip_high(even, odd)}};
}

// 2 bits, four neighbours to a byte: 64 codes in order.
struct Crumbs {
  u8x16 of[4];
};
inline Crumbs spread_2(u8x16 bytes) {
  const u8x16 c0 = bytes & 3, c1 = (bytes >> 2) & 3, c2 = (bytes >> 4) & 3, c3 = bytes >> 6;
  const auto pairs = [](u8x16 v) { return as<u16x8>(v); };
  const u16x8 low01 = pairs(zip_low(c0, c1)), high01 = pairs(zip_high(c0, c1));
  const u16x8 low23 = pairs(zip_low(c2, c3)), high23 = pairs(zip_high(c2, c3));
  return {{as<u8x16>(zip_low(low01, low23)), as<u8x16>(zip_high(low01, low23)), as<u8x16>(zip_low(high01, high23)),
           as<u8x16>(zip_high(high01, high23))}};
}

inline i8x16 minus(u8x16 code, int8_t offset) { return as<i8x16>(code) - offset; }

// Of Q6_K, half (0 or 1) of a super-block: 128 elements, 8 groups of 16, whose codes are 32 above what they mean. Four
// groups from the low or from the high nibbles.
struct Groups {
  u8x16 of[4];
};
template <bool is_upper>
inline Groups groups_q6_k(const uint8_t* block, int64_t half) {
  const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
  const u8x16 two = load<u8x16>(high), two1 = load<u8x16>(high + 16);
  const auto join = [](u8x16 four, u8x16 top) { return (is_upper ? four >> 4 : four & 15) | (top & 0x30); };
  return {{join(load<u8x16>(low), is_upper ? two : two << 4), join(load<u8x16>(low + 16), is_upper ? two1 : two1 << 4),
           join(load<u8x16>(low + 32), is_upper ? two >> 2 : two << 2),
           join(load<u8x16>(low + 48), is_upper ? two1 >> 2 : two1 << 2)}};
}

// ---- What a block means: use(i, codes, scale) for its elements i .. i + 15, which are codes * scale.

struct BlocksQ2_0 {
  static constexpr int64_t kCols = 64, kBytes = kQ2Bytes;
  template <class Use>
  static void each(const uint8_t* block, const Use& use) {
    const float d = half_at(block);
    const Crumbs codes = spread_2(load<u8x16>(block + 2));
    for (int64_t i = 0; i < 4; ++i) use(16 * i, minus(codes.of[i], 1), d);
  }
};

struct BlocksQ4_0 {
  static constexpr int64_t kCols = 32, kBytes = kQ4Bytes;
  template <class Use>
  static void each(const uint8_t* block, const Use& use) {
    const float d = half_at(block);
    const u8x16 bytes = load<u8x16>(block + 2);
    use(0, minus(bytes & 15, 8), d);
    use(16, minus(bytes >> 4, 8), d);
  }
};

struct BlocksQ8_0 {
  static constexpr int64_t kCols = 32, kBytes = kQ8Bytes;
  template <class Use>
  static void each(const uint8_t* block, const Use& use) {
    const float d = half_at(block);
    use(0, load<i8x16>(block + 2), d);
    use(16, load<i8x16>(block + 18), d);
  }
};

struct BlocksQ6_K {
  static constexpr int64_t kCols = 256, kBytes = kQ6Bytes;
  template <class Use>
  static void each(const uint8_t* block, const Use& use) {
    const float d = half_at(block + 208);
    const auto use_groups = [&](int64_t first, const Groups& groups) {
      for (int64_t g = 0; g < 4; ++g)
        use(16 * (first + g), minus(groups.of[g], 32), d * static_cast<float>(load<int8_t>(block + 192 + first + g)));
    };
    for (int64_t half = 0; half < 2; ++half) {
      use_groups(8 * half, groups_q6_k<false>(block, half));
      use_groups(8 * half + 4, groups_q6_k<true>(block, half));
    }
  }
};

// ---- Packed codes of the channel-wise grids, 16 bytes at a time: use(i, codes).

template <int bits>
struct Packed;

template <>
struct Packed<2> {
  template <class Use>
  static void each(const uint8_t* p, const Use& use) {
    const Crumbs codes = spread_2(load<u8x16>(p));
    for (int64_t i = 0; i < 4; ++i) use(16 * i, minus(codes.of[i], 2));
  }
};

template <>
struct Packed<4> {
  template <class Use>
  static void each(const uint8_t* p, const Use& use) {
    const Nibbles codes = spread_4(load<u8x16>(p));
    for (int64_t i = 0; i < 2; ++i) use(16 * i, minus(codes.of[i], 8));
  }
};

template <>
struct Packed<8> {
  template <class Use>
  static void each(const uint8_t* p, const Use& use) {
    use(0, load<i8x16>(p));
  }
};

}  // namespace
}  // namespace qat
