// The KV cache on static grids: it holds the codes that the grid says, in as many bits, and attention over codes is
// attention over the floats they mean, wherever the ring begins.
#include "inference/kv_cache.h"

#include <gtest/gtest.h>

#include <cfloat>

#include "format/channel_grid.h"
#include "format/grid.h"
#include "inference/attention.h"
#include "tests/inference/random.h"

namespace qat {
namespace {

class CacheOf : public testing::TestWithParam<int> {};  // bits

TEST_P(CacheOf, HoldsTheGridsValues) {
  const int bits = GetParam();
  Random random(31);
  for (const int64_t head_dim : {1, 2, 6, 32, 255, 256, 257, 512}) {
    const int64_t heads = 3;
    const float scale = 0.11f;
    CacheRows cache(heads, head_dim, 4, bits, scale);
    EXPECT_EQ(cache.bytes(), static_cast<size_t>(4 * heads * ((head_dim * bits + 7) / 8)));
    for (int64_t position = 0; position < 11; ++position) {
      const std::vector<float> row = random.floats(heads * head_dim, 2.0f);
      cache.store(position, row.data());
      std::vector<float> expected(row.size()), actual(row.size());
      fake_quantize_channel(bits, row.data(), heads * head_dim, scale, expected.data());
      for (const Isa isa : built_isas()) {
        if (!isa_supported(isa)) continue;
        for (int64_t h = 0; h < heads; ++h) cache.decode(isa, position, h, 1, actual.data() + h * head_dim);
        for (float& x : actual) x *= cache.scale();
        EXPECT_EQ(actual, expected) << head_dim << " at " << position << " " << isa_name(isa);
      }
      EXPECT_EQ(cache.type(), code_type(bits));
    }
  }
}

TEST(HalfCache, HoldsTheNearestHalfFloats) {
  Random random(32);
  for (const int64_t head_dim : {1, 6, 64, 257}) {
    CacheRows cache(3, head_dim, 4, 16, 0.0f);
    EXPECT_EQ(cache.bytes(), static_cast<size_t>(4 * 3 * 2 * head_dim));
    for (int64_t position = 0; position < 6; ++position) {
      const std::vector<float> row = random.floats(3 * head_dim, 2.0f);
      cache.store(position, row.data());
      std::vector<float> expected(row.size()), actual(row.size());
      fake_quantize_rows(DType::F16, row.data(), 1, 3 * head_dim, expected.data());
      for (const Isa isa : built_isas()) {
        if (!isa_supported(isa)) continue;
        for (int64_t h = 0; h < 3; ++h) cache.decode(isa, position, h, 1, actual.data() + h * head_dim);
        EXPECT_EQ(actual, expected) << head_dim << " at " << position << " " << isa_name(isa);
      }
      EXPECT_EQ(cache.type(), DType::F16);
    }
  }
}

// Result of heads that share a K/V head, over the positions from `first` on.
std::vector<float> attention(Isa isa, const CacheRows& k, const CacheRows& v, const std::vector<float>& q,
                             int64_t heads, int64_t first, int64_t count) {
  const int64_t head_dim = static_cast<int64_t>(q.size()) / heads;
  std::vector<float> scores(static_cast<size_t>(heads * count)), out(q.size());
  std::vector<float> decoded(static_cast<size_t>(kAttentionBlock * head_dim));
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
  a.scores = scores.data();
  a.decoded = decoded.data();
  a.out = out.data();
  attend(isa, a);
  return out;
}

// Rows together, to the bit as each alone: of codes, half floats and floats, with and without a window.
TEST(Attention, ARowDoesNotDependOnItsCompany) {
  Random random(33);
  const int64_t head_dim = 24, heads = 3, length = 70;
  for (const int bits : {0, 4, 16})
    for (const int64_t window : {int64_t{5}, int64_t{30}, INT64_MAX}) {
      CacheRows k(2, head_dim, length, bits, 0.1f), v(2, head_dim, length, bits, 0.1f);
      for (int64_t position = 0; position < length; ++position) {
        k.store(position, random.floats(2 * head_dim).data());
        v.store(position, random.floats(2 * head_dim).data());
      }
      for (const Isa isa : built_isas()) {
        if (!isa_supported(isa)) continue;
        for (const int64_t position : {0, 3, 15, 60}) {
          const int64_t stride = heads * head_dim + 8;  // rows are further apart than what is used of them
          const std::vector<float> q = random.floats(kAttentionRows * stride);
          std::vector<float> together(q.size(), 7.0f), alone(q.size(), 7.0f);
          std::vector<float> scores(static_cast<size_t>(kAttentionRows * heads * length));
          std::vector<float> decoded(static_cast<size_t>(kAttentionBlock * head_dim));
          AttentionHeads a;
          a.rows = kAttentionRows;
          a.q_stride = stride;
          a.heads = heads;
          a.head_dim = head_dim;
          a.k = &k;
          a.v = &v;
          a.position = position;
          a.window = window;
          a.scores = scores.data();
          a.decoded = decoded.data();
          a.q = q.data();
          a.out = together.data();
          attend(isa, a);
          a.rows = 1;
          for (int64_t r = 0; r < kAttentionRows; ++r, ++a.position) {
            a.q = q.data() + r * stride;
            a.out = alone.data() + r * stride;
            attend(isa, a);
          }
          EXPECT_EQ(together, alone) << bits << " bits, window " << window << ", from " << position;
        }
      }
    }
}

TEST_P(CacheOf, AttentionIsThatOverTheFloatsTheyMean) {
  const int bits = GetParam();
  Random random(32);
  const int64_t head_dim = 40, slots = 50, length = 120, heads = 3;
  const float k_scale = 0.2f, v_scale = 0.05f;
  CacheRows k(2, head_dim, slots, bits, k_scale), v(2, head_dim, slots, bits, v_scale);
  CacheRows float_k(2, head_dim, length, 0, 0.0f), float_v(2, head_dim, length, 0, 0.0f);  // no ring
  CacheRows ring_k(2, head_dim, slots, 0, 0.0f), ring_v(2, head_dim, slots, bits, 0.0f);
  for (int64_t position = 0; position < length; ++position) {
    std::vector<float> row_k = random.floats(2 * head_dim), row_v = random.floats(2 * head_dim);
    k.store(position, row_k.data());
    v.store(position, row_v.data());
    fake_quantize_channel(bits, row_k.data(), 2 * head_dim, k_scale, row_k.data());
    fake_quantize_channel(bits, row_v.data(), 2 * head_dim, v_scale, row_v.data());
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

INSTANTIATE_TEST_SUITE_P(Bits, CacheOf, testing::Values(2, 4, 8), testing::PrintToStringParamName());

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
}

}  // namespace
}  // namespace qat
