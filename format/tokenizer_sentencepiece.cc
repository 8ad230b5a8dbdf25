// SentencePiece BPE: the neighbours whose concatenation is the piece of highest score merge first.
#include <cmath>

#include "format/tokenizer_internal.h"
#include "sentencepiece.pb-c.h"

namespace qat {
namespace {

class SentencePieceTokenizer final : public CharacterTokenizer {
 public:
  SentencePieceTokenizer(Vocabulary all, const SentencePieceOptions& options)
      : CharacterTokenizer(std::move(all), {}), options_(options) {
    strip_leading_space_ = options.add_prefix;
    // llama.cpp adds BOS unless the file says otherwise.
    add_bos_ = vocabulary().settings.add("bos").value_or(true) && bos_id_ >= 0;
    for (int32_t id = 0; id < vocab_size(); ++id) {
      // Unused pieces take part, as in llama.cpp and HF's conversion (SentencePiece splits them again at the end).
      const bool piece =
          types_[id] == TokenType::normal || types_[id] == TokenType::user_defined || types_[id] == TokenType::unused;
      if (!piece) continue;
      pieces_.emplace(tokens_[id], id);
      add_mergeable(tokens_[id]);
      longest_piece_ = std::max(longest_piece_, tokens_[id].size());
    }
    set_added_tokens(vocabulary().added);
  }

 private:
  // SentencePiece puts its space in front of the text; so does llama.cpp, and again after every added token.
  std::string normalize(std::string_view text) const override {
    std::string spaced = options_.add_prefix ? " " : "";
    if (options_.collapse_spaces) {
      std::string_view rest = text;
      std::string words;
      while (true) {
        rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
        if (rest.empty()) break;
        const std::string_view word = rest.substr(0, rest.find(' '));
        words += (words.empty() ? "" : " ") + std::string(word);
        rest.remove_prefix(word.size());
      }
      if (words.empty()) return "";
      spaced += words;
    } else {
      spaced += text;
    }
    return replace_all(spaced, " ", kSpaceMark);
  }

  int32_t find_piece(std::string_view text) const {
    if (text.size() > longest_piece_) return -1;
    const auto found = pieces_.find(text);
    return found == pieces_.end() ? -1 : found->second;
  }

  int32_t find_character(std::string_view character) const override { return find_piece(character); }

  Merge find_merge(std::string_view text, const Symbol& left, const Symbol& right) const override {
    const int32_t id = find_piece(text.substr(left.start, left.size + right.size));
    return id < 0 ? Merge{0, -1} : Merge{-static_cast<double>(vocabulary().scores[id]), id};
  }

  GgufMetadata describe(const std::string& arch) const override {
    GgufMetadata metadata;
    // The converter passes the configuration's word on for Llama, and says false for every Gemma. llama.cpp's default
    // is true.
    const std::optional<bool>& configured = vocabulary().settings.add_prefix_space;
    if (arch == "llama" && (configured.has_value() || !options_.add_prefix)) {
      metadata.emplace_back("tokenizer.ggml.add_space_prefix", options_.add_prefix);
    }
    metadata.emplace_back("tokenizer.ggml.model", std::string("llama"));
    metadata.emplace_back("tokenizer.ggml.pre", std::string("default"));
    metadata.emplace_back("tokenizer.ggml.tokens", tokens_);
    metadata.emplace_back("tokenizer.ggml.scores", vocabulary().scores);
    std::vector<int32_t> types;
    for (const TokenType type : types_) types.push_back(static_cast<int32_t>(type));
    metadata.emplace_back("tokenizer.ggml.token_type", std::move(types));
    describe_settings(metadata);
    if (options_.collapse_spaces) metadata.emplace_back("tokenizer.ggml.remove_extra_whitespaces", true);
    if (arch != "llama") metadata.emplace_back("tokenizer.ggml.add_space_prefix", options_.add_prefix);
    return metadata;
  }

  SentencePieceOptions options_;
  std::unordered_map<std::string_view, int32_t> pieces_;
  size_t longest_piece_ = 0;  // bytes
};

struct ModelDeleter {
  void operator()(Qat__SentencePieceModel* model) const { qat__sentence_piece_model__free_unpacked(model, nullptr); }
};

void check_specs(const Qat__SentencePieceModel& model, const std::string& origin) {
  // Absent specs have the defaults of the format: a unigram model.
  const int32_t type = model.trainer_spec != nullptr ? model.trainer_spec->model_type : 1;
  if (type != 2) {
    fail(origin, ": model_type: expected 2 (BPE), found ", type,
         type == 1 ? " (unigram), which is not supported" : ", which is not supported");
  }
  if (model.trainer_spec->treat_whitespace_as_suffix) fail(origin, ": treat_whitespace_as_suffix is not supported");
  const Qat__SentencePieceModel__NormalizerSpec* normalizer = model.normalizer_spec;
  if (normalizer == nullptr) return;
  if (normalizer->precompiled_charsmap.len > 0) {
    fail(origin, ": normalizer ", quote(normalizer->name != nullptr ? normalizer->name : ""),
         " rewrites characters, which is not supported: expected 'identity'");
  }
  if (!normalizer->escape_whitespaces) fail(origin, ": escape_whitespaces = false is not supported");
}

}  // namespace

SentencePieceFile parse_sentencepiece(Span<const uint8_t> bytes, const std::string& origin, int64_t vocab) {
  const std::unique_ptr<Qat__SentencePieceModel, ModelDeleter> model(
      qat__sentence_piece_model__unpack(nullptr, bytes.size(), bytes.data()));
  if (model == nullptr) fail(origin, ": not a SentencePiece model, or damaged (", bytes.size(), " bytes)");
  if (model->n_pieces == 0) fail(origin, ": has no pieces");
  check_specs(*model, origin);

  SentencePieceFile file;
  Vocabulary& vocabulary = file.vocabulary;
  vocabulary.origin = origin;
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t id = 0; id < model->n_pieces; ++id) {
    const Qat__SentencePieceModel__Piece& piece = *model->pieces[id];
    const std::string_view text = piece.piece != nullptr ? piece.piece : "";
    if (text.empty()) fail(origin, ": piece ", id, " is empty");
    if (!seen.emplace(text, id).second)
      fail(origin, ": piece ", id, " ", quote(text), " is the same as piece ", seen[text]);
    if (piece.type < 1 || piece.type > 6)
      fail(origin, ": piece ", id, ": expected a type of 1 to 6, found ", piece.type);
    if (!std::isfinite(piece.score)) fail(origin, ": piece ", id, ": its score is not a finite number");
    const auto type = static_cast<TokenType>(piece.type);
    if (type == TokenType::byte && byte_of_token(text) < 0)
      fail(origin, ": byte piece ", id, ": expected <0x00> to <0xFF>, found ", quote(text));
    vocabulary.tokens.emplace_back(text);
    vocabulary.types.push_back(type);
    vocabulary.scores.push_back(piece.score);
  }
  const Qat__SentencePieceModel__TrainerSpec& trainer = *model->trainer_spec;
  vocabulary.settings.fallback_bos = trainer.bos_id;
  vocabulary.settings.fallback_eos = trainer.eos_id;
  vocabulary.unknown = trainer.unk_id;
  file.options.add_prefix = model->normalizer_spec == nullptr || model->normalizer_spec->add_dummy_prefix;
  file.options.collapse_spaces = model->normalizer_spec == nullptr || model->normalizer_spec->remove_extra_whitespaces;
  pad_vocabulary(vocabulary, vocab, -10000.0f);
  return file;
}

std::unique_ptr<Tokenizer> make_sentencepiece(Vocabulary vocabulary, const SentencePieceOptions& options) {
  return std::make_unique<SentencePieceTokenizer>(std::move(vocabulary), options);
}

}  // namespace qat
