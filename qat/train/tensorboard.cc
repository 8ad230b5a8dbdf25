#include "qat/train/tensorboard.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "event.pb-c.h"
#include "format/error.h"

namespace qat {
namespace {

std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0x82f63b78u : 0u);
    table[i] = c;
  }
  return table;
}

// TFRecord stores checksums rotated and shifted, so that a checksum of data that holds checksums stays good.
uint32_t masked_crc(Span<const uint8_t> bytes) {
  const uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

std::vector<uint8_t> packed(const QatTensorboard__Event& event) {
  std::vector<uint8_t> bytes(qat_tensorboard__event__get_packed_size(&event));
  qat_tensorboard__event__pack(&event, bytes.data());
  return bytes;
}

}  // namespace

uint32_t crc32c(Span<const uint8_t> bytes) {
  static const std::array<uint32_t, 256> table = crc_table();
  uint32_t crc = 0xffffffffu;
  for (const uint8_t byte : bytes) crc = (crc >> 8) ^ table[(crc ^ byte) & 0xff];
  return crc ^ 0xffffffffu;
}

EventFile::EventFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "wb")) {
  if (file_ == nullptr) fail(path, ": cannot write: ", std::strerror(errno));
  QatTensorboard__Event event = QAT_TENSORBOARD__EVENT__INIT;
  std::string version = "brain.Event:2";
  event.file_version = version.data();
  write_record(packed(event));
}

EventFile::~EventFile() { std::fclose(file_); }

void EventFile::add(double wall_time, int64_t step, const std::map<std::string, double>& scalars) {
  std::vector<QatTensorboard__Summary__Value> values;
  std::vector<std::string> tags;
  values.reserve(scalars.size());
  tags.reserve(scalars.size());
  for (const auto& [tag, number] : scalars) {
    tags.push_back(tag);
    QatTensorboard__Summary__Value value = QAT_TENSORBOARD__SUMMARY__VALUE__INIT;
    value.tag = tags.back().data();
    value.has_simple_value = 1;
    value.simple_value = static_cast<float>(number);
    values.push_back(value);
  }
  std::vector<QatTensorboard__Summary__Value*> pointers;
  for (auto& value : values) pointers.push_back(&value);
  QatTensorboard__Summary summary = QAT_TENSORBOARD__SUMMARY__INIT;
  summary.n_value = pointers.size();
  summary.value = pointers.data();
  QatTensorboard__Event event = QAT_TENSORBOARD__EVENT__INIT;
  event.has_wall_time = event.has_step = 1;
  event.wall_time = wall_time;
  event.step = step;
  event.summary = &summary;
  write_record(packed(event));
}

// u64 length, masked crc of the length, the bytes, masked crc of the bytes; all little-endian.
void EventFile::write_record(Span<const uint8_t> bytes) {
  std::array<uint8_t, 8> length{};
  const uint64_t size = bytes.size();
  std::memcpy(length.data(), &size, 8);
  const uint32_t length_crc = masked_crc(length), data_crc = masked_crc(bytes);
  const bool written = std::fwrite(length.data(), 1, 8, file_) == 8 && std::fwrite(&length_crc, 1, 4, file_) == 4 &&
                       std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size() &&
                       std::fwrite(&data_crc, 1, 4, file_) == 4 && std::fflush(file_) == 0;
  if (!written) fail(path_, ": cannot write: ", std::strerror(errno));
}

}  // namespace qat
