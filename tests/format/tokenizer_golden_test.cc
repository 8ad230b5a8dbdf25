// Real tokenizers against ids that SentencePiece and transformers gave.
#include <gtest/gtest.h>

#include "tests/format/tokenizer_samples.h"

namespace qat {
namespace {

std::unique_ptr<Tokenizer> load(const std::string& name) {
  return tokenizer_from_hf(shared_path("checkpoints/" + name), 0);
}

TEST(TokenizerGolden, ExpectedIds) {
  QAT_NEED_SHARED("goldens/tokenizer/expected_ids.json");
  const Json expected = Json::parse(read_file(shared_path("goldens/tokenizer/expected_ids.json")));
  for (const auto& [name, cases] : expected.items()) {
    const auto t = load(name);
    const auto gguf = tokenizer_from_gguf_metadata(t->to_gguf(name == "stories260K" ? "llama" : "gemma4"), name);
    for (const Json& item : cases) {
      const std::string text = item["text"].get<std::string>();
      EXPECT_EQ(t->encode(text), item["ids"].get<Ids>()) << name << ": " << item["text"];
      EXPECT_EQ(gguf->encode(text), item["ids"].get<Ids>()) << name << " from GGUF: " << item["text"];
      EXPECT_EQ(t->decode(t->encode(text), true), text) << name;
    }
  }
}

TEST(TokenizerGolden, WholeTextsComeBack) {
  QAT_NEED_SHARED("text/prose_eval.txt");
  const std::string text = read_file(shared_path("text/prose_eval.txt"));
  for (const char* const name : {"stories260K", "gemma4-mini", "gemma4-micro"}) {
    const auto t = load(name);
    EXPECT_EQ(t->decode(t->encode(text, false), true), text) << name;
  }
}

}  // namespace
}  // namespace qat
