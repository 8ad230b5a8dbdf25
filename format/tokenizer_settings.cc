// What stands beside the vocabulary in an HF directory: special ids, add_bos_token, chat template.
//
// The ids and flags for GGUF come from the same places, in the same order of preference, as in gguf-py's SpecialVocab;
// EOS lists and the ids of special_tokens_map.json are for our own use.
#include <cctype>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "format/file_io.h"
#include "format/tokenizer_internal.h"

namespace qat {
namespace {

using Json = nlohmann::json;

// The object in a file of the directory; empty when there is no such file.
Json read_object(const std::string& path) {
  if (!std::filesystem::exists(path)) return Json::object();
  try {
    Json json = Json::parse(read_file(path));
    if (!json.is_object()) fail(path, ": expected an object, found ", json.type_name());
    return json;
  } catch (const Json::exception& error) {
    fail(path, ": not JSON: ", error.what());
  }
}

// A special token's text: "<s>", or {"content": "<s>"}; "" when the key is absent, null or something else.
std::string token_text(const Json& json, const std::string& key) {
  const auto found = json.find(key);
  if (found == json.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_object() || !found->contains("content") || !(*found)["content"].is_string()) return "";
  return (*found)["content"].get<std::string>();
}

int32_t integer_id(const Json& json, const std::string& key) {
  const auto found = json.find(key);
  const bool fits = found != json.end() && found->is_number_integer() && *found >= 0 && *found <= INT32_MAX;
  return fits ? found->get<int32_t>() : -1;
}

void append_ids(const Json& json, const std::string& key, std::vector<int32_t>& ids) {
  const auto found = json.find(key);
  if (found == json.end()) return;
  for (const Json& id : found->is_array() ? *found : Json::array({*found})) {
    if (id.is_number_integer() && id >= 0 && id <= INT32_MAX) ids.push_back(id.get<int32_t>());
  }
}

// Collects what gguf-py's SpecialVocab does.
class SpecialTokens {
 public:
  SpecialTokens(Json config, const TokenizerJsonFrame* frame) : config_(std::move(config)), frame_(frame) {
    for (const char* const type : {"bos", "eos", "unk", "sep", "pad", "cls", "mask"}) types_.emplace_back(type);
    if (frame_ != nullptr) read_post_processors();
    read_config();
  }
  void set_id(const std::string& type, int32_t id, size_t vocab_size) {
    if (id < 0 || static_cast<size_t>(id) >= vocab_size || settings_.id(type) >= 0) return;
    settings_.ids.emplace_back(type, id);
  }
  void read_ids(const Json& model_config, size_t vocab_size) {
    for (const auto& [type, text] : token_texts_) set_id(type, added_id(text), vocab_size);
    for (const std::string& type : types_) {
      int32_t id = integer_id(model_config, type + "_token_id");
      const auto text_config = model_config.find("text_config");
      if (id < 0 && text_config != model_config.end()) id = integer_id(*text_config, type + "_token_id");
      set_id(type, id, vocab_size);
    }
  }
  TokenizerSettings& settings() { return settings_; }

 private:
  void set_add(const std::string& type, bool value) {
    for (auto& [key, known] : settings_.adds) {
      if (key == type) return static_cast<void>(known = value);
    }
    settings_.adds.emplace_back(type, value);
  }

  int32_t added_id(const std::string& text) const {
    if (frame_ == nullptr) return -1;
    for (const AddedToken& token : frame_->added) {
      if (token.content == text) return token.id;
    }
    return -1;
  }

  void read_post_processors() {
    for (const char* const name : {"bos", "eos", "cls", "sep"})
      special_[name] = token_text(config_, std::string(name) + "_token");
    if (special_["bos"].empty()) special_["bos"] = special_["cls"];
    if (special_["eos"].empty()) special_["eos"] = special_["sep"];
    for (const PostProcessor& processor : frame_->post_processors) {
      if (processor.type == "ByteLevel") {
        for (const char* const type : {"bos", "eos"}) {
          if (!settings_.add(type).has_value()) set_add(type, false);
        }
      }
      if (processor.type == "TemplateProcessing") read_template(processor);
    }
  }

  // BOS before the sequence, EOS after it; and in a pair, whether something separates the two.
  void read_template(const PostProcessor& processor) {
    const std::vector<TemplateItem>& single = processor.single;
    std::string first, last;
    if (single.size() > 1) {
      if (single.front().special) first = single.front().id;
      if (single.back().special) last = single.back().id;
    }
    if (!first.empty()) {
      if (special_["bos"].empty()) special_["bos"] = first;
      set_add("bos", first == special_["bos"] || first == special_["cls"]);
    }
    if (!last.empty()) {
      if (!special_["eos"].empty() && special_["eos"] != last) end_of_turn_ = special_["eos"];
      special_["eos"] = last;
      set_add("eos", true);
    }
    size_t begin = 0, end = processor.pair.size();
    if (end > 0 && !first.empty() && processor.pair.front().special && processor.pair.front().id == first) ++begin;
    if (end > begin && !last.empty() && processor.pair.back().special && processor.pair.back().id == last) --end;
    if (end - begin < 3) return;
    const auto is_sequence = [&](size_t i, const char* id) {
      return !processor.pair[i].special && processor.pair[i].id == id;
    };
    if (!is_sequence(begin, "A") || !is_sequence(end - 1, "B")) return;
    const auto separates = [&](size_t i) {
      const TemplateItem& item = processor.pair[i];
      return item.special && (item.id == special_["sep"] || item.id == special_["eos"]);
    };
    const bool two = end - begin == 4;
    set_add("sep", (separates(begin + 1) && last.empty()) || (two && separates(begin + 2)));
  }

  void read_config() {
    for (const std::string& type : types_) {
      const auto flag = config_.find("add_" + type + "_token");
      if (flag != config_.end() && flag->is_boolean() && !settings_.add(type).has_value())
        set_add(type, flag->get<bool>());
      const auto decided = special_.find(type);
      const std::string text = decided != special_.end() && !decided->second.empty()
                                   ? decided->second
                                   : token_text(config_, type + "_token");
      if (!text.empty()) token_texts_.emplace_back(type, text);
    }
    if (!end_of_turn_.empty()) token_texts_.emplace_back("eot", end_of_turn_);
  }

  Json config_;
  const TokenizerJsonFrame* frame_;
  std::vector<std::string> types_;
  std::unordered_map<std::string, std::string> special_;  // as the post-processor leaves them
  std::string end_of_turn_;
  std::vector<std::pair<std::string, std::string>> token_texts_;
  TokenizerSettings settings_;
};

// A chat template is one text, or several with names.
void add_chat_template(const Json& value, GgufMetadata& metadata) {
  const std::string key = "tokenizer.chat_template";
  if (value.is_string()) metadata.emplace_back(key, value.get<std::string>());
  if (!value.is_array()) return;
  std::vector<std::string> names;
  std::optional<std::string> standard;
  for (const Json& choice : value) {
    if (!choice.is_object()) continue;
    std::string name = choice.value("name", Json()).is_string() ? choice["name"].get<std::string>() : "";
    if (name.empty() || !choice.value("template", Json()).is_string()) continue;
    for (char& c : name) {
      if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
    }
    const std::string text = choice["template"].get<std::string>();
    if (name == "default") {
      standard = text;
    } else if (std::find(names.begin(), names.end(), name) == names.end()) {
      names.push_back(name);
      metadata.emplace_back(key + "." + name, text);
    }
  }
  if (!names.empty()) metadata.emplace_back("tokenizer.chat_templates", names);
  if (standard.has_value()) metadata.emplace_back(key, *standard);
}

Json find_chat_template(const std::string& directory, const Json& config) {
  if (config.contains("chat_template")) return config["chat_template"];
  const std::string jinja = directory + "/chat_template.jinja";
  if (std::filesystem::exists(jinja)) return read_file(jinja);
  return read_object(directory + "/chat_template.json").value("chat_template", Json());
}

std::vector<AddedToken> read_added_tokens(const std::string& directory, const Json& config, size_t vocab_size) {
  std::vector<AddedToken> added;
  const auto add = [&](const std::string& content, int64_t id, bool special) {
    if (content.empty() || id < 0 || id >= static_cast<int64_t>(vocab_size)) return;
    AddedToken token;
    token.content = content;
    token.id = static_cast<int32_t>(id);
    token.special = special;
    added.push_back(std::move(token));
  };
  const Json added_tokens = read_object(directory + "/added_tokens.json");
  for (const auto& [content, id] : added_tokens.items()) {
    if (id.is_number_integer()) add(content, id.get<int64_t>(), false);
  }
  const Json decoder = config.value("added_tokens_decoder", Json());
  if (!decoder.is_object()) return added;
  for (const auto& [key, token] : decoder.items()) {
    const bool number = !key.empty() && key.size() < 10 &&
                        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!number || !token.is_object())
      fail(directory, "/tokenizer_config.json: added_tokens_decoder: expected ids and tokens, found ", quote(key));
    const Json special = token.value("special", Json());
    const std::string content = token_text(token, "content");
    add(content, std::stoll(key), (special.is_boolean() && special.get<bool>()) || looks_special(content));
  }
  return added;
}

}  // namespace

std::string model_type(const std::string& directory) {
  const Json type = read_object(directory + "/config.json").value("model_type", Json());
  return type.is_string() ? type.get<std::string>() : "";
}

TokenizerSettings read_settings(const std::string& directory, const TokenizerJsonFrame* frame,
                                const Vocabulary& vocabulary) {
  const Json config = read_object(directory + "/tokenizer_config.json");
  const Json model_config = read_object(directory + "/config.json");
  const Json generation = read_object(directory + "/generation_config.json");
  const Json special_map = read_object(directory + "/special_tokens_map.json");

  SpecialTokens special(config, frame);
  special.read_ids(model_config, vocabulary.tokens.size());
  TokenizerSettings settings = std::move(special.settings());
  const auto prefix = config.find("add_prefix_space");
  if (prefix != config.end() && prefix->is_boolean()) settings.add_prefix_space = prefix->get<bool>();
  add_chat_template(find_chat_template(directory, config), settings.extra);
  settings.added = read_added_tokens(directory, config, vocabulary.tokens.size());

  append_ids(generation, "eos_token_id", settings.end_ids);
  append_ids(model_config, "eos_token_id", settings.end_ids);
  append_ids(model_config.value("text_config", Json::object()), "eos_token_id", settings.end_ids);
  const auto fallback = [&](const std::string& type, int32_t known) {
    for (const Json* const source : {&config, &special_map}) {
      const std::string text = token_text(*source, type + "_token");
      for (size_t id = 0; id < vocabulary.tokens.size() && !text.empty(); ++id) {
        if (vocabulary.tokens[id] == text) return static_cast<int32_t>(id);
      }
    }
    const int32_t id = integer_id(generation, type + "_token_id");
    return id >= 0 ? id : known;
  };
  settings.fallback_bos = fallback("bos", vocabulary.settings.fallback_bos);
  settings.fallback_eos = fallback("eos", vocabulary.settings.fallback_eos);
  return settings;
}

}  // namespace qat
