// BPE over characters, with bytes for those that have no token: the tokenizer of Gemma 4, where every space is written
// U+2581 and nothing else is normalized or cut.
//
// HF's tokenizer.json has a Split at ' ' behind the normalizer, which never finds one, so merges run over the whole
// text. llama.cpp first cuts at runs of newlines and emits a run that is a token whole. The two differ only where a
// merge joins a newline with another character, where merging a run of newlines does not end in the token of the whole
// run, and on bytes that are not UTF-8. A tokenizer from tokenizer.json follows HF, one from GGUF follows llama.cpp.
#include "format/tokenizer_internal.h"

namespace qat {
namespace {

class CharacterBpeTokenizer final : public CharacterTokenizer {
 public:
  CharacterBpeTokenizer(Vocabulary all, const CharacterBpeOptions& options)
      : CharacterTokenizer(std::move(all), {options.fuse_unknown, options.newline_runs}),
        merges_(vocabulary().merges, tokens_, ids(), vocabulary().origin) {
    add_bos_ = bos_id_ >= 0;  // as llama.cpp does, whatever the file says: Gemma 4 is lost without it
    for (size_t rank = 0; rank < vocabulary().merges.size(); ++rank) {
      const auto [left, right] = vocabulary().merges[rank];
      // Characters without a token become bytes only after merging, so a merge of byte tokens would never apply.
      if (types_[left] == TokenType::byte || types_[right] == TokenType::byte) {
        fail(vocabulary().origin, ": merge ", rank, " joins ", quote(tokens_[left]), " and ", quote(tokens_[right]),
             ": merges of byte tokens are not supported");
      }
      add_mergeable(tokens_[left] + tokens_[right]);
    }
    set_added_tokens(vocabulary().added);
  }

 private:
  std::string normalize(std::string_view text) const override { return replace_all(text, " ", kSpaceMark); }

  int32_t find_character(std::string_view character) const override {
    const auto found = ids().find(character);
    return found == ids().end() ? -1 : found->second;
  }

  Merge find_merge(std::string_view, const Symbol& left, const Symbol& right) const override {
    return left.id < 0 || right.id < 0 ? Merge{0, -1} : merges_.find(left.id, right.id);
  }

  // User-defined tokens of the model's own vocabulary that merging makes anyway are written as normal ones, as the
  // converter has them.
  TokenType type_for_gguf(int32_t id) const {
    if (types_[id] != TokenType::user_defined || is_visible_control(tokens_[id])) return types_[id];
    std::vector<int32_t> merged;
    encode_text(normalize(tokens_[id]), merged);
    return merged == std::vector<int32_t>{id} ? TokenType::normal : TokenType::user_defined;
  }

  GgufMetadata describe(const std::string&) const override {
    if (bos_id_ < 0) fail(vocabulary().origin, ": has no BOS token, which llama.cpp needs for this kind of tokenizer");
    GgufMetadata metadata;
    metadata.emplace_back("tokenizer.ggml.model", std::string("gemma4"));
    metadata.emplace_back("tokenizer.ggml.tokens", tokens_);
    metadata.emplace_back("tokenizer.ggml.scores", std::vector<float>(tokens_.size(), -1000.0f));
    std::vector<int32_t> types;
    for (int32_t id = 0; id < vocab_size(); ++id) types.push_back(static_cast<int32_t>(type_for_gguf(id)));
    metadata.emplace_back("tokenizer.ggml.token_type", std::move(types));
    describe_merges(metadata);
    describe_settings(metadata);
    metadata.emplace_back("tokenizer.ggml.add_space_prefix", false);
    const std::string add_bos = "tokenizer.ggml.add_bos_token";
    const auto entry =
        std::find_if(metadata.begin(), metadata.end(), [&](const auto& e) { return e.first == add_bos; });
    if (entry == metadata.end()) metadata.emplace_back(add_bos, true);
    else entry->second = true;
    return metadata;
  }

  PairMerges merges_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_character_bpe(Vocabulary vocabulary, const CharacterBpeOptions& options) {
  return std::make_unique<CharacterBpeTokenizer>(std::move(vocabulary), options);
}

}  // namespace qat
