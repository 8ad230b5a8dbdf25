#include "tests/inference/naive_model.h"

#include <cmath>

#include "format/grid.h"

namespace qat {
namespace {

using Vector = std::vector<double>;
using Rows = std::vector<Vector>;  // one per token

Vector row_of(const Matrix& m, int64_t row) {
  std::vector<float> floats(static_cast<size_t>(m.cols));
  decode_rows(m.dtype, m.data + row_bytes(m.dtype, m.cols) * static_cast<size_t>(row), 1, m.cols, floats.data());
  return Vector(floats.begin(), floats.end());
}

double dot(const double* a, const double* b, size_t n) {
  double sum = 0.0;
  for (size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

Rows times(const Rows& x, const Matrix& m) {
  Rows y(x.size());
  for (int64_t o = 0; o < m.rows; ++o) {
    const Vector w = row_of(m, o);
    for (size_t t = 0; t < x.size(); ++t) y[t].push_back(dot(w.data(), x[t].data(), w.size()));
  }
  return y;
}

// Norms x[from, from + size); no weight when empty.
void norm(Vector& x, size_t from, size_t size, const std::vector<float>& weight, double eps) {
  const double scale = 1.0 / std::sqrt(dot(x.data() + from, x.data() + from, size) / static_cast<double>(size) + eps);
  for (size_t i = 0; i < size; ++i) x[from + i] *= scale * (weight.empty() ? 1.0 : static_cast<double>(weight[i]));
}

Rows normed(Rows x, const std::vector<float>& weight, double eps) {
  for (Vector& row : x) norm(row, 0, row.size(), weight, eps);
  return x;
}

void add(Rows& x, const Rows& y) {
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t i = 0; i < x[t].size(); ++i) x[t][i] += y[t][i];
}

double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double silu(double x) { return x / (1 + std::exp(-x)); }

// Turns the pair (a, b) of every head at the token's position.
void rotate_heads(Vector& x, size_t head_dim, size_t position, const std::vector<float>& frequencies,
                  bool interleaved) {
  for (size_t head = 0; head < x.size(); head += head_dim) {
    for (size_t i = 0; i < head_dim / 2; ++i) {
      const double angle = static_cast<double>(static_cast<float>(position) * frequencies[i]);
      double& a = x[head + (interleaved ? 2 * i : i)];
      double& b = x[head + (interleaved ? 2 * i + 1 : i + head_dim / 2)];
      const double turned = a * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + a * std::sin(angle);
      a = turned;
    }
  }
}

struct KeysValues {
  Rows k, v;
};

Rows attention(const Weights& w, size_t index, const Rows& x, std::vector<KeysValues>& all) {
  const ModelConfig& c = w.config;
  const LayerConfig& layer = c.layers[index];
  const LayerWeights& l = w.layers[index];
  const size_t hd = static_cast<size_t>(layer.head_dim), heads = static_cast<size_t>(c.heads);
  const std::vector<float> frequencies = rope_frequencies(c, layer);
  const auto norm_heads = [&](Rows& rows, const std::vector<float>& weight) {
    for (Vector& row : rows)
      for (size_t head = 0; head < row.size(); head += hd) norm(row, head, hd, weight, c.eps);
  };
  const auto rotate_all = [&](Rows& rows) {
    for (size_t t = 0; t < rows.size(); ++t) rotate_heads(rows[t], hd, t, frequencies, w.rope_interleaved);
  };
  Rows q = times(x, l.q);
  if (c.arch != Arch::llama) norm_heads(q, l.q_norm);
  rotate_all(q);
  if (static_cast<size_t>(layer.kv_source) == index) {
    Rows k = times(x, l.k), v = layer.k_eq_v ? k : times(x, l.v);
    if (c.arch == Arch::gemma4) norm_heads(v, {});
    if (c.arch != Arch::llama) norm_heads(k, l.k_norm);
    rotate_all(k);
    all[index] = {k, v};
  }
  const KeysValues& kv = all[static_cast<size_t>(layer.kv_source)];
  Rows out(x.size(), Vector(heads * hd, 0.0));
  for (size_t t = 0; t < x.size(); ++t) {
    for (size_t head = 0; head < heads; ++head) {
      const size_t kv_head = head * static_cast<size_t>(layer.kv_heads) / heads;
      Vector p(t + 1);
      double total = 0.0;
      for (size_t j = 0; j <= t; ++j) {
        const bool hidden = layer.sliding && t - j >= static_cast<size_t>(c.sliding_window);
        const double score = dot(q[t].data() + head * hd, kv.k[j].data() + kv_head * hd, hd) * c.attention_scale;
        total += p[j] = hidden ? 0.0 : std::exp(score);
      }
      for (size_t j = 0; j <= t; ++j)
        for (size_t i = 0; i < hd; ++i) out[t][head * hd + i] += p[j] / total * kv.v[j][kv_head * hd + i];
    }
  }
  return times(out, l.o);
}

Rows mlp(const Weights& w, const LayerWeights& l, const Rows& x) {
  Rows gate = times(x, l.gate), up = times(x, l.up);
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t i = 0; i < gate[t].size(); ++i)
      gate[t][i] = (w.config.arch == Arch::llama ? silu(gate[t][i]) : gelu(gate[t][i])) * up[t][i];
  return times(gate, l.down);
}

// Per token the vectors of all layers, one after the other.
Rows per_layer_inputs(const Weights& w, const Rows& embedded, const std::vector<int32_t>& tokens) {
  const ModelConfig& c = w.config;
  const size_t width = static_cast<size_t>(c.ple);
  Rows p = times(embedded, w.ple_model_projection);
  for (size_t t = 0; t < p.size(); ++t) {
    const Vector token = row_of(w.ple_embedding, tokens[t]);
    for (double& x : p[t]) x /= std::sqrt(static_cast<double>(c.hidden));
    for (size_t at = 0; at < p[t].size(); at += width) norm(p[t], at, width, w.ple_projection_norm, c.eps);
    for (size_t i = 0; i < p[t].size(); ++i)
      p[t][i] = (p[t][i] + token[i] * std::sqrt(static_cast<double>(c.ple))) / std::sqrt(2.0);
  }
  return p;
}

Rows per_layer_branch(const Weights& w, size_t index, const Rows& h, const Rows& inputs) {
  const size_t width = static_cast<size_t>(w.config.ple);
  Rows gate = times(h, w.layers[index].ple_gate);
  for (size_t t = 0; t < h.size(); ++t)
    for (size_t i = 0; i < width; ++i) gate[t][i] = gelu(gate[t][i]) * inputs[t][index * width + i];
  return times(gate, w.layers[index].ple_projection);
}

}  // namespace

std::vector<double> naive_logits(const Weights& w, const std::vector<int32_t>& tokens) {
  const ModelConfig& c = w.config;
  const bool sandwich = c.arch != Arch::llama;
  Rows h;
  for (const int32_t token : tokens) {
    h.push_back(row_of(w.embedding, token));
    for (double& x : h.back()) x *= c.embedding_scale;
  }
  const Rows inputs = c.ple > 0 ? per_layer_inputs(w, h, tokens) : Rows();
  std::vector<KeysValues> all(c.layers.size());
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const LayerWeights& l = w.layers[i];
    const Rows a = attention(w, i, normed(h, l.attention_norm, c.eps), all);
    add(h, sandwich ? normed(a, l.post_attention_norm, c.eps) : a);
    const Rows f = mlp(w, l, normed(h, l.ffn_norm, c.eps));
    add(h, sandwich ? normed(f, l.post_ffn_norm, c.eps) : f);
    if (c.ple > 0) add(h, normed(per_layer_branch(w, i, h, inputs), l.post_ple_norm, c.eps));
    for (Vector& row : h)
      for (double& x : row) x *= static_cast<double>(l.scalar);
  }
  std::vector<double> logits;
  for (const Vector& row : times(normed(h, w.output_norm, c.eps), w.output))
    for (const double x : row) logits.push_back(c.softcap > 0 ? c.softcap * std::tanh(x / c.softcap) : x);
  return logits;
}

}  // namespace qat
