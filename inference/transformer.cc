#include "inference/transformer.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "format/error.h"
#include "format/grid.h"
#include "inference/attention.h"
#include "inference/rope.h"

namespace qat {
namespace {

constexpr int64_t kSharedParts = 8;  // of attention to a thread: with fewer, long contexts are shared by stretches
constexpr int64_t kTableRows = 4;    // whose reading is worth a thread whatever is done with them

// Work on rows too small to share between threads stays with the caller: pieces of some 16 Ki floats.
int64_t rows_per_piece(int64_t width) { return std::max<int64_t>(1, (int64_t{1} << 14) / std::max<int64_t>(1, width)); }

template <class T>
T* grown(HugeVector<T>& buffer, int64_t count) {
  if (buffer.size() < static_cast<size_t>(count)) buffer.resize(static_cast<size_t>(count));
  return buffer.data();
}

}  // namespace

Transformer::Transformer(Weights weights, const EngineOptions& options)
    : weights_(std::move(weights)),
      isa_(isa_of(options)),
      round_activations_(!options.float_activations),
      cache_type_(cache_type_of(options)) {
  const ModelConfig& c = weights_.config;
  for (const LayerWeights& layer : weights_.layers)
    cache_grids_.push_back(options.float_cache ? CacheScales() : layer.cache);
  for (size_t i = 0; i < c.layers.size(); ++i) {
    std::vector<float>& frequencies = frequencies_[c.layers[i].sliding];
    if (frequencies.empty()) frequencies = rope_frequencies(c, c.layers[i]);
    if (c.layers[i].kv_source != static_cast<int64_t>(i)) continue;
    last_kv_layer_ = i;
    KvCache::check(c.layers[i], cache_grids_[i], cache_type_);
  }
  const std::vector<TensorInfo> table = tensor_table(c);
  const auto linear = [&](Role role, int layer) {
    const TensorInfo* info = find_tensor_info(table, role, layer);
    return Linear{info == nullptr ? std::string() : info->name, layer};
  };
  for (int i = 0; i < static_cast<int>(c.layers.size()); ++i)
    linears_.push_back({linear(Role::q, i), linear(Role::k, i), linear(Role::v, i), linear(Role::o, i),
                        linear(Role::gate, i), linear(Role::up, i), linear(Role::down, i), linear(Role::ple_gate, i),
                        linear(Role::ple_projection, i)});
  ple_model_projection_ = linear(Role::ple_model_projection, -1);
  output_ = linear(c.tied ? Role::token_embedding : Role::output, -1);
}

// The model, top to bottom. Shapes are in Workspace; n is the count of rows (of those still needed, see drop_rows).
struct Transformer::Pass {
  const Transformer& model;
  const Weights& w;
  const ModelConfig& c;
  const VectorKernels& ops;
  ThreadPool& pool;
  Workspace& ws;
  int64_t n;

  Pass(const Transformer& m, ThreadPool& p, Workspace& workspace)
      : model(m),
        w(m.weights_),
        c(m.weights_.config),
        ops(vector_kernels(m.isa_)),
        pool(p),
        ws(workspace),
        n(static_cast<int64_t>(workspace.rows.size())) {}

  // body(row) for every row, `width` floats of work each.
  template <class Body>
  void for_rows(int64_t width, const Body& body) {
    pool.parallel_for(n, rows_per_piece(width), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) body(r);
    });
  }

  void observe(Activation kind, const Linear& linear, int64_t rows, int64_t cols, const float* x) {
    if (model.activation_hook) model.activation_hook({kind, linear.name, linear.layer, rows, cols, x});
  }

  // y = input * matrix^T of each. Where a matrix has a static scale of its input, that is rounded to it; its output is
  // the caller's to round (round_row), with what he does to the rows anyway.
  struct Projection {
    const Matrix& matrix;
    const Linear& linear;
    float* y;
  };
  void multiply(MatmulInput& input, std::initializer_list<Projection> projections) {
    const int64_t rows = input.rows();
    Product products[3];
    size_t count = 0;
    for (const Projection& p : projections) {
      if (!p.matrix) continue;  // a layer without its own K and V, or with K = V
      observe(Activation::input, p.linear, rows, p.matrix.cols, input.x());
      products[count++] = {&p.matrix, p.y};
    }
    matmul({model.isa_, model.round_activations_}, pool, input, {products, count});
    for (const Projection& p : projections) {
      if (!p.matrix) continue;
      observe(Activation::output, p.linear, rows, p.matrix.rows, p.y);
    }
  }
  void multiply(MatmulInput& input, const Matrix& matrix, const Linear& linear, float* y) {
    multiply(input, {{matrix, linear, y}});
  }

  // A row of a product, to the matrix's static scale of its output if it has one.
  void round_row(const Matrix& matrix, float* y) const {
    if (matrix.output_scale != 0.0f) ops.round_to_grid(y, matrix.rows, matrix.output_scale);
  }

  void norm_rows(const float* x, const std::vector<float>& weight, float* out) {
    const float eps = static_cast<float>(c.eps);
    for_rows(c.hidden,
             [&](int64_t r) { ops.rms_norm(x + r * c.hidden, weight.data(), c.hidden, eps, out + r * c.hidden); });
  }

  // hidden += branch, what `matrix` gave, rounded and normed first where there is a scale and a weight.
  void add_branch(const Matrix& matrix, const std::vector<float>& weight) {
    const float eps = static_cast<float>(c.eps);
    for_rows(2 * c.hidden, [&](int64_t r) {
      float* h = ws.hidden.data() + r * c.hidden;
      float* b = ws.branch.data() + r * c.hidden;
      round_row(matrix, b);
      if (!weight.empty()) ops.rms_norm(b, weight.data(), c.hidden, eps, b);
      for (int64_t i = 0; i < c.hidden; ++i) h[i] += b[i];
    });
  }

  // out [n, table.cols]: the tokens' rows of a table; then body(row) of each, `width` floats of work together.
  template <class Body>
  void embed_rows(const Matrix& table, float* out, int64_t width, const Body& body) {
    const size_t bytes = stored_row_bytes(table);
    uint8_t* room = grown(ws.table_rows, static_cast<int64_t>(bytes) * pool.size());
    pool.parallel_for(n, std::min(kTableRows, rows_per_piece(width)), [&](int64_t begin, int64_t end, int worker) {
      for (int64_t r = begin; r < end; ++r) {
        read_table_row(model.isa_, table, ws.rows[static_cast<size_t>(r)].token,
                       room + static_cast<size_t>(worker) * bytes, out + r * table.cols);
        body(r);
      }
    });
  }

  void embed() {
    float* hidden = grown(ws.hidden, n * c.hidden);
    const float scale = static_cast<float>(c.embedding_scale);
    embed_rows(w.embedding, hidden, c.hidden, [&](int64_t r) {
      for (int64_t i = r * c.hidden; i < (r + 1) * c.hidden; ++i) hidden[i] *= scale;
    });
  }

  // Per-layer embeddings, of all layers at once: the mean (times sqrt 2) of what the token says and what its embedding
  // says.
  void embed_per_layer() {
    const int64_t width = static_cast<int64_t>(c.layers.size()) * c.ple;
    float* per_layer = grown(ws.per_layer, n * width);
    ws.input.set(ws.hidden.data(), n, c.hidden);
    multiply(ws.input, w.ple_model_projection, model.ple_model_projection_, per_layer);
    const float token_scale = static_cast<float>(std::sqrt(static_cast<double>(c.ple)));
    const float context_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.hidden)));
    const float half = static_cast<float>(std::sqrt(0.5));
    float* token_rows = grown(ws.gate, n * width);
    embed_rows(w.ple_embedding, token_rows, 3 * width, [&](int64_t r) {
      const float* token = token_rows + r * width;
      float* context = per_layer + r * width;
      round_row(w.ple_model_projection, context);
      for (int64_t i = 0; i < width; ++i) context[i] *= context_scale;
      for (int64_t i = 0; i < width; i += c.ple)
        ops.rms_norm(context + i, w.ple_projection_norm.data(), c.ple, static_cast<float>(c.eps), context + i);
      for (int64_t i = 0; i < width; ++i) context[i] = (context[i] + token[i] * token_scale) * half;
    });
  }

  // What all layers need: where rows stand, and room for the residual stream's companions.
  void prepare() {
    prepare_rope();
    group_rows();
    grown(ws.normed, n * c.hidden);
    grown(ws.branch, n * c.hidden);
  }

  void prepare_rope() {
    for (int kind = 0; kind < 2; ++kind) {
      const std::vector<float>& frequencies = model.frequencies_[kind];
      const int64_t pairs = static_cast<int64_t>(frequencies.size());
      float* cos_sin = grown(ws.cos_sin[kind], n * 2 * pairs);
      for_rows(32 * pairs, [&](int64_t r) {
        rope_cos_sin(ws.rows[static_cast<size_t>(r)].position, frequencies, cos_sin + r * 2 * pairs);
      });
    }
  }

  // Per head: norm (if the model has one), then rotation.
  void norm_and_rotate(float* x, int64_t heads, const LayerConfig& layer, const std::vector<float>& weight, int64_t r) {
    const float* cos_sin = ws.cos_sin[layer.sliding].data() + r * layer.head_dim;
    for (int64_t h = 0; h < heads; ++h, x += layer.head_dim) {
      if (!weight.empty()) ops.rms_norm(x, weight.data(), layer.head_dim, static_cast<float>(c.eps), x);
      rotate(x, layer.head_dim, cos_sin, w.rope_interleaved);
    }
  }

  // Q, and K and V into their caches where the layer has its own. K = V layers take V from K as projected: without its
  // norm, not rotated.
  void project(const LayerWeights& l, const LayerConfig& layer, const Linears& linears, size_t index) {
    const bool has_kv = layer.kv_source == static_cast<int64_t>(index);
    const int64_t width = c.heads * layer.head_dim, kv_width = layer.kv_heads * layer.head_dim;
    float* q = grown(ws.q, n * width);
    float* k = grown(ws.k, n * kv_width);
    float* v = grown(ws.v, n * kv_width);
    if (has_kv) multiply(ws.input, {{l.q, linears.q, q}, {l.k, linears.k, k}, {l.v, linears.v, v}});
    else multiply(ws.input, l.q, linears.q, q);
    for_rows(4 * width, [&](int64_t r) {
      round_row(l.q, q + r * width);
      norm_and_rotate(q + r * width, c.heads, layer, l.q_norm, r);
    });
    if (has_kv) store_kv(l, layer, linears, index);
  }

  void store_kv(const LayerWeights& l, const LayerConfig& layer, const Linears& linears, size_t index) {
    const int64_t width = layer.kv_heads * layer.head_dim;
    float* k = ws.k.data();
    float* v = ws.v.data();
    for_rows(6 * width, [&](int64_t r) {
      float* row = v + r * width;
      round_row(l.k, k + r * width);
      if (layer.k_eq_v) std::copy_n(k + r * width, width, row);
      else round_row(l.v, row);
      if (c.v_norm())
        for (int64_t i = 0; i < width; i += layer.head_dim)
          ops.rms_norm(row + i, nullptr, layer.head_dim, static_cast<float>(c.eps), row + i);
      norm_and_rotate(k + r * width, layer.kv_heads, layer, l.k_norm, r);
    });
    observe(Activation::key, linears.k, n, width, k);
    observe(Activation::value, linears.k, n, width, v);
    for_rows(2 * width, [&](int64_t r) {
      const BatchRow& row = ws.rows[static_cast<size_t>(r)];
      row.cache->k(index).store(row.position, k + r * width);
      row.cache->v(index).store(row.position, v + r * width);
    });
  }

  // Rows that stand one behind the other in a sequence, a few at a time: {first row, count}.
  void group_rows() {
    ws.groups.clear();
    for (int64_t r = 0; r < n; ++r) {
      const BatchRow& row = ws.rows[static_cast<size_t>(r)];
      if (!ws.groups.empty()) {
        RowGroup& last = ws.groups.back();
        const BatchRow& begin = ws.rows[static_cast<size_t>(last.first)];
        if (last.count < kAttentionRows && row.cache == begin.cache && row.position == begin.position + last.count) {
          ++last.count;
          continue;
        }
      }
      ws.groups.push_back({r, 1});
    }
  }

  // How attention is cut up: into groups of rows, and `parts` of the query heads of each, `together` of which share
  // keys.
  struct AttentionParts {
    int64_t group, together, split, parts;  // group: heads to a head of keys; split: parts of such a group
  };
  // All heads that share keys, unless that leaves a thread without work: then as few parts of them as there must be, or
  // as lets the busiest thread be done first, if a long context gives threads stretches of their own.
  AttentionParts cut_attention(const LayerConfig& layer) {
    const int64_t group = c.heads / layer.kv_heads, wide = static_cast<int64_t>(ws.groups.size()) * layer.kv_heads;
    const auto cut_in = [&](int64_t wanted) -> AttentionParts {
      const int64_t together = (group + wanted - 1) / wanted, split = (group + together - 1) / together;
      return {group, together, split, layer.kv_heads * split};
    };
    const int64_t most = (pool.size() + wide - 1) / wide;
    AttentionParts best = cut_in(most);
    for (int64_t fewer = most - 1; fewer > 0 && ws.groups.size() == 1; --fewer)
      if (const AttentionParts cut = cut_in(fewer); longest_share(layer, cut) < longest_share(layer, best)) best = cut;
    return best;
  }
  // What the busiest thread has to do of one group of rows, if they take stretches in turn: its positions, each times
  // the heads that meet it there, and so many heads' time for what is done once: four for reading it, one for unpacking
  // pairs of codes for eight heads, none where codes are unpacked for each four anyway.
  int64_t longest_share(const LayerConfig& layer, const AttentionParts& cut) {
    const AttentionHeads a = attention_part(layer, cut, ws.groups[0], 0);
    const int64_t seen = std::min(a.window, a.position + a.rows), threads = pool.size();
    const int64_t whole = cut.parts * (seen / kAttentionStretch), rest = seen % kAttentionStretch;
    const int64_t idle = threads - whole % threads;  // in the last turn of whole stretches, or all in the next
    int64_t positions = whole / threads * kAttentionStretch + (cut.parts + idle - 1) / idle * rest;
    if (whole % threads != 0) positions = std::max(positions, (whole / threads + 1) * kAttentionStretch);
    const int bits = code_bits(a.k->type());
    return positions * (cut.together + (bits == 2 ? 0 : bits == 4 ? 1 : 4));
  }

  // Part `index` of a group, without its scratch.
  AttentionHeads attention_part(const LayerConfig& layer, const AttentionParts& cut, const RowGroup& g, int64_t index) {
    const int64_t width = c.heads * layer.head_dim, first = index % cut.split * cut.together;
    const int64_t place = g.first * width + (index / cut.split * cut.group + first) * layer.head_dim;
    const BatchRow& row = ws.rows[static_cast<size_t>(g.first)];
    AttentionHeads a;
    a.q = ws.q.data() + place;
    a.rows = g.count;
    a.q_stride = width;
    a.heads = std::min(cut.together, cut.group - first);
    a.head_dim = layer.head_dim;
    a.k = &row.cache->k(static_cast<size_t>(layer.kv_source));
    a.v = &row.cache->v(static_cast<size_t>(layer.kv_source));
    a.kv_head = index / cut.split;
    a.position = row.position;
    a.window = layer.sliding && c.sliding_window > 0 ? c.sliding_window : INT64_MAX;
    a.scale = static_cast<float>(c.attention_scale);
    a.out = ws.heads.data() + place;
    return a;
  }

  // heads = softmax(scale q K^T + mask) V; the mask is the range of positions a row may see.
  void attend_rows(const LayerConfig& layer) {
    const int64_t width = c.heads * layer.head_dim;
    grown(ws.heads, n * width);
    const AttentionParts cut = cut_attention(layer);
    const auto groups = static_cast<int64_t>(ws.groups.size());
    int64_t span = 0, stretches = 0;
    for (const RowGroup& g : ws.groups) {
      const AttentionHeads a = attention_part(layer, cut, g, 0);
      span = std::max(span, a.rows * attention_span(a.position, a.rows, a.window));
      stretches = std::max(stretches, stretches_of(a).end - stretches_of(a).first);
    }
    const int64_t room = cut.group * span, decoded = kAttentionBlock * layer.head_dim;
    const int64_t coded = (coded_floats(kAttentionRows * cut.group, layer.head_dim) + 15) / 16 * 16;
    const int64_t part = stretches > 1 ? kAttentionRows * width : 0, scratch = room + decoded + coded + part;
    float* attention = grown(ws.attention, scratch * pool.size());
    const int64_t sums = 2 * kAttentionRows * cut.group;
    const auto prepare = [&](AttentionHeads& a, int worker) {
      a.scores = attention + worker * scratch;
      a.decoded = a.scores + room;
      a.coded = a.decoded + decoded;
      a.part = a.coded + coded;
    };
    if (groups == 1 && stretches > 1 && cut.parts < kSharedParts * pool.size() && pool.size() > 1)
      return attend_shared(layer, cut, stretches, prepare);
    if (ws.softmax_sums.size() < static_cast<size_t>(sums * pool.size()))
      ws.softmax_sums.resize(static_cast<size_t>(sums * pool.size()));
    const int64_t work = span * cut.together * layer.head_dim;
    pool.parallel_for(groups * cut.parts, std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(1, work)),
                      [&](int64_t begin, int64_t end, int worker) {
                        for (int64_t i = begin; i < end; ++i) {
                          const RowGroup& g = ws.groups[static_cast<size_t>(i / cut.parts)];
                          AttentionHeads a = attention_part(layer, cut, g, i % cut.parts);
                          prepare(a, worker);
                          a.sums = ws.softmax_sums.data() + worker * sums;
                          attend(model.isa_, a);
                        }
                      });
  }

  // Few rows of a long context: each stretch is work of its own, so that no thread waits long for another.
  template <class Prepare>
  void attend_shared(const LayerConfig& layer, const AttentionParts& cut, int64_t stretches, const Prepare& prepare) {
    const RowGroup& g = ws.groups[0];
    const int64_t results = n * c.heads * layer.head_dim, sums = g.count * cut.together;
    float* later = grown(ws.stretches, (stretches - 1) * results);
    if (ws.softmax_sums.size() < static_cast<size_t>(stretches * cut.parts * sums))
      ws.softmax_sums.resize(static_cast<size_t>(stretches * cut.parts * sums));
    const auto part_of = [&](int64_t stretch, int64_t index) {
      AttentionHeads a = attention_part(layer, cut, g, index);
      if (stretch > 0) a.out = later + (stretch - 1) * results + (a.out - ws.heads.data());
      a.sums = ws.softmax_sums.data() + (stretch * cut.parts + index) * sums;
      return a;
    };
    pool.parallel_for(stretches * cut.parts, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        AttentionHeads a = part_of(i / cut.parts, i % cut.parts);
        prepare(a, worker);
        attend_stretch(model.isa_, a, stretches_of(a).first + i / cut.parts);
      }
    });
    for (int64_t index = 0; index < cut.parts; ++index)
      for (int64_t stretch = 1; stretch < stretches; ++stretch) {
        const AttentionHeads added = part_of(stretch, index);
        merge_stretch(part_of(0, index), added.out, added.sums);
      }
  }

  void attention_block(size_t index) {
    const LayerWeights& l = w.layers[index];
    const LayerConfig& layer = c.layers[index];
    const Linears& linears = model.linears_[index];
    norm_rows(ws.hidden.data(), l.attention_norm, ws.normed.data());
    ws.input.set(ws.normed.data(), n, c.hidden);
    project(l, layer, linears, index);
    attend_rows(layer);
    ws.inner.set(ws.heads.data(), n, c.heads * layer.head_dim);
    multiply(ws.inner, l.o, linears.o, ws.branch.data());
    add_branch(l.o, l.post_attention_norm);
  }

  void mlp_block(size_t index) {
    const LayerWeights& l = w.layers[index];
    const Linears& linears = model.linears_[index];
    const int64_t ffn = c.layers[index].ffn;
    float* gate = grown(ws.gate, n * ffn);
    norm_rows(ws.hidden.data(), l.ffn_norm, ws.normed.data());
    ws.input.set(ws.normed.data(), n, c.hidden);
    const auto activate = c.gated_gelu() ? ops.gelu_multiply : ops.silu_multiply;
    const Arithmetic how = {model.isa_, model.round_activations_};
    // A hook wants to see what both give.
    if (model.activation_hook || !matmul_gated(how, pool, ws.input, {&l.gate, &l.up, activate, gate})) {
      float* up = grown(ws.up, n * ffn);
      multiply(ws.input, {{l.gate, linears.gate, gate}, {l.up, linears.up, up}});
      for_rows(4 * ffn, [&](int64_t r) {
        round_row(l.gate, gate + r * ffn);
        round_row(l.up, up + r * ffn);
        activate(gate + r * ffn, up + r * ffn, ffn);
      });
    }
    ws.inner.set(gate, n, ffn);
    multiply(ws.inner, l.down, linears.down, ws.branch.data());
    add_branch(l.down, l.post_ffn_norm);
  }

  void per_layer_block(size_t index) {
    const LayerWeights& l = w.layers[index];
    const Linears& linears = model.linears_[index];
    float* gate = grown(ws.per_layer_gate, n * c.ple);
    ws.input.set(ws.hidden.data(), n, c.hidden);
    multiply(ws.input, l.ple_gate, linears.ple_gate, gate);
    const int64_t width = static_cast<int64_t>(c.layers.size()) * c.ple;
    const float* mine = ws.per_layer.data() + static_cast<int64_t>(index) * c.ple;
    for_rows(4 * c.ple, [&](int64_t r) {
      round_row(l.ple_gate, gate + r * c.ple);
      ops.gelu_multiply(gate + r * c.ple, mine + r * width, c.ple);
    });
    ws.inner.set(gate, n, c.ple);
    multiply(ws.inner, l.ple_projection, linears.ple_projection, ws.branch.data());
    add_branch(l.ple_projection, l.post_ple_norm);
  }

  void layer_block(size_t index) {
    attention_block(index);
    mlp_block(index);
    if (c.ple > 0) per_layer_block(index);
    scale_stream(w.layers[index].scalar);
  }

  void scale_stream(float scalar) {
    if (scalar == 1.0f) return;
    for_rows(c.hidden, [&](int64_t r) {
      for (int64_t i = r * c.hidden; i < (r + 1) * c.hidden; ++i) ws.hidden[static_cast<size_t>(i)] *= scalar;
    });
  }

  // Goes on without the first `count` rows: once all K and V are written, rows that no logits are wanted of have no
  // more use.
  void drop_rows(int64_t count) {
    const auto drop = [&](HugeVector<float>& buffer, int64_t width) {
      std::copy(buffer.begin() + count * width, buffer.begin() + n * width, buffer.begin());
    };
    drop(ws.hidden, c.hidden);
    if (c.ple > 0) drop(ws.per_layer, static_cast<int64_t>(c.layers.size()) * c.ple);
    for (int kind = 0; kind < 2; ++kind)
      drop(ws.cos_sin[kind], 2 * static_cast<int64_t>(model.frequencies_[kind].size()));
    ws.rows.erase(ws.rows.begin(), ws.rows.begin() + count);
    n -= count;
    group_rows();
  }

  void head(float* logits) {
    grown(ws.normed, n * c.hidden);
    norm_rows(ws.hidden.data(), w.output_norm, ws.normed.data());
    ws.input.set(ws.normed.data(), n, c.hidden);
    multiply(ws.input, w.output, model.output_, logits);
    const float scale = w.output.output_scale;
    if (scale == 0.0f && c.softcap <= 0.0) return;
    pool.parallel_for(n * c.vocab, int64_t{1} << 14, [&](int64_t begin, int64_t end, int) {
      if (scale != 0.0f) ops.round_to_grid(logits + begin, end - begin, scale);
      if (c.softcap > 0.0) ops.softcap(logits + begin, end - begin, static_cast<float>(c.softcap));
    });
  }
};

void Transformer::run(ThreadPool& pool, Workspace& ws, int64_t first_logit, float* logits) const {
  Pass pass(*this, pool, ws);
  QAT_CHECK(pass.n > 0 && pass.n <= kMaxBatchRows && first_logit >= 0 && first_logit <= pass.n);
  for (const BatchRow& row : ws.rows) QAT_CHECK(row.cache->has_grids() == has_grids(cache_grids_));
  pass.embed();
  if (pass.c.ple > 0) pass.embed_per_layer();
  pass.prepare();
  for (size_t i = 0; i < pass.c.layers.size(); ++i) {
    if (residual_hook) residual_hook(i, ws.hidden.data());
    pass.layer_block(i);
    const bool last = i + 1 == pass.c.layers.size();
    if (last || (i == last_kv_layer_ && !activation_hook)) {  // whoever observes wants to see all rows
      pass.drop_rows(first_logit);
      first_logit = 0;
    }
    if (pass.n == 0) return;
  }
  pass.head(logits);
}

void Transformer::embed(ThreadPool& pool, Workspace& ws) const {
  Pass pass(*this, pool, ws);
  pass.embed();
  if (pass.c.ple > 0) pass.embed_per_layer();
}

void Transformer::run_layer(ThreadPool& pool, Workspace& ws, size_t layer) const {
  Pass pass(*this, pool, ws);
  QAT_CHECK(pass.n > 0 && pass.n <= kMaxBatchRows && layer < weights_.layers.size());
  pass.prepare();
  pass.layer_block(layer);
}

void Transformer::head(ThreadPool& pool, Workspace& ws, float* logits) const {
  Pass pass(*this, pool, ws);
  QAT_CHECK(pass.n > 0 && pass.n <= kMaxBatchRows);
  pass.head(logits);
}

}  // namespace qat
