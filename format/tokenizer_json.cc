// tokenizer.json of HF tokenizers: the parts of it that Gemma 4 and the byte-level models use, everything else refused
// by name.
#include <cctype>
#include <nlohmann/json.hpp>

#include "format/tokenizer_internal.h"

namespace qat {
namespace {

using Json = nlohmann::json;

// A value with its place in the file for errors.
class Node {
 public:
  Node(const Json& value, const std::string& origin, std::string place)
      : value_(value), origin_(origin), place_(std::move(place)) {}

  const Json& json() const { return value_; }
  [[noreturn]] void refuse(const std::string& expected) const {
    fail(where(), ": expected ", expected, ", found ", brief());
  }
  [[noreturn]] void unsupported() const { fail(where(), ": ", brief(), " is not supported"); }

  bool has(const std::string& key) const {
    if (!value_.is_object()) refuse("an object");
    const auto found = value_.find(key);
    return found != value_.end() && !found->is_null();
  }
  Node at(const std::string& key) const {
    if (!has(key)) fail(where(), ": ", quote(key), " is missing");
    return Node(value_.at(key), origin_, place_.empty() ? key : place_ + "." + key);
  }
  std::vector<Node> items() const {
    if (!value_.is_array()) refuse("an array");
    std::vector<Node> nodes;
    for (size_t i = 0; i < value_.size(); ++i)
      nodes.emplace_back(value_[i], origin_, place_ + "[" + std::to_string(i) + "]");
    return nodes;
  }
  std::string text() const {
    if (!value_.is_string()) refuse("a string");
    return value_.get<std::string>();
  }
  bool flag() const {
    if (!value_.is_boolean()) refuse("true or false");
    return value_.get<bool>();
  }
  bool flag(const std::string& key, bool fallback) const { return has(key) ? at(key).flag() : fallback; }
  int32_t token_id(int64_t limit) const {
    const bool fits = value_.is_number_integer() && value_ >= 0 && value_ < limit;
    if (!fits) refuse("a token id from 0 to " + std::to_string(limit - 1));
    return value_.get<int32_t>();
  }

  std::string where() const { return place_.empty() ? origin_ : origin_ + ": " + place_; }
  std::string brief() const {
    if (value_.is_object() && value_.contains("type") && value_["type"].is_string())
      return quote(value_["type"].get<std::string>());
    if (value_.is_structured()) return value_.is_array() ? "an array" : "an object";
    return value_.is_string() ? quote(value_.get<std::string>()) : value_.dump();
  }

 private:
  const Json& value_;
  const std::string& origin_;
  std::string place_;
};

Json parse(std::string_view text, const std::string& origin, const Json::parser_callback_t& filter) {
  try {
    return Json::parse(text.begin(), text.end(), filter);
  } catch (const Json::exception& error) {
    fail(origin, ": not JSON: ", error.what());
  }
}

AddedToken parse_added_token(const Node& node) {
  AddedToken token;
  token.content = node.at("content").text();
  if (token.content.empty()) node.refuse("a token with content");
  token.special = node.flag("special", false);
  token.normalized = node.flag("normalized", !token.special);
  token.lstrip = node.flag("lstrip", false);
  token.rstrip = node.flag("rstrip", false);
  token.single_word = node.flag("single_word", false);
  return token;
}

std::vector<TemplateItem> parse_template(const Node& node) {
  std::vector<TemplateItem> items;
  for (const Node& item : node.items()) {
    const bool special = item.has("SpecialToken");
    items.push_back({special, item.at(special ? "SpecialToken" : "Sequence").at("id").text()});
  }
  return items;
}

void parse_post_processor(const Node& node, std::vector<PostProcessor>& processors) {
  PostProcessor processor;
  processor.type = node.at("type").text();
  if (processor.type == "Sequence") {
    for (const Node& part : node.at("processors").items()) {
      if (part.at("type").text() == "Sequence") part.unsupported();
      parse_post_processor(part, processors);
    }
    return;
  }
  if (processor.type == "TemplateProcessing") {
    processor.single = parse_template(node.at("single"));
    if (node.has("pair")) processor.pair = parse_template(node.at("pair"));
  }
  processors.push_back(std::move(processor));
}

TokenizerJsonFrame parse_frame(const Node& root, int64_t id_limit) {
  TokenizerJsonFrame frame;
  std::unordered_map<std::string, int32_t> seen;
  if (root.has("added_tokens")) {
    for (const Node& node : root.at("added_tokens").items()) {
      AddedToken token = parse_added_token(node);
      token.id = node.at("id").token_id(id_limit);
      const auto [other, fresh] = seen.emplace(token.content, token.id);
      if (!fresh && other->second != token.id)
        node.refuse("id " + std::to_string(other->second) + " as above for " + quote(token.content));
      if (fresh) frame.added.push_back(std::move(token));
    }
  }
  if (root.has("post_processor")) parse_post_processor(root.at("post_processor"), frame.post_processors);
  return frame;
}

// A normalizer or pre-tokenizer as the list of its steps.
std::vector<Node> steps(const Node& root, const std::string& key, const std::string& list) {
  if (!root.has(key)) return {};
  const Node node = root.at(key);
  return node.at("type").text() == "Sequence" ? node.at(list).items() : std::vector<Node>{node};
}

// The regular expression of a Split's pattern.
std::string pattern_of(const Node& split) {
  const Node pattern = split.at("pattern");
  if (pattern.has("Regex")) return pattern.at("Regex").text();
  std::string escaped;
  for (const char c : pattern.at("String").text()) {
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

void parse_byte_level(const Node& root, const Node& model, ByteLevelOptions& options) {
  for (const Node& step : steps(root, "normalizer", "normalizers")) {
    if (step.at("type").text() != "NFC") step.unsupported();
    options.nfc = true;
  }
  const std::vector<Node> parts = steps(root, "pre_tokenizer", "pretokenizers");
  for (size_t i = 0; i < parts.size(); ++i) {
    const Node& step = parts[i];
    const std::string type = step.at("type").text();
    if (type == "ByteLevel" && i + 1 == parts.size()) {
      if (step.flag("add_prefix_space", true)) step.refuse("add_prefix_space = false");
      if (step.flag("use_regex", true)) options.regexes.emplace_back(kGpt2Regex);
    } else if (type == "Split") {
      if (step.at("behavior").text() != "Isolated" || step.flag("invert", false)) step.unsupported();
      options.regexes.push_back(pattern_of(step));
    } else if (type == "Digits") {
      options.regexes.emplace_back(step.flag("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
    } else {
      step.unsupported();
    }
  }
  options.ignore_merges = model.flag("ignore_merges", false);
}

void parse_character_bpe(const Node& root, const Node& model, CharacterBpeOptions& options) {
  const std::vector<Node> normalizers = steps(root, "normalizer", "normalizers");
  bool spaces_marked = false;
  for (const Node& step : normalizers) {
    spaces_marked = step.at("type").text() == "Replace" && step.at("pattern").has("String") &&
                    step.at("pattern").at("String").text() == " " && step.at("content").text() == kSpaceMark;
    if (!spaces_marked)
      fail(step.where(), ": ", step.brief(), " is not supported without a SentencePiece tokenizer.model beside it");
  }
  if (!spaces_marked) model.refuse("a normalizer that replaces ' ' by U+2581, or a pre-tokenizer of type ByteLevel");
  for (const Node& step : steps(root, "pre_tokenizer", "pretokenizers")) {
    // Behind that normalizer a Split at ' ' never finds one.
    const bool idle = step.at("type").text() == "Split" && step.at("pattern").has("String") &&
                      step.at("pattern").at("String").text() == " " && !step.flag("invert", false);
    if (!idle) step.unsupported();
  }
  if (!model.flag("byte_fallback", false)) model.at("byte_fallback").refuse("true for characters without a token");
  if (model.flag("ignore_merges", false)) model.at("ignore_merges").unsupported();
  options.fuse_unknown = model.flag("fuse_unk", false);
}

// Tokens by id, "" where there is none.
std::vector<std::string> parse_tokens(const Node& model, const std::vector<AddedToken>& added, int64_t id_limit) {
  std::vector<std::string> tokens;
  const auto place = [&](const std::string& token, int32_t id, const Node& node) {
    if (static_cast<size_t>(id) >= tokens.size()) tokens.resize(static_cast<size_t>(id) + 1);
    if (!tokens[id].empty() && tokens[id] != token)
      node.refuse("an id of its own for " + quote(token) + " (" + std::to_string(id) + " is " + quote(tokens[id]) +
                  ")");
    tokens[id] = token;
  };
  const Node vocab = model.at("vocab");
  if (!vocab.json().is_object()) vocab.refuse("an object of tokens and ids");
  for (const auto& [token, id] : vocab.json().items()) {
    if (token.empty()) vocab.refuse("tokens that are not empty");
    const bool fits = id.is_number_integer() && id >= 0 && id < id_limit;
    if (!fits) vocab.at(token).token_id(id_limit);
    place(token, id.get<int32_t>(), vocab);
  }
  for (const AddedToken& token : added) {
    const auto known = vocab.json().find(token.content);
    if (known != vocab.json().end() && *known != token.id)
      vocab.at(token.content).refuse("id " + std::to_string(token.id) + " as in added_tokens");
    place(token.content, token.id, vocab);
  }
  return tokens;
}

std::vector<std::pair<int32_t, int32_t>> parse_merges(const Node& model,
                                                      const std::unordered_map<std::string_view, int32_t>& ids,
                                                      const std::string& origin) {
  std::vector<std::pair<int32_t, int32_t>> merges;
  const Json& list = model.at("merges").json();
  if (!list.is_array()) model.at("merges").refuse("an array");
  const auto id_of = [&](std::string_view token) {
    const auto found = ids.find(token);
    if (found == ids.end())
      fail(origin, ": model.merges[", merges.size(), "]: ", quote(token), " is not in the vocabulary");
    return found->second;
  };
  for (const Json& merge : list) {
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      const bool pair = space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos;
      if (!pair)
        Node(merge, origin, "model.merges[" + std::to_string(merges.size()) + "]")
            .refuse("two tokens with a space between");
      merges.emplace_back(id_of(text.substr(0, space)), id_of(text.substr(space + 1)));
    } else {
      const bool pair = merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
      if (!pair) Node(merge, origin, "model.merges[" + std::to_string(merges.size()) + "]").refuse("two tokens");
      merges.emplace_back(id_of(merge[0].get_ref<const std::string&>()), id_of(merge[1].get_ref<const std::string&>()));
    }
  }
  return merges;
}

void check_model(const Node& model) {
  if (model.at("type").text() != "BPE") model.at("type").refuse("\"BPE\"");
  if (model.has("dropout") && model.at("dropout").json() != 0) model.at("dropout").unsupported();
  for (const char* const key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.has(key) && !model.at(key).text().empty()) model.at(key).unsupported();
  }
}

// The converter makes a special token a normal one when tokenizer_config.json does not name it, and llama.cpp then
// never finds it in text. HF does, whatever the configuration says, so it is a control token here and in the GGUF we
// write.
TokenType type_of_added(const AddedToken& token, bool byte_level) {
  if (byte_level) return token.special || looks_special(token.content) ? TokenType::control : TokenType::user_defined;
  return token.special && !is_visible_control(token.content) ? TokenType::control : TokenType::user_defined;
}

}  // namespace

TokenizerJsonFrame parse_tokenizer_json_frame(std::string_view text, const std::string& origin) {
  const auto skip_model = [](int depth, Json::parse_event_t event, Json& parsed) {
    return !(depth == 1 && event == Json::parse_event_t::key && parsed == "model");
  };
  const Json json = parse(text, origin, skip_model);
  return parse_frame(Node(json, origin, ""), kMostTokens);
}

TokenizerJson parse_tokenizer_json(std::string_view text, const std::string& origin, int64_t vocab) {
  const Json json = parse(text, origin, nullptr);
  const Node root(json, origin, "");
  const Node model = root.at("model");
  check_model(model);
  TokenizerJson result;
  for (const Node& step : steps(root, "pre_tokenizer", "pretokenizers")) {
    result.byte_level = result.byte_level || step.at("type").text() == "ByteLevel";
  }
  if (result.byte_level) parse_byte_level(root, model, result.bytes);
  else parse_character_bpe(root, model, result.character);

  // Without a size to hold the ids to, gaps are allowed, but not so that a short file makes a long table.
  const int64_t listed = static_cast<int64_t>(model.at("vocab").json().size() +
                                              (root.has("added_tokens") ? root.at("added_tokens").json().size() : 0));
  const int64_t id_limit = vocab > 0 ? std::min(vocab, kMostTokens) : std::min(2 * listed + 1024, kMostTokens);
  result.frame = parse_frame(root, id_limit);
  Vocabulary& vocabulary = result.vocabulary;
  vocabulary.origin = origin;
  vocabulary.tokens = parse_tokens(model, result.frame.added, id_limit);
  vocabulary.types.assign(vocabulary.tokens.size(), TokenType::normal);
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    std::string& token = vocabulary.tokens[id];
    if (token.empty()) {
      token = "[PAD" + std::to_string(id) + "]";
      vocabulary.types[id] = TokenType::unused;
    } else if (!result.byte_level && byte_of_token(token) >= 0) {
      vocabulary.types[id] = TokenType::byte;
    }
  }
  vocabulary.added = result.frame.added;
  for (AddedToken& token : vocabulary.added) {
    vocabulary.types[token.id] = type_of_added(token, result.byte_level);
    token.special = vocabulary.types[token.id] == TokenType::control;
  }
  const auto ids = token_ids(vocabulary.tokens);
  vocabulary.merges = parse_merges(model, ids, origin);
  if (model.has("unk_token")) {
    const auto unknown = ids.find(model.at("unk_token").text());
    if (unknown == ids.end()) model.at("unk_token").refuse("a token of the vocabulary");
    vocabulary.unknown = unknown->second;
  }
  pad_vocabulary(vocabulary, vocab, 0.0f);
  return result;
}

}  // namespace qat
