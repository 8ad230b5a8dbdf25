// Ids of texts by our tokenizer, for tokenizer.sh: one line "[1, 2, 3]" per file, BOS included when the vocabulary adds
// one.
#include <cstdio>

#include "format/checkpoint.h"
#include "format/tokenizer.h"

namespace {

std::unique_ptr<qat::Tokenizer> tokenizer_of(const std::string& model) {
  if (qat::detect_model_kind(model) == qat::ModelKind::gguf) return qat::tokenizer_from_gguf(qat::GgufFile(model));
  return qat::tokenizer_from_hf(model, qat::model_config_from_hf(model).vocab);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return std::fprintf(stderr, "usage: interop_tokenize MODEL FILE...\n"), 2;
  try {
    const std::unique_ptr<qat::Tokenizer> tokenizer = tokenizer_of(arguments[1]);
    for (int i = 2; i < count; ++i) {
      const char* separator = "[";
      for (const int32_t id : tokenizer->encode_with_bos(qat::read_file(arguments[i]))) {
        std::printf("%s%d", separator, id);
        separator = ", ";
      }
      std::printf("%s]\n", *separator == '[' ? "[" : "");
    }
  } catch (const qat::Error& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
