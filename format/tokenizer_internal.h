// What the tokenizer kinds share; private to format/tokenizer*.cc.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "format/error.h"
#include "format/tokenizer.h"

namespace qat {

// ---- Characters ---------------------------------------------------------------------------------------------------

inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581, which SentencePiece writes for a space
inline constexpr uint32_t kInvalidByte = 0x110000;  // + byte: code of a byte that is not part of valid UTF-8

struct Utf8Char {
  uint32_t code;
  uint32_t size;  // bytes, 1..4
};
Utf8Char utf8_char_slow(std::string_view text, size_t position);
// The character that begins at `position` < text.size(); a byte that is not valid UTF-8 is a character of its own.
inline Utf8Char utf8_char(std::string_view text, size_t position) {
  const auto byte = static_cast<unsigned char>(text[position]);
  return byte < 0x80 ? Utf8Char{byte, 1} : utf8_char_slow(text, position);
}
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);
std::string byte_token(unsigned byte);      // "<0x0A>"
int byte_of_token(std::string_view token);  // 0..255, or -1 when the token is not spelled so
inline std::string quote(std::string_view text) { return "'" + printable(text) + "'"; }

// ---- Added tokens -------------------------------------------------------------------------------------------------

// A token matched in the text before anything else, with the flags of tokenizer.json.
struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;                 // not matched by encode(parse_special = false)
  bool normalized = false;              // matched in the normalized text, after those matched in the text as it is
  bool lstrip = false, rstrip = false;  // takes the white space before / after it along
  bool single_word = false;             // only where no word character touches it
};

// Cuts text at added tokens, leftmost first and of those that begin at one place the longest: the rule of HF
// tokenizers. llama.cpp takes the longest token of the whole text first, which differs only where two of them overlap
// in the text.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);  // distinct and not empty
  struct Piece {
    std::string_view text;
    int32_t id;  // -1: plain text, never empty and never beside another plain piece
  };
  std::vector<Piece> split(std::string_view text, bool parse_special) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;        // that `text` begins with, or nullptr
  std::vector<AddedToken> tokens_;                                  // sorted by content
  std::array<std::pair<uint32_t, uint32_t>, 256> by_first_byte_{};  // range of tokens_
};

// ---- Merging ------------------------------------------------------------------------------------------------------

// A run of bytes of the text that is one token, or one character without a token (id -1). Size 0: merged into its left
// neighbour.
struct Symbol {
  uint32_t start, size;
  int32_t id;
  int32_t previous, next;  // -1: none
};
struct Merge {
  double rank;  // lowest first
  int32_t id;   // token that results; -1: the two do not merge
};
struct MergeCandidate {
  double rank;
  int32_t left, id;
  uint32_t size;  // of both symbols together: if it has changed, one of them was merged with another since
};
struct MergeScratch {
  std::vector<Symbol> symbols;
  std::vector<MergeCandidate> heap;
};

// Merges the best pair, the leftmost among equals, until none is left, in O(n log n). find(left, right) returns the
// Merge of two neighbours. previous and next are set here.
template <class Find>
void merge_symbols(MergeScratch& scratch, const Find& find) {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<MergeCandidate>& heap = scratch.heap;
  const auto worse = [](const MergeCandidate& a, const MergeCandidate& b) {
    return a.rank > b.rank || (a.rank == b.rank && a.left > b.left);
  };
  heap.clear();
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return false;
    const Merge merge = find(symbols[left], symbols[right]);
    if (merge.id >= 0) heap.push_back({merge.rank, left, merge.id, symbols[left].size + symbols[right].size});
    return merge.id >= 0;
  };
  const int32_t count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) consider(i, i + 1);
  std::make_heap(heap.begin(), heap.end(), worse);
  while (!heap.empty()) {
    const MergeCandidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end(), worse);
    heap.pop_back();
    Symbol& left = symbols[best.left];
    if (left.size == 0 || left.next < 0 || left.size + symbols[left.next].size != best.size) continue;
    Symbol& right = symbols[left.next];
    left.size = best.size;
    left.id = best.id;
    right.size = 0;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    if (consider(left.previous, best.left)) std::push_heap(heap.begin(), heap.end(), worse);
    if (consider(best.left, left.next)) std::push_heap(heap.begin(), heap.end(), worse);
  }
}

// Merges by pairs of token ids, in order of rank: BPE proper.
class PairMerges {
 public:
  // pairs[rank] = (left, right); a merge makes the token spelled as both together. Throws Error naming the rank when
  // the vocabulary has no such token.
  PairMerges(const std::vector<std::pair<int32_t, int32_t>>& pairs, const std::vector<std::string>& tokens,
             const std::unordered_map<std::string_view, int32_t>& ids, const std::string& origin);
  Merge find(int32_t left, int32_t right) const {
    const auto found = merges_.find(key(left, right));
    return found == merges_.end() ? Merge{0, -1} : found->second;
  }

 private:
  static uint64_t key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  std::unordered_map<uint64_t, Merge> merges_;
};

// Ids of the words seen so far in one encode(): text is mostly words seen before.
class WordCache {
 public:
  // Appends the ids of the word and returns true, or returns false.
  bool append(std::string_view word, std::vector<int32_t>& ids) const;
  void store(std::string_view word, const int32_t* ids, size_t count);  // the word's bytes must outlive the cache

 private:
  struct Range {
    size_t offset, count;
  };
  std::unordered_map<std::string_view, Range> words_;
  std::vector<int32_t> ids_;
};

// ---- Vocabularies -------------------------------------------------------------------------------------------------

// The parts of tokenizer.json that matter beside a vocabulary read from elsewhere.
struct TemplateItem {
  bool special = false;  // a special token, else the sequence
  std::string id;        // "<bos>", or "A", "B"
};
struct PostProcessor {
  std::string type;
  std::vector<TemplateItem> single, pair;  // of TemplateProcessing
};
struct TokenizerJsonFrame {
  std::vector<AddedToken> added;
  std::vector<PostProcessor> post_processors;
};

// What the files around a vocabulary say, ready for GGUF.
struct TokenizerSettings {
  std::vector<std::pair<std::string, int32_t>> ids;  // "bos" -> 1, in the order of the GGUF keys
  std::vector<std::pair<std::string, bool>> adds;    // "bos" -> encode puts it in front
  GgufMetadata extra;                                // chat template, normalizer flags
  std::optional<bool> add_prefix_space;
  std::vector<int32_t> end_ids;  // all EOS ids that the configuration lists
  // Known only from places that the converter does not read (special_tokens_map.json, the vocabulary itself); -1: none.
  int32_t fallback_bos = -1, fallback_eos = -1;
  std::vector<AddedToken> added;  // of added_tokens.json and tokenizer_config.json

  int32_t id(const std::string& name) const;  // -1: none
  std::optional<bool> add(const std::string& name) const;
};

// A vocabulary of any kind as read from its file.
struct Vocabulary {
  std::string origin;               // names the file in errors
  std::vector<std::string> tokens;  // by id, distinct
  std::vector<TokenType> types;
  std::vector<float> scores;                        // SentencePiece; else empty
  std::vector<std::pair<int32_t, int32_t>> merges;  // BPE: in order of rank
  std::vector<AddedToken> added;
  int32_t unknown = -1;  // what encode() gives for characters without tokens; -1: nothing
  TokenizerSettings settings;
  GgufMetadata gguf;  // the tokenizer.* keys of a GGUF file it came from; else empty
};
inline constexpr int64_t kMostTokens = int64_t{1} << 24;  // 64 times the largest vocabulary in use
// Appends "[PAD7]" tokens up to `vocab` (0: none). Throws Error when there are more tokens than that.
void pad_vocabulary(Vocabulary& vocabulary, int64_t vocab, float score);
// The tokens that are matched in text before anything else: control, unknown and user-defined ones.
std::vector<AddedToken> added_by_type(const Vocabulary& vocabulary);
std::unordered_map<std::string_view, int32_t> token_ids(const std::vector<std::string>& tokens);
bool looks_special(std::string_view token);       // "<|...|>" and the like, whatever its flag says
bool is_end_token(std::string_view token);        // "<end_of_turn>" and others that end a turn or a text
bool is_visible_control(std::string_view token);  // Gemma 4's tokens that llama.cpp must print for its chat parser

// The frame of every kind: cuts text at added tokens and hands the stretches between them on.
class SubwordTokenizer : public Tokenizer {
 public:
  explicit SubwordTokenizer(Vocabulary vocabulary);
  SubwordTokenizer(const SubwordTokenizer&) = delete;  // its tables point into its tokens
  std::vector<int32_t> encode(std::string_view text, bool parse_special) const final;
  std::string decode_token(int32_t id, bool special) const final;
  GgufMetadata to_gguf(const std::string& arch) const final;

 protected:
  virtual std::string normalize(std::string_view text) const = 0;
  // Appends the ids of normalized text, which is not empty.
  virtual void encode_text(std::string_view text, std::vector<int32_t>& ids) const = 0;
  virtual std::string decode_normal(const std::string& token) const = 0;  // a token of type normal
  virtual GgufMetadata describe(const std::string& arch) const = 0;       // to_gguf() of a vocabulary not from GGUF
  void set_added_tokens(const std::vector<AddedToken>& added);            // normalize() must work by then
  // Keys shared by the kinds: ids, add_*_token, chat template.
  void describe_settings(GgufMetadata& metadata) const;
  void describe_merges(GgufMetadata& metadata) const;
  // The first of `ids` from `begin` on belongs to what came before when both are the unknown token.
  void fuse_unknown(std::vector<int32_t>& ids, size_t text_begin, size_t begin) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  const std::unordered_map<std::string_view, int32_t>& ids() const { return ids_; }  // of tokens_

 private:
  Vocabulary vocabulary_;  // its tokens and types are moved into tokens_ and types_
  std::unordered_map<std::string_view, int32_t> ids_;
  AddedTokenMatcher raw_, normalized_;
};

// The frame of the two kinds whose symbols are characters, with bytes for the characters that have no token.
class CharacterTokenizer : public SubwordTokenizer {
 protected:
  struct Options {
    bool fuse_unknown = true;   // neighbouring unknown characters are one unknown token
    bool newline_runs = false;  // llama.cpp's rule for Gemma 4: see CharacterBpeOptions
  };
  CharacterTokenizer(Vocabulary vocabulary, const Options& options);
  // Says that merging can make this token. Text is cut between every two characters that stand side by side in no such
  // token; no merge reaches over the cut, so the pieces can be encoded one by one, and looked up when seen before.
  void add_mergeable(std::string_view token);
  virtual int32_t find_character(std::string_view character) const = 0;  // its token or -1
  virtual Merge find_merge(std::string_view text, const Symbol& left, const Symbol& right) const = 0;
  void encode_text(std::string_view text, std::vector<int32_t>& ids) const final;
  std::string decode_normal(const std::string& token) const final;

 private:
  bool joins(uint32_t left, uint32_t right) const;
  void encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const;
  void append_symbol(std::string_view text, int32_t id, std::vector<int32_t>& ids, size_t word_begin) const;

  Options options_;
  std::array<int32_t, 256> byte_ids_{};  // -1: none
  std::array<std::array<bool, 128>, 128> ascii_joins_{};
  std::unordered_set<uint64_t> joins_;  // left << 32 | right
};

// ---- Kinds --------------------------------------------------------------------------------------------------------

struct SentencePieceOptions {
  bool add_prefix = true;        // a space in front of each stretch of text
  bool collapse_spaces = false;  // remove_extra_whitespaces
};
std::unique_ptr<Tokenizer> make_sentencepiece(Vocabulary vocabulary, const SentencePieceOptions& options);

struct CharacterBpeOptions {
  bool fuse_unknown = true;
  bool newline_runs = false;  // llama.cpp's rule: cut at runs of newlines, and a run that is a token stays whole
};
std::unique_ptr<Tokenizer> make_character_bpe(Vocabulary vocabulary, const CharacterBpeOptions& options);

struct ByteLevelOptions {
  std::vector<std::string> regexes;  // cut each piece at the matches; what lies between them is a piece too
  bool nfc = false;
  bool ignore_merges = false;  // a word that is a token is that token
};
std::unique_ptr<Tokenizer> make_byte_level(Vocabulary vocabulary, const ByteLevelOptions& options);
// Fills regexes and ignore_merges for a value of tokenizer.ggml.pre; false when it is not known.
bool byte_level_options_for(const std::string& pre, ByteLevelOptions& options);
bool byte_level_adds_bos(const std::string& pre);  // llama.cpp's default where the file does not say
extern const char* const kGpt2Regex;

// ---- Files --------------------------------------------------------------------------------------------------------

struct TokenizerJson {
  Vocabulary vocabulary;
  TokenizerJsonFrame frame;
  bool byte_level = false;  // which of the two options counts
  CharacterBpeOptions character;
  ByteLevelOptions bytes;
};
// All of tokenizer.json, or without its model. Throw Error for what is malformed or not supported.
TokenizerJson parse_tokenizer_json(std::string_view text, const std::string& origin, int64_t vocab);
TokenizerJsonFrame parse_tokenizer_json_frame(std::string_view text, const std::string& origin);

struct SentencePieceFile {
  Vocabulary vocabulary;
  SentencePieceOptions options;
};
SentencePieceFile parse_sentencepiece(Span<const uint8_t> bytes, const std::string& origin, int64_t vocab);

std::string model_type(const std::string& directory);  // of config.json; "" when there is none
// tokenizer_config.json and the other files beside a vocabulary; `frame` is that of tokenizer.json, nullptr without
// one. Ids outside the vocabulary are ignored.
TokenizerSettings read_settings(const std::string& directory, const TokenizerJsonFrame* frame,
                                const Vocabulary& vocabulary);

}  // namespace qat
