#include "qat/train/metrics.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "format/error.h"
#include "format/file_io.h"
#include "qat/train/tensorboard.h"

namespace qat {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::json;

// Steps are whole; everything else is printed with the digits that give the same double back.
std::string to_json(const MetricsLine& line) {
  Json json = Json::object();
  for (const auto& [name, value] : line) {
    if (name == "step") json[name] = static_cast<int64_t>(value);
    else json[name] = value;
  }
  return json.dump() + "\n";
}

// Complete lines up to last_step. A half-written last line is what a killed run leaves: dropped.
std::vector<MetricsLine> read_lines(const std::string& path, int64_t last_step) {
  std::vector<MetricsLine> lines;
  std::ifstream file(path);
  for (std::string text; std::getline(file, text);) {
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number() ||
        json["step"].get<double>() > static_cast<double>(last_step))
      continue;
    MetricsLine line;
    for (const auto& [name, value] : json.items())
      if (value.is_number()) line[name] = value.get<double>();
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace

MetricsLog::MetricsLog(const std::string& out, int64_t last_step) : path_(out + "/metrics.jsonl") {
  if (last_step > 0) lines_ = read_lines(path_, last_step);
  std::string kept;
  for (const MetricsLine& line : lines_) kept += to_json(line);
  write_file(path_, kept);
  file_ = std::fopen(path_.c_str(), "ab");
  if (file_ == nullptr) fail(path_, ": cannot write: ", std::strerror(errno));
  fs::create_directories(out + "/tensorboard");
  events_ = std::make_unique<EventFile>(out + "/tensorboard/events.out.tfevents.qat");
  const std::vector<MetricsLine> earlier = std::move(lines_);
  lines_.clear();
  for (const MetricsLine& line : earlier) write(line);
}

MetricsLog::~MetricsLog() { std::fclose(file_); }

void MetricsLog::add(int64_t step, MetricsLine values) {
  values["step"] = static_cast<double>(step);
  values["time"] = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  const std::string text = to_json(values);
  if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0)
    fail(path_, ": cannot write: ", std::strerror(errno));
  write(values);
}

void MetricsLog::write(const MetricsLine& line) {
  std::map<std::string, double> scalars;
  for (const auto& [name, value] : line) {
    if (name == "step" || name == "time") continue;
    scalars[name.rfind("eval_", 0) == 0 ? "eval/" + name.substr(5) : "train/" + name] = value;
  }
  const auto time = line.find("time");
  events_->add(time == line.end() ? 0.0 : time->second, static_cast<int64_t>(line.at("step")), scalars);
  lines_.push_back(line);
}

}  // namespace qat
