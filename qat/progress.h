// Progress on a terminal: one line, redrawn at most ten times a second, with percent, a bar, a free text and the time
// left. On a stream that is no terminal it prints a line every ten percent (at most one every five seconds), so that
// logs stay readable. Everything goes to stderr. The terminal is never put into a special state, so a signal at any
// moment leaves it usable.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace qat {

class ProgressBar {
 public:
  // Nothing is shown until 0.5 s have passed, so quick work stays quiet.
  ProgressBar(std::string label, int64_t total);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();  // clears the line
  void update(int64_t done, const std::string& text = "");
  void finish(const std::string& summary = "");  // replaces the bar by the summary line (when not empty)
  // Prints a line above the bar.
  void print(const std::string& line);

 private:
  void draw(int64_t done, const std::string& text);
  void clear();
  using Clock = std::chrono::steady_clock;
  std::string label_;
  int64_t total_;
  bool terminal_;
  bool drawn_ = false;
  int64_t initial_ = -1;  // `done` at the first update: resumed work does not spoil the estimate
  int64_t done_ = 0;      // as last drawn
  std::string text_;      // as last drawn
  int last_tenth_ = 0;
  Clock::time_point start_, last_;
};

// The line that a bar draws, narrower than `columns`: "train  50% █████░░░░░  loss 2.34  3 min 20 s left".
// seconds_left < 0: unknown.
std::string progress_line(const std::string& label, double fraction, const std::string& text, double seconds_left,
                          int columns, bool utf8);

std::string duration_text(double seconds);  // "1 h 02 min", "3 min 20 s", "4.2 s", "2 d 03 h"
std::string bytes_text(uint64_t bytes);     // "1.03 MB", "4.2 GB" (powers of 1000, three digits)

}  // namespace qat
