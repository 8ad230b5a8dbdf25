// Characters, and the search for added tokens.
#include <utf8proc.h>

#include "format/tokenizer_internal.h"

namespace qat {
namespace {

// Unicode's White_Space, as the regular expressions of HF tokenizers understand \s.
bool is_space(uint32_t code) {
  if (code >= kInvalidByte) return false;
  if ((code >= 0x09 && code <= 0x0d) || code == 0x85) return true;
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_ZS || category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

// \w: letters, marks, decimal and letter numbers, connecting punctuation, the two joiners.
bool is_word(uint32_t code) {
  if (code >= kInvalidByte) return false;
  if (code == 0x200c || code == 0x200d) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
  }
}

// Start of the character that ends at `end` > 0.
size_t previous_char(std::string_view text, size_t end) {
  for (size_t size = std::min<size_t>(4, end); size > 1; --size) {
    if (utf8_char(text, end - size).size == size) return end - size;
  }
  return end - 1;
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  return (begin > 0 && is_word(utf8_char(text, previous_char(text, begin)).code)) ||
         (end < text.size() && is_word(utf8_char(text, end).code));
}

}  // namespace

Utf8Char utf8_char_slow(std::string_view text, size_t position) {
  utf8proc_int32_t code = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + position;
  const utf8proc_ssize_t size = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - position), &code);
  if (size <= 0 || code < 0) return {kInvalidByte + bytes[0], 1};
  return {static_cast<uint32_t>(code), static_cast<uint32_t>(size)};
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  result.reserve(text.size() + text.size() / 2);
  size_t position = 0;
  while (true) {
    const size_t found = text.find(from, position);
    result.append(text.substr(position, found - position));
    if (found == std::string_view::npos) return result;
    result.append(to);
    position = found + from.size();
  }
}

std::string byte_token(unsigned byte) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[byte >> 4 & 15], kHex[byte & 15], '>'};
}

int byte_of_token(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char digit : token.substr(3, 2)) {
    const int nibble = digit >= '0' && digit <= '9'   ? digit - '0'
                       : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                       : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                                                      : -1;
    if (nibble < 0) return -1;
    value = value * 16 + nibble;
  }
  return value;
}

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    QAT_CHECK(!tokens_[i].content.empty());
    auto& range = by_first_byte_[static_cast<unsigned char>(tokens_[i].content[0])];
    if (range.second == 0) range.first = i;
    range.second = i + 1;
  }
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text) const {
  auto [low, high] = by_first_byte_[static_cast<unsigned char>(text[0])];
  const AddedToken* longest = nullptr;
  // Here the tokens [low, high) are those whose first `known` bytes are the text's; the shortest of them comes first.
  for (size_t known = 1; low < high; ++known) {
    if (tokens_[low].content.size() == known) longest = &tokens_[low++];
    if (known == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[known]);
    const auto begin = tokens_.begin();
    const auto below = [known](const AddedToken& token, unsigned char value) {
      return static_cast<unsigned char>(token.content[known]) < value;
    };
    const auto above = [known](unsigned char value, const AddedToken& token) {
      return value < static_cast<unsigned char>(token.content[known]);
    };
    const auto first = std::lower_bound(begin + low, begin + high, byte, below);
    const auto last = std::upper_bound(first, begin + high, byte, above);
    low = static_cast<uint32_t>(first - begin);
    high = static_cast<uint32_t>(last - begin);
  }
  return longest;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text, bool parse_special) const {
  std::vector<Piece> pieces;
  size_t plain = 0;  // start of the text not yet in a piece
  for (size_t position = 0; position < text.size();) {
    const AddedToken* token = longest_at(text.substr(position));
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position, end = position + token->content.size();
    position = end;
    if ((token->special && !parse_special) || (token->single_word && touches_word(text, begin, end))) continue;
    while (token->lstrip && begin > plain && is_space(utf8_char(text, previous_char(text, begin)).code)) {
      begin = previous_char(text, begin);
    }
    while (token->rstrip && end < text.size() && is_space(utf8_char(text, end).code)) end += utf8_char(text, end).size;
    if (begin > plain) pieces.push_back({text.substr(plain, begin - plain), -1});
    pieces.push_back({text.substr(begin, end - begin), token->id});
    plain = position = end;
  }
  if (plain < text.size()) pieces.push_back({text.substr(plain), -1});
  return pieces;
}

}  // namespace qat
