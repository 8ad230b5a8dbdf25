#include "qat/train/workers.h"

#include <dlfcn.h>

#include <algorithm>
#include <exception>
#include <thread>

namespace qat {
namespace {

void set_openblas_threads(int64_t threads) {
  using SetThreads = void (*)(int);
  static const auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
  if (set != nullptr) set(static_cast<int>(threads));
}

}  // namespace

int64_t set_threads(int64_t wanted) {
  const int64_t threads = wanted > 0 ? wanted : std::max<int64_t>(1, std::thread::hardware_concurrency());
  at::set_num_threads(static_cast<int>(threads));
  set_openblas_threads(threads);
  return threads;
}

int64_t workers_for(int64_t threads, int64_t batch, int64_t gradient_bytes, torch::Device device) {
  constexpr int64_t kMostGradients = int64_t{1} << 28;
  const int64_t workers = std::min(threads, batch);
  return device.is_cpu() && (workers - 1) * gradient_bytes <= kMostGradients ? workers : 1;
}

void run_workers(int64_t workers, int64_t threads, const std::function<void(int64_t)>& work) {
  if (workers == 1) return work(0);
  std::vector<std::exception_ptr> errors(static_cast<size_t>(workers));
  std::vector<std::thread> running;
  set_openblas_threads(1);
  for (int64_t i = 0; i < workers; ++i) {
    running.emplace_back([&, i] {
      try {
        at::set_num_threads(1);  // of this thread, and the number that new threads begin with
        work(i);
      } catch (...) {
        errors[static_cast<size_t>(i)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : running) thread.join();
  set_threads(threads);
  for (const std::exception_ptr& error : errors)
    if (error != nullptr) std::rethrow_exception(error);
}

WorkerWeights::WorkerWeights(const ForwardWeights& original, int64_t workers) : original_(original) {
  copies_.resize(static_cast<size_t>(workers - 1));
  for (Copy& copy : copies_) {
    copy.weights = original;
    const auto replace = [&](torch::Tensor& tensor) {
      if (!tensor.defined() || !tensor.requires_grad()) return;
      for (const Leaf& leaf : copy.leaves)  // tied scales are one tensor in several places
        if (leaf.original.is_same(tensor)) return void(tensor = leaf.copy);
      copy.leaves.push_back({tensor, tensor.detach().requires_grad_()});
      tensor = copy.leaves.back().copy;
    };
    const auto replace_all = [&](TensorsByRole& tensors) {
      for (torch::Tensor& tensor : tensors.all()) replace(tensor);
    };
    replace_all(copy.weights.global);
    for (TensorsByRole& layer : copy.weights.layers) replace_all(layer);
    for (LayerScales& scales : copy.weights.scales) {
      replace_all(scales.input);
      replace_all(scales.output);
      replace(scales.k_cache);
      replace(scales.v_cache);
    }
  }
}

void WorkerWeights::gather() {
  for (Copy& copy : copies_) {
    for (Leaf& leaf : copy.leaves) {
      torch::Tensor& gradient = leaf.copy.mutable_grad();
      if (!gradient.defined()) continue;
      if (leaf.original.is_leaf()) {
        torch::Tensor& sum = leaf.original.mutable_grad();
        if (sum.defined()) sum.add_(gradient);
        else sum = gradient;
      } else {
        torch::autograd::backward({leaf.original}, {gradient});  // on to the adapter that it comes from
      }
      gradient = torch::Tensor();
    }
  }
}

}  // namespace qat
