#include "format/tokenizer.h"

#include "format/tokenizer_internal.h"

namespace qat {
// ---- Tokenizer ----------------------------------------------------------------------------------------------------

std::string Tokenizer::decode(Span<const int32_t> ids, bool special) const {
  std::string text;
  bool first = true;  // no ordinary token yet
  for (const int32_t id : ids) {
    std::string token = decode_token(id, special);
    const TokenType type = types_[id];
    const bool ordinary = type != TokenType::control && type != TokenType::unknown;
    if (first && ordinary && strip_leading_space_ && !token.empty() && token[0] == ' ') token.erase(0, 1);
    first = first && !ordinary;
    text += token;
  }
  return text;
}

std::vector<int32_t> Tokenizer::encode_with_bos(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids = encode(text, parse_special);
  if (add_bos_) ids.insert(ids.begin(), bos_id_);
  return ids;
}

bool Tokenizer::is_end_of_generation(int32_t id) const {
  return std::binary_search(end_ids_.begin(), end_ids_.end(), id);
}

// ---- Vocabularies -------------------------------------------------------------------------------------------------

int32_t TokenizerSettings::id(const std::string& name) const {
  for (const auto& [key, value] : ids) {
    if (key == name) return value;
  }
  return -1;
}

std::optional<bool> TokenizerSettings::add(const std::string& name) const {
  for (const auto& [key, value] : adds) {
    if (key == name) return value;
  }
  return std::nullopt;
}

void pad_vocabulary(Vocabulary& vocabulary, int64_t vocab, float score) {
  const auto count = static_cast<int64_t>(vocabulary.tokens.size());
  if (vocab == 0) vocab = count;
  if (vocab < 0 || vocab > kMostTokens)
    fail(vocabulary.origin, ": a vocabulary of ", vocab, " tokens is not supported");
  if (count > vocab) {
    fail(vocabulary.origin, ": has ", count, " tokens, but the model's vocabulary is ", vocab);
  }
  for (int64_t id = count; id < vocab; ++id) {
    vocabulary.tokens.push_back("[PAD" + std::to_string(id) + "]");
    vocabulary.types.push_back(TokenType::unused);
    if (!vocabulary.scores.empty()) vocabulary.scores.push_back(score);
  }
}

std::vector<AddedToken> added_by_type(const Vocabulary& vocabulary) {
  std::vector<AddedToken> added;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const TokenType type = vocabulary.types[id];
    const bool special = type == TokenType::control || type == TokenType::unknown;
    if (!special && type != TokenType::user_defined) continue;
    AddedToken token;
    token.content = vocabulary.tokens[id];
    token.id = static_cast<int32_t>(id);
    token.special = special;
    added.push_back(std::move(token));
  }
  return added;
}

std::unordered_map<std::string_view, int32_t> token_ids(const std::vector<std::string>& tokens) {
  std::unordered_map<std::string_view, int32_t> ids;
  ids.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) ids.emplace(tokens[id], static_cast<int32_t>(id));
  return ids;
}

bool looks_special(std::string_view token) {
  const auto framed = [token](std::string_view begin, std::string_view end) {
    return token.size() >= begin.size() + end.size() && token.substr(0, begin.size()) == begin &&
           token.substr(token.size() - end.size()) == end;
  };
  return token == "<pad>" || token == "<mask>" || token == "<2mass>" || token == "[@BOS@]" || framed("<|", "|>") ||
         framed("<\xef\xbd\x9c", "\xef\xbd\x9c>") || framed("<unused", ">");
}

bool is_end_token(std::string_view token) {
  // llama.cpp keeps the same list. "</s>" is left out: where it ends the text it is the EOS anyway, elsewhere it is an
  // HTML tag.
  static constexpr std::string_view kEnds[] = {
      "<|eot_id|>",      "<|im_end|>",         "<|end|>", "<|return|>", "<|call|>",        "<end_of_turn>",
      "<|endoftext|>",   "<|eom_id|>",         "<EOT>",   "_<EOT>",     "[EOT]",           "[EOS]",
      "<|end_of_text|>", "<end_of_utterance>", "<eos>",   "<turn|>",    "<|tool_response>"};
  return std::find(std::begin(kEnds), std::end(kEnds), token) != std::end(kEnds);
}

bool is_visible_control(std::string_view token) {
  static constexpr std::string_view kVisible[] = {
      "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"};
  return std::find(std::begin(kVisible), std::end(kVisible), token) != std::end(kVisible);
}

// ---- Merging ------------------------------------------------------------------------------------------------------

PairMerges::PairMerges(const std::vector<std::pair<int32_t, int32_t>>& pairs, const std::vector<std::string>& tokens,
                       const std::unordered_map<std::string_view, int32_t>& ids, const std::string& origin) {
  merges_.reserve(pairs.size());
  for (size_t rank = 0; rank < pairs.size(); ++rank) {
    const auto [left, right] = pairs[rank];
    const auto merged = ids.find(tokens[left] + tokens[right]);
    if (merged == ids.end()) {
      fail(origin, ": merge ", rank, " joins ", quote(tokens[left]), " and ", quote(tokens[right]),
           " to a token that is not in the vocabulary");
    }
    merges_[key(left, right)] = {static_cast<double>(rank), merged->second};
  }
}

bool WordCache::append(std::string_view word, std::vector<int32_t>& ids) const {
  const auto found = words_.find(word);
  if (found == words_.end()) return false;
  const auto begin = ids_.begin() + static_cast<std::ptrdiff_t>(found->second.offset);
  ids.insert(ids.end(), begin, begin + static_cast<std::ptrdiff_t>(found->second.count));
  return true;
}

void WordCache::store(std::string_view word, const int32_t* ids, size_t count) {
  words_.emplace(word, Range{ids_.size(), count});
  ids_.insert(ids_.end(), ids, ids + count);
}

// ---- SubwordTokenizer ---------------------------------------------------------------------------------------------

SubwordTokenizer::SubwordTokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  tokens_ = std::move(vocabulary_.tokens);
  types_ = std::move(vocabulary_.types);
  QAT_CHECK(types_.size() == tokens_.size());
  ids_ = token_ids(tokens_);

  const TokenizerSettings& settings = vocabulary_.settings;
  const auto known = [this](int32_t id) { return id >= 0 && id < vocab_size() ? id : -1; };
  const auto either = [&](int32_t id, int32_t fallback) { return known(id) >= 0 ? id : known(fallback); };
  bos_id_ = either(settings.id("bos"), settings.fallback_bos);
  eos_id_ = either(settings.id("eos"), settings.fallback_eos);
  unk_id_ = known(vocabulary_.unknown);

  for (const int32_t id : settings.end_ids) end_ids_.push_back(id);
  for (const int32_t id : {eos_id_, settings.id("eot"), settings.id("eom")}) end_ids_.push_back(id);
  for (size_t id = 0; id < tokens_.size(); ++id) {
    if (is_end_token(tokens_[id])) end_ids_.push_back(static_cast<int32_t>(id));
  }
  end_ids_.erase(std::remove_if(end_ids_.begin(), end_ids_.end(), [&](int32_t id) { return known(id) < 0; }),
                 end_ids_.end());
  std::sort(end_ids_.begin(), end_ids_.end());
  end_ids_.erase(std::unique(end_ids_.begin(), end_ids_.end()), end_ids_.end());
}

void SubwordTokenizer::set_added_tokens(const std::vector<AddedToken>& added) {
  std::vector<AddedToken> raw, normalized;
  for (AddedToken token : added) {
    if (token.normalized) token.content = normalize(token.content);
    if (!token.content.empty()) (token.normalized ? normalized : raw).push_back(token);
  }
  raw_ = AddedTokenMatcher(std::move(raw));
  normalized_ = AddedTokenMatcher(std::move(normalized));
}

std::vector<int32_t> SubwordTokenizer::encode(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids;
  for (const AddedTokenMatcher::Piece& piece : raw_.split(text, parse_special)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    const std::string normalized = normalize(piece.text);
    for (const AddedTokenMatcher::Piece& part : normalized_.split(normalized, parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        encode_text(part.text, ids);
      }
    }
  }
  return ids;
}

std::string SubwordTokenizer::decode_token(int32_t id, bool special) const {
  if (id < 0 || id >= vocab_size()) fail("token id ", id, " is outside the vocabulary of ", vocab_size());
  const std::string& token = tokens_[id];
  switch (types_[id]) {
    case TokenType::control:
    case TokenType::unknown: return special ? token : "";
    case TokenType::unused: return "";
    case TokenType::user_defined: return token;
    case TokenType::byte: return std::string(1, static_cast<char>(byte_of_token(token)));
    case TokenType::normal: break;
  }
  return decode_normal(token);
}

void SubwordTokenizer::fuse_unknown(std::vector<int32_t>& ids, size_t text_begin, size_t begin) const {
  if (begin <= text_begin || begin >= ids.size()) return;
  if (ids[begin] == unk_id_ && ids[begin - 1] == unk_id_) ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(begin));
}

GgufMetadata SubwordTokenizer::to_gguf(const std::string& arch) const {
  return vocabulary_.gguf.empty() ? describe(arch) : vocabulary_.gguf;
}

void SubwordTokenizer::describe_settings(GgufMetadata& metadata) const {
  static constexpr std::pair<const char*, const char*> kKeys[] = {
      {"bos", "bos_token_id"},       {"eos", "eos_token_id"},     {"unk", "unknown_token_id"},
      {"sep", "seperator_token_id"}, {"pad", "padding_token_id"}, {"mask", "mask_token_id"},
      {"eot", "eot_token_id"},       {"eom", "eom_token_id"}};
  const auto add_id = [&](const std::string& name, int32_t id) {
    for (const auto& [kind, key] : kKeys) {
      if (name == kind && id >= 0)
        metadata.emplace_back(std::string("tokenizer.ggml.") + key, static_cast<uint32_t>(id));
    }
  };
  const TokenizerSettings& settings = vocabulary_.settings;
  for (const auto& [name, id] : settings.ids) add_id(name, id);
  // llama.cpp has defaults for these two that fit few vocabularies.
  if (settings.id("bos") < 0) add_id("bos", bos_id_);
  if (settings.id("eos") < 0) add_id("eos", eos_id_);
  for (const auto& [name, value] : settings.adds) {
    if (name == "bos" || name == "eos" || name == "sep")
      metadata.emplace_back("tokenizer.ggml.add_" + name + "_token", value);
  }
  metadata.insert(metadata.end(), settings.extra.begin(), settings.extra.end());
}

void SubwordTokenizer::describe_merges(GgufMetadata& metadata) const {
  std::vector<std::string> merges;
  merges.reserve(vocabulary_.merges.size());
  // A space within a part would be taken for the one between the parts: the converter writes U+0120 for it.
  const auto spell = [this](int32_t id) { return replace_all(tokens_[id], " ", "\xc4\xa0"); };
  for (const auto& [left, right] : vocabulary_.merges) merges.push_back(spell(left) + " " + spell(right));
  metadata.emplace_back("tokenizer.ggml.merges", std::move(merges));
}

// ---- The byte vocabulary ------------------------------------------------------------------------------------------

std::string byte_tokenizer_json() {
  std::string vocab = R"("<pad>":0,"<eos>":1,"<bos>":2,"<unk>":3)";
  for (unsigned byte = 0; byte < 256; ++byte) {
    const std::string token = byte == ' ' ? std::string(kSpaceMark) : byte_token(byte);
    vocab += ",\"" + token + "\":" + std::to_string(4 + byte);
  }
  std::string added;
  const char* const specials[] = {"<pad>", "<eos>", "<bos>", "<unk>"};
  for (int id = 0; id < 4; ++id) {
    added += std::string(id == 0 ? "" : ",") + R"({"id":)" + std::to_string(id) + R"(,"content":")" + specials[id] +
             R"(","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true})";
  }
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + added +
         R"(],"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},"pre_tokenizer":null,"post_processor":null,)"
         R"("decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},)"
         R"({"type":"ByteFallback"},{"type":"Fuse"}]},"model":{"type":"BPE","dropout":null,"unk_token":"<unk>",)"
         R"("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,)"
         R"("ignore_merges":false,"vocab":{)" +
         vocab + R"(},"merges":[]}})";
}

}  // namespace qat
