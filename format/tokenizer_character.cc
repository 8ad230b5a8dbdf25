#include <limits>

#include "format/tokenizer_internal.h"

namespace qat {
namespace {

constexpr size_t kLongestCachedWord = 64;  // bytes

uint64_t join_key(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }

}  // namespace

CharacterTokenizer::CharacterTokenizer(Vocabulary vocabulary, const Options& options)
    : SubwordTokenizer(std::move(vocabulary)), options_(options) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto found = ids().find(byte_token(byte));
    byte_ids_[byte] = found == ids().end() ? -1 : found->second;
  }
}

void CharacterTokenizer::add_mergeable(std::string_view token) {
  for (size_t position = 0; position < token.size();) {
    const Utf8Char left = utf8_char(token, position);
    position += left.size;
    if (position == token.size()) break;
    const Utf8Char right = utf8_char(token, position);
    if (left.code < 128 && right.code < 128) ascii_joins_[left.code][right.code] = true;
    else joins_.insert(join_key(left.code, right.code));
  }
}

bool CharacterTokenizer::joins(uint32_t left, uint32_t right) const {
  if (options_.newline_runs && (left == '\n' || right == '\n')) return left == right;
  return left < 128 && right < 128 ? ascii_joins_[left][right] : joins_.count(join_key(left, right)) != 0;
}

void CharacterTokenizer::encode_text(std::string_view text, std::vector<int32_t>& ids) const {
  const size_t text_begin = ids.size();
  WordCache cache;
  MergeScratch scratch;
  const auto encode_piece = [&](std::string_view word) {
    const size_t begin = ids.size();
    if (!cache.append(word, ids)) {
      encode_word(word, scratch, ids);
      if (word.size() <= kLongestCachedWord) cache.store(word, ids.data() + begin, ids.size() - begin);
    }
    if (options_.fuse_unknown) fuse_unknown(ids, text_begin, begin);
  };
  size_t begin = 0;
  Utf8Char left = utf8_char(text, 0);
  for (size_t position = left.size; position < text.size();) {
    const Utf8Char right = utf8_char(text, position);
    if (!joins(left.code, right.code)) {
      encode_piece(text.substr(begin, position - begin));
      begin = position;
    }
    position += right.size;
    left = right;
  }
  encode_piece(text.substr(begin));
}

void CharacterTokenizer::encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const {
  if (word.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    fail("text of 2 GiB without a place to cut it");
  const size_t word_begin = ids.size();
  if (options_.newline_runs && word[0] == '\n') {
    const auto run = this->ids().find(word);
    if (run != this->ids().end()) return ids.push_back(run->second);
  }
  scratch.symbols.clear();
  for (size_t position = 0; position < word.size();) {
    const uint32_t size = utf8_char(word, position).size;
    scratch.symbols.push_back(
        {static_cast<uint32_t>(position), size, find_character(word.substr(position, size)), -1, -1});
    position += size;
  }
  merge_symbols(scratch, [&](const Symbol& left, const Symbol& right) { return find_merge(word, left, right); });
  for (const Symbol& symbol : scratch.symbols) {
    if (symbol.size > 0) append_symbol(word.substr(symbol.start, symbol.size), symbol.id, ids, word_begin);
  }
}

void CharacterTokenizer::append_symbol(std::string_view text, int32_t id, std::vector<int32_t>& ids,
                                       size_t word_begin) const {
  if (id >= 0) return ids.push_back(id);
  bool all_bytes = true;
  for (const char c : text) all_bytes = all_bytes && byte_ids_[static_cast<unsigned char>(c)] >= 0;
  if (all_bytes) {
    for (const char c : text) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  } else if (unk_id_ >= 0) {
    ids.push_back(unk_id_);
    if (options_.fuse_unknown) fuse_unknown(ids, word_begin, ids.size() - 1);
  }
}

std::string CharacterTokenizer::decode_normal(const std::string& token) const {
  return replace_all(token, kSpaceMark, " ");
}

}  // namespace qat
