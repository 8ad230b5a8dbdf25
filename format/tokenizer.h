// Text <-> token ids, from an HF directory (tokenizer.model, tokenizer.json) or from GGUF metadata.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "format/gguf.h"

namespace qat {

// As in GGUF and in SentencePiece models.
enum class TokenType : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of the text, without BOS or EOS. Text need not be valid UTF-8: bytes that are not go through as byte tokens
  // where the vocabulary has them, as the unknown token where it has not. With parse_special, "<bos>" in the text is
  // the token.
  virtual std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const = 0;
  // Bytes of one token as they appear in running text; control tokens give "" unless `special`.
  virtual std::string decode_token(int32_t id, bool special = false) const = 0;
  // The text of a whole sequence: without the space that encode() put in front, where this kind of tokenizer does so.
  std::string decode(Span<const int32_t> ids, bool special = false) const;
  // encode() with BOS in front when the vocabulary adds one: what llama.cpp's common_tokenize(add_special = true)
  // gives.
  std::vector<int32_t> encode_with_bos(std::string_view text, bool parse_special = true) const;

  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t bos_id() const { return bos_id_; }  // -1: none
  int32_t eos_id() const { return eos_id_; }
  bool add_bos() const { return add_bos_; }
  // EOS, end of turn and the like: the eos ids that the configuration lists and tokens known by name, as llama.cpp has
  // them.
  bool is_end_of_generation(int32_t id) const;

  // tokenizer.ggml.* keys and values as llama.cpp's converter writes them for this kind of tokenizer and `arch`.
  virtual GgufMetadata to_gguf(const std::string& arch) const = 0;

 protected:
  std::vector<std::string> tokens_;  // as spelled in the vocabulary
  std::vector<TokenType> types_;
  int32_t bos_id_ = -1, eos_id_ = -1, unk_id_ = -1;
  bool add_bos_ = false;
  bool strip_leading_space_ = false;  // decode() drops the space that encode() put in front
  std::vector<int32_t> end_ids_;      // sorted
};

// Throw Error naming the file and what is wrong or unsupported. `vocab` is the model's vocabulary size: a tokenizer
// with more tokens is an error, one with fewer is padded as the converter does ("[PAD7]", unused); 0 means as many as
// the tokenizer has. The directory holds tokenizer.model (SentencePiece BPE) or tokenizer.json (the Gemma 4 and
// byte-level kinds; Gemma 4 prefers it), and around it tokenizer_config.json, special_tokens_map.json, config.json,
// generation_config.json, chat_template.jinja.
std::unique_ptr<Tokenizer> tokenizer_from_hf(const std::string& directory, int64_t vocab);
std::unique_ptr<Tokenizer> tokenizer_from_gguf(const GgufFile& file);
// The same from memory, `origin` naming the text in errors: the vocabulary files alone, without what is around them.
std::unique_ptr<Tokenizer> tokenizer_from_json_text(std::string_view text, const std::string& origin, int64_t vocab);
std::unique_ptr<Tokenizer> tokenizer_from_sentencepiece_bytes(Span<const uint8_t> bytes, const std::string& origin,
                                                              int64_t vocab);
std::unique_ptr<Tokenizer> tokenizer_from_gguf_metadata(const GgufMetadata& metadata, const std::string& origin);

// The tokenizer.json of a byte vocabulary of the Gemma 4 kind. 260 tokens, no merges: <pad>, <eos>, <bos>, <unk>, then
// <0x00> to <0xFF>, where U+2581 has the place of <0x20> because this kind writes every space as that. transformers and
// llama.cpp (as "gemma4") load it.
std::string byte_tokenizer_json();

}  // namespace qat
