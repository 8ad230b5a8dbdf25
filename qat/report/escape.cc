#include "qat/report/escape.h"

#include <cstring>
#include <vector>

namespace qat {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";

// Length of the valid UTF-8 character at `i`, which HTML and XML may hold; 0 when there is none.
size_t character_at(const std::string& text, size_t i) {
  const auto byte = [&](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  const unsigned first = byte(i);
  if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : (first == '\n' || first == '\t') ? 1 : 0;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  unsigned code = first & (0xffu >> (length + 1));
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i + k) & 0x3f);
  }
  const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code < 0xe000, no_character = (code & 0xfffe) == 0xfffe;
  const bool direction =
      (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);  // would reorder the page
  const bool control = code < 0xa0;
  return code < least[length] || code > 0x10ffff || surrogate || no_character || control || direction ? 0 : length;
}

std::vector<std::string> characters_of(const std::string& clean) {
  std::vector<std::string> list;
  for (size_t i = 0; i < clean.size();) {
    const size_t length = character_at(clean, i);
    list.push_back(clean.substr(i, length));
    i += length;
  }
  return list;
}

}  // namespace

std::string clean_utf8(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = character_at(text, i);
    if (length == 0) out += kReplacement;
    else out.append(text, i, length);
    i += length == 0 ? 1 : length;
  }
  return out;
}

std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : clean_utf8(text)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string escape_markdown(const std::string& text) {
  std::string out;
  for (const char c : clean_utf8(text)) {
    if (c == '\n' || c == '\t') out += ' ';
    else if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '&') out += "&amp;";
    else if (std::strchr("\\`*_[]#!|~$@", c) != nullptr) out += std::string("\\") + c;
    else out += c;
  }
  return out;
}

size_t character_count(const std::string& utf8) { return characters_of(clean_utf8(utf8)).size(); }

std::string shortened(const std::string& text, size_t characters) {
  const std::vector<std::string> all = characters_of(clean_utf8(text));
  if (all.size() <= characters) return clean_utf8(text);
  std::string out;
  const size_t tail = (characters - 1) / 2, head = characters - 1 - tail;
  for (size_t i = 0; i < head; ++i) out += all[i];
  out += "…";
  for (size_t i = all.size() - tail; i < all.size(); ++i) out += all[i];
  return out;
}

}  // namespace qat
