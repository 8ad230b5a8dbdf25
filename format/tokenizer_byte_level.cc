// Byte-level BPE (GPT-2, Llama 3, Qwen): the text is cut into words by a regular expression, and the symbols are bytes,
// which the vocabulary spells with 256 printable characters.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <cstdlib>
#include <limits>

#include "format/tokenizer_internal.h"

namespace qat {
namespace {

// The regular expressions of the models' tokenizer.json.
constexpr char kGpt2[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kTekken[] = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                           R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
                           R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kDigit[] = R"(\p{N})";

// What a value of tokenizer.ggml.pre means. The first row with the same meaning is the one written. llama.cpp has
// versions of its own of some of these expressions; its "tekken" leaves out marks (\p{M}) within words. We follow
// tokenizer.json.
struct PreTokenizer {
  const char* name;
  const char* regexes[2];  // applied one after the other; nullptr: none
  bool ignore_merges, add_bos;
};
// clang-format off
constexpr PreTokenizer kPreTokenizers[] = {
    {"gpt-2", {kGpt2, nullptr}, false, false},
    {"llama-bpe", {kLlama3, nullptr}, true, true},
    {"llama3", {kLlama3, nullptr}, true, true},
    {"llama-v3", {kLlama3, nullptr}, true, true},
    {"falcon3", {kLlama3, nullptr}, true, true},
    {"smaug-bpe", {kLlama3, nullptr}, false, false},
    {"qwen2", {kQwen2, nullptr}, false, false},
    {"deepseek-r1-qwen", {kQwen2, nullptr}, false, false},
    {"smollm", {kDigit, kGpt2}, false, false},
    {"tekken", {kTekken, nullptr}, true, true},
};
// clang-format on

std::vector<std::string> regexes_of(const PreTokenizer& pre) {
  std::vector<std::string> regexes;
  for (const char* regex : pre.regexes) {
    if (regex != nullptr) regexes.emplace_back(regex);
  }
  return regexes;
}

// PCRE2's \s has U+180E, which is white space no longer; the engines that tokenizer.json is written for follow Unicode.
std::string with_unicode_space(const std::string& regex) {
  std::string result;
  for (size_t i = 0; i < regex.size(); ++i) {
    if (regex[i] != '\\' || i + 1 == regex.size()) {
      result += regex[i];
      continue;
    }
    const char escaped = regex[++i];
    if (escaped == 's') result += "\\p{White_Space}";
    else if (escaped == 'S') result += "\\P{White_Space}";
    else result += {'\\', escaped};
  }
  return result;
}

class Regex {
 public:
  Regex(const std::string& pattern, const std::string& origin) : pattern_(pattern), origin_(origin) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    const std::string adapted = with_unicode_space(pattern);
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(adapted.data()), adapted.size(), PCRE2_UTF | PCRE2_UCP,
                              &error, &offset, nullptr));
    if (code_ == nullptr) fail(origin, ": regular expression ", quote(pattern), ": ", message(error));
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without a compiler for this machine, pcre2_match interprets
  }

  // Calls piece(text) for every match and for what lies between them, in order. `text` is valid UTF-8.
  template <class Piece>
  void split(std::string_view text, const Piece& piece) const {
    const std::unique_ptr<pcre2_match_data, MatchDeleter> match(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    const std::unique_ptr<pcre2_match_context, ContextDeleter> context(pcre2_match_context_create(nullptr));
    QAT_CHECK(match != nullptr && context != nullptr);
    // "\s*[\r\n]+" steps back over all of a run of spaces: that may be the whole text. Only what is worse than linear
    // is stopped.
    pcre2_set_match_limit(context.get(),
                          static_cast<uint32_t>(std::min<size_t>(10'000'000 + 8 * text.size(), UINT32_MAX)));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    size_t done = 0;  // end of the last piece
    for (size_t position = 0; position < text.size();) {
      if (!find(text, position, match.get(), context.get())) break;
      const size_t begin = range[0], end = range[1];
      if (begin >= end) {  // an empty match (or one that \K turned around) cuts nothing
        position = std::max(position, begin);
        if (position < text.size()) position += utf8_char(text, position).size;
        continue;
      }
      if (begin > done) piece(text.substr(done, begin - done));
      piece(text.substr(begin, end - begin));
      done = position = end;
    }
    if (done < text.size()) piece(text.substr(done));
  }

 private:
  struct CodeDeleter {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  };
  struct MatchDeleter {
    void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
  };
  struct ContextDeleter {
    void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  };

  static std::string message(int error) {
    PCRE2_UCHAR buffer[256];
    return pcre2_get_error_message(error, buffer, sizeof(buffer)) < 0 ? "error " + std::to_string(error)
                                                                      : reinterpret_cast<const char*>(buffer);
  }

  bool find(std::string_view text, size_t position, pcre2_match_data* match, pcre2_match_context* context) const {
    const auto run = [&](uint32_t options) {
      return pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), position,
                         PCRE2_NO_UTF_CHECK | options, match, context);
    };
    int result = run(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(PCRE2_NO_JIT);
    if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
      fail(origin_, ": regular expression ", quote(pattern_), " at byte ", position, " of the text: ", message(result));
    }
    return result >= 0;
  }

  std::string pattern_, origin_;
  std::unique_ptr<pcre2_code, CodeDeleter> code_;
};

// The character that spells each byte: itself when it is printable Latin-1, else one from U+0100 on.
std::array<std::string, 256> byte_spellings() {
  std::array<std::string, 256> spellings;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    utf8proc_uint8_t buffer[4];
    const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(printable ? byte : next++), buffer);
    spellings[byte].assign(reinterpret_cast<const char*>(buffer), static_cast<size_t>(size));
  }
  return spellings;
}

// Calls valid(text) for the stretches of valid UTF-8 and invalid(text) for those of bytes that are not.
template <class Valid, class Invalid>
void split_utf8(std::string_view text, const Valid& valid, const Invalid& invalid) {
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end) {
    const bool good = utf8_char(text, begin).code < kInvalidByte;
    while (end < text.size()) {
      const Utf8Char character = utf8_char(text, end);
      if ((character.code < kInvalidByte) != good) break;
      end += character.size;
    }
    const std::string_view part = text.substr(begin, end - begin);
    if (good) valid(part);
    else invalid(part);
  }
}

std::string nfc(std::string_view text) {
  // Below U+0300 (first byte 0xcc) everything is composed already.
  const auto composed = [](char c) { return static_cast<unsigned char>(c) < 0xcc; };
  if (std::all_of(text.begin(), text.end(), composed)) return std::string(text);
  utf8proc_uint8_t* result = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &result, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) fail("cannot normalize the text to NFC: ", utf8proc_errmsg(size));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  return std::string(reinterpret_cast<const char*>(result), static_cast<size_t>(size));
}

class ByteLevelTokenizer final : public SubwordTokenizer {
 public:
  ByteLevelTokenizer(Vocabulary all, const ByteLevelOptions& options)
      : SubwordTokenizer(std::move(all)),
        options_(options),
        spellings_(byte_spellings()),
        merges_(vocabulary().merges, tokens_, ids(), vocabulary().origin) {
    add_bos_ = vocabulary().settings.add("bos").value_or(false) && bos_id_ >= 0;
    for (const std::string& regex : options.regexes) regexes_.emplace_back(regex, vocabulary().origin);
    for (uint32_t byte = 0; byte < 256; ++byte) {
      byte_of_spelling_.emplace(spellings_[byte], static_cast<char>(byte));
      const auto found = ids().find(spellings_[byte]);
      byte_ids_[byte] = found == ids().end() ? unk_id_ : found->second;
    }
    set_added_tokens(vocabulary().added);
  }

 private:
  std::string normalize(std::string_view text) const override {
    if (!options_.nfc) return std::string(text);
    std::string result;
    split_utf8(
        text, [&](std::string_view part) { result += nfc(part); }, [&](std::string_view part) { result += part; });
    return result;
  }

  void encode_text(std::string_view text, std::vector<int32_t>& ids) const override {
    WordCache cache;
    MergeScratch scratch;
    const auto encode_cached = [&](std::string_view word) {
      constexpr size_t kLongestCachedWord = 64;  // bytes
      const size_t begin = ids.size();
      if (cache.append(word, ids)) return;
      encode_word(word, scratch, ids);
      if (word.size() <= kLongestCachedWord) cache.store(word, ids.data() + begin, ids.size() - begin);
    };
    split_utf8(
        text, [&](std::string_view part) { split(part, 0, encode_cached); }, encode_cached);
  }

  template <class Word>
  void split(std::string_view text, size_t step, const Word& word) const {
    if (step == regexes_.size()) return word(text);
    regexes_[step].split(text, [&](std::string_view piece) { split(piece, step + 1, word); });
  }

  void encode_word(std::string_view word, MergeScratch& scratch, std::vector<int32_t>& ids) const {
    if (word.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
      fail("text of 2 GiB without a place to cut it");
    if (options_.ignore_merges) {
      std::string spelled;
      for (const char c : word) spelled += spellings_[static_cast<unsigned char>(c)];
      const auto whole = this->ids().find(spelled);
      if (whole != this->ids().end()) return ids.push_back(whole->second);
    }
    scratch.symbols.clear();
    for (uint32_t i = 0; i < word.size(); ++i) {
      scratch.symbols.push_back({i, 1, byte_ids_[static_cast<unsigned char>(word[i])], -1, -1});
    }
    merge_symbols(scratch, [&](const Symbol& left, const Symbol& right) {
      return left.id < 0 || right.id < 0 ? Merge{0, -1} : merges_.find(left.id, right.id);
    });
    for (const Symbol& symbol : scratch.symbols) {
      if (symbol.size > 0 && symbol.id >= 0)
        ids.push_back(symbol.id);  // a byte without any token is dropped, as HF and llama.cpp do
    }
  }

  std::string decode_normal(const std::string& token) const override {
    std::string bytes;
    for (size_t position = 0; position < token.size();) {
      const std::string_view character = std::string_view(token).substr(position, utf8_char(token, position).size);
      const auto byte = byte_of_spelling_.find(character);
      if (byte == byte_of_spelling_.end()) bytes += character;
      else bytes += byte->second;
      position += character.size();
    }
    return bytes;
  }

  const char* pre_name() const {
    for (const PreTokenizer& pre : kPreTokenizers) {
      if (regexes_of(pre) == options_.regexes && pre.ignore_merges == options_.ignore_merges) return pre.name;
    }
    std::string regexes;
    for (const std::string& regex : options_.regexes) regexes += (regexes.empty() ? "" : ", ") + quote(regex);
    fail(vocabulary().origin, ": llama.cpp has no pre-tokenizer known to us for ", regexes,
         options_.ignore_merges ? " with" : " without", " ignore_merges");
  }

  GgufMetadata describe(const std::string& arch) const override {
    GgufMetadata metadata;
    const std::optional<bool>& add_prefix_space = vocabulary().settings.add_prefix_space;
    if (arch == "llama" && add_prefix_space.has_value())
      metadata.emplace_back("tokenizer.ggml.add_space_prefix", *add_prefix_space);
    metadata.emplace_back("tokenizer.ggml.model", std::string("gpt2"));
    metadata.emplace_back("tokenizer.ggml.pre", std::string(pre_name()));
    metadata.emplace_back("tokenizer.ggml.tokens", tokens_);
    std::vector<int32_t> types;
    for (const TokenType type : types_) types.push_back(static_cast<int32_t>(type));
    metadata.emplace_back("tokenizer.ggml.token_type", std::move(types));
    describe_merges(metadata);
    describe_settings(metadata);
    // Where the files do not say, llama.cpp goes by the pre-tokenizer.
    if (!vocabulary().settings.add("bos").has_value() && byte_level_adds_bos(pre_name()) != add_bos_) {
      metadata.emplace_back("tokenizer.ggml.add_bos_token", add_bos_);
    }
    if (options_.nfc) metadata.emplace_back("tokenizer.ggml.normalizer.nfc", true);
    return metadata;
  }

  ByteLevelOptions options_;
  std::array<std::string, 256> spellings_;
  std::unordered_map<std::string_view, char> byte_of_spelling_;
  std::array<int32_t, 256> byte_ids_{};
  std::vector<Regex> regexes_;
  PairMerges merges_;
};

}  // namespace

const char* const kGpt2Regex = kGpt2;

bool byte_level_options_for(const std::string& pre, ByteLevelOptions& options) {
  for (const PreTokenizer& known : kPreTokenizers) {
    if (pre != known.name) continue;
    options.regexes = regexes_of(known);
    options.ignore_merges = known.ignore_merges;
    return true;
  }
  return false;
}

bool byte_level_adds_bos(const std::string& pre) {
  for (const PreTokenizer& known : kPreTokenizers) {
    if (pre == known.name) return known.add_bos;
  }
  return false;
}

std::unique_ptr<Tokenizer> make_byte_level(Vocabulary vocabulary, const ByteLevelOptions& options) {
  return std::make_unique<ByteLevelTokenizer>(std::move(vocabulary), options);
}

}  // namespace qat
