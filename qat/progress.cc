#include "qat/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace qat {
namespace {

constexpr double kQuiet = 0.5;     // seconds before anything is shown
constexpr double kRedraw = 0.1;    // seconds between redraws on a terminal
constexpr double kLogEvery = 5.0;  // seconds between lines of a log, at least

double seconds_between(std::chrono::steady_clock::time_point a, std::chrono::steady_clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

bool stderr_is_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && (term == nullptr || std::strcmp(term, "dumb") != 0);
}

int terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// A terminal whose locale is not told (a container, usually) is taken for UTF-8.
bool terminal_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    return strcasestr(value, "utf-8") != nullptr || strcasestr(value, "utf8") != nullptr;
  }
  return true;
}

int code_points(const std::string& text) {
  return static_cast<int>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string first_code_points(const std::string& text, int count) {
  size_t end = 0;
  for (int seen = 0; end < text.size(); ++end) {
    const bool starts_character = (text[end] & 0xc0) != 0x80;
    if (starts_character && ++seen > count) break;
  }
  return text.substr(0, end);
}

std::string repeated(const char* piece, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += piece;
  return text;
}

// `width` cells; in UTF-8 the last filled cell is drawn in eighths.
std::string bar(double fraction, int width, bool utf8) {
  if (!utf8) {
    const int full = static_cast<int>(fraction * width);
    return std::string(static_cast<size_t>(full), '#') + std::string(static_cast<size_t>(width - full), '.');
  }
  static const char* const partial[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(fraction * width * 8);
  const int full = eighths / 8, rest = eighths % 8;
  return repeated("█", full) + partial[rest] + repeated("░", width - full - (rest > 0 ? 1 : 0));
}

}  // namespace

std::string duration_text(double seconds) {
  char text[48];
  if (!(seconds >= 0)) seconds = 0;
  if (seconds < 9.95) {
    std::snprintf(text, sizeof text, "%.1f s", seconds);
    return text;
  }
  const auto whole = static_cast<long long>(std::llround(std::min(seconds, 3e10)));
  if (whole < 60) std::snprintf(text, sizeof text, "%lld s", whole);
  else if (whole < 3600) std::snprintf(text, sizeof text, "%lld min %02lld s", whole / 60, whole % 60);
  else if (whole < 86400) std::snprintf(text, sizeof text, "%lld h %02lld min", whole / 3600, whole % 3600 / 60);
  else std::snprintf(text, sizeof text, "%lld d %02lld h", whole / 86400, whole % 86400 / 3600);
  return text;
}

std::string bytes_text(uint64_t bytes) {
  static const char* const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  // 999.5 would print as "1e+03" in three digits: it belongs to the next unit.
  while (value >= 999.5 && unit < 6) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  if (unit == 0) std::snprintf(text, sizeof text, "%.0f B", value);
  else std::snprintf(text, sizeof text, "%.*f %s", value < 9.995 ? 2 : value < 99.95 ? 1 : 0, value, units[unit]);
  return text;
}

std::string progress_line(const std::string& label, double fraction, const std::string& text, double seconds_left,
                          int columns, bool utf8) {
  constexpr int kNarrowestBar = 10, kWidestBar = 40;
  fraction = std::clamp(fraction, 0.0, 1.0);
  char percent[8];
  std::snprintf(percent, sizeof percent, "%3d%%", static_cast<int>(fraction * 100));  // 100 % only when done
  const std::string left = seconds_left < 0 ? "" : "  " + duration_text(seconds_left) + " left";
  const std::string head = label + " " + percent + " ";
  // The last column stays free: writing there makes some terminals wrap.
  int room = columns - 1 - code_points(head) - code_points(left);
  std::string middle = text.empty() ? "" : "  " + text;
  if (code_points(middle) > room - kNarrowestBar) middle = first_code_points(middle, std::max(0, room - kNarrowestBar));
  room -= code_points(middle);
  if (room < kNarrowestBar) return first_code_points(head + left, std::max(0, columns - 1));
  return head + bar(fraction, std::min(room, kWidestBar), utf8) + middle + left;
}

ProgressBar::ProgressBar(std::string label, int64_t total)
    : label_(std::move(label)),
      total_(std::max<int64_t>(total, 1)),
      terminal_(stderr_is_terminal()),
      start_(Clock::now()),
      last_(start_) {}

ProgressBar::~ProgressBar() { clear(); }

void ProgressBar::clear() {
  if (drawn_ && terminal_) std::fputs("\r\033[K", stderr);
  drawn_ = false;
}

void ProgressBar::update(int64_t done, const std::string& text) {
  if (initial_ < 0) initial_ = done;
  const Clock::time_point now = Clock::now();
  const double shown_before = seconds_between(last_, now);
  if (seconds_between(start_, now) < kQuiet) return;
  if (terminal_) {
    if (drawn_ && shown_before < kRedraw) return;
  } else {
    const int tenth = static_cast<int>(done * 10.0 / static_cast<double>(total_));
    if (tenth <= last_tenth_ || shown_before < kLogEvery) return;
    last_tenth_ = tenth;
  }
  last_ = now;
  draw(done, text);
}

void ProgressBar::draw(int64_t done, const std::string& text) {
  done_ = done;
  text_ = text;
  const double elapsed = seconds_between(start_, Clock::now());
  const auto advanced = static_cast<double>(done - initial_);
  const double left = advanced > 0 ? elapsed / advanced * static_cast<double>(total_ - done) : -1;
  const double fraction = static_cast<double>(done) / static_cast<double>(total_);
  drawn_ = true;
  if (terminal_) {
    const std::string line = progress_line(label_, fraction, text, left, terminal_columns(), terminal_is_utf8());
    std::fprintf(stderr, "\r%s\033[K", line.c_str());
    std::fflush(stderr);
  } else {
    std::fprintf(stderr, "%s %3d%%%s%s%s\n", label_.c_str(), static_cast<int>(fraction * 100), text.empty() ? "" : "  ",
                 text.c_str(), left < 0 ? "" : ("  " + duration_text(left) + " left").c_str());
  }
}

void ProgressBar::finish(const std::string& summary) {
  clear();
  if (!summary.empty()) std::fprintf(stderr, "%s\n", summary.c_str());
}

void ProgressBar::print(const std::string& line) {
  const bool redraw = drawn_ && terminal_;
  clear();
  std::fprintf(stderr, "%s\n", line.c_str());
  if (redraw) draw(done_, text_);
}

}  // namespace qat
