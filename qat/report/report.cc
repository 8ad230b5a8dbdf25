#include "qat/report/report.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

namespace qat {

void compare_with_baselines(Report* report) {
  std::vector<ReportModel>& models = report->models;
  for (ReportModel& m : models) {
    if (!m.trained) continue;
    for (size_t i = 0; i < models.size(); ++i) {
      const ReportModel& other = models[i];
      if (other.trained || std::abs(other.bits_per_weight / m.bits_per_weight - 1.0) > 0.02) continue;
      if (m.baseline < 0 || other.kl.ppl_q.value < models[static_cast<size_t>(m.baseline)].kl.ppl_q.value)
        m.baseline = static_cast<int>(i);
    }
    if (m.baseline < 0) continue;
    const Estimate& gap = models[static_cast<size_t>(m.baseline)].kl.ln_ratio;
    if (gap.value > 2.0 * gap.error) m.closed = 1.0 - m.kl.ln_ratio.value / gap.value;
  }
}

std::string percentile_key(double fraction) {
  if (fraction >= 1.0) return "max";
  if (fraction <= 0.0) return "min";
  char text[16];
  std::snprintf(text, sizeof text, "p%g", fraction * 100);
  return text;
}

std::vector<Figure> kl_figures(const KlResult& kl) {
  const auto estimate = [](const char* key, const Estimate& e) { return Figure{key, e.value, e.error, {}}; };
  return {estimate("base_perplexity", kl.ppl_base),
          estimate("ln_ppl_ratio", kl.ln_ratio),
          estimate("ppl_ratio", kl.ratio),
          estimate("ppl_difference", kl.difference),
          {"ppl_correlation", kl.nll_correlation, std::nullopt, {}},
          estimate("mean_kld", kl.kld),
          {"kld_percentiles", 0.0, std::nullopt, kl.kld_percentiles},
          estimate("mean_delta_p", kl.delta_p),
          estimate("rms_delta_p", kl.rms_delta_p),
          {"delta_p_percentiles", 0.0, std::nullopt, kl.delta_p_percentiles},
          estimate("same_top", kl.same_top)};
}

RunMetrics read_run_metrics(const std::string& path) {
  RunMetrics metrics;
  std::ifstream file(path);
  for (std::string text; std::getline(file, text);) {
    const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) continue;
    std::map<std::string, double> line;
    for (const auto& [name, value] : json.items())
      if (value.is_number() && std::isfinite(value.get<double>())) line[name] = value.get<double>();
    if (line.count("step") == 1) metrics.push_back(std::move(line));
  }
  return metrics;
}

}  // namespace qat
