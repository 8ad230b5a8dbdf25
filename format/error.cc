#include "format/error.h"

#include <cstdio>
#include <cstdlib>

namespace qat {

std::string one_line(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

std::string printable(std::string_view text) {
  constexpr size_t kLongest = 200;
  return text.size() > kLongest ? one_line(text.substr(0, kLongest)) + "..." : one_line(text);
}

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: internal error: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace qat
