#include "export/equalize.h"

#include <algorithm>
#include <cmath>

#include "export/parallel.h"
#include "format/error.h"
#include "format/grid.h"
#include "format/safetensors.h"

namespace qat {
namespace {

constexpr double kPowers[] = {0.0, 0.25, 0.5, 0.75, 1.0};  // tried as alpha and as beta

using Factors = std::vector<float>;

// A consumer in memory, to be rounded again and again.
struct Consumer {
  std::vector<float> weights;
  int64_t rows = 0;
  DType grid = DType::F32;
};

void round_row(DType grid, bool searched, const float* x, const float* importance, int64_t cols, float* out) {
  if (grid != DType::Q4_0 || !searched) {
    fake_quantize_rows(grid, x, 1, cols, out);
    return;
  }
  for (int64_t c = 0; c < cols; c += kBlockSize)
    decode_block(search_q4_0(x + c, importance != nullptr ? importance + c : nullptr), out + c);
}

// Mean square of the error that rounding leaves in the consumers' outputs, were their inputs uncorrelated.
double rounding_error(const std::vector<Consumer>& consumers, const std::vector<float>& squares, const Factors& s,
                      const PtqOptions& options) {
  const auto cols = static_cast<int64_t>(s.size());
  std::vector<float> weights(s.size());  // of a squared error of a scaled weight
  for (size_t c = 0; c < s.size(); ++c) weights[c] = squares[c] / (s[c] * s[c]);
  const bool searched = options.method != PtqMethod::reference;
  const bool weighted = options.importance != nullptr || options.method == PtqMethod::gptq;
  double total = 0.0;
  for (const Consumer& consumer : consumers) {
    if (!has_codes(consumer.grid)) continue;
    std::vector<double> errors(static_cast<size_t>(consumer.rows));
    parallel_parts(consumer.rows, 16, [&](int64_t begin, int64_t end) {
      std::vector<float> scaled(s.size()), rounded(s.size());
      for (int64_t r = begin; r < end; ++r) {
        for (size_t c = 0; c < s.size(); ++c) scaled[c] = consumer.weights[static_cast<size_t>(r * cols) + c] * s[c];
        round_row(consumer.grid, searched, scaled.data(), weighted ? weights.data() : nullptr, cols, rounded.data());
        double error = 0.0;
        for (size_t c = 0; c < s.size(); ++c) {
          const double difference = static_cast<double>(rounded[c]) - scaled[c];
          error += weights[c] * difference * difference;
        }
        errors[static_cast<size_t>(r)] = error;
      }
    });
    for (const double error : errors) total += error;
  }
  return total;
}

// Scaled so that their geometric mean is 1, and channels that share a row share a factor.
Factors normalized(const EqualizedPair& pair, const std::vector<double>& logs) {
  const auto rows = static_cast<size_t>(*std::max_element(pair.rows.begin(), pair.rows.end())) + 1;
  std::vector<double> sums(rows), counts(rows);
  double mean = 0.0;
  for (size_t c = 0; c < logs.size(); ++c) {
    sums[static_cast<size_t>(pair.rows[c])] += logs[c];
    counts[static_cast<size_t>(pair.rows[c])] += 1.0;
    mean += logs[c] / static_cast<double>(logs.size());
  }
  Factors factors(logs.size());
  for (size_t c = 0; c < logs.size(); ++c) {
    const auto row = static_cast<size_t>(pair.rows[c]);
    factors[c] = static_cast<float>(std::exp(std::clamp(sums[row] / counts[row] - mean, -7.0, 7.0)));
  }
  return factors;
}

struct Chosen {
  Factors factors;  // empty: none is better than none
  double before = 0.0, after = 0.0;
};

Chosen choose_factors(const EqualizedPair& pair, const std::vector<Consumer>& consumers,
                      const std::vector<float>& squares, const PtqOptions& options) {
  const size_t cols = squares.size();
  std::vector<double> largest(cols, 1e-12);
  for (const Consumer& consumer : consumers)
    for (size_t i = 0; i < consumer.weights.size(); ++i)
      largest[i % cols] = std::max<double>(largest[i % cols], std::fabs(consumer.weights[i]));
  double power = 0.0;  // of the outputs
  for (const Consumer& consumer : consumers)
    if (has_codes(consumer.grid))
      for (size_t i = 0; i < consumer.weights.size(); ++i)
        power += static_cast<double>(squares[i % cols]) * consumer.weights[i] * consumer.weights[i];
  double mean = 0.0;
  for (const float square : squares) mean += square / static_cast<double>(cols);
  Chosen best;
  if (!(power > 0.0)) return best;
  best.before = best.after = rounding_error(consumers, squares, Factors(cols, 1.0f), options) / power;
  for (const double alpha : kPowers) {
    for (const double beta : kPowers) {
      if (alpha == 0.0 && beta == 0.0) continue;
      std::vector<double> logs(cols);
      for (size_t c = 0; c < cols; ++c)  // an input that never spoke is no reason to starve its column
        logs[c] = 0.5 * alpha * std::log(squares[c] + 1e-6 * mean) - beta * std::log(largest[c]);
      Factors factors = normalized(pair, logs);
      const double error = rounding_error(consumers, squares, factors, options) / power;
      if (error < best.after) {
        best.after = error;
        best.factors = std::move(factors);
      }
    }
  }
  return best;
}

// What each tensor is multiplied by: rows (elements of a norm) and columns.
struct Scaling {
  std::vector<double> rows, columns;
};

void apply(const EqualizedPair& pair, const Factors& factors, std::map<std::string, Scaling>* scalings) {
  Scaling& producer = (*scalings)[pair.producer.name];
  producer.rows.assign(static_cast<size_t>(pair.producer.shape[0]), 1.0);
  for (size_t c = 0; c < factors.size(); ++c) producer.rows[static_cast<size_t>(pair.rows[c])] = 1.0 / factors[c];
  for (const TensorInfo& consumer : pair.consumers)
    (*scalings)[consumer.name].columns.assign(factors.begin(), factors.end());
}

std::vector<float> scaled(const FloatCheckpoint& checkpoint, const TensorInfo& info, const Scaling& scaling) {
  std::vector<float> values = checkpoint.read(info);
  const double offset = info.kind == TensorKind::norm && checkpoint.config().norm_plus_one ? 1.0 : 0.0;
  const size_t cols = info.shape.size() == 2 ? static_cast<size_t>(info.shape[1]) : 1;
  for (size_t i = 0; i < values.size(); ++i) {
    double factor = scaling.rows.empty() ? 1.0 : scaling.rows[i / cols];
    if (!scaling.columns.empty()) factor *= scaling.columns[i % cols];
    values[i] = static_cast<float>((values[i] + offset) * factor - offset);
  }
  return values;
}

void write_scaled(const FloatCheckpoint& checkpoint, const std::map<std::string, Scaling>& scalings,
                  const std::string& out) {
  copy_model_files(checkpoint.directory(), out);
  std::vector<TensorSpec> specs;
  for (const TensorInfo& info : checkpoint.table())
    specs.push_back({info.name, scalings.count(info.name) ? DType::F32 : checkpoint.dtype(info), info.shape});
  SafetensorsWriter writer(out + "/model.safetensors", specs);
  for (const TensorInfo& info : checkpoint.table()) {
    const auto found = scalings.find(info.name);
    if (found == scalings.end()) {
      const Span<const uint8_t> bytes = checkpoint.tensor(info).bytes;
      writer.append(bytes.data(), bytes.size());
      continue;
    }
    const std::vector<float> values = scaled(checkpoint, info, found->second);
    writer.append(values.data(), values.size() * sizeof(float));
  }
  writer.commit();
}

}  // namespace

std::vector<EqualizedPair> equalized_pairs(const ModelConfig& config) {
  const std::vector<TensorInfo> table = tensor_table(config);
  std::vector<EqualizedPair> pairs;
  const auto add = [&](int layer, Role producer, const std::vector<Role>& consumers) -> EqualizedPair& {
    EqualizedPair& pair = pairs.emplace_back();
    pair.producer = *find_tensor_info(table, producer, layer);
    for (const Role role : consumers)
      if (const TensorInfo* info = find_tensor_info(table, role, layer)) pair.consumers.push_back(*info);
    for (int64_t c = 0; c < pair.consumers[0].shape[1]; ++c) pair.rows.push_back(c);
    return pair;
  };
  for (int layer = 0; layer < static_cast<int>(config.layers.size()); ++layer) {
    add(layer, Role::attention_norm, {Role::q, Role::k, Role::v});
    add(layer, Role::ffn_norm, {Role::gate, Role::up});
    add(layer, Role::up, {Role::down});
    if (config.v_norm()) continue;
    const LayerConfig& c = config.layers[static_cast<size_t>(layer)];
    EqualizedPair& pair = add(layer, Role::v, {Role::o});
    const int64_t group = config.heads / c.kv_heads;
    for (size_t i = 0; i < pair.rows.size(); ++i) {
      const auto channel = static_cast<int64_t>(i);
      pair.rows[i] = channel / c.head_dim / group * c.head_dim + channel % c.head_dim;
    }
  }
  return pairs;
}

EqualizedError equalize_checkpoint(const std::string& hf_directory, const Plan& plan, const PtqOptions& options,
                                   const Importance& inputs, const std::string& out, const PtqProgress& progress) {
  const FloatCheckpoint checkpoint(hf_directory);
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, checkpoint.table(), checkpoint.dtypes());
  const std::vector<EqualizedPair> pairs = equalized_pairs(checkpoint.config());
  std::map<std::string, Scaling> scalings;
  EqualizedError error;
  for (const EqualizedPair& pair : pairs) {
    ++error.pairs;
    std::vector<Consumer> consumers;
    for (const TensorInfo& info : pair.consumers)
      consumers.push_back({checkpoint.read(info), info.shape[0], resolved.at(info.name).grid});
    const Chosen chosen = choose_factors(pair, consumers, inputs.at(pair.consumers[0].name), options);
    error.before += chosen.before;
    error.after += chosen.after;
    if (!chosen.factors.empty()) {
      apply(pair, chosen.factors, &scalings);
      ++error.changed;
    }
    if (progress) progress(error.pairs, static_cast<int64_t>(pairs.size()));
  }
  write_scaled(checkpoint, scalings, out);
  return error;
}

}  // namespace qat
