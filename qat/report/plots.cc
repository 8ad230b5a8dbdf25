#include "qat/report/plots.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "qat/report/escape.h"
#include "qat/report/rows.h"
#include "qat/report/svg.h"

namespace qat {
namespace {

constexpr double kWidth = 440.0, kHeight = 300.0;
constexpr double kMega = 1e6;

std::string plot_label(const std::string& label, size_t characters = 24) { return shortened(label, characters); }

// Room at the right for the names of lines.
constexpr size_t kEndLabel = 16;  // characters
double label_margin(const std::vector<std::string>& labels) {
  double width = 0.0;
  for (const std::string& label : labels) width = std::max(width, 1.1 * text_width(plot_label(label, kEndLabel)));
  return 32.0 + width;
}

struct Range {
  double low = INFINITY, high = -INFINITY;
  void add(double x) {
    if (!std::isfinite(x)) return;
    low = std::min(low, x);
    high = std::max(high, x);
  }
  void add_positive(double x) {
    if (x > 0.0) add(x);
  }
  bool empty() const { return !(low <= high); }
};

Axis log_axis_of(const Range& range, const std::string& title) {
  return range.empty() ? log_axis(1e-3, 1.0, title)
                       : log_axis(std::max(range.low, range.high * 1e-7), range.high, title);
}

// --- Labels beside points ---

struct Box {
  double x1, y1, x2, y2;
  double overlap(const Box& o) const {
    return std::max(0.0, std::min(x2, o.x2) - std::max(x1, o.x1)) *
           std::max(0.0, std::min(y2, o.y2) - std::max(y1, o.y1));
  }
};

// Right of the point, left, above, below: the first box that covers nothing, else the one that covers least.
Box place_label(double x, double y, double width, const std::vector<Box>& taken, const Box& frame) {
  std::vector<Box> places;
  const auto try_at = [&](double left, double baseline) {
    places.push_back({left, baseline - 11, left + width, baseline + 3});
  };
  const double right = x + 10, left = x - 10 - width;
  try_at(right, y + 4);
  try_at(left, y + 4);
  try_at(x - width / 2, y - 11);
  try_at(x - width / 2, y + 20);
  try_at(right, y - 10);
  try_at(right, y + 18);
  try_at(left, y - 10);
  try_at(left, y + 18);
  const auto cost = [&](const Box& p) {
    const double area = (p.x2 - p.x1) * (p.y2 - p.y1);
    double covered = 2 * (area - p.overlap(frame));
    for (const Box& box : taken) covered += p.overlap(box);
    return covered;
  };
  return *std::min_element(places.begin(), places.end(),
                           [&](const Box& a, const Box& b) { return cost(a) < cost(b) - 1e-9; });
}

// Whether the marker of a point, one of the first `points` boxes, meets another's.
bool is_crowded(const std::vector<Box>& taken, size_t point, size_t points) {
  for (size_t i = 0; i < points; ++i)
    if (i != point && taken[i].overlap(taken[point]) > 0.0) return true;
  return false;
}

// --- Curves ---

// Means of at most `most` groups of neighbours: a long run's noisy loss.
std::vector<Point> thinned(const std::vector<Point>& points, size_t most) {
  if (points.size() <= most) return points;
  std::vector<Point> out;
  for (size_t i = 0; i < most; ++i) {
    const size_t begin = i * points.size() / most, end = (i + 1) * points.size() / most;
    Point mean = {0.0, 0.0};
    for (size_t k = begin; k < end; ++k) mean = {mean.x + points[k].x, mean.y + points[k].y};
    const double n = static_cast<double>(end - begin);
    out.push_back({mean.x / n, mean.y / n});
  }
  return out;
}

std::vector<Point> every(const std::vector<Point>& points, size_t stride) {
  std::vector<Point> out;
  for (size_t i = 0; i < points.size(); i += stride) out.push_back(points[i]);
  return out;
}

std::vector<Point> curve(const RunMetrics& run, const std::string& key) {
  std::vector<Point> points;
  for (const auto& line : run)
    if (line.count("step") == 1 && line.count(key) == 1) points.push_back({line.at("step"), line.at(key)});
  return points;
}

std::string training_plot(const Report& report, const std::string& key, const std::string& unit, bool marked) {
  std::map<size_t, std::vector<Point>> curves;
  std::vector<std::string> names;
  Range x, y;
  for (size_t i = 0; i < report.models.size(); ++i) {
    const std::vector<Point> points = thinned(curve(report.models[i].metrics, key), 200);
    for (const Point& p : points) {
      x.add(p.x);
      y.add(p.y);
    }
    if (points.empty()) continue;
    curves[i] = points;
    names.push_back(report.models[i].label);
  }
  if (curves.empty()) return "";
  const bool logarithmic = y.low > 0.0 && y.high > 4.0 * y.low;
  Plot plot(kWidth, kHeight, {58, label_margin(names), 30, 44},
            step_axis(x.low, std::max(x.high, x.low + 1), "optimizer step"),
            logarithmic ? log_axis(y.low, y.high, unit + ", log scale") : linear_axis(y.low, y.high, unit));
  std::vector<Plot::EndLabel> labels;
  for (const auto& [i, points] : curves) {
    const int series = static_cast<int>(i) + 1;
    plot.line(points, series);
    if (marked) plot.markers(every(points, points.size() / 24 + 1), series);
    labels.push_back({points.back().y, plot_label(report.models[i].label, kEndLabel), series});
  }
  plot.end_labels(labels);
  return plot.svg(unit + " over the optimizer steps of each run");
}

// --- Histogram ---

// The highest share of a level, in percent.
double highest_share(const Histogram& h) {
  double highest = 0.0;
  for (const double share : h.levels) highest = std::max(highest, 100 * share);
  for (const double share : h.floats) highest = std::max(highest, 100 * share * h.bins_per_level);
  return highest;
}

std::string histogram_plot(const Histogram& h, const std::string& label, int series, double highest) {
  Plot plot(kWidth, 240, {58, 12, 30, 44}, step_axis(h.lowest - 1.5, h.highest + 1.5, "level: weight ÷ its step"),
            linear_axis(0.0, highest, "share (% per level)"));
  const std::string bar = "bar " + colour_class(series);
  for (int level = h.lowest; level <= h.highest; ++level) {
    const double top = plot.y(100 * h.levels[static_cast<size_t>(level - h.lowest)]);
    const double left = plot.x(level - 0.38), right = plot.x(level + 0.38);
    if (plot.bottom() - top > 0.05) plot.rectangle(left, top, right - left, plot.bottom() - top, bar);
  }
  std::string outline;
  for (size_t i = 0; i < h.floats.size(); ++i) {
    const double from = h.lowest - 1.5 + static_cast<double>(i) / h.bins_per_level;
    const double y = plot.y(100 * h.floats[i] * h.bins_per_level);
    char piece[80];
    std::snprintf(piece, sizeof piece, "%s%.1f %.1fH%.1f", i == 0 ? "M" : "L", plot.x(from), y,
                  plot.x(from + 1.0 / h.bins_per_level));
    outline += piece;
  }
  plot.path(outline, "outline");
  return plot.svg("Share of the codes of " + label +
                  " at each level, and of the float weights divided by the same steps");
}

}  // namespace

std::string size_plot(const Report& report) {
  Range sizes, klds;
  for (const ReportModel& m : report.models) {
    sizes.add(static_cast<double>(m.tensor_bytes) / kMega);
    klds.add_positive(m.kl.kld.value);
    klds.add_positive(m.kl.kld.value - m.kl.kld.error);
    klds.add_positive(m.kl.kld.value + m.kl.kld.error);
  }
  const double pad = std::max(0.12 * (sizes.high - sizes.low), 0.08 * sizes.high);
  Plot plot(kWidth, kHeight, {58, 14, 30, 44},
            linear_axis(std::max(0.0, sizes.low - pad), sizes.high + pad, "size of the tensors (MB)"),
            log_axis_of(klds, "mean KLD (nats per token), log scale"));
  std::vector<Box> taken;
  std::vector<Point> points;
  for (const ReportModel& m : report.models) {
    points.push_back({static_cast<double>(m.tensor_bytes) / kMega, m.kl.kld.value});
    const double x = plot.x(points.back().x), y = plot.y(points.back().y);
    taken.push_back({x - 7, y - 7, x + 7, y + 7});
  }
  const Box frame = {plot.left(), plot.top() - 8, plot.right() + 10, plot.bottom() - 2};
  for (size_t i = 0; i < points.size(); ++i) {
    const ReportModel& m = report.models[i];
    if (!(m.kl.kld.value > 0.0)) continue;
    const double x = plot.x(points[i].x), below = std::max(m.kl.kld.value - m.kl.kld.error, m.kl.kld.value * 0.01);
    plot.segment(x, plot.y(below), x, plot.y(m.kl.kld.value + m.kl.kld.error), "error");
    plot.marker(points[i], static_cast<int>(i) + 1,
                m.label + ": " + number_text(points[i].x, 4) + " MB, mean KLD " + number_text(m.kl.kld.value, 4));
    // Where markers cover each other, the value tells whose label it is.
    const std::string value = is_crowded(taken, i, points.size()) ? ": " + number_text(m.kl.kld.value, 3) : "";
    const std::string label = plot_label(m.label) + value;
    const Box place = place_label(x, plot.y(points[i].y), 1.1 * text_width(label), taken, frame);
    taken.push_back(place);
    const bool left = place.x2 < x;
    plot.text(left ? place.x2 : place.x1, place.y2 - 3, label, left ? Anchor::end : Anchor::start, "label halo");
  }
  return plot.svg("Size of each model against its mean KL divergence from the float model");
}

std::string perplexity_plot(const Report& report) {
  struct Row {
    std::string label;
    Estimate perplexity;
    double paired;  // error of the difference from the float model
  };
  std::vector<Row> rows = {{report.float_label, report.models.front().kl.ppl_base, 0.0}};
  for (const ReportModel& m : report.models) rows.push_back({m.label, m.kl.ppl_q, m.kl.difference.error});
  Range range;
  for (const Row& row : rows) {
    range.add(row.perplexity.value - row.perplexity.error);
    range.add(row.perplexity.value + row.perplexity.error);
  }
  const std::vector<ReportRow> texts = report_rows(report);
  constexpr double kRow = 44.0, kTop = 8.0;
  Plot plot(kWidth, kTop + kRow * static_cast<double>(rows.size()) + 48, {16, 16, kTop, 44},
            linear_axis(range.low, range.high, "perplexity"), Axis{0.0, 1.0, false, "", {}});
  const double reference = plot.x(rows[0].perplexity.value);
  plot.segment(reference, plot.top(), reference, plot.bottom(), "reference");
  for (size_t i = 0; i < rows.size(); ++i) {
    const Estimate& p = rows[i].perplexity;
    const double base = kTop + kRow * static_cast<double>(i), y = base + 29;
    plot.text(plot.left(), base + 16, plot_label(rows[i].label, 36), Anchor::start, "label halo");
    plot.text(plot.right(), base + 16, texts[i].perplexity + " ± " + texts[i].perplexity_error, Anchor::end,
              "value halo");
    plot.segment(plot.x(p.value - p.error), y, plot.x(p.value + p.error), y, "error");
    plot.segment(plot.x(p.value - rows[i].paired), y, plot.x(p.value + rows[i].paired), y, "error paired");
    plot.marker({p.value, 1.0 - (y - plot.top()) / (plot.bottom() - plot.top())}, static_cast<int>(i),
                rows[i].label + ": " + number_text(p.value, 6));
  }
  return plot.svg("Perplexity of each model with its standard error");
}

std::string quantile_plot(const Report& report) {
  // Each step to the right is ten times rarer: place = log10(1 / share of tokens above).
  const std::vector<Tick> ticks = {{std::log10(2.0), "median"}, {1, "90 %"}, {2, "99 %"}, {3, "99.9 %"}, {3.7, "max"}};
  constexpr double kMaximum = 3.7;
  Range range;
  std::vector<std::vector<Point>> lines;
  for (const ReportModel& m : report.models) {
    std::vector<Point> line;
    for (auto p = m.kl.kld_percentiles.rbegin(); p != m.kl.kld_percentiles.rend(); ++p) {
      if (p->fraction < 0.5) continue;
      line.push_back({p->fraction >= 1.0 ? kMaximum : -std::log10(1.0 - p->fraction), p->value});
      range.add_positive(p->value);
    }
    lines.push_back(line);
  }
  std::vector<std::string> names;
  for (const ReportModel& m : report.models) names.push_back(m.label);
  Plot plot(kWidth, kHeight, {58, label_margin(names), 30, 44},
            Axis{ticks[0].at, kMaximum, false, "share of tokens with less", ticks},
            log_axis_of(range, "KLD of a token (nats), log scale"));
  std::vector<Plot::EndLabel> labels;
  for (size_t i = 0; i < lines.size(); ++i) {
    const int series = static_cast<int>(i) + 1;
    plot.line(lines[i], series);
    plot.markers(lines[i], series);
    if (!lines[i].empty()) labels.push_back({lines[i].back().y, plot_label(report.models[i].label, kEndLabel), series});
  }
  plot.end_labels(labels);
  return plot.svg("Percentiles of the KL divergence of single tokens, for each model");
}

std::vector<Panel> weight_panels(const Report& report) {
  std::map<Role, std::map<size_t, std::vector<Point>>> roles;  // -> model -> (layer, %)
  double last = 1.0;
  for (size_t i = 0; i < report.models.size(); ++i) {
    if (!report.models[i].weights) continue;
    for (const TensorError& t : report.models[i].weights->tensors) {
      if (t.info.layer < 0) continue;
      roles[t.info.role][i].push_back({static_cast<double>(t.info.layer), 100 * t.relative});
      last = std::max(last, static_cast<double>(t.info.layer));
    }
  }
  std::vector<Panel> panels;
  for (const auto& [role, models] : roles) {
    Range range;
    range.add(0.0);
    for (const auto& [model, points] : models)
      for (const Point& p : points) range.add(p.y);
    Plot plot(330, 210, {48, 16, 26, 42}, step_axis(-0.25, last + 0.25, "layer"),
              linear_axis(0.0, std::max(range.high, 1e-6), "relative error (%)"));
    for (const auto& [model, points] : models) {
      plot.line(points, static_cast<int>(model) + 1);
      plot.markers(every(points, points.size() / 12 + 1), static_cast<int>(model) + 1);
    }
    panels.push_back(
        {role_label(role), plot.svg(std::string("Relative weight error over the layers: ") + role_label(role))});
  }
  return panels;
}

std::vector<Panel> histogram_panels(const Report& report) {
  std::vector<Panel> panels;
  double highest = 0.0;  // of all, so that panels can be compared
  for (const Histogram& h : report.histograms) highest = std::max(highest, highest_share(h));
  for (size_t i = 0; i < report.histograms.size(); ++i) {
    const Histogram& h = report.histograms[i];
    if (h.levels.empty()) continue;
    const std::string& label = report.models[i].label;
    panels.push_back({label + " (" + h.type + ")", histogram_plot(h, label, static_cast<int>(i) + 1, highest)});
  }
  return panels;
}

std::vector<Panel> training_panels(const Report& report) {
  struct Kind {
    const char *key, *title, *unit;
    bool marked;
  };
  const Kind kinds[] = {{"loss", "Loss", "loss (nats per token)", false},
                        {"eval_perplexity", "Held-out perplexity", "perplexity", true},
                        {"eval_kl", "Held-out KLD", "KLD to the teacher (nats per token)", true}};
  std::vector<Panel> panels;
  for (const Kind& kind : kinds) {
    const std::string svg = training_plot(report, kind.key, kind.unit, kind.marked);
    if (!svg.empty()) panels.push_back({kind.title, svg});
  }
  return panels;
}

}  // namespace qat
