#include "inference/attention.h"

#include <algorithm>
#include <cmath>

namespace qat {
namespace {

// Codes and blocks that meet more rows than these (heads counted) are unpacked once; fewer, as they are met.
constexpr int64_t kFewRows = 8;
// Bytes of rows, as they are stored, that are taken at a time: what several rows of activations meet one after the
// other stays in the second level of the cache, and what a block begins with is done seldom. Kernels meet it once for
// each four heads.
int64_t block_bytes(const AttentionHeads& a) { return a.heads >= 8 ? 16384 : 65536; }
constexpr int64_t kAhead = 8192;  // bytes

struct Range {
  int64_t first, end;  // of nothing: end <= first
};
Range seen_by(const AttentionHeads& a, int64_t row) {
  const int64_t end = a.position + row + 1;
  return {std::max(end > a.window ? end - a.window : 0, a.begin), std::min(end, a.end)};
}
int64_t end_of_seen(const AttentionHeads& a) { return std::min(a.position + a.rows, a.end); }

struct Source {
  const CacheRows* cache;
  const CacheKernel* kernel;
  bool is_decoded;  // to floats first
  float scale;      // of what the kernel makes of them
};
bool is_float(DType type) { return type == DType::F32 || type == DType::F16; }
// Columns that rows must be whole multiples of to be met as they are stored.
int64_t columns_of(DType type) { return type == DType::F32 ? 1 : type == DType::I4 ? kPairedCodes : 8; }

Source source_of(Isa isa, const AttentionHeads& a, const CacheRows& cache) {
  const DType type = cache.type();
  const CacheKernel* kernel = find_cache_kernel(type, isa);
  const bool is_decoded =
      kernel == nullptr || (!is_float(type) && a.rows * a.heads > kFewRows) || a.head_dim % columns_of(type) != 0;
  if (is_decoded) kernel = find_cache_kernel(DType::F32, isa);
  return {&cache, kernel, is_decoded, cache.scale() / kernel->unit};
}

// How many positions are taken at a time.
int64_t block_of(const AttentionHeads& a, const Source& source) {
  if (source.is_decoded) return kAttentionBlock;
  return std::max(kAttentionBlock, block_bytes(a) / source.cache->stride() / kAttentionBlock * kAttentionBlock);
}

// use(rows, the position of the first of them) for all positions that some row of activations sees, in blocks that
// begin at multiples of block_of(a, source), wherever the rows begin, so that sums are cut up alike for each.
template <class Use>
void for_blocks(Isa isa, const AttentionHeads& a, const Source& source, const Use& use) {
  const int64_t end = end_of_seen(a), block = block_of(a, source);
  for (int64_t position = seen_by(a, 0).first, n = 0; position < end; position += n) {
    n = std::min({end - position, block - position % block, source.cache->run(position)});
    CachedRows rows = {source.cache->stored(position, a.kv_head), source.cache->stride(), n, a.head_dim};
    if (source.is_decoded) {
      // While this block is met, memory brings what comes after it; kernels that read the cache itself ask for it.
      for (int64_t byte = 0; byte < n * rows.stride; byte += 64) __builtin_prefetch(rows.data + kAhead + byte);
      source.cache->decode(isa, position, a.kv_head, n, a.decoded);
      rows.data = reinterpret_cast<const uint8_t*>(a.decoded);
      rows.stride = a.head_dim * static_cast<int64_t>(sizeof(float));
    }
    use(rows, position);
  }
}

// use(row, those of the positions that it sees, the first of them).
template <class Use>
void for_rows(const AttentionHeads& a, const CachedRows& rows, int64_t first, const Use& use) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const Range seen = seen_by(a, r);
    const int64_t from = std::max(first, seen.first), to = std::min(first + rows.count, seen.end);
    if (from < to)
      use(r, CachedRows{rows.data + (from - first) * rows.stride, rows.stride, to - from, rows.cols}, from);
  }
}

// Queries in 8 bits, in a.coded; of row r the heads from r * a.heads on.
CodedQueries code_queries(Isa isa, const AttentionHeads& a) {
  const CodeKernels* kernels = find_code_kernels(isa == Isa::scalar ? Isa::portable : isa);
  const int64_t queries = a.rows * a.heads, blocks = a.head_dim / kCodeBlock;
  auto* codes = reinterpret_cast<int8_t*>(a.coded);
  float *scales = a.coded + queries * a.head_dim / 4, *unused = scales + 2 * queries * blocks;
  auto* sums = reinterpret_cast<int32_t*>(scales + queries * blocks);
  for (int64_t i = 0; i < queries; ++i) {
    const float* q = a.q + i / a.heads * a.q_stride + i % a.heads * a.head_dim;
    int8_t* of_query = codes + i * a.head_dim;
    kernels->encode_blocks(q, a.head_dim, of_query, scales + i * blocks, unused, unused + blocks);
    for (int64_t b = 0; b < blocks; ++b) {
      int32_t sum = 0;
      for (int64_t k = b * kCodeBlock; k < (b + 1) * kCodeBlock; ++k) sum += of_query[k];
      sums[i * blocks + b] = sum;
    }
  }
  return {codes, scales, sums};
}

// scores_at(row, position): of the first head, the others' are `span` further on. Several rows meet a block of groups
// one after the other.
template <class Scores>
void score_groups(Isa isa, const AttentionHeads& a, int64_t span, const Scores& scores_at) {
  const KeyKernel& kernel = *find_key_kernel(isa);
  const CodedQueries q = code_queries(isa, a);
  const int64_t blocks = a.head_dim / kCodeBlock, bytes = key_group_bytes(a.head_dim), end = end_of_seen(a);
  const int64_t most = std::max(int64_t{1}, block_bytes(a) / bytes) * kKeyGroup;
  for (int64_t begin = seen_by(a, 0).first / kKeyGroup * kKeyGroup, n = 0; begin < end; begin += n) {
    n = std::min({end - begin, most, a.k->run(begin)});
    for (int64_t r = 0; r < a.rows; ++r) {
      const Range seen = seen_by(a, r);
      const int64_t from = std::max(begin, seen.first), to = std::min(begin + n, seen.end), first = r * a.heads;
      const CodedQueries of_row = {q.codes + first * a.head_dim, q.scales + first * blocks, q.sums + first * blocks};
      const KeyGroups keys = {a.k->stored(begin, a.kv_head), bytes, a.head_dim, from - begin, to - begin};
      if (from < to) kernel.scores(of_row, a.heads, keys, a.scale, scores_at(r, from), span);
    }
  }
}

// All that is to be seen from a.begin on and before a.end, which is not more than a stretch.
void attend_range(Isa isa, const AttentionHeads& a) {
  const Source v = source_of(isa, a, *a.v);
  const VectorKernels& ops = vector_kernels(isa);
  const int64_t origin = seen_by(a, 0).first, span = attention_span(a.position, a.rows, a.window);
  const auto scores = [&](int64_t row, int64_t head, int64_t position) {
    return a.scores + (row * a.heads + head) * span + position - origin;
  };
  if (a.k->is_grouped()) {
    score_groups(isa, a, span, [&](int64_t row, int64_t position) { return scores(row, 0, position); });
  } else {
    const Source k = source_of(isa, a, *a.k);
    for_blocks(isa, a, k, [&](const CachedRows& block, int64_t first) {
      for_rows(a, block, first, [&](int64_t r, const CachedRows& keys, int64_t position) {
        k.kernel->scores(a.q + r * a.q_stride, a.head_dim, a.heads, keys, a.scale * k.scale, scores(r, 0, position),
                         span);
      });
    });
  }
  const uint8_t* first_values = a.v->stored(origin, a.kv_head);
  for (int64_t r = 0; r < a.rows; ++r) {
    const Range seen = seen_by(a, r);
    const int64_t count = seen.end - seen.first;
    for (int64_t h = 0; h < a.heads; ++h) {
      float* of_head = scores(r, h, seen.first);
      const void* next = of_head;
      if (r == 0) next = first_values + h * count * static_cast<int64_t>(sizeof(float));
      a.sums[r * a.heads + h] = count > 0 ? ops.softmax(of_head, count, next) : SoftmaxSum();
    }
  }
  for_blocks(isa, a, v, [&](const CachedRows& block, int64_t first) {
    for_rows(a, block, first, [&](int64_t r, const CachedRows& values, int64_t position) {
      const bool add = position > seen_by(a, r).first;
      v.kernel->mix(scores(r, 0, position), span, a.heads, values, add, a.out + r * a.q_stride, a.head_dim);
    });
  });
  for (int64_t r = 0; r < a.rows && v.scale != 1.0f; ++r) {
    const Range seen = seen_by(a, r);
    for (int64_t i = 0; i < a.heads * a.head_dim && seen.first < seen.end; ++i) a.out[r * a.q_stride + i] *= v.scale;
  }
}

}  // namespace

Stretches stretches_of(const AttentionHeads& a) {
  return {seen_by(a, 0).first / kAttentionStretch, (end_of_seen(a) + kAttentionStretch - 1) / kAttentionStretch};
}

void attend_stretch(Isa isa, const AttentionHeads& a, int64_t stretch) {
  AttentionHeads some = a;
  some.begin = std::max(a.begin, stretch * kAttentionStretch);
  some.end = std::min(a.end, (stretch + 1) * kAttentionStretch);
  attend_range(isa, some);
}

void merge_stretch(const AttentionHeads& a, const float* part, const SoftmaxSum* part_sums) {
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t h = 0; h < a.heads; ++h) {
      SoftmaxSum& whole = a.sums[r * a.heads + h];
      const SoftmaxSum& added = part_sums[r * a.heads + h];
      if (added.sum == 0.0f) continue;
      const float largest = std::max(whole.largest, added.largest);
      const auto weight = [&](const SoftmaxSum& s) {
        return static_cast<double>(s.sum) * std::exp(static_cast<double>(s.largest) - static_cast<double>(largest));
      };
      float* out = a.out + r * a.q_stride + h * a.head_dim;
      const float* more = part + r * a.q_stride + h * a.head_dim;
      if (whole.sum == 0.0f) {
        std::copy_n(more, a.head_dim, out);
        whole = added;
        continue;
      }
      const double kept = weight(whole), total = kept + weight(added);
      const auto of_out = static_cast<float>(kept / total), of_more = static_cast<float>(weight(added) / total);
      for (int64_t i = 0; i < a.head_dim; ++i) out[i] = of_out * out[i] + of_more * more[i];
      whole = {largest, static_cast<float>(total)};
    }
}

void attend(Isa isa, const AttentionHeads& a) {
  const Stretches stretches = stretches_of(a);
  attend_stretch(isa, a, stretches.first);
  AttentionHeads later = a;
  later.out = a.part;
  later.sums = a.sums + a.rows * a.heads;
  for (int64_t stretch = stretches.first + 1; stretch < stretches.end; ++stretch) {
    attend_stretch(isa, later, stretch);
    merge_stretch(a, later.out, later.sums);
  }
}

}  // namespace qat
