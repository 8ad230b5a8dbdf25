// A comparison of a float model with its quantized versions, and the report that shows it. The figures are computed by
// others (inference/evaluate.h, qat/report/weights.h); here they are plain data and three ways to write them down.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "inference/evaluate.h"
#include "qat/report/weights.h"

namespace qat {

// One line of a run's metrics.jsonl: "step", "loss", "eval_perplexity", "eval_kl", ...
using RunMetrics = std::vector<std::map<std::string, double>>;

struct ReportModel {
  std::string label, path;
  uint64_t size_bytes = 0;    // of the files that hold the weights
  uint64_t tensor_bytes = 0;  // of the tensors alone, in the layout of a GGUF file
  double bits_per_weight = 0.0;
  bool trained = false;                         // its norms are not the float model's, or it is given as a run
  KlResult kl;                                  // against the float model
  std::optional<WeightError> weights;           // nothing when the shapes are others
  RunMetrics metrics;                           // of a run
  std::string sample;                           // what it writes after the prompt
  int64_t sample_tokens = 0, sample_equal = 0;  // tokens of it; how many of the first are the float model's
  size_t sample_equal_bytes = 0;                // the text of those
  // Filled by compare_with_baselines().
  int baseline = -1;             // index in Report::models
  std::optional<double> closed;  // share of the baseline's gap in log-perplexity; 1: as good as the float model
};

// Codes of two models with the same types.
struct MovedPair {
  size_t untrained = 0, trained = 0;  // indices in Report::models
  MovedCodes moved;
};

struct Report {
  std::string float_label, float_path, float_sample;
  int64_t float_sample_tokens = 0;
  uint64_t float_size_bytes = 0, float_tensor_bytes = 0;
  double float_bits_per_weight = 0.0;
  std::string text, command;  // path of the text; the command line that made this
  int64_t context = 0, chunks = 0;
  std::string prompt;
  int64_t sample_tokens = 0;          // asked for
  std::vector<ReportModel> models;    // at least one
  std::string histogram_tensor;       // canonical name; empty: none
  bool histogram_chosen = false;      // by the user; else the one with the largest error
  std::vector<Histogram> histograms;  // of each model; empty where it has no codes
  std::vector<MovedPair> moved;
};

// Gap closed: a trained model is held against its baseline, the untrained model of like size (bits per weight within
// 2 %) with the lowest perplexity. Closed is the share of ln PPL(baseline) - ln PPL(float) that it wins back. None when
// there is no such baseline, or when that gap is not twice its own standard error.
void compare_with_baselines(Report* report);

// An evaluation's figures by the names that `qat eval --json` gives them, in its order.
struct Figure {
  std::string key;
  double value = 0.0;
  std::optional<double> error;                    // one standard error; written as key + "_error"
  std::vector<KlResult::Percentile> percentiles;  // instead of a value
};
std::vector<Figure> kl_figures(const KlResult& kl);
std::string percentile_key(double fraction);  // "max", "p99.9", ..., "p50", ..., "min"

std::string report_html(const Report& report);
std::string report_json(const Report& report);
std::string report_markdown(const Report& report);

// The lines of OUT/metrics.jsonl, numbers only; damaged lines are left out, as are non-finite values.
RunMetrics read_run_metrics(const std::string& path);

}  // namespace qat
