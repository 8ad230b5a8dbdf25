// An HF directory: which file holds the vocabulary, and how the files beside it bear on it.
#include <filesystem>

#include "format/file_io.h"
#include "format/tokenizer_internal.h"

namespace qat {
namespace {

// The tokens that HF adds to a SentencePiece vocabulary or marks in it, as the converter takes them over.
void apply_added_tokens(Vocabulary& vocabulary, const std::vector<AddedToken>& added) {
  for (const AddedToken& token : added) {
    if (static_cast<size_t>(token.id) >= vocabulary.tokens.size() || vocabulary.types[token.id] == TokenType::unknown)
      continue;
    vocabulary.types[token.id] = token.special ? TokenType::control : TokenType::user_defined;
    // User-defined tokens are matched in the text as it is, before spaces are marked.
    vocabulary.tokens[token.id] = token.special ? token.content : replace_all(token.content, kSpaceMark, " ");
    vocabulary.scores[token.id] = -1000.0f;
  }
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const auto [other, fresh] = seen.emplace(vocabulary.tokens[id], id);
    if (!fresh)
      fail(vocabulary.origin, ": the added tokens make token ", id, " the same as ", other->second, ": ",
           quote(vocabulary.tokens[id]));
  }
}

std::unique_ptr<Tokenizer> from_json(TokenizerJson json, TokenizerSettings settings) {
  json.vocabulary.settings = std::move(settings);
  return json.byte_level ? make_byte_level(std::move(json.vocabulary), json.bytes)
                         : make_character_bpe(std::move(json.vocabulary), json.character);
}

std::unique_ptr<Tokenizer> from_sentencepiece(const std::string& directory, const std::string& path, int64_t vocab) {
  const MappedFile mapped(path);
  SentencePieceFile file = parse_sentencepiece(mapped.bytes(), path, vocab);
  TokenizerJsonFrame frame;
  const std::string json = directory + "/tokenizer.json";
  const bool has_json = std::filesystem::exists(json);
  if (has_json) frame = parse_tokenizer_json_frame(read_file(json), json);
  TokenizerSettings settings = read_settings(directory, has_json ? &frame : nullptr, file.vocabulary);
  apply_added_tokens(file.vocabulary, settings.added.empty() ? frame.added : settings.added);
  file.vocabulary.added = added_by_type(file.vocabulary);
  file.options.add_prefix = settings.add_prefix_space.value_or(file.options.add_prefix);
  file.vocabulary.settings = std::move(settings);
  return make_sentencepiece(std::move(file.vocabulary), file.options);
}

// A SentencePiece model begins with field 1, a piece. (Llama 3's tokenizer.model is a list of base64 lines.)
bool is_sentencepiece(const std::string& path) {
  if (!std::filesystem::exists(path)) return false;
  const MappedFile file(path);
  return !file.bytes().empty() && file.bytes()[0] == 0x0a;
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_hf(const std::string& directory, int64_t vocab) {
  const std::string model = directory + "/tokenizer.model", json = directory + "/tokenizer.json";
  const bool has_json = std::filesystem::exists(json);
  const bool prefers_json = has_json && model_type(directory).compare(0, 6, "gemma4") == 0;
  if (is_sentencepiece(model) && !prefers_json) return from_sentencepiece(directory, model, vocab);
  if (!has_json) {
    fail(directory, ": expected tokenizer.json or a SentencePiece tokenizer.model, found ",
         std::filesystem::exists(model) ? "a tokenizer.model of another kind" : "neither");
  }
  TokenizerJson parsed = parse_tokenizer_json(read_file(json), json, vocab);
  TokenizerSettings settings = read_settings(directory, &parsed.frame, parsed.vocabulary);
  return from_json(std::move(parsed), std::move(settings));
}

std::unique_ptr<Tokenizer> tokenizer_from_json_text(std::string_view text, const std::string& origin, int64_t vocab) {
  return from_json(parse_tokenizer_json(text, origin, vocab), {});
}

std::unique_ptr<Tokenizer> tokenizer_from_sentencepiece_bytes(Span<const uint8_t> bytes, const std::string& origin,
                                                              int64_t vocab) {
  SentencePieceFile file = parse_sentencepiece(bytes, origin, vocab);
  file.vocabulary.added = added_by_type(file.vocabulary);
  return make_sentencepiece(std::move(file.vocabulary), file.options);
}

}  // namespace qat
