// Small tokenizers made by hand, for the tests of tokenizers.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "format/file_io.h"
#include "format/tokenizer.h"
#include "tests/test_paths.h"

namespace qat {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

// The tokenizer of a directory with these files.
inline std::unique_ptr<Tokenizer> tokenizer_of_files(const std::map<std::string, std::string>& files,
                                                     int64_t vocab = 0) {
  const TemporaryDirectory directory;
  for (const auto& [name, text] : files) write_file(directory / name, text);
  return tokenizer_from_hf(directory.path(), vocab);
}

inline Json added_token(int id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// Gemma 4's kind. "abc" can be cut as ab|c or a|bc; é has its two bytes, no other character has; "\n\n" is a token that
// no merge makes, "c\n" one that joins a newline with something else.
inline Json character_bpe_json() {
  const std::vector<std::string> tokens = {"<unk>", "<bos>",  "<eos>",  "\u2581",  "a",        "b",
                                           "c",     "ab",     "bc",     "\u2581a", "\u2581ab", "\n",
                                           "\n\n",  "<0xC3>", "<0xA9>", "c\n",     "<turn|>"};
  Json vocab = Json::object();
  for (size_t id = 0; id < tokens.size(); ++id) vocab[tokens[id]] = id;
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  const Json split = {
      {"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "MergedWithPrevious"}, {"invert", false}};
  const Json merges = Json::array({{"b", "c"}, {"a", "b"}, {"\u2581", "a"}, {"\u2581", "ab"}, {"c", "\n"}});
  const Json model = {{"type", "BPE"},         {"unk_token", "<unk>"}, {"fuse_unk", true},
                      {"byte_fallback", true}, {"vocab", vocab},       {"merges", merges}};
  Json added = Json::array();
  for (const int id : {0, 1, 2, 16}) added.push_back(added_token(id, tokens[id], true));
  return {{"added_tokens", added},
          {"normalizer", replace},
          {"pre_tokenizer", split},
          {"post_processor", nullptr},
          {"model", model}};
}

constexpr char kLlama3Regex[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Regex[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The character that spells a byte in a byte-level vocabulary: the published table, written out for the bytes the tests
// use.
inline std::string byte_spelling(unsigned byte) {
  const auto utf8 = [](unsigned code) {
    return code < 0x80 ? std::string(1, static_cast<char>(code))
                       : std::string{static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
  };
  if (byte <= 0x20) return utf8(0x100 + byte);
  if (byte < 0x7f || (byte >= 0xa1 && byte != 0xad)) return utf8(byte);
  if (byte == 0xad) return utf8(0x143);
  return utf8(0x121 + byte - 0x7f);  // 0x7f..0xa0
}

// Ids 0..255 are the bytes; then " t", "he", " the", "12", "123", "34", "xy" (which no merge makes), and two added
// tokens.
inline Json byte_level_json(const std::string& regex, bool ignore_merges) {
  Json vocab = Json::object();
  for (unsigned byte = 0; byte < 256; ++byte) vocab[byte_spelling(byte)] = byte;
  const std::vector<std::string> more = {"\u0120t", "he", "\u0120the", "12", "123", "34", "xy"};
  for (size_t i = 0; i < more.size(); ++i) vocab[more[i]] = 256 + i;
  const Json merges = {"\u0120 t", "h e", "\u0120t he", "1 2", "3 4", "12 3"};
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", regex.empty()}};
  Json pre_tokenizer = byte_level;
  if (!regex.empty()) {
    const Json split = {
        {"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
    pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", Json::array({split, byte_level})}};
  }
  const Json model = {{"type", "BPE"}, {"ignore_merges", ignore_merges}, {"vocab", vocab}, {"merges", merges}};
  return {{"added_tokens", Json::array({added_token(263, "<|begin|>", true), added_token(264, "<tool>", false)})},
          {"normalizer", nullptr},
          {"pre_tokenizer", pre_tokenizer},
          {"model", model}};
}

// A SentencePiece model in protobuf's wire format.
class SentencePieceBytes {
 public:
  SentencePieceBytes& piece(const std::string& text, float score, int type = 1) {
    std::string body;
    bytes_field(body, 1, text);
    body += static_cast<char>(2 << 3 | 5);
    body.append(reinterpret_cast<const char*>(&score), 4);
    number_field(body, 3, type);
    bytes_field(out_, 1, body);
    return *this;
  }
  SentencePieceBytes& trainer(int model_type) {
    std::string body;
    number_field(body, 3, model_type);
    bytes_field(out_, 2, body);
    return *this;
  }
  SentencePieceBytes& normalizer(bool add_dummy_prefix, bool remove_extra_whitespaces,
                                 const std::string& charsmap = "") {
    std::string body;
    bytes_field(body, 1, charsmap.empty() ? "identity" : "nmt_nfkc");
    if (!charsmap.empty()) bytes_field(body, 2, charsmap);
    number_field(body, 3, add_dummy_prefix);
    number_field(body, 4, remove_extra_whitespaces);
    bytes_field(out_, 3, body);
    return *this;
  }
  const std::string& str() const { return out_; }

 private:
  static void varint(std::string& out, unsigned value) {
    for (; value >= 0x80; value >>= 7) out += static_cast<char>(0x80 | (value & 0x7f));
    out += static_cast<char>(value);
  }
  static void number_field(std::string& out, int field, int value) {
    varint(out, static_cast<unsigned>(field << 3));
    varint(out, static_cast<unsigned>(value));
  }
  static void bytes_field(std::string& out, int field, const std::string& value) {
    varint(out, static_cast<unsigned>(field << 3 | 2));
    varint(out, static_cast<unsigned>(value.size()));
    out += value;
  }
  std::string out_;
};

// "xy" is a piece although neither "x" nor "y" is one.
inline SentencePieceBytes sentencepiece_pieces() {
  SentencePieceBytes model;
  model.piece("<unk>", 0, 2).piece("<s>", 0, 3).piece("</s>", 0, 3).piece("<0xC3>", 0, 6).piece("<0xA9>", 0, 6);
  model.piece("\u2581", -9).piece("a", -10).piece("b", -11).piece("c", -12);                                    // 5..8
  model.piece("ab", -2).piece("bc", -1).piece("abc", -3).piece("\u2581a", -4).piece("aa", -5).piece("xy", -6);  // 9..14
  return model;
}
inline std::string sentencepiece_bytes(bool add_dummy_prefix = true, bool remove_extra_whitespaces = false) {
  return sentencepiece_pieces().trainer(2).normalizer(add_dummy_prefix, remove_extra_whitespaces).str();
}

}  // namespace qat
