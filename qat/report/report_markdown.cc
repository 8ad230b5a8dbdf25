#include "qat/report/escape.h"
#include "qat/report/report.h"
#include "qat/report/rows.h"

namespace qat {
namespace {

std::string with_error(const std::string& value, const std::string& error) {
  return error.empty() ? value : value + " ± " + error;
}

void add_row(std::string* out, const std::vector<std::string>& cells) {
  for (const std::string& cell : cells) *out += "| " + cell + " ";
  *out += "|\n";
}

// Indented by four, which is code: nothing in it is markup.
std::string verbatim(const std::string& text) {
  std::string out = "    ";
  for (const char c : clean_utf8(text)) {
    out += c;
    if (c == '\n') out += "    ";
  }
  return out + "\n";
}

std::string models_table(const Report& report) {
  std::string out;
  add_row(&out, {"model", "made", "file size (bytes)", "bits per weight", "perplexity", "perplexity ÷ float's",
                 "gap closed (%)", "mean KLD (nats per token)", "same top token (%)", "KLD median (nats)", "90 %",
                 "99 %", "99.9 %", "maximum"});
  add_row(&out, {"---", "---",
                 "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:"});
  for (const ReportRow& row : report_rows(report)) {
    std::vector<std::string> cells = {escape_markdown(row.label),
                                      row.made,
                                      row.size,
                                      row.bits,
                                      with_error(row.perplexity, row.perplexity_error),
                                      with_error(row.ratio, row.ratio_error),
                                      row.closed,
                                      with_error(row.kld, row.kld_error),
                                      with_error(row.top, row.top_error)};
    cells.insert(cells.end(), row.percentiles.begin(), row.percentiles.end());
    add_row(&out, cells);
  }
  return out;
}

std::string moved_table(const Report& report) {
  if (report.moved.empty()) return "";
  std::string out = "\n## Codes that training moved\n\n";
  add_row(&out, {"from", "to", "codes", "moved (%)"});
  add_row(&out, {"---", "---", "---:", "---:"});
  for (const MovedPair& pair : report.moved)
    add_row(&out, {escape_markdown(report.models[pair.untrained].label),
                   escape_markdown(report.models[pair.trained].label), grouped(pair.moved.codes),
                   percent_text(static_cast<double>(pair.moved.moved) / static_cast<double>(pair.moved.codes), 2)});
  return out;
}

std::string samples(const Report& report) {
  std::string out = "\n## What they write\n\nGreedy continuations of\n\n" + verbatim(report.prompt);
  out += "\n" + escape_markdown(report.float_label) + ":\n\n" + verbatim(report.float_sample);
  for (const ReportModel& m : report.models)
    out += "\n" + escape_markdown(m.label) + ": " + sample_note(m) + "\n\n" + verbatim(m.sample);
  return out;
}

}  // namespace

std::string report_markdown(const Report& report) {
  std::string out =
      "# " + escape_markdown(report_title(report)) + "\n\n" + escape_markdown(report_lead(report)) + "\n\n";
  for (const Finding& finding : report_findings(report)) {
    if (finding.label.empty()) out += "- " + escape_markdown(finding.sentence) + "\n";
    else out += "- **" + escape_markdown(finding.label) + "** " + escape_markdown(finding.sentence) + "\n";
  }
  out += "\n" + models_table(report) +
         "\n± is one standard error. Gap closed: " + escape_markdown(closed_explanation(report)) + "\n";
  out += moved_table(report) + samples(report);
  return out + "\n## How this was made\n\n" + verbatim(report.command) + "\nreport.html has the plots.\n";
}

}  // namespace qat
