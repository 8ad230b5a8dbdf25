#include "qat/cli/utf8_stream.h"

namespace qat {
namespace {

constexpr const char* kReplacement = "\xef\xbf\xbd";

// Length of the character that begins with this byte, 0 for a byte that begins none.
size_t sequence_length(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first < 0xe0) return 2;
  if (first >= 0xe0 && first < 0xf0) return 3;
  return first >= 0xf0 && first < 0xf5 ? 4 : 0;
}

// The second byte decides whether a form is overlong, a surrogate or above U+10FFFF.
bool may_follow(unsigned char first, size_t index, unsigned char byte) {
  unsigned char low = 0x80, high = 0xbf;
  if (index == 1 && first == 0xe0) low = 0xa0;
  if (index == 1 && first == 0xed) high = 0x9f;
  if (index == 1 && first == 0xf0) low = 0x90;
  if (index == 1 && first == 0xf4) high = 0x8f;
  return byte >= low && byte <= high;
}

}  // namespace

std::string Utf8Stream::add(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (!pending_.empty() && !may_follow(static_cast<unsigned char>(pending_[0]), pending_.size(), byte))
      out += finish();
    if (pending_.empty() && sequence_length(byte) == 0) {
      out += kReplacement;
      continue;
    }
    pending_ += c;
    if (pending_.size() == sequence_length(static_cast<unsigned char>(pending_[0]))) {
      out += pending_;
      pending_.clear();
    }
  }
  return out;
}

std::string Utf8Stream::finish() {
  const std::string out = pending_.empty() ? "" : kReplacement;
  pending_.clear();
  return out;
}

}  // namespace qat
