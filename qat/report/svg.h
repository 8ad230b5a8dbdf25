// Plots as inline SVG: axes, lines, markers, text. A series is told by its marker and its dashes as well as by its
// colour, which the page's style sheet sets (classes c0, c1, ...; 0: the float model), so that one drawing serves light
// and dark. Everything that is text is escaped here.
#pragma once

#include <string>
#include <vector>

namespace qat {

struct Tick {
  double at;
  std::string text;
};
struct Axis {
  double low = 0.0, high = 1.0;
  bool logarithmic = false;
  std::string title;  // with its unit
  std::vector<Tick> ticks;
};
// Round ticks; the ends move outwards to hold them. A log axis takes positive values.
Axis linear_axis(double low, double high, const std::string& title);
Axis log_axis(double low, double high, const std::string& title);
Axis step_axis(double low, double high, const std::string& title);  // whole numbers, ends as given

struct Point {
  double x, y;
};
struct Margins {
  double left, right, top, bottom;
};

enum class Anchor { start, middle, end };

class Plot {
 public:
  // Sizes in units of the view box, in which text is 12.5 high.
  Plot(double width, double height, const Margins& margins, const Axis& x, const Axis& y);

  // From data to the view box.
  double x(double value) const { return left_ + place(x_, value) * (right_ - left_); }
  double y(double value) const { return bottom_ - place(y_, value) * (bottom_ - top_); }
  double left() const { return left_; }
  double right() const { return right_; }
  double top() const { return top_; }
  double bottom() const { return bottom_; }

  // Of data; points that the axes cannot show (not finite, not positive on a log axis) are left out.
  void line(const std::vector<Point>& points, int series);
  void markers(const std::vector<Point>& points, int series);
  void marker(const Point& point, int series, const std::string& tooltip);
  // Series names at the right end, each beside its y, pushed apart where they would overlap.
  struct EndLabel {
    double y;  // data
    std::string text;
    int series;
  };
  void end_labels(std::vector<EndLabel> labels);

  // In units of the view box.
  void segment(double x1, double y1, double x2, double y2, const std::string& style_class);
  void rectangle(double x, double y, double width, double height, const std::string& style_class);
  void path(const std::string& commands, const std::string& style_class);
  void text(double x, double y, const std::string& text, Anchor anchor, const std::string& style_class);

  std::string svg(const std::string& description) const;  // for those who do not see it

 private:
  static double place(const Axis& axis, double value);
  bool shows(const Point& p) const;
  void draw_axes();

  double width_, height_, left_, right_, top_, bottom_;
  Axis x_, y_;
  std::string body_;
};

std::string number_text(double value, int significant);  // "0.0265", "1230", "1.2e-6"
std::string marker_svg(double x, double y, int series);
std::string colour_class(int series);        // "c3"
std::string swatch(int series);              // a small SVG: the series' line with its marker, for legends
double text_width(const std::string& text);  // about; in the view box

}  // namespace qat
