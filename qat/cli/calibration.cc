#include "qat/cli/calibration.h"

#include <algorithm>

#include "qat/progress.h"

namespace qat {
namespace {

// Sums of squares of each linear's inputs.
struct ActivationSums {
  struct Sum {
    std::vector<double> squares;
    int64_t rows = 0;
  };
  std::map<std::string, Sum> by_name;

  void add(const Observed& observed) {
    if (observed.kind != Activation::input) return;
    Sum& sum = by_name[observed.name];
    sum.squares.resize(static_cast<size_t>(observed.cols));
    const float* x = observed.data;
    for (int64_t r = 0; r < observed.rows; ++r, x += observed.cols) {
      for (int64_t c = 0; c < observed.cols; ++c)
        sum.squares[static_cast<size_t>(c)] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    }
    sum.rows += observed.rows;
  }

  Importance mean() const {
    Importance importance;
    for (const auto& [name, sum] : by_name) {
      std::vector<float>& mean = importance[name];
      for (const double square : sum.squares)
        mean.push_back(static_cast<float>(square / static_cast<double>(sum.rows)));
    }
    return importance;
  }
};

}  // namespace

std::vector<std::vector<int32_t>> calibration_sequences(const Tokenizer& tokenizer,
                                                        const std::vector<std::string>& texts, int64_t limit) {
  std::vector<int32_t> ids;
  for (const std::string& path : texts) {
    const std::vector<int32_t> more = tokenizer.encode(read_text(path), false);
    ids.insert(ids.end(), more.begin(), more.end());
  }
  if (limit >= 0 && static_cast<int64_t>(ids.size()) > limit) ids.resize(static_cast<size_t>(limit));
  const bool bos = tokenizer.add_bos();
  const size_t step = static_cast<size_t>(kCalibrationContext) - (bos ? 1 : 0);
  std::vector<std::vector<int32_t>> sequences;
  for (size_t begin = 0; begin < ids.size(); begin += step) {
    const size_t end = std::min(ids.size(), begin + step);
    std::vector<int32_t>& sequence = sequences.emplace_back();
    if (bos) sequence.push_back(tokenizer.bos_id());
    sequence.insert(sequence.end(), ids.begin() + static_cast<std::ptrdiff_t>(begin),
                    ids.begin() + static_cast<std::ptrdiff_t>(end));
  }
  return sequences;
}

Importance collect_importance(Engine& engine, const std::vector<std::vector<int32_t>>& sequences) {
  ActivationSums sums;
  engine.set_activation_hook([&](const Observed& observed) { sums.add(observed); });
  KvCache cache(engine, kCalibrationContext);
  std::vector<float> logits(static_cast<size_t>(engine.config().vocab));
  ProgressBar bar("activations", static_cast<int64_t>(sequences.size()));
  int64_t done = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    cache.clear();
    engine.forward(sequence, cache, sequence.size() - 1, logits.data());
    bar.update(++done);
    throw_if_interrupted();
  }
  engine.set_activation_hook({});
  bar.finish();
  return sums.mean();
}

}  // namespace qat
