// Tokenizers with the files around them: special ids, GGUF keys and back, and files that are wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "format/error.h"
#include "tests/format/tokenizer_samples.h"

namespace qat {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Files = std::map<std::string, std::string>;

std::vector<std::string> keys_of(const GgufMetadata& metadata) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : metadata) keys.push_back(key);
  return keys;
}

template <class T>
T value_of(const GgufMetadata& metadata, const std::string& key) {
  for (const auto& [name, value] : metadata) {
    if (name == key && std::holds_alternative<T>(value)) return std::get<T>(value);
  }
  ADD_FAILURE() << key << " is missing or of another type";
  return T{};
}

// ---- GGUF keys, in the order, with the types and the values that llama.cpp's converter writes ----

Files character_bpe_files() {
  return {{"tokenizer.json", character_bpe_json().dump()},
          {"tokenizer_config.json",
           R"({"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "unk_token": "<unk>", "add_eos_token": false,
                                        "chat_template": "{{ messages }}"})"},
          {"config.json", R"({"bos_token_id": 1, "eos_token_id": [2, 16], "pad_token_id": 0})"},
          {"generation_config.json", R"({"eos_token_id": [2, 11]})"}};
}

TEST(TokenizerGguf, CharacterBpe) {
  const auto t = tokenizer_of_files(character_bpe_files(), 19);
  const GgufMetadata metadata = t->to_gguf("gemma4");
  EXPECT_THAT(
      keys_of(metadata),
      ElementsAre("tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
                  "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                  "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_eos_token",
                  "tokenizer.chat_template", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_bos_token"));
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.ggml.model"), "gemma4");
  EXPECT_EQ(value_of<std::vector<float>>(metadata, "tokenizer.ggml.scores"), std::vector<float>(19, -1000.0f));
  EXPECT_THAT(value_of<std::vector<int32_t>>(metadata, "tokenizer.ggml.token_type"),
              ElementsAre(3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 6, 6, 1, 3, 5, 5));
  EXPECT_THAT(value_of<std::vector<std::string>>(metadata, "tokenizer.ggml.merges"),
              ElementsAre("b c", "a b", "\u2581 a", "\u2581 ab", "c \n"));
  EXPECT_EQ(value_of<std::vector<std::string>>(metadata, "tokenizer.ggml.tokens").back(), "[PAD18]");
  EXPECT_EQ(value_of<uint32_t>(metadata, "tokenizer.ggml.eos_token_id"), 2u);
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.chat_template"), "{{ messages }}");
  EXPECT_FALSE(value_of<bool>(metadata, "tokenizer.ggml.add_space_prefix"));
  EXPECT_TRUE(value_of<bool>(metadata, "tokenizer.ggml.add_bos_token"));
}

TEST(TokenizerGguf, VisibleControlTokensAndAddedTokensThatMergesMake) {
  Json json = character_bpe_json();
  json["added_tokens"].push_back(added_token(17, "<|channel>", true));  // printed for the chat parser
  json["added_tokens"].push_back(added_token(7, "ab", false));          // merges make it: normal, as in the converter
  json["added_tokens"].push_back(added_token(12, "\n\n", false));       // they do not make this one
  Files files = character_bpe_files();
  files["tokenizer.json"] = json.dump();
  const auto t = tokenizer_of_files(files);
  const auto types = value_of<std::vector<int32_t>>(t->to_gguf("gemma4"), "tokenizer.ggml.token_type");
  EXPECT_EQ(types[17], 4);
  EXPECT_EQ(types[7], 1);
  EXPECT_EQ(types[12], 4);
  EXPECT_EQ(t->decode_token(17), "<|channel>");
}

TEST(TokenizerGguf, SentencePiece) {
  const Files files = {{"tokenizer.model", sentencepiece_bytes()},
                       {"config.json", R"({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": null})"}};
  const GgufMetadata metadata = tokenizer_of_files(files, 16)->to_gguf("llama");
  EXPECT_THAT(keys_of(metadata), ElementsAre("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
                                             "tokenizer.ggml.scores", "tokenizer.ggml.token_type",
                                             "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"));
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.ggml.pre"), "default");
  EXPECT_THAT(value_of<std::vector<int32_t>>(metadata, "tokenizer.ggml.token_type"),
              ElementsAre(2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5));
  EXPECT_THAT(value_of<std::vector<float>>(metadata, "tokenizer.ggml.scores"),
              ElementsAre(0, 0, 0, 0, 0, -9, -10, -11, -12, -2, -1, -3, -4, -5, -6, -10000));
}

TEST(TokenizerGguf, SentencePieceWithoutItsSpaceSaysSo) {
  const Files files = {{"tokenizer.model", sentencepiece_bytes(false)}};
  const auto t = tokenizer_of_files(files);
  for (const char* const arch : {"llama", "gemma3"}) {
    EXPECT_FALSE(value_of<bool>(t->to_gguf(arch), "tokenizer.ggml.add_space_prefix"));
    EXPECT_THAT(tokenizer_from_gguf_metadata(t->to_gguf(arch), "g")->encode("aaa"), ElementsAre(13, 6));
  }
}

TEST(TokenizerGguf, ByteLevel) {
  Json json = byte_level_json(kLlama3Regex, true);
  const auto special = [](const char* id) { return Json{{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  const auto sequence = [](const char* id) { return Json{{"Sequence", {{"id", id}, {"type_id", 0}}}}; };
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  const Json bos_first = {
      {"type", "TemplateProcessing"},
      {"single", Json::array({special("<|begin|>"), sequence("A")})},
      {"pair", Json::array({special("<|begin|>"), sequence("A"), special("<|begin|>"), sequence("B")})}};
  json["post_processor"] = {{"type", "Sequence"}, {"processors", Json::array({byte_level, bos_first})}};
  Files files = {{"tokenizer.json", json.dump()},
                 {"tokenizer_config.json", R"({"bos_token": "<|begin|>", "add_bos_token": false})"},
                 {"config.json", R"({"eos_token_id": 10})"}};
  const auto t = tokenizer_of_files(files, 266);
  EXPECT_TRUE(t->add_bos());  // the post-processor is what HF runs; it wins over the flag
  const GgufMetadata metadata = t->to_gguf("llama");
  EXPECT_THAT(
      keys_of(metadata),
      ElementsAre("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
                  "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                  "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token"));
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.ggml.pre"), "llama-bpe");
  EXPECT_TRUE(value_of<bool>(metadata, "tokenizer.ggml.add_bos_token"));
  EXPECT_FALSE(value_of<bool>(metadata, "tokenizer.ggml.add_sep_token"));
  const auto types = value_of<std::vector<int32_t>>(metadata, "tokenizer.ggml.token_type");
  EXPECT_THAT(std::vector<int32_t>(types.begin() + 262, types.end()), ElementsAre(1, 3, 4, 5));
  EXPECT_EQ(value_of<std::vector<std::string>>(metadata, "tokenizer.ggml.merges")[2], "\u0120t he");

  json["post_processor"]["processors"] = Json::array({bos_first, byte_level});
  files["tokenizer.json"] = json.dump();
  EXPECT_TRUE(tokenizer_of_files(files)->add_bos());
  files["tokenizer.json"] = byte_level_json(kLlama3Regex, true).dump();
  EXPECT_FALSE(tokenizer_of_files(files)->add_bos());
}

TEST(TokenizerGguf, PreTokenizerIsFoundByWhatItDoes) {
  const auto pre = [](Json json) {
    return value_of<std::string>(tokenizer_of_files({{"tokenizer.json", json.dump()}})->to_gguf("llama"),
                                 "tokenizer.ggml.pre");
  };
  EXPECT_EQ(pre(byte_level_json("", false)), "gpt-2");
  EXPECT_EQ(pre(byte_level_json(kLlama3Regex, true)), "llama-bpe");
  EXPECT_EQ(pre(byte_level_json(kLlama3Regex, false)), "smaug-bpe");
  EXPECT_EQ(pre(byte_level_json(kQwen2Regex, false)), "qwen2");
  EXPECT_THROW(pre(byte_level_json(R"(\S+)", false)), Error);
}

// ---- And back ----

TEST(TokenizerGguf, TheSameIdsFromGguf) {
  const std::string text = "<bos> abc ab\n\xc3\xa9 12345 the xy<tool><s>\xff";
  Json nfc = byte_level_json(kQwen2Regex, false);
  nfc["normalizer"] = {{"type", "NFC"}};
  const std::vector<std::pair<Files, std::string>> cases = {
      {character_bpe_files(), "gemma4"},
      {{{"tokenizer.model", sentencepiece_bytes()}}, "llama"},
      {{{"tokenizer.json", byte_level_json("", false).dump()}}, "llama"},
      {{{"tokenizer.json", byte_level_json(kLlama3Regex, true).dump()},
        {"tokenizer_config.json", R"({"bos_token": "<|begin|>"})"}},
       "llama"},
      {{{"tokenizer.json", nfc.dump()}}, "llama"}};
  for (const auto& [files, arch] : cases) {
    const auto t = tokenizer_of_files(files);
    const GgufMetadata metadata = t->to_gguf(arch);
    const auto back = tokenizer_from_gguf_metadata(metadata, "model.gguf");
    for (const bool parse_special : {true, false})
      EXPECT_EQ(back->encode(text, parse_special), t->encode(text, parse_special));
    EXPECT_EQ(back->encode_with_bos("a"), t->encode_with_bos("a"));
    EXPECT_EQ(back->decode(t->encode(text)), t->decode(t->encode(text)));
    EXPECT_EQ(back->eos_id(), t->eos_id());
    EXPECT_EQ(back->to_gguf(arch), metadata);
  }
}

TEST(TokenizerGguf, ThroughAFile) {
  const TemporaryDirectory directory;
  const auto t = tokenizer_of_files({{"tokenizer.model", sentencepiece_bytes()}});
  GgufWriter(directory / "vocab.gguf", t->to_gguf("llama"), {}).commit();
  EXPECT_EQ(tokenizer_from_gguf(GgufFile(directory / "vocab.gguf"))->encode("abc xy"), t->encode("abc xy"));
}

// ---- What stands beside the vocabulary ----

TEST(TokenizerFiles, EndOfGeneration) {
  const auto t = tokenizer_of_files(character_bpe_files());
  EXPECT_TRUE(t->is_end_of_generation(2));   // eos_token
  EXPECT_TRUE(t->is_end_of_generation(16));  // <turn|>, known by name and listed in config.json
  EXPECT_TRUE(t->is_end_of_generation(11));  // listed in generation_config.json
  EXPECT_FALSE(t->is_end_of_generation(1));
  EXPECT_FALSE(t->is_end_of_generation(-1));
}

TEST(TokenizerFiles, SpecialTokensMapFillsIn) {
  const auto t =
      tokenizer_of_files({{"tokenizer.json", character_bpe_json().dump()},
                          {"special_tokens_map.json", R"({"bos_token": {"content": "<bos>"}, "eos_token": "<eos>"})"}});
  EXPECT_EQ(t->bos_id(), 1);
  EXPECT_EQ(t->eos_id(), 2);
  EXPECT_EQ(value_of<uint32_t>(t->to_gguf("gemma4"), "tokenizer.ggml.bos_token_id"), 1u);
}

TEST(TokenizerFiles, AddedTokensOfSentencePiece) {
  const auto t = tokenizer_of_files(
      {{"tokenizer.model", sentencepiece_bytes()},
       {"tokenizer_config.json", R"({"added_tokens_decoder": {"15": {"content": "<turn>", "special": true},
                                                                   "16": {"content": "a▁b", "special": false}}})"}},
      18);
  EXPECT_THAT(t->encode("<turn>ca bc"), ElementsAre(15, 5, 8, 16, 5, 8));  // user-defined: spaces are spaces
  const GgufMetadata metadata = t->to_gguf("llama");
  const auto types = value_of<std::vector<int32_t>>(metadata, "tokenizer.ggml.token_type");
  EXPECT_THAT(std::vector<int32_t>(types.begin() + 14, types.end()), ElementsAre(1, 3, 4, 5));
  EXPECT_EQ(value_of<std::vector<float>>(metadata, "tokenizer.ggml.scores")[15], -1000.0f);
}

TEST(TokenizerFiles, NamedChatTemplates) {
  Files files = character_bpe_files();
  files["tokenizer_config.json"] =
      R"({"bos_token": "<bos>", "chat_template": [{"name": "default", "template": "d"}, {"name": "tool use", "template": "t"}]})";
  const GgufMetadata metadata = tokenizer_of_files(files)->to_gguf("gemma4");
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.chat_template"), "d");
  EXPECT_EQ(value_of<std::string>(metadata, "tokenizer.chat_template.tool_use"), "t");
  EXPECT_THAT(value_of<std::vector<std::string>>(metadata, "tokenizer.chat_templates"), ElementsAre("tool_use"));
  files["tokenizer_config.json"] = R"({"bos_token": "<bos>"})";
  files["chat_template.jinja"] = "j";
  EXPECT_EQ(value_of<std::string>(tokenizer_of_files(files)->to_gguf("gemma4"), "tokenizer.chat_template"), "j");
}

TEST(TokenizerFiles, Gemma4PrefersTokenizerJson) {
  Files files = character_bpe_files();
  files["tokenizer.model"] = sentencepiece_bytes();
  EXPECT_EQ(tokenizer_of_files(files)->vocab_size(), 15);
  files["config.json"] = R"({"model_type": "gemma4_text"})";
  EXPECT_EQ(tokenizer_of_files(files)->vocab_size(), 17);
  files["config.json"] = "{}";
  files["tokenizer.model"] = "IQ== 0\n";  // Llama 3's list of base64 lines
  EXPECT_EQ(tokenizer_of_files(files)->vocab_size(), 17);
}

// ---- Wrong files: one line that names the file and the place ----

template <class Load>
std::string error_of(const Load& load) {
  try {
    load();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::Not(HasSubstr("\n")));
    return error.what();
  }
  return "";
}

std::string json_error(const std::string& text, int64_t vocab = 0) {
  return error_of([&] { tokenizer_from_json_text(text, "dir/tokenizer.json", vocab); });
}

std::string json_error(const std::function<void(Json&)>& spoil, Json json = character_bpe_json()) {
  spoil(json);
  return json_error(json.dump());
}

TEST(TokenizerErrors, TokenizerJson) {
  EXPECT_THAT(json_error(""), HasSubstr("dir/tokenizer.json: not JSON"));
  EXPECT_THAT(json_error("{\"model\": \xff}"), HasSubstr("dir/tokenizer.json: not JSON"));
  EXPECT_THAT(json_error("[]"), HasSubstr("dir/tokenizer.json: expected an object, found an array"));
  EXPECT_THAT(json_error("{}"), HasSubstr("dir/tokenizer.json: 'model' is missing"));
  EXPECT_THAT(json_error(character_bpe_json().dump(), 10), HasSubstr("expected a token id from 0 to 9"));
  EXPECT_THAT(json_error(character_bpe_json().dump(), 1 << 30),
              HasSubstr("a vocabulary of 1073741824 tokens is not supported"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["type"] = "Unigram"; }),
              HasSubstr("model.type: expected \"BPE\", found 'Unigram'"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["type"] = 3; }), HasSubstr("model.type: expected a string, found 3"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"] = Json::array(); }),
              HasSubstr("model.vocab: expected an object of tokens and ids"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"]["a"] = -1; }),
              HasSubstr("model.vocab.a: expected a token id"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"]["a"] = 1e9; }),
              HasSubstr("model.vocab.a: expected a token id"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"]["z"] = 2000000; }),
              HasSubstr("model.vocab.z: expected a token id from 0 to 1067, found 2000000"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"]["a"] = "4"; }),
              HasSubstr("model.vocab.a: expected a token id"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"]["a"] = 5; }),
              HasSubstr("model.vocab: expected an id of its own for 'b' (5 is 'a')"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["vocab"][""] = 30; }), HasSubstr("tokens that are not empty"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["merges"] = 1; }), HasSubstr("model.merges: expected an array"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["merges"][1] = "a b c"; }),
              HasSubstr("model.merges[1]: expected two tokens"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["merges"][1] = {"a"}; }),
              HasSubstr("model.merges[1]: expected two tokens"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["merges"][1] = "a z"; }),
              HasSubstr("model.merges[1]: 'z' is not in the vocabulary"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["merges"][1] = "\n a"; }),
              HasSubstr("merge 1 joins '\\x0a' and 'a' to a token that is not"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["unk_token"] = "nil"; }),
              HasSubstr("model.unk_token: expected a token of the vocabulary"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["byte_fallback"] = false; }), HasSubstr("model.byte_fallback"));
  EXPECT_THAT(json_error([](Json& j) { j["model"]["dropout"] = 0.1; }),
              HasSubstr("model.dropout: 0.1 is not supported"));
  EXPECT_THAT(json_error([](Json& j) {
                j["normalizer"] = {{"type", "NFKC"}};
              }),
              HasSubstr("normalizer: 'NFKC' is not supported"));
  EXPECT_THAT(json_error([](Json& j) { j["normalizer"] = nullptr; }), HasSubstr("a normalizer that replaces ' '"));
  EXPECT_THAT(json_error([](Json& j) {
                j["pre_tokenizer"] = {{"type", "Whitespace"}};
              }),
              HasSubstr("pre_tokenizer: 'Whitespace' is not supported"));
  EXPECT_THAT(json_error([](Json& j) { j["added_tokens"][0]["id"] = 1 << 30; }),
              HasSubstr("added_tokens[0].id: expected a token id"));
  EXPECT_THAT(json_error([](Json& j) { j["added_tokens"][0]["id"] = 4; }),
              HasSubstr("model.vocab.<unk>: expected id 4 as in added_tokens"));
  EXPECT_THAT(json_error([](Json& j) { j["added_tokens"][0]["content"] = ""; }),
              HasSubstr("added_tokens[0]: expected a token with content"));
  EXPECT_THAT(json_error([](Json& j) { j["added_tokens"].push_back(added_token(4, "new", true)); }),
              HasSubstr("an id of its own for 'new'"));
  EXPECT_THAT(json_error([](Json& j) { j["added_tokens"].push_back(added_token(5, "<eos>", true)); }),
              HasSubstr("expected id 2 as above"));
  EXPECT_THAT(json_error([](Json& j) { j["added_tokens"][0]["special"] = 1; }),
              HasSubstr("added_tokens[0].special: expected true or false"));
  EXPECT_THAT(json_error([](Json& j) {
                j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", {1}}};
              }),
              HasSubstr("post_processor.single[0]"));
  const auto byte_level_error = [](const std::function<void(Json&)>& spoil) {
    return json_error(spoil, byte_level_json(kLlama3Regex, true));
  };
  EXPECT_THAT(byte_level_error([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "("; }),
              HasSubstr("regular expression '('"));
  EXPECT_THAT(byte_level_error([](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; }),
              HasSubstr("pre_tokenizer.pretokenizers[0]: 'Split' is not supported"));
  EXPECT_THAT(byte_level_error([](Json& j) { j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; }),
              HasSubstr("expected add_prefix_space = false"));
}

TEST(TokenizerErrors, SentencePiece) {
  const auto error = [](const std::string& bytes, int64_t vocab = 0) {
    return error_of([&] {
      tokenizer_from_sentencepiece_bytes({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
                                         "tokenizer.model", vocab);
    });
  };
  EXPECT_THAT(error("\x0a\x7f"), HasSubstr("tokenizer.model: not a SentencePiece model, or damaged"));
  EXPECT_THAT(error(""), HasSubstr("tokenizer.model: has no pieces"));
  EXPECT_THAT(error(sentencepiece_pieces().str()), HasSubstr("model_type: expected 2 (BPE), found 1 (unigram)"));
  EXPECT_THAT(error(sentencepiece_pieces().trainer(2).normalizer(true, false, "abc").str()),
              HasSubstr("normalizer 'nmt_nfkc'"));
  EXPECT_THAT(error(sentencepiece_bytes(), 10), HasSubstr("has 15 tokens, but the model's vocabulary is 10"));
  EXPECT_THAT(error(sentencepiece_pieces().piece("ab", 0).trainer(2).str()),
              HasSubstr("piece 15 'ab' is the same as piece 9"));
  EXPECT_THAT(error(sentencepiece_pieces().piece("", 0).trainer(2).str()), HasSubstr("piece 15 is empty"));
  EXPECT_THAT(error(sentencepiece_pieces().piece("q", 0, 9).trainer(2).str()),
              HasSubstr("expected a type of 1 to 6, found 9"));
  EXPECT_THAT(error(sentencepiece_pieces().piece("q", 0, 6).trainer(2).str()),
              HasSubstr("expected <0x00> to <0xFF>, found 'q'"));
  EXPECT_THAT(error(sentencepiece_pieces().piece("q", NAN).trainer(2).str()), HasSubstr("not a finite number"));
}

TEST(TokenizerErrors, Gguf) {
  const GgufMetadata good = tokenizer_of_files(character_bpe_files())->to_gguf("gemma4");
  const auto error = [&](const std::string& key, const GgufValue& value) {
    GgufMetadata bad = good;
    for (auto& [name, old] : bad) {
      if (name == "tokenizer.ggml." + key) old = value;
    }
    return error_of([&] { tokenizer_from_gguf_metadata(bad, "m.gguf"); });
  };
  const auto tokens = value_of<std::vector<std::string>>(good, "tokenizer.ggml.tokens");
  const auto types = value_of<std::vector<int32_t>>(good, "tokenizer.ggml.token_type");
  const auto changed = [](auto list, size_t i, auto value) {
    list[i] = value;
    return list;
  };
  EXPECT_THAT(error_of([] { tokenizer_from_gguf_metadata({}, "m.gguf"); }),
              HasSubstr("m.gguf: expected key tokenizer.ggml.model, found none"));
  EXPECT_THAT(error("model", std::string("bert")), HasSubstr("expected 'llama', 'gemma4' or 'gpt2', found 'bert'"));
  EXPECT_THAT(error("model", 3.0f), HasSubstr("tokenizer.ggml.model: expected a string"));
  EXPECT_THAT(error("model", std::string("gpt2")), HasSubstr("expected key tokenizer.ggml.pre"));
  EXPECT_THAT(error("tokens", std::vector<std::string>{}),
              HasSubstr("tokenizer.ggml.tokens: expected tokens, found none"));
  EXPECT_THAT(error("tokens", std::vector<int32_t>{1}),
              HasSubstr("tokenizer.ggml.tokens: expected an array of strings"));
  EXPECT_THAT(error("tokens", changed(tokens, 4, "b")), HasSubstr("token 5 is the same as token 4: 'b'"));
  EXPECT_THAT(error("token_type", std::vector<int32_t>{1}), HasSubstr("token_type: expected 17 types, found 1"));
  EXPECT_THAT(error("token_type", changed(types, 4, 7)), HasSubstr("token 4: expected a type of 1 to 6, found 7"));
  EXPECT_THAT(error("token_type", changed(types, 4, 6)),
              HasSubstr("byte token 4: expected <0x00> to <0xFF>, found 'a'"));
  EXPECT_THAT(error("merges", std::vector<std::string>{"ab"}),
              HasSubstr("merge 0: expected two tokens of the vocabulary, found 'ab'"));
  EXPECT_THAT(error("merges", std::vector<std::string>{"b a"}), HasSubstr("m.gguf: merge 0 joins 'b' and 'a'"));
  EXPECT_THAT(error("bos_token_id", uint32_t{17}), HasSubstr("bos_token_id: expected a token id below 17, found 17"));
  EXPECT_THAT(error("add_bos_token", uint32_t{1}), HasSubstr("add_bos_token: expected a bool"));
}

TEST(TokenizerErrors, Directory) {
  EXPECT_THAT(error_of([] { tokenizer_of_files({}); }),
              HasSubstr("expected tokenizer.json or a SentencePiece tokenizer.model, found neither"));
  Files files = character_bpe_files();
  files["tokenizer_config.json"] = "{";
  EXPECT_THAT(error_of([&] { tokenizer_of_files(files); }), HasSubstr("/tokenizer_config.json: not JSON"));
  files["tokenizer_config.json"] = "3";
  EXPECT_THAT(error_of([&] { tokenizer_of_files(files); }),
              HasSubstr("/tokenizer_config.json: expected an object, found number"));
}

// Whatever stands in the file, it is read or refused; the sanitizers watch.
TEST(TokenizerErrors, DamagedFilesAreReadOrRefused) {
  const std::string model = sentencepiece_bytes();
  const std::string json = byte_level_json(kLlama3Regex, true).dump();
  std::mt19937 random(1);
  for (int trial = 0; trial < 600; ++trial) {
    std::string damaged = trial % 2 == 0 ? model : json;
    if (trial % 3 == 0) damaged.resize(random() % damaged.size());
    for (int flips = 0; flips < 3 && !damaged.empty(); ++flips)
      damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
    const Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(damaged.data()), damaged.size());
    error_of([&] {
      const auto t = trial % 2 == 0 ? tokenizer_from_sentencepiece_bytes(bytes, "m", 0)
                                    : tokenizer_from_json_text(damaged, "j", 0);
      t->decode(t->encode("abc the 12345 \xc3\xa9\xff<tool>"));
    });
  }
}

}  // namespace
}  // namespace qat
