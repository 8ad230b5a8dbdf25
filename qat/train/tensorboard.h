// A TensorBoard event file: protobuf records in TFRecord framing.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

#include "format/span.h"

namespace qat {

// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), as RFC 3720 appendix B.4 tests it.
uint32_t crc32c(Span<const uint8_t> bytes);

class EventFile {
 public:
  // Begins a new file PATH, replacing what was there.
  explicit EventFile(const std::string& path);
  EventFile(const EventFile&) = delete;
  ~EventFile();
  // Scalars by tag at `step`; wall_time in seconds since 1970. On disk when this returns.
  void add(double wall_time, int64_t step, const std::map<std::string, double>& scalars);

 private:
  void write_record(Span<const uint8_t> bytes);
  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace qat
