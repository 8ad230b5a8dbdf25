// The table of models as text, shared by the HTML and the Markdown report.
#pragma once

#include <string>
#include <vector>

#include "qat/report/report.h"

namespace qat {

// Units are in the heading; an empty error means none.
struct ReportRow {
  std::string label, made, size, bits, perplexity, perplexity_error, ratio, ratio_error, closed, kld, kld_error;
  std::vector<std::string> percentiles;  // median, 90, 99, 99.9, 100 %
  std::string top, top_error;
};
std::vector<ReportRow> report_rows(const Report& report);  // the float model's first

std::string report_title(const Report& report);
std::string report_lead(const Report& report);
// "LABEL is closest ...": the label may be empty.
struct Finding {
  std::string label, sentence;
};
std::vector<Finding> report_findings(const Report& report);
std::string closed_explanation(const Report& report);
std::string sample_note(const ReportModel& model);
std::string percent_text(double fraction, int decimals);  // without the sign
std::string grouped(uint64_t number);                     // "1,054,464"
std::string megabytes(uint64_t bytes);

}  // namespace qat
