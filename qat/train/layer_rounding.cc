#include "qat/train/layer_rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/error.h"
#include "qat/train/data.h"
#include "qat/train/sign_rounding.h"
#include "qat/train/workers.h"

namespace qat {
namespace {

constexpr int64_t kEvaluations = 8;  // of all sequences, evenly spread over the steps

// One linear that moves.
struct Moving {
  const TensorInfo* info;
  SignRounding rounding;
  torch::Tensor value;  // a leaf: what the layer multiplies by
};

class LayerRounding {
 public:
  LayerRounding(const std::vector<TensorInfo>& layer, const TensorsByRole& weights,
                const std::map<std::string, DType>& grids, const torch::Tensor& target, const LayerStream& stream,
                const RoundingOptions& options, const LayerRows& rows)
      : target_(target), stream_(stream), options_(options) {
    forward_.layers = {decode_layer(layer, grids, rows)};
    int64_t gradient_bytes = 0;
    for (const TensorInfo& info : layer) {
      if (info.kind != TensorKind::linear || grids.at(info.name) != DType::Q4_0) continue;
      const torch::Tensor w = weights[info.role].contiguous();
      const float* from = w.data_ptr<float>();
      torch::Tensor& value = forward_.layers[0][info.role];
      value.requires_grad_(true);
      moving_.push_back({&info,
                         SignRounding(std::vector<float>(from, from + w.numel()),
                                      reinterpret_cast<const BlockQ4_0*>(rows.at(info.name).data())),
                         value});
      gradient_bytes += w.numel() * static_cast<int64_t>(sizeof(float));
    }
    workers_ = workers_for(options.threads, options.batch, gradient_bytes, torch::kCPU);
  }

  bool run(const std::function<bool(int64_t, double)>& report, LayerRows* rows, RoundingErrors* errors) {
    errors->before = errors->after = evaluate();
    if (moving_.empty()) return true;
    LayerRows best;
    DataOrder order(stream_.sequences(), options_.seed);
    for (int64_t step = 0; step < options_.steps; ++step) {
      const double left = 1.0 - static_cast<double>(step) / static_cast<double>(options_.steps);
      std::vector<int64_t> sequences;
      for (int64_t i = 0; i < options_.batch; ++i) sequences.push_back(order.at(step * options_.batch + i));
      const double loss = take_step(sequences, left);
      if (!report(step + 1, loss)) return false;
      if ((step + 1) * kEvaluations / options_.steps == step * kEvaluations / options_.steps) continue;
      const double error = evaluate();
      if (!(error < errors->after)) continue;
      errors->after = error;
      best = blocks();
    }
    for (auto& [name, bytes] : best) (*rows)[name] = std::move(bytes);
    return true;
  }

 private:
  // Mean relative error of some sequences, differentiable in the moving weights.
  torch::Tensor error_of(const torch::Tensor& sequences, const TensorsByRole& weights) const {
    const torch::Tensor y = target_.index_select(0, sequences);
    const torch::Tensor made = stream_.run(stream_.input(sequences), weights).h;
    const torch::Tensor size = y.square().sum(-1).clamp_min(1e-30);
    return ((made - y).square().sum(-1) / size).mean();
  }

  // Calls part(worker, its sequences).
  void share(const std::vector<int64_t>& sequences,
             const std::function<void(int64_t, const torch::Tensor&)>& part) const {
    const auto count = static_cast<int64_t>(sequences.size()), workers = std::min(workers_, count);
    run_workers(workers, options_.threads, [&](int64_t worker) {
      const int64_t begin = count * worker / workers, end = count * (worker + 1) / workers;
      torch::Tensor own = torch::empty({end - begin}, torch::kInt64);
      std::copy(sequences.begin() + begin, sequences.begin() + end, own.data_ptr<int64_t>());
      part(worker, own);
    });
  }

  double take_step(const std::vector<int64_t>& sequences, double left) {
    WorkerWeights shared(forward_, workers_);
    std::vector<double> losses(static_cast<size_t>(workers_));
    share(sequences, [&](int64_t worker, const torch::Tensor& own) {
      const double part = static_cast<double>(own.numel()) / static_cast<double>(sequences.size());
      const torch::Tensor loss = error_of(own, shared.of(worker).layers[0]) * part;
      loss.backward();
      losses[static_cast<size_t>(worker)] = loss.item<double>();
    });
    shared.gather();
    double sum = 0.0;
    for (const double loss : losses) sum += loss;
    if (!std::isfinite(sum)) fail("layer ", moving_[0].info->layer, ": the error of its output is ", sum);
    for (Moving& m : moving_) {
      const torch::Tensor gradient = m.value.grad().contiguous();
      m.rounding.step(gradient.data_ptr<float>(), options_.lr * left, options_.scale_lr * left);
      m.rounding.values(m.value.data_ptr<float>());
      m.value.mutable_grad().reset();
    }
    return sum;
  }

  double evaluate() const {
    double sum = 0.0;
    for (int64_t begin = 0; begin < stream_.sequences(); begin += options_.batch) {
      std::vector<int64_t> sequences;
      for (int64_t i = begin; i < std::min(stream_.sequences(), begin + options_.batch); ++i) sequences.push_back(i);
      std::vector<double> parts(static_cast<size_t>(workers_));
      share(sequences, [&](int64_t worker, const torch::Tensor& own) {
        const torch::NoGradGuard no_grad;
        parts[static_cast<size_t>(worker)] =
            error_of(own, forward_.layers[0]).item<double>() * static_cast<double>(own.numel());
      });
      for (const double part : parts) sum += part;
    }
    return sum / static_cast<double>(stream_.sequences());
  }

  LayerRows blocks() const {
    LayerRows rows;
    for (const Moving& m : moving_) {
      const auto* bytes = reinterpret_cast<const uint8_t*>(m.rounding.blocks().data());
      rows[m.info->name].assign(bytes, bytes + m.rounding.blocks().size() * sizeof(BlockQ4_0));
    }
    return rows;
  }

  const torch::Tensor& target_;
  const LayerStream& stream_;
  const RoundingOptions& options_;
  ForwardWeights forward_;  // of this layer alone
  std::vector<Moving> moving_;
  int64_t workers_ = 1;
};

}  // namespace

TensorsByRole decode_layer(const std::vector<TensorInfo>& layer, const std::map<std::string, DType>& grids,
                           const LayerRows& rows) {
  TensorsByRole tensors;
  for (const TensorInfo& info : layer)
    tensors[info.role] = decode_stored(info, grids.at(info.name), rows.at(info.name));
  return tensors;
}

bool round_layer(const std::vector<TensorInfo>& layer, const TensorsByRole& weights,
                 const std::map<std::string, DType>& grids, const torch::Tensor& target, const LayerStream& stream,
                 const RoundingOptions& options, const std::function<bool(int64_t step, double loss)>& step,
                 LayerRows* rows, RoundingErrors* errors) {
  return LayerRounding(layer, weights, grids, target, stream, options, *rows).run(step, rows, errors);
}

}  // namespace qat
