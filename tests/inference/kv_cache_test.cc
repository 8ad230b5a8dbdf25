// The KV cache: it holds what its type or grid says, in as many bits, and attention over what it holds is attention
// over the floats they mean, wherever the ring begins.
#include "inference/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "format/channel_grid.h"
#include "format/error.h"
#include "format/grid.h"
#include "inference/attention.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

class CacheOf : public testing::TestWithParam<DType> {};

// What a cache of this type makes of a row.
void round_as(DType type, const std::vector<float>& row, float scale, float* out) {
  const auto n = static_cast<int64_t>(row.size());
  if (code_bits(type) != 0) fake_quantize_channel(code_bits(type), row.data(), n, scale, out);
  else fake_quantize_rows(type, row.data(), 1, n, out);
}

TEST_P(CacheOf, HoldsTheGridsValues) {
  const DType type = GetParam();
  Random random(31);
  for (const int64_t head_dim : {1, 2, 6, 32, 255, 256, 257, 512}) {
    if (code_bits(type) == 0 && head_dim % dtype_info(type).block_size != 0) continue;
    const int64_t heads = 3;
    const float scale = code_bits(type) == 0 ? 1.0f : 0.11f;
    CacheRows cache(heads, head_dim, 4, type, scale);
    EXPECT_EQ(cache.bytes(), 4 * heads * row_bytes(type, head_dim));
    for (int64_t position = 0; position < 11; ++position) {
      const std::vector<float> row = random.floats(heads * head_dim, 2.0f);
      cache.store(position, row.data());
      std::vector<float> expected(row.size()), actual(row.size());
      round_as(type, row, scale, expected.data());
      for (const Isa isa : built_isas()) {
        if (!isa_supported(isa)) continue;
        for (int64_t h = 0; h < heads; ++h) cache.decode(isa, position, h, 1, actual.data() + h * head_dim);
        for (float& x : actual) x *= cache.scale();
        EXPECT_EQ(actual, expected) << head_dim << " at " << position << " " << isa_name(isa);
      }
      EXPECT_EQ(cache.type(), type);
    }
  }
}

// Scratch of attention for as many rows and heads.
struct AttentionScratch {
  AttentionScratch(int64_t rows, int64_t heads, int64_t head_dim, int64_t stride, int64_t span)
      : scores(static_cast<size_t>(rows * heads * span)),
        decoded(static_cast<size_t>(kAttentionBlock * head_dim)),
        coded(static_cast<size_t>(coded_floats(rows * heads, head_dim))),
        part(static_cast<size_t>(rows * stride)),
        sums(static_cast<size_t>(2 * rows * heads)) {}
  void give_to(AttentionHeads& a) {
    a.scores = scores.data();
    a.decoded = decoded.data();
    a.coded = coded.data();
    a.part = part.data();
    a.sums = sums.data();
  }
  std::vector<float> scores, decoded, coded, part;
  std::vector<SoftmaxSum> sums;
};

// Result of heads that share a K/V head, over the positions from `first` on.
std::vector<float> attention(Isa isa, const CacheRows& k, const CacheRows& v, const std::vector<float>& q,
                             int64_t heads, int64_t first, int64_t count) {
  const int64_t head_dim = static_cast<int64_t>(q.size()) / heads;
  std::vector<float> out(q.size());
  AttentionScratch scratch(1, heads, head_dim, heads * head_dim, attention_span(first + count - 1, 1, count));
  AttentionHeads a;
  a.q = q.data();
  a.heads = heads;
  a.head_dim = head_dim;
  a.k = &k;
  a.v = &v;
  a.kv_head = 1;
  a.position = first + count - 1;
  a.window = count;
  a.scale = 0.3f;
  scratch.give_to(a);
  a.out = out.data();
  attend(isa, a);
  return out;
}

// Keys and values of two heads at `length` positions, and eight rows of queries.
struct Attended {
  Attended(DType type, int64_t length)
      : Attended(type, length, 3, type == DType::Q8_0 || type == DType::I4 ? 32 : 24) {}
  Attended(DType type, int64_t length, int64_t query_heads, int64_t dim)
      : heads(query_heads), head_dim(dim), stride(heads * head_dim + 8) {
    Random random(33);
    const float scale = type == DType::I4 ? 0.1f : 1.0f;
    k = type == DType::Q8_0 ? CacheRows::in_groups(2, head_dim, length) : CacheRows(2, head_dim, length, type, scale);
    v = CacheRows(2, head_dim, length, type, scale);
    for (int64_t position = 0; position < length; ++position) {
      k.store(position, random.floats(2 * head_dim).data());
      v.store(position, random.floats(2 * head_dim).data());
    }
    q = random.floats(kAttentionRows * stride);
  }
  AttentionHeads rows(int64_t position, int64_t window) const {
    AttentionHeads a;
    a.rows = kAttentionRows;
    a.q_stride = stride;  // further apart than what is used of them
    a.heads = heads;
    a.head_dim = head_dim;
    a.k = &k;
    a.v = &v;
    a.position = position;
    a.window = window;
    a.q = q.data();
    return a;
  }
  AttentionScratch scratch() const {
    return AttentionScratch(kAttentionRows, heads, head_dim, stride, kAttentionStretch);
  }
  int64_t heads, head_dim, stride;
  CacheRows k, v;
  std::vector<float> q;
};

void expect_rows_together_as_alone(Isa isa, const Attended& attended, int64_t position, int64_t window) {
  AttentionScratch scratch = attended.scratch();
  std::vector<float> together(attended.q.size(), 7.0f), alone(attended.q.size(), 7.0f);
  AttentionHeads a = attended.rows(position, window);
  scratch.give_to(a);
  a.out = together.data();
  attend(isa, a);
  a.rows = 1;
  for (int64_t r = 0; r < kAttentionRows; ++r, ++a.position) {
    a.q = attended.q.data() + r * attended.stride;
    a.out = alone.data() + r * attended.stride;
    attend(isa, a);
  }
  EXPECT_EQ(together, alone) << dtype_name(attended.v.type()) << ", window " << window << ", from " << position << ", "
                             << isa_name(isa);
}

// Rows together, to the bit as each alone: of all that a cache holds, with and without a window.
TEST(Attention, ARowDoesNotDependOnItsCompany) {
  for (const DType type : {DType::F32, DType::F16, DType::Q8_0, DType::I4}) {
    const Attended attended(type, 70);
    for (const int64_t window : {int64_t{5}, int64_t{30}, INT64_MAX})
      for (const Isa isa : built_isas())
        for (const int64_t position : {0, 3, 15, 60})
          if (isa_supported(isa)) expect_rows_together_as_alone(isa, attended, position, window);
  }
  const Attended not_in_pairs(DType::I4, 70, 3, 24);
  for (const Isa isa : built_isas())
    if (isa_supported(isa)) expect_rows_together_as_alone(isa, not_in_pairs, 15, INT64_MAX);
}

// The same of so many heads that they meet smaller blocks, in groups: on both sides of where a block begins.
TEST(Attention, ARowDoesNotDependOnItsCompanyWithManyHeads) {
  for (const DType type : {DType::F32, DType::F16, DType::Q8_0, DType::I4, DType::I8}) {
    const Attended attended(type, 530, 9, 64);
    for (const int64_t window : {int64_t{150}, INT64_MAX})
      for (const Isa isa : built_isas())
        for (const int64_t position : {3, 60, 125, 250, 509})
          if (isa_supported(isa)) expect_rows_together_as_alone(isa, attended, position, window);
  }
}

// The same where some rows see more stretches than others, or none of the first: on both sides of where one begins.
TEST(Attention, ARowDoesNotDependOnItsCompanyWhereAStretchBegins) {
  for (const DType type : {DType::F32, DType::F16, DType::Q8_0, DType::I4}) {
    const Attended attended(type, 2 * kAttentionStretch + 20);
    for (const int64_t window : {int64_t{5}, int64_t{30}, kAttentionStretch + 1, INT64_MAX})
      for (const Isa isa : built_isas())
        for (const int64_t beyond : {-9, -4, -1, 0, 2, 27})
          if (isa_supported(isa)) expect_rows_together_as_alone(isa, attended, kAttentionStretch + beyond, window);
  }
}

// One softmax over all that a row sees, by the formula, however many stretches that is.
void expect_one_softmax(const Attended& attended) {
  for (const Isa isa : built_isas()) {
    if (!isa_supported(isa)) continue;
    for (const int64_t window : {int64_t{40}, INT64_MAX}) {
      AttentionScratch scratch = attended.scratch();
      std::vector<float> out(attended.q.size());
      AttentionHeads a = attended.rows(2 * kAttentionStretch + 5, window);
      scratch.give_to(a);
      a.out = out.data();
      attend(isa, a);
      for (int64_t r = 0; r < a.rows; ++r)
        for (int64_t h = 0; h < a.heads; ++h) {
          const float* q = a.q + r * a.q_stride + h * a.head_dim;
          const int64_t end = a.position + r + 1;
          std::vector<double> expected(static_cast<size_t>(a.head_dim));
          double sum = 0.0;
          for (int64_t p = std::max<int64_t>(0, end > window ? end - window : 0); p < end; ++p) {
            const auto* key = reinterpret_cast<const float*>(attended.k.stored(p, 0));
            const auto* value = reinterpret_cast<const float*>(attended.v.stored(p, 0));
            double score = 0.0;
            for (int64_t i = 0; i < a.head_dim; ++i) score += static_cast<double>(q[i]) * static_cast<double>(key[i]);
            sum += std::exp(score);
            for (int64_t i = 0; i < a.head_dim; ++i)
              expected[static_cast<size_t>(i)] += std::exp(score) * static_cast<double>(value[i]);
          }
          for (int64_t i = 0; i < a.head_dim; ++i)
            ASSERT_NEAR(out[static_cast<size_t>(r * a.q_stride + h * a.head_dim + i)],
                        expected[static_cast<size_t>(i)] / sum, 1e-5)
                << isa_name(isa) << ", row " << r << ", head " << h;
        }
    }
  }
}

TEST(Attention, StretchesComeToOneSoftmax) {
  expect_one_softmax(Attended(DType::F32, 2 * kAttentionStretch + 20));
  expect_one_softmax(Attended(DType::F32, 2 * kAttentionStretch + 20, 9, 64));  // in groups of four
}

// Whoever shares stretches out among threads gets what attend() gives, to the bit.
TEST(Attention, StretchesInAnyOrder) {
  const Attended attended(DType::F16, 2 * kAttentionStretch + 20);
  const Isa isa = select_isa();
  AttentionScratch scratch = attended.scratch();
  std::vector<float> expected(attended.q.size());
  AttentionHeads a = attended.rows(2 * kAttentionStretch - 3, INT64_MAX);
  scratch.give_to(a);
  a.out = expected.data();
  attend(isa, a);
  const Stretches stretches = stretches_of(a);
  ASSERT_EQ(stretches.end - stretches.first, 3);
  std::vector<std::vector<float>> parts(3, std::vector<float>(attended.q.size()));
  std::vector<std::vector<SoftmaxSum>> sums(3, std::vector<SoftmaxSum>(static_cast<size_t>(a.rows * a.heads)));
  for (const size_t stretch : {2, 0, 1}) {
    a.out = parts[stretch].data();
    a.sums = sums[stretch].data();
    attend_stretch(isa, a, stretches.first + static_cast<int64_t>(stretch));
  }
  a.out = parts[0].data();
  a.sums = sums[0].data();
  for (const size_t stretch : {1, 2}) merge_stretch(a, parts[stretch].data(), sums[stretch].data());
  EXPECT_EQ(parts[0], expected);
  EXPECT_EQ(sums[2][0].sum, 0.0f);  // the first row ends before the third stretch
}

void expect_attention_over_the_floats(DType type, int64_t head_dim) {
  Random random(32);
  const int64_t slots = 50, length = 120, heads = 3;
  const float k_scale = code_bits(type) == 0 ? 1.0f : 0.2f, v_scale = code_bits(type) == 0 ? 1.0f : 0.05f;
  CacheRows k(2, head_dim, slots, type, k_scale), v(2, head_dim, slots, type, v_scale);
  CacheRows float_k(2, head_dim, length, DType::F32), float_v(2, head_dim, length, DType::F32);  // no ring
  CacheRows ring_k(2, head_dim, slots, DType::F32), ring_v(2, head_dim, slots, DType::F32);
  for (int64_t position = 0; position < length; ++position) {
    std::vector<float> row_k = random.floats(2 * head_dim), row_v = random.floats(2 * head_dim);
    k.store(position, row_k.data());
    v.store(position, row_v.data());
    round_as(type, row_k, k_scale, row_k.data());
    round_as(type, row_v, v_scale, row_v.data());
    for (CacheRows* rows : {&float_k, &ring_k}) rows->store(position, row_k.data());
    for (CacheRows* rows : {&float_v, &ring_v}) rows->store(position, row_v.data());
  }
  const std::vector<float> q = random.floats(heads * head_dim, 2.0f);
  for (const int64_t count : {1, 15, 16, 17, 33, 50}) {
    for (int64_t first = length - slots; first + count <= length; first += 7) {
      const std::vector<float> expected = attention(Isa::scalar, float_k, float_v, q, heads, first, count);
      for (const Isa isa : built_isas()) {
        if (!isa_supported(isa)) continue;
        const std::vector<float> coded = attention(isa, k, v, q, heads, first, count);
        const std::vector<float> floats = attention(isa, ring_k, ring_v, q, heads, first, count);
        for (size_t i = 0; i < expected.size(); ++i) {
          ASSERT_NEAR(coded[i], expected[i], 40 * FLT_EPSILON) << count << " from " << first << " " << isa_name(isa);
          ASSERT_NEAR(floats[i], expected[i], 40 * FLT_EPSILON) << count << " from " << first << " " << isa_name(isa);
        }
      }
    }
  }
}

// Heads of 40 numbers are not whole blocks of Q8_0, nor are they kept in pairs of 4 bits.
TEST_P(CacheOf, AttentionIsThatOverTheFloatsTheyMean) {
  expect_attention_over_the_floats(GetParam(), 64);
  if (GetParam() != DType::Q8_0) expect_attention_over_the_floats(GetParam(), 40);
}

INSTANTIATE_TEST_SUITE_P(Types, CacheOf, testing::Values(DType::F16, DType::Q8_0, DType::I2, DType::I4, DType::I8),
                         [](const testing::TestParamInfo<DType>& type) { return dtype_name(type.param); });

TEST(KeyGroups, HoldBlocksOfQ8_0) {
  Random random(34);
  const int64_t head_dim = 96, heads = 3;
  CacheRows cache = CacheRows::in_groups(heads, head_dim, 20);  // two groups
  EXPECT_EQ(cache.bytes(), 32 * heads * row_bytes(DType::Q8_0, head_dim));
  for (int64_t position = 0; position < 50; ++position) {
    const std::vector<float> row = random.floats(heads * head_dim, 2.0f);
    cache.store(position, row.data());
    std::vector<float> expected(row.size()), actual(row.size());
    round_as(DType::Q8_0, row, 1.0f, expected.data());
    for (int64_t h = 0; h < heads; ++h) cache.decode(Isa::scalar, position, h, 1, actual.data() + h * head_dim);
    EXPECT_EQ(actual, expected) << position;
  }
}

// Queries in 8 bits, 32 to a scale that is not rounded.
std::vector<float> rounded_queries(const std::vector<float>& q) {
  std::vector<float> rounded(q.size());
  for (size_t block = 0; block < q.size(); block += 32) {
    float largest = 0.0f;
    for (size_t i = block; i < block + 32; ++i) largest = std::max(largest, std::fabs(q[i]));
    const float scale = largest / 127.0f;
    for (size_t i = block; i < block + 32; ++i) rounded[i] = std::nearbyint(q[i] / scale) * scale;
  }
  return rounded;
}

TEST(KeyGroups, AttentionIsThatOverTheFloatsTheyMean) {
  Random random(35);
  const int64_t head_dim = 96, slots = 50, length = 150;
  CacheRows k = CacheRows::in_groups(2, head_dim, slots), v(2, head_dim, slots, DType::Q8_0);
  CacheRows float_k(2, head_dim, length, DType::F32), float_v(2, head_dim, length, DType::F32);  // no ring
  for (int64_t position = 0; position < length; ++position) {
    std::vector<float> row_k = random.floats(2 * head_dim), row_v = random.floats(2 * head_dim);
    k.store(position, row_k.data());
    v.store(position, row_v.data());
    round_as(DType::Q8_0, row_k, 1.0f, row_k.data());
    round_as(DType::Q8_0, row_v, 1.0f, row_v.data());
    float_k.store(position, row_k.data());
    float_v.store(position, row_v.data());
  }
  for (const int64_t heads : {1, 2, 3, 4, 6, 7}) {
    const std::vector<float> q = random.floats(heads * head_dim, 2.0f);
    for (const int64_t count : {1, 15, 16, 17, 33, 50})
      for (int64_t first = length - slots; first + count <= length; first += 7) {
        const std::vector<float> expected =
            attention(Isa::scalar, float_k, float_v, rounded_queries(q), heads, first, count);
        for (const Isa isa : built_isas()) {
          if (!isa_supported(isa)) continue;
          const std::vector<float> actual = attention(isa, k, v, q, heads, first, count);
          for (size_t i = 0; i < expected.size(); ++i)
            ASSERT_NEAR(actual[i], expected[i], 40 * FLT_EPSILON) << count << " from " << first << " " << isa_name(isa);
        }
      }
  }
}

// What is not finite is seen by whoever attends to it, and by nobody else.
TEST(KeyGroups, WhatIsNotFiniteIsNaN) {
  Random random(36);
  const int64_t head_dim = 64, length = 40, heads = 3;
  for (const float bad : {NAN, INFINITY, -INFINITY})
    for (const bool in_keys : {true, false}) {
      CacheRows k = CacheRows::in_groups(2, head_dim, length), v(2, head_dim, length, DType::Q8_0);
      for (int64_t position = 0; position < length; ++position) {
        std::vector<float> row_k = random.floats(2 * head_dim), row_v = random.floats(2 * head_dim);
        if (position == 20) (in_keys ? row_k : row_v)[static_cast<size_t>(head_dim + 5)] = bad;  // of the second head
        k.store(position, row_k.data());
        v.store(position, row_v.data());
      }
      const std::vector<float> q = random.floats(heads * head_dim);
      for (const Isa isa : built_isas()) {
        if (!isa_supported(isa)) continue;
        const auto any_nan = [&](int64_t first, int64_t count) {
          const std::vector<float> out = attention(isa, k, v, q, heads, first, count);
          return std::any_of(out.begin(), out.end(), [](float x) { return std::isnan(x); });
        };
        EXPECT_TRUE(any_nan(0, 21)) << isa_name(isa);
        EXPECT_FALSE(any_nan(0, 20)) << isa_name(isa);
        EXPECT_FALSE(any_nan(21, 19)) << isa_name(isa);
      }
    }
}

// Sliding layers of 8 bits and global ones of 4, as Gemma 4 has them: what a long context costs.
TEST(KvCacheSize, OfALongContext) {
  ModelConfig config;
  config.sliding_window = 512;
  for (int i = 0; i < 5; ++i) {
    LayerConfig layer;
    layer.sliding = i < 3;
    layer.kv_heads = 1;
    layer.head_dim = layer.sliding ? 256 : 512;
    layer.kv_source = i == 4 ? 3 : i;  // the last one reads another's
    config.layers.push_back(layer);
  }
  std::vector<CacheScales> grids(5, {0.1f, 0.1f, 8});
  grids[3].bits = 4;
  const int64_t capacity = 5000, ring = 512 + kMaxBatchRows - 1;
  EXPECT_EQ(KvCache(config, grids, capacity).bytes(), static_cast<size_t>(2 * (3 * 256 * ring + 256 * capacity)));
  EXPECT_EQ(KvCache(config, capacity).bytes(), static_cast<size_t>(2 * 4 * (3 * 256 * ring + 512 * capacity)));
  grids[3].bits = 0;
  EXPECT_EQ(KvCache(config, grids, capacity).bytes(), static_cast<size_t>(2 * (3 * 256 * ring + 4 * 512 * capacity)));
  // Keys in whole groups of 16 positions.
  EXPECT_EQ(KvCache(config, grids, capacity, DType::Q8_0).bytes(),
            static_cast<size_t>(2 * 3 * 256 * ring + 512 / 32 * 34 * (capacity + (capacity + 15) / 16 * 16)));
}

TEST(KvCacheSize, HeadsOfHalfABlockAreRefused) {
  ModelConfig config;
  config.layers.emplace_back();
  config.layers[0].kv_heads = 1;
  config.layers[0].head_dim = 48;
  try {
    KvCache(config, {}, 8, DType::Q8_0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "KV cache of Q8_0: heads of 48 numbers are not whole blocks of 32; use another type of cache "
                 "(--kv-cache file)");
  }
}

}  // namespace
}  // namespace qat
