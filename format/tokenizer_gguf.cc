// Tokenizers from the tokenizer.* keys of a GGUF file, read as llama.cpp reads them.
#include <cmath>

#include "format/tokenizer_internal.h"

namespace qat {
namespace {

constexpr char kPrefix[] = "tokenizer.ggml.";

// Typed access to the keys below tokenizer.ggml.
class Keys {
 public:
  Keys(const GgufMetadata& metadata, const std::string& origin) : metadata_(metadata), origin_(origin) {}

  const GgufValue* find(const std::string& key) const {
    for (const auto& [name, value] : metadata_) {
      if (name == kPrefix + key) return &value;
    }
    return nullptr;
  }

  template <class T>
  const T* find_as(const std::string& key, const char* expected) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return nullptr;
    const T* typed = std::get_if<T>(value);
    if (typed == nullptr) fail(origin_, ": key ", kPrefix, key, ": expected ", expected);
    return typed;
  }

  template <class T>
  const T& need(const std::string& key, const char* expected) const {
    const T* value = find_as<T>(key, expected);
    if (value == nullptr) fail(origin_, ": expected key ", kPrefix, key, ", found none");
    return *value;
  }

  std::optional<bool> flag(const std::string& key) const {
    const bool* value = find_as<bool>(key, "a bool");
    return value == nullptr ? std::nullopt : std::optional<bool>(*value);
  }

  int32_t id(const std::string& key, size_t vocab_size) const {
    const uint32_t* value = find_as<uint32_t>(key, "a uint32");
    if (value == nullptr) return -1;
    if (*value >= vocab_size)
      fail(origin_, ": key ", kPrefix, key, ": expected a token id below ", vocab_size, ", found ", *value);
    return static_cast<int32_t>(*value);
  }

 private:
  const GgufMetadata& metadata_;
  const std::string& origin_;
};

void read_tokens(const Keys& keys, Vocabulary& vocabulary) {
  vocabulary.tokens = keys.need<std::vector<std::string>>("tokens", "an array of strings");
  std::vector<std::string>& tokens = vocabulary.tokens;
  if (tokens.empty()) fail(vocabulary.origin, ": key ", kPrefix, "tokens: expected tokens, found none");
  const auto* types = keys.find_as<std::vector<int32_t>>("token_type", "an array of int32");
  if (types != nullptr && types->size() != tokens.size()) {
    fail(vocabulary.origin, ": key ", kPrefix, "token_type: expected ", tokens.size(), " types, found ", types->size());
  }
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) tokens[id] = "[EMPTY_" + std::to_string(id) + "]";
    const auto [other, fresh] = seen.emplace(tokens[id], id);
    if (!fresh)
      fail(vocabulary.origin, ": token ", id, " is the same as token ", other->second, ": ", quote(tokens[id]));
    const int32_t type = types == nullptr ? 1 : (*types)[id];
    if (type < 1 || type > 6) fail(vocabulary.origin, ": token ", id, ": expected a type of 1 to 6, found ", type);
    vocabulary.types.push_back(static_cast<TokenType>(type));
    if (vocabulary.types[id] == TokenType::byte && byte_of_token(tokens[id]) < 0) {
      fail(vocabulary.origin, ": byte token ", id, ": expected <0x00> to <0xFF>, found ", quote(tokens[id]));
    }
    // llama.cpp does the same to files of converters that did not know these tokens.
    if (vocabulary.types[id] == TokenType::normal && is_end_token(tokens[id]))
      vocabulary.types[id] = TokenType::control;
  }
}

void read_scores(const Keys& keys, Vocabulary& vocabulary) {
  vocabulary.scores = keys.need<std::vector<float>>("scores", "an array of float32");
  if (vocabulary.scores.size() != vocabulary.tokens.size()) {
    fail(vocabulary.origin, ": key ", kPrefix, "scores: expected ", vocabulary.tokens.size(), " scores, found ",
         vocabulary.scores.size());
  }
  for (size_t id = 0; id < vocabulary.scores.size(); ++id) {
    if (!std::isfinite(vocabulary.scores[id]))
      fail(vocabulary.origin, ": token ", id, ": its score is not a finite number");
  }
}

void read_merges(const Keys& keys, Vocabulary& vocabulary) {
  const auto ids = token_ids(vocabulary.tokens);
  for (const std::string& merge : keys.need<std::vector<std::string>>("merges", "an array of strings")) {
    const size_t space = merge.find(' ', 1);
    const std::string_view text = merge;
    const auto left = space == std::string::npos ? ids.end() : ids.find(text.substr(0, space));
    const auto right = space == std::string::npos ? ids.end() : ids.find(text.substr(space + 1));
    if (left == ids.end() || right == ids.end()) {
      fail(vocabulary.origin, ": key ", kPrefix, "merges: merge ", vocabulary.merges.size(),
           ": expected two tokens of the vocabulary, found ", quote(merge));
    }
    vocabulary.merges.emplace_back(left->second, right->second);
  }
}

// `defaults` are llama.cpp's ids for files that do not say.
void read_special(const Keys& keys, Vocabulary& vocabulary, const std::array<int32_t, 3>& defaults) {
  static constexpr std::pair<const char*, const char*> kIds[] = {{"bos", "bos_token_id"},
                                                                 {"eos", "eos_token_id"},
                                                                 {"unk", "unknown_token_id"},
                                                                 {"eot", "eot_token_id"},
                                                                 {"eom", "eom_token_id"}};
  TokenizerSettings& settings = vocabulary.settings;
  for (const auto& [name, key] : kIds) {
    const int32_t id = keys.id(key, vocabulary.tokens.size());
    if (id >= 0) settings.ids.emplace_back(name, id);
  }
  settings.fallback_bos = defaults[0];
  settings.fallback_eos = defaults[1];
  vocabulary.unknown = settings.id("unk") >= 0 ? settings.id("unk") : defaults[2];
  const std::optional<bool> add_bos = keys.flag("add_bos_token");
  if (add_bos.has_value()) settings.adds.emplace_back("bos", *add_bos);
  vocabulary.added = added_by_type(vocabulary);
}

std::unique_ptr<Tokenizer> byte_level(const Keys& keys, Vocabulary vocabulary) {
  const std::string& pre = keys.need<std::string>("pre", "a string");
  ByteLevelOptions options;
  if (!byte_level_options_for(pre, options))
    fail(vocabulary.origin, ": key ", kPrefix, "pre: ", quote(pre), " is not supported");
  read_merges(keys, vocabulary);
  read_special(keys, vocabulary, {-1, -1, -1});
  vocabulary.unknown = -1;
  if (vocabulary.settings.adds.empty()) vocabulary.settings.adds.emplace_back("bos", byte_level_adds_bos(pre));
  // llama.cpp does not normalize; the key says that the model was trained on text that is.
  options.nfc = keys.flag("normalizer.nfc").value_or(false);
  return make_byte_level(std::move(vocabulary), options);
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_gguf_metadata(const GgufMetadata& metadata, const std::string& origin) {
  const Keys keys(metadata, origin);
  const std::string& model = keys.need<std::string>("model", "a string");
  if (model != "llama" && model != "gemma4" && model != "gpt2") {
    fail(origin, ": key ", kPrefix, "model: expected 'llama', 'gemma4' or 'gpt2', found ", quote(model));
  }
  Vocabulary vocabulary;
  vocabulary.origin = origin;
  for (const auto& entry : metadata) {
    if (entry.first.compare(0, 10, "tokenizer.") == 0) vocabulary.gguf.push_back(entry);
  }
  read_tokens(keys, vocabulary);
  if (model == "gpt2") return byte_level(keys, std::move(vocabulary));
  if (model == "gemma4") {
    read_merges(keys, vocabulary);
    read_special(keys, vocabulary, {-1, -1, -1});
    CharacterBpeOptions options;
    options.newline_runs = true;
    return make_character_bpe(std::move(vocabulary), options);
  }
  read_scores(keys, vocabulary);
  read_special(keys, vocabulary, {1, 2, 0});
  SentencePieceOptions options;
  options.add_prefix = keys.flag("add_space_prefix").value_or(true);
  options.collapse_spaces = keys.flag("remove_extra_whitespaces").value_or(false);
  return make_sentencepiece(std::move(vocabulary), options);
}

std::unique_ptr<Tokenizer> tokenizer_from_gguf(const GgufFile& file) {
  return tokenizer_from_gguf_metadata(file.metadata(), file.path());
}

}  // namespace qat
