// Fills report_template.html. Everything goes through escape_html, except the drawings, whose text has.
#include <algorithm>
#include <kainjow/mustache.hpp>

#include "format/error.h"
#include "qat/report/escape.h"
#include "qat/report/plots.h"
#include "qat/report/report.h"
#include "qat/report/rows.h"
#include "qat/report/svg.h"

namespace qat {

extern const char kReportTemplate[];  // made by CMake from report_template.html

namespace {

using Data = kainjow::mustache::data;

Data list_data() { return Data(Data::type::list); }

Data strings(const std::vector<std::string>& texts) {
  Data list = list_data();
  for (const std::string& text : texts) list << Data(text);
  return list;
}

Data panels_data(const std::vector<Panel>& panels) {
  Data list = list_data();
  for (const Panel& panel : panels) {
    Data item;
    item.set("title", panel.title);
    item.set("svg", panel.svg);
    list << item;
  }
  return list;
}

Data findings_data(const Report& report) {
  Data list = list_data();
  for (const Finding& finding : report_findings(report)) {
    Data item;
    item.set("label", finding.label.empty() ? Data(false) : Data(finding.label));
    item.set("sentence", finding.sentence);
    list << item;
  }
  return list;
}

Data rows_data(const Report& report) {
  Data list = list_data();
  int series = 0;
  for (const ReportRow& row : report_rows(report)) {
    Data item;
    item.set("swatch", swatch(series++));
    const std::pair<const char*, const std::string*> cells[] = {{"label", &row.label},
                                                                {"made", &row.made},
                                                                {"size", &row.size},
                                                                {"bits", &row.bits},
                                                                {"perplexity", &row.perplexity},
                                                                {"perplexity_error", &row.perplexity_error},
                                                                {"ratio", &row.ratio},
                                                                {"ratio_error", &row.ratio_error},
                                                                {"closed", &row.closed},
                                                                {"kld", &row.kld},
                                                                {"kld_error", &row.kld_error},
                                                                {"top", &row.top},
                                                                {"top_error", &row.top_error}};
    for (const auto& [key, text] : cells) item.set(key, text->empty() ? Data(false) : Data(*text));
    item.set("percentiles", strings(row.percentiles));
    list << item;
  }
  return list;
}

std::string legend_html(const Report& report) {
  std::string html = "<ul class=\"legend\">";
  for (size_t i = 0; i < report.models.size(); ++i)
    if (report.models[i].weights)
      html += "<li>" + swatch(static_cast<int>(i) + 1) + escape_html(report.models[i].label) + "</li>";
  return html + "</ul>";
}

// --- Tables of weights ---

const TensorError* find_error(const ReportModel& model, const std::string& name) {
  for (const TensorError& t : model.weights->tensors)
    if (t.info.name == name) return &t;
  return nullptr;
}

Data cell(const std::string& value, const std::string& type) {
  Data data;
  data.set("value", value);
  data.set("type", type);
  return data;
}

// A row for all matrices, then one for each that is in no layer.
void set_error_table(Data& data, const Report& report) {
  std::vector<const ReportModel*> models;
  std::vector<std::string> columns;
  std::vector<TensorInfo> tensors;
  for (const ReportModel& m : report.models) {
    if (!m.weights) continue;
    models.push_back(&m);
    columns.push_back(m.label);
    for (const TensorError& t : m.weights->tensors) {
      const bool known =
          std::any_of(tensors.begin(), tensors.end(), [&](const TensorInfo& i) { return i.name == t.info.name; });
      if (t.info.layer < 0 && !known) tensors.push_back(t.info);
    }
  }
  Data rows = list_data();
  Data all, cells = list_data();
  for (const ReportModel* m : models) cells << cell(number_text(100 * m->weights->relative, 3), "");
  all.set("label", "all matrices together");
  all.set("cells", cells);
  rows << all;
  for (const TensorInfo& info : tensors) {
    Data row, of_models = list_data();
    for (const ReportModel* m : models) {
      const TensorError* t = find_error(*m, info.name);
      of_models << (t == nullptr ? cell("–", "") : cell(number_text(100 * t->relative, 3), t->type));
    }
    row.set("label", role_label(info.role));
    row.set("cells", of_models);
    rows << row;
  }
  data.set("has_weights", !models.empty());
  data.set("columns", strings(columns));
  data.set("error_rows", rows);
}

std::string share_text(uint64_t moved, uint64_t codes) {
  return codes == 0 ? "–" : percent_text(static_cast<double>(moved) / static_cast<double>(codes), 2);
}

void set_moved_table(Data& data, const Report& report) {
  std::vector<Role> roles;
  for (const MovedPair& pair : report.moved)
    for (const MovedCodes::Part& part : pair.moved.parts)
      if (std::find(roles.begin(), roles.end(), part.role) == roles.end()) roles.push_back(part.role);
  std::vector<std::string> columns;
  for (const Role role : roles) columns.emplace_back(role_label(role));
  Data rows = list_data();
  for (const MovedPair& pair : report.moved) {
    std::vector<std::string> cells;
    for (const Role role : roles) {
      std::string text = "–";
      for (const MovedCodes::Part& part : pair.moved.parts)
        if (part.role == role) text = share_text(part.moved, part.codes);
      cells.push_back(text);
    }
    Data row;
    row.set("from", report.models[pair.untrained].label);
    row.set("to", report.models[pair.trained].label);
    row.set("codes", grouped(pair.moved.codes));
    row.set("share", share_text(pair.moved.moved, pair.moved.codes));
    row.set("cells", strings(cells));
    rows << row;
  }
  data.set("has_moved", !report.moved.empty());
  data.set("moved_columns", strings(columns));
  data.set("moved_rows", rows);
}

// --- Samples and files ---

std::string without_indent(const std::string& text) {
  return text.substr(std::min(text.find_first_not_of(" \n"), text.size()));
}

Data sample(int series, const std::string& label, std::string same, std::string own, const std::string& note) {
  same = without_indent(same);
  if (same.empty()) own = without_indent(own);
  Data data;
  data.set("swatch", swatch(series));
  data.set("label", label);
  data.set("same", same);
  data.set("own", own);
  data.set("note", note);
  return data;
}

Data samples_data(const Report& report) {
  Data list = list_data();
  list << sample(0, report.float_label, report.float_sample, "",
                 std::to_string(report.float_sample_tokens) + " tokens of the float model.");
  for (size_t i = 0; i < report.models.size(); ++i) {
    const ReportModel& m = report.models[i];
    list << sample(static_cast<int>(i) + 1, m.label, m.sample.substr(0, m.sample_equal_bytes),
                   m.sample.substr(m.sample_equal_bytes), sample_note(m));
  }
  return list;
}

Data files_data(const Report& report) {
  Data list = list_data();
  const auto add = [&](const std::string& label, const std::string& path) {
    Data item;
    item.set("label", label);
    item.set("path", path);
    list << item;
  };
  add(report.float_label, report.float_path);
  for (const ReportModel& m : report.models) add(m.label, m.path);
  return list;
}

std::string without_divergence(const Report& report) {
  std::string text;
  for (const ReportModel& m : report.models)
    if (!(m.kl.kld.value > 0.0)) text += (text.empty() ? "" : ", ") + m.label;
  return text;
}

Data report_data(const Report& report) {
  Data data;
  data.set("title", report_title(report));
  data.set("lead", report_lead(report));
  data.set("findings", findings_data(report));
  data.set("rows", rows_data(report));
  data.set("closed_how", closed_explanation(report));
  data.set("float_size", megabytes(report.float_tensor_bytes));
  const std::string no_kld = without_divergence(report);
  data.set("no_kld", no_kld.empty() ? Data(false) : Data(no_kld));
  data.set("size_plot", size_plot(report));
  data.set("perplexity_plot", perplexity_plot(report));
  data.set("quantile_plot", quantile_plot(report));
  data.set("legend", legend_html(report));
  const std::vector<Panel> weights = weight_panels(report), histograms = histogram_panels(report),
                           training = training_panels(report);
  data.set("has_layers", !weights.empty());
  data.set("weight_panels", panels_data(weights));
  set_error_table(data, report);
  data.set("has_histogram", !histograms.empty());
  data.set("histogram_tensor", report.histogram_tensor);
  data.set("histogram_why", report.histogram_chosen ? "" : ", the tensor with the largest relative error");
  data.set("histogram_panels", panels_data(histograms));
  set_moved_table(data, report);
  data.set("has_training", !training.empty());
  data.set("training_panels", panels_data(training));
  data.set("sample_tokens", std::to_string(report.sample_tokens));
  data.set("prompt", report.prompt);
  data.set("samples", samples_data(report));
  data.set("command", report.command);
  data.set("files", files_data(report));
  return data;
}

}  // namespace

std::string report_html(const Report& report) {
  kainjow::mustache::mustache page(kReportTemplate);
  QAT_CHECK(page.is_valid());
  page.set_custom_escape(escape_html);
  return page.render(report_data(report));
}

}  // namespace qat
