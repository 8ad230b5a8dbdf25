#include <nlohmann/json.hpp>

#include "qat/report/report.h"

namespace qat {
namespace {

using Json = nlohmann::ordered_json;

Json percentiles_json(const std::vector<KlResult::Percentile>& percentiles) {
  Json json;
  for (const KlResult::Percentile& p : percentiles) json[percentile_key(p.fraction)] = p.value;
  return json;
}

void put_evaluation(Json& json, const KlResult& kl) {
  json["perplexity"] = kl.ppl_q.value;
  json["perplexity_error"] = kl.ppl_q.error;
  json["tokens"] = kl.tokens;
  for (const Figure& figure : kl_figures(kl)) {
    if (!figure.percentiles.empty()) json[figure.key] = percentiles_json(figure.percentiles);
    else json[figure.key] = figure.value;
    if (figure.error) json[figure.key + "_error"] = *figure.error;
  }
}

Json tensor_errors_json(const WeightError& error) {
  Json list = Json::array();
  for (const TensorError& t : error.tensors)
    list.push_back({{"name", t.info.name}, {"type", t.type}, {"relative_error", t.relative}});
  return list;
}

Json model_json(const Report& report, const ReportModel& m) {
  Json json = {{"label", m.label},
               {"path", m.path},
               {"trained", m.trained},
               {"size_bytes", m.size_bytes},
               {"tensor_bytes", m.tensor_bytes},
               {"bits_per_weight", m.bits_per_weight}};
  put_evaluation(json, m.kl);
  if (m.baseline >= 0) json["baseline"] = report.models[static_cast<size_t>(m.baseline)].label;
  if (m.closed) json["log_perplexity_gap_closed"] = *m.closed;
  if (m.weights) {
    json["relative_weight_error"] = m.weights->relative;
    json["tensors"] = tensor_errors_json(*m.weights);
  }
  json["sample"] = {{"text", m.sample}, {"tokens", m.sample_tokens}, {"first_tokens_equal", m.sample_equal}};
  if (!m.metrics.empty()) json["training"] = m.metrics;
  return json;
}

Json histograms_json(const Report& report) {
  Json json = {{"tensor", report.histogram_tensor}, {"models", Json::array()}};
  for (size_t i = 0; i < report.histograms.size(); ++i) {
    const Histogram& h = report.histograms[i];
    json["models"].push_back({{"label", report.models[i].label}, {"type", h.type}});
    if (h.levels.empty()) continue;
    json["models"].back().update({{"first_level", h.lowest},
                                  {"level_shares", h.levels},
                                  {"first_float_bin_begins", h.lowest - 1.5},
                                  {"float_bins_per_level", h.bins_per_level},
                                  {"float_shares", h.floats}});
  }
  return json;
}

double share(uint64_t moved, uint64_t codes) {
  return codes == 0 ? 0.0 : static_cast<double>(moved) / static_cast<double>(codes);
}

Json moved_json(const Report& report) {
  Json list = Json::array();
  for (const MovedPair& pair : report.moved) {
    Json json = {{"untrained", report.models[pair.untrained].label},
                 {"trained", report.models[pair.trained].label},
                 {"codes", pair.moved.codes},
                 {"moved", pair.moved.moved},
                 {"share", share(pair.moved.moved, pair.moved.codes)}};
    for (const MovedCodes::Part& part : pair.moved.parts)
      json["share_by_kind"][role_label(part.role)] = share(part.moved, part.codes);
    list.push_back(json);
  }
  return list;
}

}  // namespace

std::string report_json(const Report& report) {
  const KlResult& kl = report.models.front().kl;
  Json json = {{"text", report.text}, {"context", report.context}, {"chunks", report.chunks},
               {"tokens", kl.tokens}, {"command", report.command}, {"prompt", report.prompt}};
  json["float"] = {{"label", report.float_label},
                   {"path", report.float_path},
                   {"size_bytes", report.float_size_bytes},
                   {"tensor_bytes", report.float_tensor_bytes},
                   {"bits_per_weight", report.float_bits_per_weight},
                   {"perplexity", kl.ppl_base.value},
                   {"perplexity_error", kl.ppl_base.error},
                   {"sample", {{"text", report.float_sample}, {"tokens", report.float_sample_tokens}}}};
  json["models"] = Json::array();
  for (const ReportModel& m : report.models) json["models"].push_back(model_json(report, m));
  if (!report.histograms.empty()) json["histogram"] = histograms_json(report);
  json["moved_codes"] = moved_json(report);
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace qat
