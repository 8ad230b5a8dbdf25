// What a run reports about itself: OUT/metrics.jsonl, one object per line, and the same as TensorBoard events.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace qat {

class EventFile;

// Names and numbers of one line. Every line has "step" and "time" (seconds since 1970).
using MetricsLine = std::map<std::string, double>;

class MetricsLog {
 public:
  // Keeps the lines up to `last_step` of an earlier run in OUT (0: none) and begins the files again from them. So a
  // resumed run's files look as if it had never been stopped, and events are a copy of metrics.jsonl, never more.
  MetricsLog(const std::string& out, int64_t last_step);
  ~MetricsLog();
  void add(int64_t step, MetricsLine values);
  const std::vector<MetricsLine>& lines() const { return lines_; }

 private:
  void write(const MetricsLine& line);
  std::string path_;
  std::FILE* file_ = nullptr;
  std::unique_ptr<EventFile> events_;
  std::vector<MetricsLine> lines_;
};

}  // namespace qat
