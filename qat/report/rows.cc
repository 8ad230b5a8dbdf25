#include "qat/report/rows.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "qat/report/svg.h"

namespace qat {
namespace {

std::string fixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

// Decimals that show two digits of the error; a value without one gets `otherwise`.
int decimals_for(double error, int otherwise) {
  if (!(error > 0.0) || !std::isfinite(error)) return otherwise;
  return std::clamp(1 - static_cast<int>(std::floor(std::log10(error))), 0, 7);
}

ReportRow float_row(const Report& report) {
  const Estimate& ppl = report.models.front().kl.ppl_base;
  const int decimals = decimals_for(ppl.error, 4);
  ReportRow row;
  row.label = report.float_label;
  row.made = "float";
  row.size = grouped(report.float_size_bytes);
  row.bits = fixed(report.float_bits_per_weight, 3);
  row.perplexity = fixed(ppl.value, decimals + 1);  // one more digit: the error is mostly common to all models
  row.perplexity_error = fixed(ppl.error, decimals + 1);
  row.ratio = "1";
  row.closed = "–";
  row.kld = "0";
  row.percentiles.assign(5, "0");
  row.top = "100";
  return row;
}

ReportRow model_row(const ReportModel& m) {
  const KlResult& kl = m.kl;
  ReportRow row;
  row.label = m.label;
  row.made = m.trained ? "trained" : "not trained";
  row.size = grouped(m.size_bytes);
  row.bits = fixed(m.bits_per_weight, 3);
  const int decimals = decimals_for(kl.ppl_q.error, 4);
  row.perplexity = fixed(kl.ppl_q.value, decimals + 1);
  row.perplexity_error = fixed(kl.ppl_q.error, decimals + 1);
  row.ratio = fixed(kl.ratio.value, decimals_for(kl.ratio.error, 4));
  row.ratio_error = fixed(kl.ratio.error, decimals_for(kl.ratio.error, 4));
  row.closed = m.closed ? percent_text(*m.closed, 1) : "–";
  row.kld = fixed(kl.kld.value, decimals_for(kl.kld.error, 6));
  row.kld_error = fixed(kl.kld.error, decimals_for(kl.kld.error, 6));
  for (const double fraction : {0.5, 0.9, 0.99, 0.999, 1.0})
    for (const KlResult::Percentile& p : kl.kld_percentiles)
      if (p.fraction == fraction) row.percentiles.push_back(number_text(p.value, 3));
  row.top = percent_text(kl.same_top.value, 2);
  row.top_error = percent_text(kl.same_top.error, 2);
  return row;
}

const ReportModel& closest(const Report& report) {
  return *std::min_element(report.models.begin(), report.models.end(),
                           [](const ReportModel& a, const ReportModel& b) { return a.kl.kld.value < b.kl.kld.value; });
}

}  // namespace

std::string percent_text(double fraction, int decimals) { return fixed(100.0 * fraction, decimals); }

std::string grouped(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

std::string megabytes(uint64_t bytes) { return number_text(static_cast<double>(bytes) / 1e6, 3) + " MB"; }

std::vector<ReportRow> report_rows(const Report& report) {
  std::vector<ReportRow> rows = {float_row(report)};
  for (const ReportModel& m : report.models) rows.push_back(model_row(m));
  return rows;
}

std::string report_title(const Report& report) { return "What quantization costs " + report.float_label; }

std::string report_lead(const Report& report) {
  return report.text + ": " + grouped(static_cast<uint64_t>(report.chunks)) + " chunks of " +
         grouped(static_cast<uint64_t>(report.context)) + " tokens; the second half of each is scored, " +
         grouped(static_cast<uint64_t>(report.models.front().kl.tokens)) + " tokens in all.";
}

std::vector<Finding> report_findings(const Report& report) {
  std::vector<Finding> list;
  const ReportModel& best = closest(report);
  list.push_back(
      {best.label, (report.models.size() > 1 ? "is closest to the float model: mean KLD " : "has a mean KLD of ") +
                       number_text(best.kl.kld.value, 3) + " nats per token, and the same top token for " +
                       percent_text(best.kl.same_top.value, 1) + " % of the tokens."});
  for (const ReportModel& m : report.models) {
    if (!m.closed || list.size() > 6) continue;
    list.push_back({m.label, (*m.closed >= 0 ? "wins back " : "loses a further ") +
                                 percent_text(std::abs(*m.closed), 1) + " % of the log-perplexity that “" +
                                 report.models[static_cast<size_t>(m.baseline)].label + "” lost without training."});
  }
  const ReportModel& smallest =
      *std::min_element(report.models.begin(), report.models.end(),
                        [](const ReportModel& a, const ReportModel& b) { return a.tensor_bytes < b.tensor_bytes; });
  list.push_back({"", "The smallest has " + megabytes(smallest.tensor_bytes) + " of tensors (" +
                          number_text(smallest.bits_per_weight, 3) + " bits per weight), the float model " +
                          megabytes(report.float_tensor_bytes) + "."});
  return list;
}

std::string closed_explanation(const Report& report) {
  std::string text =
      "Of a trained model, against its baseline: the untrained model of like size (bits per weight within 2 %) with "
      "the lowest perplexity. It is the share of ln PPL(baseline) − ln PPL(float) that training wins back; 100 %: as "
      "good as the float model. Left out where that gap is less than twice its own standard error.";
  for (const ReportModel& m : report.models)
    if (m.baseline >= 0)
      text += " " + m.label + ": against " + report.models[static_cast<size_t>(m.baseline)].label + ".";
  return text;
}

std::string sample_note(const ReportModel& m) {
  if (m.sample_equal == m.sample_tokens)
    return "All " + std::to_string(m.sample_tokens) + " tokens are the float model's.";
  if (m.sample_equal == 0) return "Differs from the first token on.";
  if (m.sample_equal == 1) return "The first token is the float model's.";
  return "The first " + std::to_string(m.sample_equal) + " of " + std::to_string(m.sample_tokens) +
         " tokens are the float model's.";
}

}  // namespace qat
