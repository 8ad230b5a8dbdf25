// TensorBoard's framing: checksums against published vectors, records read back by hand.
#include "qat/train/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "format/file_io.h"
#include "tests/test_paths.h"

namespace qat {
namespace {

TEST(Crc32c, GivesTheVectorsOfRfc3720) {
  const std::string digits = "123456789";
  EXPECT_EQ(crc32c({reinterpret_cast<const uint8_t*>(digits.data()), digits.size()}), 0xe3069283u);
  const std::vector<uint8_t> zeros(32, 0), ones(32, 0xff);
  EXPECT_EQ(crc32c(zeros), 0x8a9136aau);
  EXPECT_EQ(crc32c(ones), 0x62a8ab43u);
  EXPECT_EQ(crc32c({}), 0u);
}

// The same formula as in TFRecord's description, undone.
uint32_t unmasked(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8u;
  return (rotated >> 17) | (rotated << 15);
}

TEST(EventFile, RecordsCanBeReadBack) {
  const TemporaryDirectory directory;
  const std::string path = directory / "events";
  { EventFile(path).add(1.5, 300, {{"train/loss", 0.25}}); }
  const std::string bytes = read_file(path);
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    ASSERT_LE(at + 12, bytes.size());
    uint64_t length;
    uint32_t length_crc, data_crc;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&length_crc, bytes.data() + at + 8, 4);
    ASSERT_LE(at + 16 + length, bytes.size());
    const auto* begin = reinterpret_cast<const uint8_t*>(bytes.data() + at);
    EXPECT_EQ(unmasked(length_crc), crc32c({begin, 8}));
    std::memcpy(&data_crc, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(unmasked(data_crc), crc32c({begin + 12, static_cast<size_t>(length)}));
    records.push_back(bytes.substr(at + 12, length));
    at += 16 + length;
  }
  ASSERT_EQ(records.size(), 2u);
  EXPECT_NE(records[0].find("brain.Event:2"), std::string::npos);
  // wall_time 1.5 (field 1, double), step 300 (field 2, varint), summary (field 5) of one value: tag (1), simple_value
  // (2).
  const std::string expected(
      "\x09\x00\x00\x00\x00\x00\x00\xf8\x3f\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\x80\x3e", 33);
  EXPECT_EQ(records[1], expected);
}

}  // namespace
}  // namespace qat
