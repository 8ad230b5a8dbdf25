// Text <-> token ids, from an HF directory (tokenizer.model, tokenizer.json) or from GGUF metadata.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "format/gguf.h"

namespace qat {

enum class TokenType : int32_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };  // as in GGUF

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of the text, without BOS or EOS. Text need not be valid UTF-8: bytes that are not go through as byte tokens where the
  // vocabulary has them, as the unknown token where it has not. With parse_special, "<bos>" in the text is the token.
  virtual std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const = 0;
  // Bytes of one token as they appear in running text; control tokens give "" unless `special`.
  virtual std::string decode_token(int32_t id, bool special = false) const = 0;
  std::string decode(Span<const int32_t> ids, bool special = false) const;
  // encode() with BOS in front when the vocabulary adds one: what llama.cpp's common_tokenize(add_special = true) gives.
  std::vector<int32_t> encode_with_bos(std::string_view text, bool parse_special = true) const;

  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }
  int32_t bos_id() const { return bos_id_; }  // -1: none
  int32_t eos_id() const { return eos_id_; }
  bool add_bos() const { return add_bos_; }
  bool is_end_of_generation(int32_t id) const;

  // tokenizer.ggml.* keys and values as llama.cpp's converter writes them for this kind of tokenizer and `arch`.
  virtual GgufMetadata to_gguf(const std::string& arch) const = 0;

 protected:
  std::vector<std::string> tokens_;  // as spelled in the vocabulary
  std::vector<TokenType> types_;
  int32_t bos_id_ = -1, eos_id_ = -1, unk_id_ = -1, pad_id_ = -1, eot_id_ = -1;
  bool add_bos_ = false;
};

// Throw Error naming the file and what is wrong or unsupported. `vocab` is the model's vocabulary size: a tokenizer with more
// tokens is an error, one with fewer is padded as the converter does ("[PAD7]", unused).
std::unique_ptr<Tokenizer> tokenizer_from_hf(const std::string& directory, int64_t vocab);
std::unique_ptr<Tokenizer> tokenizer_from_gguf(const GgufFile& file);
// The tokenizer.json text of a byte-level vocabulary of the Gemma 4 kind: pad, eos, bos, unk, then <0x00>..<0xFF>; no merges. 260 tokens.
std::string byte_tokenizer_json();

}  // namespace qat
