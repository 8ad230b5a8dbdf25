#include "export/sensitivity.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "format/error.h"
#include "format/number.h"
#include "format/pattern.h"
#include "inference/kernels.h"
#include "inference/layer_run.h"
#include "inference/metrics.h"

namespace qat {
namespace {

constexpr DType kCandidates[] = {DType::Q2_0, DType::Q4_0, DType::Q6_K, DType::Q8_0};
constexpr uint64_t kAlignment = 32;                    // of tensors in a GGUF file
constexpr int64_t kMostLogits = int64_t{1} << 28;      // of the float model, in memory
constexpr int64_t kSampledWeights = int64_t{1} << 17;  // of a tensor, to compare types by their squared error

// The part of a searched rounding's divergence that gptq leaves: 0.68 in stories260K, 0.72 in gemma4-micro, 0.67 in
// gemma4-mini. Without it the tables, which gptq leaves alone, would seem to cost too little beside the linears.
constexpr double kLeftByGptq = 0.7;
bool by_gptq(const TensorInfo& info, DType type, const PtqOptions& options) {
  return options.method == PtqMethod::gptq && info.layer >= 0 && type == DType::Q4_0;
}

// Those that are run; the divergence of finer ones is too small to need it.
bool is_coarse(DType type) { return type == DType::Q2_0 || type == DType::Q4_0; }

uint64_t stored_bytes(const TensorInfo& info, DType type) {
  const uint64_t bytes = static_cast<uint64_t>(info.shape[0]) * row_bytes(type, info.shape[1]);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// --- Squared errors ---

// Rows spread evenly over a matrix.
std::vector<int64_t> sampled_rows(const TensorInfo& info) {
  const int64_t count = std::clamp<int64_t>(kSampledWeights / info.shape[1], 1, info.shape[0]);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) rows.push_back(i * info.shape[0] / count);
  return rows;
}

double squared_error(const FloatCheckpoint& checkpoint, const TensorInfo& info, DType type, const PtqOptions& options) {
  const auto cols = static_cast<size_t>(info.shape[1]);
  std::vector<float> values(cols), rounded(cols);
  std::vector<uint8_t> blocks(row_bytes(type, info.shape[1]));
  double error = 0.0;
  for (const int64_t row : sampled_rows(info)) {
    checkpoint.read_rows(info, row, 1, values.data());
    encode_checkpoint_rows(checkpoint, info, type, options, row, 1, blocks.data());
    decode_rows(type, blocks.data(), 1, info.shape[1], rounded.data());
    for (size_t c = 0; c < cols; ++c) {
      const double difference = static_cast<double>(values[c]) - rounded[c];
      error += difference * difference;
    }
  }
  return error;
}

// --- Divergence of the output ---

// So many sequences that all their logits fit; the last one may be cut.
std::vector<std::vector<int32_t>> first_sequences(const std::vector<std::vector<int32_t>>& sequences, int64_t vocab) {
  auto left = static_cast<size_t>(std::max<int64_t>(1, kMostLogits / vocab));
  std::vector<std::vector<int32_t>> kept;
  for (const std::vector<int32_t>& sequence : sequences) {
    const size_t length = std::min(left, sequence.size());
    if (length == 0) break;
    kept.emplace_back(sequence.begin(), sequence.begin() + static_cast<std::ptrdiff_t>(length));
    left -= length;
  }
  return kept;
}

EngineOptions float_engine(int threads) {
  EngineOptions options;
  options.threads = threads;
  options.float_activations = true;  // what rounding of weights costs, alone
  return options;
}

// The float model beside itself with one tensor rounded.
class Probe {
 public:
  Probe(const FloatCheckpoint& checkpoint, const PtqOptions& options, const std::vector<TensorChoices>& tensors,
        PtqProgress progress)
      : checkpoint_(checkpoint),
        options_(options),
        sequences_(first_sequences(options.calibration, checkpoint.config().vocab)),
        run_(load_weights(checkpoint.directory()), float_engine(options.threads), sequences_),
        progress_(std::move(progress)) {
    std::set<int32_t> tokens;
    for (const std::vector<int32_t>& sequence : sequences_) tokens.insert(sequence.begin(), sequence.end());
    tokens_.assign(tokens.begin(), tokens.end());
    for (const TensorInfo& info : checkpoint.table())
      if (info.layer >= 0 && info.shape.size() == 2) {
        layer_work_.resize(static_cast<size_t>(info.layer) + 1);
        layer_work_.back() += static_cast<double>(info.shape[0] * info.shape[1]);
      }
    head_work_ = static_cast<double>(checkpoint.config().vocab * checkpoint.config().hidden);
    total_ = 2 * work_from(0) - head_work_;  // the float model: for its logits, and on the way from layer to layer
    for (const TensorChoices& tensor : tensors)
      for (const TypeCost& choice : tensor.choices)
        if (tensor.choices.size() > 1 && is_coarse(choice.type)) total_ += work_from(first_layer(tensor.info));
  }

  // In this order: take_base(), divergence() of what is not in a layer, begin(), and for each layer divergence() of its
  // tensors and pass().
  void take_base() {
    run_.embed();
    run_from(0);
    const int64_t vocab = run_.config().vocab;
    base_.resize(static_cast<size_t>(run_.tokens() * vocab));
    base_lse_.resize(static_cast<size_t>(run_.tokens()));
    run_.head([&](int64_t first, int64_t rows, const float* logits) {
      std::copy_n(logits, rows * vocab, base_.data() + first * vocab);
      for (int64_t r = 0; r < rows; ++r)
        base_lse_[static_cast<size_t>(first + r)] = log_sum_exp(kernels(), logits + r * vocab, vocab);
    });
    report(head_work_);
  }

  // Mean over all tokens, with the tensor rounded to `type`; the model is then as it was.
  double divergence(const TensorInfo& info, DType type) {
    const std::vector<uint8_t> rows = rounded(info, type);
    Matrix& matrix = *find_matrix(run_.weights(), info);
    const Matrix before = matrix;
    matrix.dtype = type;
    matrix.data = rows.data();
    const bool is_head = info.role == Role::token_embedding && run_.config().tied;
    if (is_head) run_.weights().output = matrix;
    if (info.layer < 0) run_.embed();
    run_from(first_layer(info));
    const double result = mean_divergence();
    matrix = before;
    if (is_head) run_.weights().output = before;
    run_.restore_stream();
    return result;
  }

  void begin() {
    run_.embed();
    run_.save_stream();
  }
  void pass(size_t layer) {
    run_layer(layer);
    run_.save_stream();
  }

 private:
  static size_t first_layer(const TensorInfo& info) { return static_cast<size_t>(std::max(0, info.layer)); }
  const VectorKernels& kernels() const { return vector_kernels(run_.isa()); }

  double work_from(size_t layer) const {
    double work = head_work_;
    for (size_t i = layer; i < layer_work_.size(); ++i) work += layer_work_[i];
    return work;
  }

  void report(double work) {
    done_ = std::min(total_, done_ + work);
    if (progress_) progress_(static_cast<int64_t>(done_), static_cast<int64_t>(total_) + 1);
  }

  void run_layer(size_t layer) {
    const auto tokens = static_cast<double>(run_.tokens());
    int64_t before = 0;
    run_.run_layer(layer, true, [&](int64_t done) {
      report(layer_work_[layer] * static_cast<double>(done - before) / tokens);
      before = done;
    });
  }

  void run_from(size_t layer) {
    for (size_t i = layer; i < layer_work_.size(); ++i) run_layer(i);
  }

  // Of a table that is only looked up: the rows of tokens that occur. The kernel gives no memory for the others.
  std::vector<uint8_t> rounded(const TensorInfo& info, DType type) const {
    const size_t stride = row_bytes(type, info.shape[1]);
    std::vector<uint8_t> rows(static_cast<size_t>(info.shape[0]) * stride);
    const bool looked_up =
        info.kind == TensorKind::embedding && !(info.role == Role::token_embedding && run_.config().tied);
    if (!looked_up) {
      encode_checkpoint_rows(checkpoint_, info, type, options_, 0, info.shape[0], rows.data());
      return rows;
    }
    for (const int32_t token : tokens_)
      encode_checkpoint_rows(checkpoint_, info, type, options_, token, 1,
                             rows.data() + static_cast<size_t>(token) * stride);
    return rows;
  }

  double mean_divergence() {
    const int64_t vocab = run_.config().vocab;
    std::vector<double> divergences(static_cast<size_t>(run_.tokens()));
    run_.head([&](int64_t first, int64_t rows, const float* logits) {
      run_.pool().parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          const auto token = static_cast<size_t>(first + r);
          divergences[token] = compare_rows(kernels(), base_.data() + (first + r) * vocab, base_lse_[token],
                                            logits + r * vocab, vocab, 0)
                                   .kld;
        }
      });
    });
    report(head_work_);
    double sum = 0.0;
    for (const double divergence : divergences) sum += divergence;
    return std::max(0.0, sum / static_cast<double>(divergences.size()));
  }

  const FloatCheckpoint& checkpoint_;
  const PtqOptions& options_;
  std::vector<std::vector<int32_t>> sequences_;
  LayerRun run_;
  PtqProgress progress_;
  std::vector<int32_t> tokens_;  // those that occur, sorted
  std::vector<float> base_, base_lse_;
  std::vector<double> layer_work_;  // multiply-adds for a token
  double head_work_ = 0.0, done_ = 0.0, total_ = 0.0;
};

// --- Rules ---

// A tensor's name in a pattern, all layers alike: "blk.3.ffn_up.weight" is {"blk\.", "\.ffn_up\."}.
std::string pattern_of(const TensorInfo& info, const std::string& layers) {
  const std::string number = "blk." + std::to_string(info.layer) + ".";
  std::string stem = info.layer < 0 ? info.gguf : info.gguf.substr(number.size());
  stem = stem.substr(0, stem.find('.'));
  return info.layer < 0 ? "^" + stem + "\\." : "^blk\\.(" + layers + ")\\." + stem + "\\.";
}

}  // namespace

std::vector<TensorChoices> type_choices(const FloatCheckpoint& checkpoint, const Plan& plan) {
  const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, checkpoint.table(), checkpoint.dtypes());
  std::vector<Pattern> patterns;
  for (const PlanRule& rule : plan.rules) patterns.emplace_back(rule.pattern, "plan rule");
  std::vector<TensorChoices> tensors;
  for (const TensorInfo& info : checkpoint.table()) {
    if (!info.quantizable) continue;
    TensorChoices& tensor = tensors.emplace_back();
    tensor.info = info;
    const bool ruled = std::any_of(patterns.begin(), patterns.end(), [&](const Pattern& pattern) {
      return pattern.found_in(info.name) || pattern.found_in(info.gguf);
    });
    std::vector<DType> types;
    for (const DType type : kCandidates)
      if (!ruled && info.shape[1] % dtype_info(type).block_size == 0) types.push_back(type);
    if (types.empty()) types = {resolved.at(info.name).grid};
    else types.push_back(checkpoint.dtype(info) == DType::BF16 ? DType::BF16 : DType::F16);
    for (const DType type : types) tensor.choices.push_back({type, stored_bytes(info, type), 0.0});
  }
  return tensors;
}

void measure_costs(const FloatCheckpoint& checkpoint, const PtqOptions& options, std::vector<TensorChoices>* tensors,
                   const PtqProgress& progress) {
  check_calibration(options.calibration, "measuring what types cost takes");
  Probe probe(checkpoint, options, *tensors, progress);
  const auto measure = [&](TensorChoices& tensor) {
    if (tensor.choices.size() < 2) return;
    double of_error = 0.0;  // cost by squared error, of the finest type that was run
    for (TypeCost& choice : tensor.choices) {
      const double error = squared_error(checkpoint, tensor.info, choice.type, options);
      if (is_coarse(choice.type)) {
        choice.cost = probe.divergence(tensor.info, choice.type);
        if (by_gptq(tensor.info, choice.type, options)) choice.cost *= kLeftByGptq;
        of_error = error > 0.0 ? choice.cost / error : 0.0;
      } else {
        choice.cost = of_error * error;
      }
    }
  };
  probe.take_base();
  for (TensorChoices& tensor : *tensors)
    if (tensor.info.layer < 0) measure(tensor);
  probe.begin();
  for (size_t layer = 0; layer < checkpoint.config().layers.size(); ++layer) {
    for (TensorChoices& tensor : *tensors)
      if (tensor.info.layer == static_cast<int>(layer)) measure(tensor);
    probe.pass(layer);
  }
}

Plan plan_of_choices(const Plan& plan, const FloatCheckpoint& checkpoint, const std::vector<TensorChoices>& tensors,
                     const std::vector<size_t>& chosen) {
  const std::map<std::string, PlanEntry> plain = resolve_plan(plan, checkpoint.table(), checkpoint.dtypes());
  // Layers of a role that get the same type share a rule; what the plan gives without one needs none.
  std::map<std::pair<std::string, DType>, std::string> layers;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorInfo& info = tensors[i].info;
    const DType type = tensors[i].choices[chosen[i]].type;
    if (type == plain.at(info.name).grid) continue;
    std::string& list = layers[{pattern_of(info, "%"), type}];
    list += (list.empty() ? "" : "|") + std::to_string(info.layer);
  }
  Plan out = plan;
  for (const auto& [key, list] : layers) {
    std::string pattern = key.first;
    const size_t place = pattern.find('%');
    if (place != std::string::npos) pattern.replace(place, 1, list);
    out.rules.push_back({pattern, key.second});
  }
  return out;
}

}  // namespace qat
