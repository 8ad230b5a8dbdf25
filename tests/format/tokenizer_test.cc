// Each kind of tokenizer on a vocabulary small enough to work the ids out by hand.
#include "format/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "format/error.h"
#include "tests/format/tokenizer_samples.h"

namespace qat {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::unique_ptr<Tokenizer> from_json(const Json& json) {
  return tokenizer_from_json_text(json.dump(), "tokenizer.json", 0);
}

std::unique_ptr<Tokenizer> from_sentencepiece(const std::string& model) {
  return tokenizer_from_sentencepiece_bytes({reinterpret_cast<const uint8_t*>(model.data()), model.size()},
                                            "tokenizer.model", 0);
}

// The same tokenizer by way of GGUF keys.
std::unique_ptr<Tokenizer> through_gguf(const Tokenizer& tokenizer, const std::string& arch) {
  return tokenizer_from_gguf_metadata(tokenizer.to_gguf(arch), "model.gguf");
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids, bool special = false) {
  return tokenizer.decode(ids, special);
}

// ---- BPE over characters ----

TEST(CharacterBpe, MergesByRankThenFromTheLeft) {
  const auto t = from_json(character_bpe_json());
  EXPECT_THAT(t->encode(""), IsEmpty());
  EXPECT_THAT(t->encode("ab"), ElementsAre(7));
  EXPECT_THAT(t->encode("abc"), ElementsAre(4, 8));  // b c has rank 0, a b rank 1
  EXPECT_THAT(t->encode(" a"), ElementsAre(9));
  EXPECT_THAT(t->encode(" ab"), ElementsAre(10));  // a b (1), then _ ab (3)
  EXPECT_THAT(t->encode(" abc"), ElementsAre(9, 8));
  EXPECT_THAT(t->encode("aab b"), ElementsAre(4, 7, 3, 5));
  EXPECT_THAT(t->encode("  ab"), ElementsAre(3, 10));
}

TEST(CharacterBpe, CharactersWithoutTokenBecomeBytesOrUnknown) {
  const auto t = from_json(character_bpe_json());
  EXPECT_THAT(t->encode("aéb"), ElementsAre(4, 13, 14, 5));
  EXPECT_THAT(t->encode("ü"), ElementsAre(0));           // <0xBC> is missing
  EXPECT_THAT(t->encode("aüxb"), ElementsAre(4, 0, 5));  // unknown neighbours are one
  EXPECT_THAT(t->encode("x x"), ElementsAre(0, 3, 0));
  EXPECT_THAT(t->encode("a\xc3"), ElementsAre(4, 13));  // not UTF-8: the byte's token
  EXPECT_THAT(t->encode("\xff\xfe"
                        "a"),
              ElementsAre(0, 4));
  Json json = character_bpe_json();
  json["model"]["fuse_unk"] = false;
  EXPECT_THAT(from_json(json)->encode("aüxb"), ElementsAre(4, 0, 0, 5));
}

TEST(CharacterBpe, NewlineRunsDifferBetweenHfAndLlamaCpp) {
  const auto hf = tokenizer_of_files(
      {{"tokenizer.json", character_bpe_json().dump()}, {"tokenizer_config.json", R"({"bos_token": "<bos>"})"}});
  const auto gguf = through_gguf(*hf, "gemma4");
  EXPECT_THAT(hf->encode("a\n\nb"), ElementsAre(4, 11, 11, 5));  // no merge makes "\n\n"
  EXPECT_THAT(gguf->encode("a\n\nb"), ElementsAre(4, 12, 5));    // but the run is a token
  EXPECT_THAT(gguf->encode("\n\n\n"), ElementsAre(11, 11, 11));
  EXPECT_THAT(hf->encode("ac\n"), ElementsAre(4, 15));  // a merge over the edge of a run
  EXPECT_THAT(gguf->encode("ac\n"), ElementsAre(4, 6, 11));
}

TEST(CharacterBpe, SpecialTokensInText) {
  const auto t = from_json(character_bpe_json());
  EXPECT_THAT(t->encode("<bos>a<eos>"), ElementsAre(1, 4, 2));
  EXPECT_THAT(t->encode("<bos>", false), ElementsAre(0, 5, 0));  // <, b, os>: only b is a token
  EXPECT_THAT(t->encode("b<turn|>c"), ElementsAre(5, 16, 6));    // no merge joins b and c over the token
}

TEST(CharacterBpe, DecodesToTheBytesThatWereEncoded) {
  const auto t = from_json(character_bpe_json());
  const std::string text = " ab\n\nabc é c\n";
  EXPECT_EQ(t->decode(t->encode(text)), text);
  EXPECT_EQ(decode(*t, {1, 10, 13}), " ab\xc3");  // half a character stays half
  EXPECT_EQ(decode(*t, {1, 4, 16}), "a");
  EXPECT_EQ(decode(*t, {1, 4, 16}, true), "<bos>a<turn|>");
  EXPECT_THROW(t->decode_token(17), Error);
  EXPECT_THROW(t->decode_token(-1), Error);
}

// What decides is worked out from the flags' definition in HF tokenizers.
TEST(CharacterBpe, FlagsOfAddedTokens) {
  Json json = character_bpe_json();
  const auto add = [&](int id, const std::string& content, const std::string& flag) {
    Json token = added_token(id, content, false);
    token[flag] = true;
    json["added_tokens"].push_back(token);
  };
  add(17, "[L]", "lstrip");
  add(18, "[R]", "rstrip");
  add(19, "[W]", "single_word");
  add(20, "a b", "normalized");  // matched as "a_b", after the tokens above
  add(21, "[L]b", "special");    // the longest token at a place wins
  const auto t = from_json(json);
  EXPECT_THAT(t->encode("a \t\u2003[L] a"), ElementsAre(4, 17, 9));
  EXPECT_THAT(t->encode("a [R] \n a"), ElementsAre(4, 3, 18, 4));
  EXPECT_THAT(t->encode("b[W]"), ElementsAre(5, 0));
  EXPECT_THAT(t->encode("b [W] b"), ElementsAre(5, 3, 19, 3, 5));
  EXPECT_THAT(t->encode("ca bc"), ElementsAre(6, 20, 6));
  EXPECT_THAT(t->encode("[L]ba"), ElementsAre(21, 4));
  EXPECT_THAT(t->encode("[L][L]"), ElementsAre(17, 17));
}

TEST(CharacterBpe, LongRunsTakeNoLongerPerCharacter) {
  Json json = character_bpe_json();
  json["model"]["vocab"]["bb"] = 17;
  json["model"]["vocab"]["bbbb"] = 18;
  json["model"]["merges"].push_back({"b", "b"});
  json["model"]["merges"].push_back({"bb", "bb"});
  const auto t = from_json(json);
  const Ids ids = t->encode(std::string(400002, 'b'));  // quadratic would be minutes
  EXPECT_EQ(ids.size(), 100001u);
  EXPECT_EQ(ids[0], 18);
  EXPECT_EQ(ids.back(), 17);
}

// ---- SentencePiece ----

TEST(SentencePiece, MergesByScoreThenFromTheLeft) {
  const auto t = from_sentencepiece(sentencepiece_bytes());
  EXPECT_THAT(t->encode(""), IsEmpty());
  EXPECT_THAT(t->encode("abc"), ElementsAre(5, 11));         // _ a b c: bc (-1), abc (-3); _abc is no piece
  EXPECT_THAT(t->encode("aaa"), ElementsAre(12, 13));        // _a (-4) before aa (-5)
  EXPECT_THAT(t->encode("baaa"), ElementsAre(5, 7, 13, 6));  // two aa overlap: the left one
  EXPECT_THAT(t->encode("a b"), ElementsAre(12, 5, 7));
  EXPECT_THAT(t->encode("  a"), ElementsAre(5, 5, 12));
}

TEST(SentencePiece, PiecesOfUnknownCharacters) {
  const auto t = from_sentencepiece(sentencepiece_bytes());
  EXPECT_THAT(t->encode("xy"), ElementsAre(5, 14));
  EXPECT_THAT(t->encode("xyx"), ElementsAre(5, 14, 0));
  EXPECT_THAT(t->encode("éxé"), ElementsAre(5, 3, 4, 0, 3, 4));
  EXPECT_THAT(t->encode("yyx"), ElementsAre(5, 0));
  EXPECT_THAT(t->encode("a\xc3\xff"), ElementsAre(12, 3, 0));
  // With "wvu" a piece, "wv" is not cut before it is known to be two unknown characters.
  const auto more =
      from_sentencepiece(sentencepiece_pieces().piece("wvu", -7).trainer(2).normalizer(true, false).str());
  EXPECT_THAT(more->encode("wv"), ElementsAre(5, 0));
}

TEST(SentencePiece, SpaceInFrontOfEveryStretchOfText) {
  const auto t = from_sentencepiece(sentencepiece_bytes());
  EXPECT_THAT(t->encode("<s>a</s> b"), ElementsAre(1, 12, 2, 5, 5, 7));
  EXPECT_THAT(t->encode("<s>", false), ElementsAre(5, 0));
  EXPECT_EQ(decode(*t, {1, 12, 5, 7}), "a b");  // the space that encode() put there is gone
  EXPECT_EQ(decode(*t, {5, 12}), " a");
  EXPECT_EQ(decode(*t, {1, 12}, true), "<s>a");
  const auto bare = from_sentencepiece(sentencepiece_bytes(false));
  EXPECT_THAT(bare->encode("aaa"), ElementsAre(13, 6));
  EXPECT_EQ(decode(*bare, {12}), " a");
}

TEST(SentencePiece, CollapsesSpacesWhereTheModelSaysSo) {
  const auto t = from_sentencepiece(sentencepiece_bytes(true, true));
  EXPECT_THAT(t->encode("  a   b  "), ElementsAre(12, 5, 7));
  EXPECT_THAT(t->encode("   "), IsEmpty());
  EXPECT_EQ(through_gguf(*t, "llama")->encode("  a   b  "), t->encode("a b"));
}

TEST(SentencePiece, BosAndUnknownComeFromTheModel) {
  const auto t = from_sentencepiece(sentencepiece_bytes());
  EXPECT_EQ(t->bos_id(), 1);
  EXPECT_EQ(t->eos_id(), 2);
  EXPECT_TRUE(t->is_end_of_generation(2));
  EXPECT_FALSE(t->is_end_of_generation(1));
  EXPECT_THAT(t->encode_with_bos("a"), ElementsAre(1, 12));
}

// ---- Byte-level BPE ----

TEST(ByteLevel, EveryByteIsItself) {
  const auto t = from_json(byte_level_json("", false));
  std::string all;
  Ids expected;
  for (int byte = 255; byte >= 0; --byte) {
    all += static_cast<char>(byte);
    expected.push_back(byte);
  }
  EXPECT_EQ(t->encode(all), expected);
  EXPECT_EQ(t->decode(expected), all);
}

TEST(ByteLevel, WordsOfTheRegularExpressionsMergeAlone) {
  const auto gpt2 = from_json(byte_level_json("", false));
  EXPECT_THAT(gpt2->encode("the"), ElementsAre('t', 257));
  EXPECT_THAT(gpt2->encode(" the"), ElementsAre(258));
  EXPECT_THAT(gpt2->encode("  the"), ElementsAre(' ', 258));  // the last space belongs to the word
  EXPECT_THAT(gpt2->encode("\nthe"), ElementsAre('\n', 't', 257));
  EXPECT_THAT(gpt2->encode("12345"), ElementsAre(259, 261, '5'));  // one word: 12, then 34
  const auto llama3 = from_json(byte_level_json(kLlama3Regex, false));
  EXPECT_THAT(llama3->encode("12345"), ElementsAre(260, '4', '5'));  // 123 and 45
  const auto qwen2 = from_json(byte_level_json(kQwen2Regex, false));
  EXPECT_THAT(qwen2->encode("12345"), ElementsAre('1', '2', '3', '4', '5'));
  EXPECT_THAT(qwen2->encode("\xff the\xc3\xa9\xff"), ElementsAre(0xff, 258, 0xc3, 0xa9, 0xff));
}

TEST(ByteLevel, IgnoreMergesTakesAWholeWordThatIsAToken) {
  EXPECT_THAT(from_json(byte_level_json(kLlama3Regex, false))->encode("xy"), ElementsAre('x', 'y'));
  EXPECT_THAT(from_json(byte_level_json(kLlama3Regex, true))->encode("xy"), ElementsAre(262));
  EXPECT_THAT(from_json(byte_level_json(kLlama3Regex, true))->encode("xyx"), ElementsAre('x', 'y', 'x'));
}

TEST(ByteLevel, WhiteSpaceIsUnicodes) {
  // U+180E was white space for Unicode 6.2, which PCRE2's own \s still follows: it must not join the run of spaces
  // before it.
  Json json = byte_level_json(R"(\s+)", true);
  const std::string spelled = byte_spelling(' ') + byte_spelling(0xe1) + byte_spelling(0xa0) + byte_spelling(0x8e);
  json["model"]["vocab"][spelled] = 265;
  EXPECT_THAT(from_json(json)->encode(" \u180e"), ElementsAre(' ', 0xe1, 0xa0, 0x8e));
}

TEST(ByteLevel, NormalizesToNfc) {
  Json json = byte_level_json(kQwen2Regex, false);
  EXPECT_THAT(from_json(json)->encode("e\u0301"), ElementsAre('e', 0xcc, 0x81));
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_THAT(from_json(json)->encode("e\u0301\xff"), ElementsAre(0xc3, 0xa9, 0xff));
}

TEST(ByteLevel, DigitsStandAlone) {
  Json json = byte_level_json("", false);
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, json["pre_tokenizer"]})}};
  EXPECT_THAT(from_json(json)->encode(" the12"), ElementsAre(258, '1', '2'));
}

TEST(ByteLevel, AddedTokens) {
  const auto t = from_json(byte_level_json(kLlama3Regex, false));
  EXPECT_THAT(t->encode("<|begin|> the<tool>"), ElementsAre(263, 258, 264));
  EXPECT_EQ(t->encode("<|begin|><tool>", false).back(), 264);  // not special: matched all the same
  EXPECT_EQ(t->encode("<|begin|><tool>", false).front(), '<');
  EXPECT_EQ(decode(*t, {263, 258, 264}), " the<tool>");
}

TEST(ByteLevel, RunsOfSpacesAsLongAsTheText) {
  const auto t = from_json(byte_level_json(kLlama3Regex, false));
  EXPECT_EQ(t->encode(std::string(3000000, ' ')).size(), 3000000u);
}

TEST(ByteLevel, ARegularExpressionThatExplodesIsStopped) {
  const auto t = from_json(byte_level_json("(a+)+$", false));
  EXPECT_THROW(t->encode(std::string(40, 'a') + "b"), Error);
}

// ---- The byte vocabulary ----

TEST(ByteVocabulary, SpacesAreOneTokenAndEveryByteHasOne) {
  const auto t = tokenizer_from_json_text(byte_tokenizer_json(), "bytes", 300);
  EXPECT_EQ(t->vocab_size(), 300);
  EXPECT_THAT(t->encode("<bos>a b\n"), ElementsAre(2, 4 + 'a', 4 + ' ', 4 + 'b', 4 + '\n'));
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(t->encode(all).size(), 256u);
  EXPECT_EQ(t->decode(t->encode(all)), all);
  EXPECT_EQ(t->decode_token(299), "");  // [PAD299]
}

}  // namespace
}  // namespace qat
