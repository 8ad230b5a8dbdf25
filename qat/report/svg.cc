#include "qat/report/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "qat/report/escape.h"

namespace qat {

constexpr int kColours = 9;  // c0 is the float model's

std::string colour_class(int series) {
  return "c" + std::to_string(series == 0 ? 0 : 1 + (series - 1) % (kColours - 1));
}

namespace {

constexpr int kMarkers = 8;
// Around the origin, about 9 wide: circle, square, triangle, diamond, cross, triangle down, plus, ring.
constexpr const char* kMarkerPaths[kMarkers] = {
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",
    "M-3.8-3.8h7.6v7.6h-7.6z",
    "M0-5L4.8 3.6H-4.8z",
    "M0-5.3L5.3 0L0 5.3L-5.3 0z",
    "M-4.6-2.6L-2.6-4.6L0-2L2.6-4.6L4.6-2.6L2 0L4.6 2.6L2.6 4.6L0 2L-2.6 4.6L-4.6 2.6L-2 0z",
    "M0 5L4.8-3.6H-4.8z",
    "M-1.5-4.8h3v3.3h3.3v3h-3.3v3.3h-3v-3.3h-3.3v-3h3.3z",
    "M-4.4 0a4.4 4.4 0 1 0 8.8 0a4.4 4.4 0 1 0-8.8 0zM-2 0a2 2 0 1 1 4 0a2 2 0 1 1-4 0z",
};
constexpr const char* kDashes[] = {"", "7 3", "2 3", "9 3 2 3", "12 4"};

// The float model is a ring in neutral ink; models go through the rest.
int marker_of(int series) { return series == 0 ? kMarkers - 1 : (series - 1) % (kMarkers - 1); }
const char* dash_of(int series) { return series == 0 ? "2 3" : kDashes[(series - 1) % 5]; }

std::string coordinate(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", x);
  return text;
}

std::string attribute(const char* name, double value) {
  return std::string(" ") + name + "=\"" + coordinate(value) + "\"";
}

std::string open_group(int series) {
  const std::string dash = dash_of(series);
  return "<g class=\"" + colour_class(series) + "\"" + (dash.empty() ? "" : " stroke-dasharray=\"" + dash + "\"") + ">";
}

std::string line_path(const std::vector<Point>& points) {
  std::string d;
  for (const Point& p : points) d += (d.empty() ? "M" : "L") + coordinate(p.x) + " " + coordinate(p.y);
  return d;
}

// The least of 1, 2, 5 times a power of ten that is at least `x`.
double round_up(double x) {
  const double power = std::pow(10.0, std::floor(std::log10(x)));
  for (const double factor : {1.0, 2.0, 5.0})
    if (factor * power >= x * (1 - 1e-9)) return factor * power;
  return 10.0 * power;
}
double round_down(double x) {
  const double power = std::pow(10.0, std::floor(std::log10(x) + 1e-9));
  for (const double factor : {5.0, 2.0})
    if (factor * power <= x * (1 + 1e-9)) return factor * power;
  return power;
}

std::string tick_text(double value, double step) {
  const int decimals = std::clamp(static_cast<int>(-std::floor(std::log10(step) + 1e-9)), 0, 9);
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", decimals, std::abs(value));
  return value < -step * 1e-6 ? std::string("−") + text : text;
}

}  // namespace

std::string number_text(double value, int significant) {
  if (!std::isfinite(value)) return "–";
  if (value == 0.0) return "0";
  const int exponent = static_cast<int>(std::floor(std::log10(std::abs(value)) + 1e-12));
  char text[48];
  if (exponent < -5 || exponent > 8) {
    std::snprintf(text, sizeof text, "%.*fe%d", std::max(significant - 1, 0), value / std::pow(10.0, exponent),
                  exponent);
  } else {
    std::snprintf(text, sizeof text, "%.*f", std::max(significant - 1 - exponent, 0), value);
  }
  return text;
}

Axis linear_axis(double low, double high, const std::string& title) {
  if (!(high > low)) high = low + (low == 0.0 ? 1.0 : std::abs(low) * 0.1);
  const double step = round_up((high - low) / 5.5);
  Axis axis = {std::floor(low / step + 1e-9) * step, std::ceil(high / step - 1e-9) * step, false, title, {}};
  const auto count = static_cast<int>(std::lround((axis.high - axis.low) / step));
  for (int i = 0; i <= count; ++i) axis.ticks.push_back({axis.low + i * step, tick_text(axis.low + i * step, step)});
  return axis;
}

Axis log_axis(double low, double high, const std::string& title) {
  Axis axis = {round_down(low), round_up(high), true, title, {}};
  if (axis.high <= axis.low * 1.5) axis.high = round_up(axis.low * 1.5);
  const bool decades_only = axis.high / axis.low > 300.0;
  const int last = static_cast<int>(std::ceil(std::log10(axis.high))),
            first = static_cast<int>(std::floor(std::log10(axis.low)));
  const int every = std::max(1, (last - first) / 6);  // decades between labels
  for (int power = first; power <= last; ++power) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double at = factor * std::pow(10.0, power);
      if (at < axis.low * (1 - 1e-9) || at > axis.high * (1 + 1e-9)) continue;
      if (decades_only && (factor != 1.0 || (power - first) % every != 0)) continue;
      axis.ticks.push_back({at, number_text(at, 1)});
    }
  }
  return axis;
}

Axis step_axis(double low, double high, const std::string& title) {
  Axis axis = {low, high, false, title, {}};
  const double step = std::max(1.0, round_up((high - low) / 6.5));
  for (double at = std::ceil(low / step) * step; at <= high; at += step)
    axis.ticks.push_back({at, tick_text(at, step)});
  return axis;
}

double text_width(const std::string& text) { return 6.7 * static_cast<double>(character_count(text)); }

std::string marker_svg(double x, double y, int series) {
  return "<path class=\"marker " + colour_class(series) + "\" transform=\"translate(" + coordinate(x) + " " +
         coordinate(y) + ")\" d=\"" + kMarkerPaths[marker_of(series)] + "\"/>";
}

std::string swatch(int series) {
  return "<svg class=\"swatch\" viewBox=\"0 0 34 14\" width=\"34\" height=\"14\" aria-hidden=\"true\">" +
         open_group(series) + "<path class=\"line\" d=\"M0 7H34\"/></g>" + marker_svg(17, 7, series) + "</svg>";
}

// --- Plot ---

Plot::Plot(double width, double height, const Margins& margins, const Axis& x, const Axis& y)
    : width_(width),
      height_(height),
      left_(margins.left),
      right_(width - margins.right),
      top_(margins.top),
      bottom_(height - margins.bottom),
      x_(x),
      y_(y) {
  draw_axes();
}

double Plot::place(const Axis& axis, double value) {
  if (axis.logarithmic) return std::log(value / axis.low) / std::log(axis.high / axis.low);
  return axis.high > axis.low ? (value - axis.low) / (axis.high - axis.low) : 0.5;
}

bool Plot::shows(const Point& p) const {
  const auto on = [](const Axis& axis, double v) { return std::isfinite(v) && (!axis.logarithmic || v > 0.0); };
  return on(x_, p.x) && on(y_, p.y);
}

void Plot::draw_axes() {
  for (const Tick& tick : y_.ticks) {
    segment(left_, y(tick.at), right_, y(tick.at), "grid");
    text(left_ - 7, y(tick.at) + 4, tick.text, Anchor::end, "tick");
  }
  segment(left_, bottom_, right_, bottom_, "axis");
  for (const Tick& tick : x_.ticks) {
    segment(x(tick.at), bottom_, x(tick.at), bottom_ + 5, "axis");
    text(x(tick.at), bottom_ + 18, tick.text, Anchor::middle, "tick");
  }
  if (!x_.title.empty()) text((left_ + right_) / 2, bottom_ + 36, x_.title, Anchor::middle, "title");
  if (!y_.title.empty()) text(4, 13, y_.title, Anchor::start, "title");
}

void Plot::line(const std::vector<Point>& points, int series) {
  std::vector<Point> shown;
  for (const Point& p : points)
    if (shows(p)) shown.push_back({x(p.x), y(p.y)});
  if (shown.size() > 1) body_ += open_group(series) + "<path class=\"line\" d=\"" + line_path(shown) + "\"/></g>";
}

void Plot::markers(const std::vector<Point>& points, int series) {
  for (const Point& p : points)
    if (shows(p)) body_ += marker_svg(x(p.x), y(p.y), series);
}

void Plot::marker(const Point& point, int series, const std::string& tooltip) {
  if (!shows(point)) return;
  body_ += "<g><title>" + escape_html(tooltip) + "</title>" + marker_svg(x(point.x), y(point.y), series) + "</g>";
}

void Plot::end_labels(std::vector<EndLabel> labels) {
  constexpr double kGap = 15.0;
  labels.erase(std::remove_if(labels.begin(), labels.end(),
                              [&](const EndLabel& l) {
                                return !shows({x_.high, l.y});
                              }),
               labels.end());
  std::sort(labels.begin(), labels.end(), [](const EndLabel& a, const EndLabel& b) { return a.y > b.y; });
  std::vector<double> places;
  for (const EndLabel& label : labels)
    places.push_back(places.empty() ? y(label.y) : std::max(y(label.y), places.back() + kGap));
  // What went below the plot is pushed back up.
  double limit = bottom_;
  for (size_t i = places.size(); i-- > 0; limit = places[i] - kGap) places[i] = std::min(places[i], limit);
  for (size_t i = 0; i < labels.size(); ++i) {
    const double from = y(labels[i].y);
    if (std::abs(places[i] - from) > 3.0) segment(right_ + 5, from, right_ + 12, places[i], "leader");
    body_ += marker_svg(right_ + 19, places[i], labels[i].series);
    text(right_ + 28, places[i] + 4, labels[i].text, Anchor::start, "label");
  }
}

void Plot::segment(double x1, double y1, double x2, double y2, const std::string& style_class) {
  body_ += "<line class=\"" + style_class + "\"" + attribute("x1", x1) + attribute("y1", y1) + attribute("x2", x2) +
           attribute("y2", y2) + "/>";
}

void Plot::rectangle(double x, double y, double width, double height, const std::string& style_class) {
  body_ += "<rect class=\"" + style_class + "\"" + attribute("x", x) + attribute("y", y) + attribute("width", width) +
           attribute("height", height) + "/>";
}

void Plot::path(const std::string& commands, const std::string& style_class) {
  body_ += "<path class=\"" + style_class + "\" d=\"" + commands + "\"/>";
}

void Plot::text(double x, double y, const std::string& text, Anchor anchor, const std::string& style_class) {
  static const char* const kAnchors[] = {"start", "middle", "end"};
  body_ += "<text class=\"" + style_class + "\" text-anchor=\"" + kAnchors[static_cast<int>(anchor)] + "\"" +
           attribute("x", x) + attribute("y", y) + ">" + escape_html(text) + "</text>";
}

std::string Plot::svg(const std::string& description) const {
  return "<svg class=\"plot\" role=\"img\" aria-label=\"" + escape_html(description) + "\" viewBox=\"0 0 " +
         coordinate(width_) + " " + coordinate(height_) + "\">" + body_ + "</svg>";
}

}  // namespace qat
