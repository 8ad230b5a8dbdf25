// On x86-64 compiled for AVX2 and FMA (this file alone): called only when cpu_attention_available().
#include "qat/train/cpu_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace qat {
namespace {

constexpr int64_t kQueries = 16;  // queries of a block: their scores against all keys stay in the L1 or L2 cache

typedef float Vec8 __attribute__((vector_size(32)));
typedef uint32_t UInt8 __attribute__((vector_size(32)));
typedef float UnalignedVec8 __attribute__((vector_size(32), aligned(4), may_alias));

// Through a pointer, not memcpy, which GCC 12 takes apart into two halves on the stack.
inline Vec8 load(const float* p) { return *reinterpret_cast<const UnalignedVec8*>(p); }
inline void store(float* p, Vec8 v) { *reinterpret_cast<UnalignedVec8*>(p) = v; }

// A matrix read one number at a time: element (r, k) at data[r * row + k * col].
struct Left {
  const float* data;
  int64_t row, col;
};

// Rows x (8 Vectors) tile of C (+)= A B. The sums stay in registers only when every loop over them is unrolled.
template <int Rows, int Vectors>
inline void tile(Left a, const float* b, int64_t ldb, int64_t depth, float* c, int64_t ldc, bool add) {
  Vec8 sum[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) sum[r][j] = add ? load(c + r * ldc + 8 * j) : Vec8{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec8 right[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) right[j] = load(b + k * ldb + 8 * j);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const float left = a.data[r * a.row + k * a.col];
#pragma GCC unroll 2
      for (int j = 0; j < Vectors; ++j) sum[r][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) store(c + r * ldc + 8 * j, sum[r][j]);
}

void tail_columns(Left a, const float* b, int64_t ldb, int64_t rows, int64_t columns, int64_t depth, float* c,
                  int64_t ldc, bool add) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) {
      float sum = add ? c[r * ldc + j] : 0.0f;
      for (int64_t k = 0; k < depth; ++k) sum += a.data[r * a.row + k * a.col] * b[k * ldb + j];
      c[r * ldc + j] = sum;
    }
}

template <int Rows>
void band(Left a, const float* b, int64_t ldb, int64_t columns, int64_t depth, float* c, int64_t ldc, bool add) {
  int64_t j = 0;
  for (; j + 16 <= columns; j += 16) tile<Rows, 2>(a, b + j, ldb, depth, c + j, ldc, add);
  for (; j + 8 <= columns; j += 8) tile<Rows, 1>(a, b + j, ldb, depth, c + j, ldc, add);
  tail_columns(a, b + j, ldb, Rows, columns - j, depth, c + j, ldc, add);
}

// C (rows x columns) = A (rows x depth) B (depth x columns), or += with `add`.
void multiply(Left a, const float* b, int64_t ldb, int64_t rows, int64_t columns, int64_t depth, float* c, int64_t ldc,
              bool add) {
  int64_t r = 0;
  const auto at = [&](int64_t row) { return Left{a.data + row * a.row, a.row, a.col}; };
  for (; r + 8 <= rows && columns < 16; r += 8) band<8>(at(r), b, ldb, columns, depth, c + r * ldc, ldc, add);
  for (; r + 4 <= rows; r += 4) band<4>(at(r), b, ldb, columns, depth, c + r * ldc, ldc, add);
  for (; r < rows; ++r) band<1>(at(r), b, ldb, columns, depth, c + r * ldc, ldc, add);
}

inline float largest_lane(Vec8 v) { return std::max({v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}); }
inline float sum_lanes(Vec8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// e^x for x <= 0, relative error about 1e-7: 2^n times a degree-7 polynomial on [-ln2/2, ln2/2]; 0 below -87. Vectors
// by hand: GCC leaves the loop scalar.
inline Vec8 exp_negative(Vec8 x) {
  const Vec8 lowest = Vec8{} - 87.0f;
  const Vec8 clamped = x < lowest ? lowest : x;              // NaN stays NaN
  const Vec8 shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const Vec8 n = shifted - 12582912.0f;
  const Vec8 r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec8 p = Vec8{} + 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Vec8 power = reinterpret_cast<Vec8>((reinterpret_cast<UInt8>(shifted) - (0x4b400000u - 127u)) << 23);
  return x < lowest ? Vec8{} : p * power;
}

float row_max(const float* x, int64_t count) {
  Vec8 lanes = Vec8{} - std::numeric_limits<float>::infinity();
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) {
    const Vec8 next = load(x + j);
    lanes = next > lanes ? next : lanes;
  }
  float largest = largest_lane(lanes);
  for (; j < count; ++j) largest = std::max(largest, x[j]);
  return largest;
}

// x = e^(x - shift); returns the sum.
float exponentials(float* x, int64_t count, float shift) {
  Vec8 sum = {};
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) {
    const Vec8 e = exp_negative(load(x + j) - shift);
    store(x + j, e);
    sum += e;
  }
  if (j == count) return sum_lanes(sum);
  Vec8 last = Vec8{} - std::numeric_limits<float>::infinity();  // the rest, beside lanes whose exponential is 0
  std::memcpy(&last, x + j, static_cast<size_t>(count - j) * 4);
  last = exp_negative(last - shift);
  std::memcpy(x + j, &last, static_cast<size_t>(count - j) * 4);
  return sum_lanes(sum + last);
}

float dot(const float* a, const float* b, int64_t count) {
  Vec8 lanes = {};
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) lanes += load(a + j) * load(b + j);
  float sum = sum_lanes(lanes);
  for (; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

// The part of k or v that a task uses, (length, head_dim) rows `stride` apart, copied as its transpose (head_dim,
// length).
std::vector<float> transposed(const float* x, int64_t length, int64_t head_dim, int64_t stride) {
  std::vector<float> out(static_cast<size_t>(length * head_dim));
  for (int64_t t = 0; t < length; ++t)
    for (int64_t d = 0; d < head_dim; ++d) out[static_cast<size_t>(d * length + t)] = x[t * stride + d];
  return out;
}

// Where one task's numbers begin.
struct Place {
  int64_t batch, kv_head, q_stride, kv_stride, kv_offset;
  Place(const AttentionShape& s, int64_t task)
      : batch(task / s.kv_heads),
        kv_head(task % s.kv_heads),
        q_stride(s.heads * s.head_dim),
        kv_stride(s.kv_heads * s.head_dim),
        kv_offset(batch * s.length * kv_stride + kv_head * s.head_dim) {}
  int64_t q_offset(const AttentionShape& s, int64_t head) const {
    return batch * s.length * q_stride + head * s.head_dim;
  }
};

// A block of queries and the keys that any of them sees.
struct Block {
  int64_t first, count;  // queries
  int64_t low, keys;     // keys [low, low + keys)
  Block(const AttentionShape& s, int64_t begin)
      : first(begin),
        count(std::min(kQueries, s.length - begin)),
        low(s.window > 0 ? std::max<int64_t>(0, begin - s.window + 1) : 0),
        keys(begin + count - low) {}
  // Keys that query r of the block sees, relative to low.
  int64_t visible_begin(const AttentionShape& s, int64_t r) const {
    return s.window > 0 ? std::max<int64_t>(0, first + r - s.window + 1 - low) : 0;
  }
  int64_t visible_end(int64_t r) const { return first + r - low + 1; }
};

// Scaled scores of the block's queries, (count, keys); what a query does not see is not meaningful.
void block_scores(const AttentionShape& s, const Block& block, const float* q, int64_t q_stride,
                  const float* k_transposed, float* scores) {
  multiply({q + block.first * q_stride, q_stride, 1}, k_transposed + block.low, s.length, block.count, block.keys,
           s.head_dim, scores, block.keys, false);
  for (int64_t i = 0; i < block.count * block.keys; ++i) scores[i] *= s.scale;
}

void clear_unseen(const AttentionShape& s, const Block& block, int64_t r, float* row) {
  std::fill(row, row + block.visible_begin(s, r), 0.0f);
  std::fill(row + block.visible_end(r), row + block.keys, 0.0f);
}

}  // namespace

bool cpu_attention_available() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;  // compiled for the baseline of the architecture
#endif
}

void cpu_attention_forward(const AttentionShape& s, int64_t task, const float* q, const float* k, const float* v,
                           float* out, float* softmax) {
  const Place place(s, task);
  const std::vector<float> kt = transposed(k + place.kv_offset, s.length, s.head_dim, place.kv_stride);
  const float* values = v + place.kv_offset;
  std::vector<float> scores(static_cast<size_t>(kQueries * s.length));
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t head = place.kv_head * group; head < (place.kv_head + 1) * group; ++head) {
    const int64_t offset = place.q_offset(s, head);
    for (int64_t begin = 0; begin < s.length; begin += kQueries) {
      const Block block(s, begin);
      block_scores(s, block, q + offset, place.q_stride, kt.data(), scores.data());
      for (int64_t r = 0; r < block.count; ++r) {
        float* row = scores.data() + r * block.keys;
        const int64_t from = block.visible_begin(s, r), seen = block.visible_end(r) - from;
        const float largest = row_max(row + from, seen);
        const float sum = exponentials(row + from, seen, largest);
        const float inverse = 1.0f / sum;
        for (int64_t j = from; j < from + seen; ++j) row[j] *= inverse;
        clear_unseen(s, block, r, row);
        float* kept = softmax + 2 * ((place.batch * s.heads + head) * s.length + block.first + r);
        kept[0] = largest;
        kept[1] = inverse;
      }
      multiply({scores.data(), block.keys, 1}, values + block.low * place.kv_stride, place.kv_stride, block.count,
               s.head_dim, block.keys, out + offset + block.first * place.q_stride, place.q_stride, false);
    }
  }
}

void cpu_attention_backward(const AttentionShape& s, int64_t task, const float* q, const float* k, const float* v,
                            const float* out, const float* softmax, const float* dout, float* dq, float* dk,
                            float* dv) {
  const Place place(s, task);
  const int64_t d = s.head_dim, kv_stride = place.kv_stride, q_stride = place.q_stride;
  const std::vector<float> kt = transposed(k + place.kv_offset, s.length, d, kv_stride);
  const std::vector<float> vt = transposed(v + place.kv_offset, s.length, d, kv_stride);
  float* dk_rows = dk + place.kv_offset;
  float* dv_rows = dv + place.kv_offset;
  for (int64_t t = 0; t < s.length; ++t) {
    std::fill(dk_rows + t * kv_stride, dk_rows + t * kv_stride + d, 0.0f);
    std::fill(dv_rows + t * kv_stride, dv_rows + t * kv_stride + d, 0.0f);
  }
  std::vector<float> p(static_cast<size_t>(kQueries * s.length)), ds(p.size());
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t head = place.kv_head * group; head < (place.kv_head + 1) * group; ++head) {
    const int64_t offset = place.q_offset(s, head);
    for (int64_t begin = 0; begin < s.length; begin += kQueries) {
      const Block block(s, begin);
      const int64_t at = offset + block.first * q_stride, keys = block.keys;
      block_scores(s, block, q + offset, q_stride, kt.data(), p.data());
      multiply({dout + at, q_stride, 1}, vt.data() + block.low, s.length, block.count, keys, d, ds.data(), keys, false);
      for (int64_t r = 0; r < block.count; ++r) {
        float* row = p.data() + r * keys;
        float* gradient = ds.data() + r * keys;
        const int64_t from = block.visible_begin(s, r), end = block.visible_end(r);
        const float* kept = softmax + 2 * ((place.batch * s.heads + head) * s.length + block.first + r);
        exponentials(row + from, end - from, kept[0]);
        for (int64_t j = from; j < end; ++j) row[j] *= kept[1];
        const float delta = dot(dout + at + r * q_stride, out + at + r * q_stride, d);
        for (int64_t j = from; j < end; ++j) gradient[j] = row[j] * (gradient[j] - delta) * s.scale;
        clear_unseen(s, block, r, row);
        clear_unseen(s, block, r, gradient);
      }
      multiply({ds.data(), keys, 1}, k + place.kv_offset + block.low * kv_stride, kv_stride, block.count, d, keys,
               dq + at, q_stride, false);
      multiply({ds.data(), 1, keys}, q + at, q_stride, keys, d, block.count, dk_rows + block.low * kv_stride, kv_stride,
               true);
      multiply({p.data(), 1, keys}, dout + at, q_stride, keys, d, block.count, dv_rows + block.low * kv_stride,
               kv_stride, true);
    }
  }
}

}  // namespace qat
