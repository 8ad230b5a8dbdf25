#include "export/mobile_ptq.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "export/gptq_layers.h"
#include "export/mobile_export.h"
#include "export/parallel.h"
#include "format/channel_grid.h"
#include "format/error.h"
#include "format/file_io.h"
#include "format/grid.h"
#include "inference/engine.h"

namespace qat {
namespace {

constexpr int64_t kSlabWeights = int64_t{1} << 20;   // between two reports
constexpr int64_t kChunkWeights = int64_t{1} << 16;  // held as floats by a thread at a time

int64_t rows_of(const TensorInfo& info) { return info.shape.size() == 2 ? info.shape[0] : 1; }

// The largest magnitude that a tensor's type can be asked to hold.
float magnitude_limit(DType type) {
  if (const int bits = code_bits(type)) return kLargestStorableScale * static_cast<float>(highest_code(bits));
  return type == DType::F16 ? 65504.0f : 3.0e38f;
}

// A tensor of the schema and where its weights come from.
struct Job {
  const TensorInfo* info = nullptr;    // as written
  const TensorInfo* source = nullptr;  // as read: the embedding, for a tied head
  DType type = DType::F32;
  int64_t scales_per_row = 1;
  const float* importance = nullptr;  // per column

  int64_t rows() const { return rows_of(*info); }
  int64_t cols() const { return info->shape.back(); }
  int64_t group() const { return cols() / scales_per_row; }  // elements of a scale
};

// Pass 1: weights to codes, in slabs of rows that all processors share.
class WeightQuantizer {
 public:
  WeightQuantizer(const FloatCheckpoint& checkpoint, const Plan& plan, const MobilePtqOptions& options,
                  const MobilePtqProgress& progress)
      : checkpoint_(checkpoint), options_(options), progress_(progress), table_(mobile_table(checkpoint.config())) {
    const std::map<std::string, PlanEntry> resolved = resolve_plan(plan, checkpoint.table(), checkpoint.dtypes());
    for (const TensorInfo& info : table_) {
      const bool tied_head = info.role == Role::output && checkpoint.config().tied;
      Job job;
      job.info = &info;
      job.source =
          tied_head ? find_tensor_info(checkpoint.table(), Role::token_embedding) : &info;  // equal but for its name
      job.type = resolved.at(job.source->name).grid;
      job.scales_per_row = code_bits(job.type) != 0 ? mobile_scales_per_row(checkpoint.config(), info) : 1;
      job.importance = importance_of(*job.source);
      jobs_.push_back(job);
      total_ += job.rows() * job.cols();
    }
  }

  const std::vector<TensorInfo>& table() const { return table_; }

  // Widths and scales of every tensor; no activation scales.
  std::vector<MobileSpec> find_scales() {
    std::vector<MobileSpec> specs(jobs_.size());
    int64_t done = 0;
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const Job& job = jobs_[i];
      specs[i].dtype = job.type;
      specs[i].scales_per_row = job.scales_per_row;
      if (code_bits(job.type) != 0) specs[i].scales.resize(static_cast<size_t>(job.rows() * job.scales_per_row));
      each_slab(job, [&](int64_t row, int64_t count) {
        if (code_bits(job.type) != 0) scale_rows(job, row, count, specs[i].scales.data());
        report("scales", done += count * job.cols());
      });
    }
    return specs;
  }

  // The same by the rule gptq, which finds scales and codes together: those codes are kept in a file.
  std::vector<MobileSpec> round_layers(const std::string& path) {
    std::vector<MobileSpec> specs(jobs_.size());
    AtomicFile file(path);
    GptqLayers layers(checkpoint_.directory(), options_.calibration, options_.threads,
                      [&](int64_t done, int64_t total) {
                        if (progress_) progress_("layers", done, total);
                      });
    int current = -1;
    for (size_t i = 0; i < jobs_.size(); ++i) {
      const Job& job = jobs_[i];
      if (job.info->layer != current) {
        if (current >= 0) layers.finish(current);
        current = job.info->layer;
        if (current >= 0) {
          check_layer(current);
          layers.measure(current);
        }
      }
      specs[i].dtype = job.type;
      specs[i].scales_per_row = job.scales_per_row;
      if (code_bits(job.type) == 0) continue;
      std::vector<float>& scales = specs[i].scales;
      scales.resize(static_cast<size_t>(job.rows() * job.scales_per_row));
      if (const InputMoments* moments = layers.moments(*job.info)) {
        std::vector<uint8_t> codes = round_tensor(job, *moments, scales.data());
        codes_at_[i] = file.position();
        file.write(codes.data(), codes.size());
        layers.install(*job.info, job.type, std::move(codes), scales);
        continue;
      }
      each_slab(job, [&](int64_t row, int64_t count) {
        scale_rows(job, row, count, scales.data());
        layers.count_weights(count * job.cols());
      });
      if (job.info->kind == TensorKind::embedding)
        layers.install_table(*job.info, job.type, job.scales_per_row, [&](int64_t row, uint8_t* data, float* out) {
          encode(job, scales.data(), row, 1, data);
          std::copy_n(scales.begin() + row * job.scales_per_row, job.scales_per_row, out);
        });
    }
    file.commit();
    codes_ = MappedFile(path);
    return specs;
  }

  void write(const std::vector<MobileSpec>& specs, const std::string& out) {
    const std::vector<CacheScales> no_cache(checkpoint_.config().layers.size());
    MobileWriter writer(out, checkpoint_.directory(), table_, specs, no_cache, describe_widths(table_, specs));
    std::vector<uint8_t> stored;
    int64_t done = 0;
    for (const size_t i : writer.order()) {
      const Job& job = jobs_[i];
      const size_t stride = row_bytes(job.type, job.cols());
      const auto kept = codes_at_.find(i);
      each_slab(job, [&](int64_t row, int64_t count) {
        stored.resize(static_cast<size_t>(count) * stride);
        if (kept == codes_at_.end()) encode(job, specs[i].scales.data(), row, count, stored.data());
        else
          std::copy_n(codes_.bytes().data() + kept->second + static_cast<size_t>(row) * stride, stored.size(),
                      stored.begin());
        writer.append_rows(i, stored.data(), count);
        report("codes", done += count * job.cols());
      });
    }
    writer.commit();
  }

 private:
  const float* importance_of(const TensorInfo& source) const {
    if (options_.importance == nullptr) return nullptr;
    const auto found = options_.importance->find(source.name);
    if (found == options_.importance->end()) return nullptr;
    QAT_CHECK(static_cast<int64_t>(found->second.size()) == source.shape.back());
    return found->second.data();
  }

  // Before a layer is run: what is wrong with its weights would show in the activations first.
  void check_layer(int layer) const {
    for (const Job& job : jobs_)
      if (job.info->layer == layer) each_row(job, 0, job.rows(), [](int64_t, const float*) {});
  }

  // Scales, and codes as stored, of a whole tensor.
  std::vector<uint8_t> round_tensor(const Job& job, const InputMoments& moments, float* scales) const {
    std::vector<float> values(static_cast<size_t>(job.rows() * job.cols()));
    each_row(job, 0, job.rows(),
             [&](int64_t row, const float* x) { std::copy_n(x, job.cols(), values.begin() + row * job.cols()); });
    const int bits = code_bits(job.type);
    std::vector<int8_t> codes(values.size());
    gptq_channels(moments, bits, values.data(), job.rows(), scales, codes.data());
    std::vector<uint8_t> stored(static_cast<size_t>(job.rows()) * row_bytes(job.type, job.cols()));
    pack_codes(bits, codes.data(), job.rows(), job.cols(), stored.data());
    return stored;
  }

  void report(const char* stage, int64_t done) const {
    if (progress_) progress_(stage, done, total_);
  }

  template <class Body>
  void each_slab(const Job& job, const Body& body) const {
    const int64_t slab = std::max<int64_t>(1, kSlabWeights / job.cols());
    for (int64_t row = 0; row < job.rows(); row += slab) body(row, std::min(slab, job.rows() - row));
  }

  // body(row, values) for every row of [first, first + count), checked.
  template <class Body>
  void each_row(const Job& job, int64_t first, int64_t count, const Body& body) const {
    const int64_t cols = job.cols(), chunk = std::max<int64_t>(1, kChunkWeights / cols);
    parallel_parts(count, chunk, [&](int64_t begin, int64_t end) {
      std::vector<float> values(static_cast<size_t>(std::min(chunk, end - begin) * cols));
      for (int64_t i = begin; i < end; i += chunk) {
        const int64_t n = std::min(chunk, end - i);
        checkpoint_.read_rows(*job.source, first + i, n, values.data());
        check_values(job, first + i, n, values.data());
        for (int64_t r = 0; r < n; ++r) body(first + i + r, values.data() + r * cols);
      }
    });
    const Span<const uint8_t> bytes = checkpoint_.tensor(*job.source).bytes;
    const size_t stride = bytes.size() / static_cast<size_t>(job.rows());
    release_pages(bytes.data() + static_cast<size_t>(first) * stride, static_cast<size_t>(count) * stride);
  }

  void check_values(const Job& job, int64_t first_row, int64_t count, const float* values) const {
    const float limit = magnitude_limit(job.type);
    for (int64_t i = 0; i < count * job.cols(); ++i) {
      if (std::fabs(values[i]) <= limit) continue;  // false for NaN
      fail(checkpoint_.directory(), ": ", job.source->name, ": row ", first_row + i / job.cols(), ", column ",
           i % job.cols(), ": expected a finite weight that ", dtype_name(job.type), " can hold, found ", values[i]);
    }
  }

  void scale_rows(const Job& job, int64_t first, int64_t count, float* scales) const {
    const int bits = code_bits(job.type);
    each_row(job, first, count, [&](int64_t row, const float* values) {
      for (int64_t s = 0; s < job.scales_per_row; ++s) {
        const int64_t at = s * job.group();
        scales[row * job.scales_per_row + s] =
            group_scale(bits, values + at, job.importance != nullptr ? job.importance + at : nullptr, job.group());
      }
    });
  }

  float group_scale(int bits, const float* x, const float* importance, int64_t n) const {
    if (options_.method != PtqMethod::reference) return search_scale(bits, x, importance, n);
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
    return storable_scale(largest / static_cast<float>(highest_code(bits)));
  }

  void encode(const Job& job, const float* scales, int64_t first, int64_t count, uint8_t* out) const {
    const int bits = code_bits(job.type);
    const size_t stride = row_bytes(job.type, job.cols());
    each_row(job, first, count, [&](int64_t row, const float* values) {
      uint8_t* stored = out + static_cast<size_t>(row - first) * stride;
      if (bits == 0) return encode_rows(job.type, values, 1, job.cols(), stored);
      std::vector<int8_t> codes(static_cast<size_t>(job.cols()));
      for (int64_t s = 0; s < job.scales_per_row; ++s)
        encode_channel(bits, values + s * job.group(), job.group(), scales[row * job.scales_per_row + s],
                       codes.data() + s * job.group());
      pack_codes(bits, codes.data(), 1, job.cols(), stored);
    });
  }

  const FloatCheckpoint& checkpoint_;
  const MobilePtqOptions& options_;
  const MobilePtqProgress& progress_;
  const std::vector<TensorInfo> table_;
  std::vector<Job> jobs_;
  MappedFile codes_;                   // of tensors that the rule gptq rounded
  std::map<size_t, size_t> codes_at_;  // where, by their index
  int64_t total_ = 0;
};

// Pass 2: what passes through each linear and into each KV cache. k and v read the same rows and share their scales, as
// gate and up do: one pair of observers sees both.
class ActivationStatistics {
 public:
  explicit ActivationStatistics(const std::vector<TensorInfo>& table) {
    for (const TensorInfo& info : table) {
      // The schema rounds neither the head's activations nor those of what it keeps float.
      if (info.kind != TensorKind::linear || !info.quantizable || info.role == Role::output) continue;
      const TensorInfo* leader = info.role == Role::v    ? find_tensor_info(table, Role::k, info.layer)
                                 : info.role == Role::up ? find_tensor_info(table, Role::gate, info.layer)
                                                         : nullptr;
      linears_[info.name] =
          leader == nullptr ? Linear{std::make_shared<Pair>(), true} : Linear{linears_.at(leader->name).scales, false};
      if (info.role == Role::k) caches_[info.layer];
    }
  }

  void observe(const Observed& seen) {
    const int64_t count = seen.rows * seen.cols;
    if (seen.kind == Activation::key || seen.kind == Activation::value) {
      Pair& cache = caches_.at(seen.layer);
      (seen.kind == Activation::key ? cache.first : cache.second).observe(seen.data, count);
      return;
    }
    const auto found = linears_.find(seen.name);
    if (found == linears_.end()) return;
    Linear& linear = found->second;
    if (seen.kind == Activation::output) linear.scales->second.observe(seen.data, count);
    else if (linear.reads) linear.scales->first.observe(seen.data, count);
  }

  void set_activation_scales(const std::vector<TensorInfo>& table, Calibration rule, std::vector<MobileSpec>* specs) {
    for (size_t i = 0; i < table.size(); ++i) {
      const auto found = linears_.find(table[i].name);
      if (found == linears_.end() || code_bits((*specs)[i].dtype) == 0) continue;
      (*specs)[i].input_scale = found->second.scales->first.scale(rule, 8);
      (*specs)[i].output_scale = found->second.scales->second.scale(rule, 8);
    }
  }

  std::vector<CacheScales> cache_scales(const ModelConfig& config, const Plan& plan, Calibration rule) const {
    std::vector<CacheScales> scales(config.layers.size());
    for (const auto& [layer, cache] : caches_) {
      CacheScales& mine = scales[static_cast<size_t>(layer)];
      mine.bits = config.layers[static_cast<size_t>(layer)].sliding ? plan.kv_sliding_bits : plan.kv_global_bits;
      if (mine.bits == 0) continue;
      mine.k = cache.first.scale(rule, mine.bits);
      mine.v = cache.second.scale(rule, mine.bits);
    }
    return scales;
  }

 private:
  using Pair = std::pair<ActivationObserver, ActivationObserver>;  // input and output; K and V
  struct Linear {
    std::shared_ptr<Pair> scales;
    bool reads = true;  // its input counts: of two with the same input, the first's
  };
  std::map<std::string, Linear> linears_;
  std::map<int, Pair> caches_;  // by layer
};

void check_options(const Plan& plan, const MobilePtqOptions& options) {
  QAT_CHECK(plan.mobile);
  if (options.method == PtqMethod::gptq) check_calibration(options.calibration, "rule gptq takes");
  if (needs_calibration(plan))
    check_calibration(options.calibration,
                      "plan " + plan.name + " has static scales of activations and of the KV cache, which take");
}

void calibrate(const std::string& model, const MobilePtqOptions& options, ActivationStatistics& statistics,
               const MobilePtqProgress& progress) {
  EngineOptions engine_options;
  engine_options.threads = options.threads;
  Engine engine(load_weights(model), engine_options);
  engine.set_activation_hook([&](const Observed& seen) { statistics.observe(seen); });
  size_t longest = 1;
  for (const std::vector<int32_t>& sequence : options.calibration) longest = std::max(longest, sequence.size());
  KvCache cache(engine, static_cast<int64_t>(longest));
  int64_t done = 0;
  for (const std::vector<int32_t>& sequence : options.calibration) {
    cache.clear();
    engine.forward(sequence, cache, sequence.size(), nullptr);
    if (progress) progress("activations", ++done, static_cast<int64_t>(options.calibration.size()));
  }
}

}  // namespace

bool needs_calibration(const Plan& plan) {
  return plan.activations || plan.kv_sliding_bits > 0 || plan.kv_global_bits > 0;
}

void quantize_mobile(const std::string& hf_directory, const Plan& plan, const MobilePtqOptions& options,
                     const std::string& out, const MobilePtqProgress& progress) {
  const FloatCheckpoint checkpoint(hf_directory);
  WeightQuantizer quantizer(checkpoint, plan, options, progress);
  check_options(plan, options);
  std::string name = out;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  const bool gptq = options.method == PtqMethod::gptq;
  std::unique_ptr<AtomicDirectory> place;  // never put in place: it only goes away by itself
  if (gptq || needs_calibration(plan)) place = std::make_unique<AtomicDirectory>(name + ".calibration");
  std::vector<MobileSpec> specs = gptq ? quantizer.round_layers(place->path() + "/codes") : quantizer.find_scales();
  if (!needs_calibration(plan)) return quantizer.write(specs, out);

  const std::string weights = place->path() + "/weights";
  quantizer.write(specs, weights);
  ActivationStatistics statistics(quantizer.table());
  calibrate(weights, options, statistics, progress);
  if (plan.activations) statistics.set_activation_scales(quantizer.table(), options.observer, &specs);
  copy_mobile(MobileCheckpoint(weights), specs, statistics.cache_scales(checkpoint.config(), plan, options.observer),
              out, [&](uint64_t done, uint64_t bytes) {
                if (progress) progress("files", static_cast<int64_t>(done), static_cast<int64_t>(bytes));
              });
}

}  // namespace qat
