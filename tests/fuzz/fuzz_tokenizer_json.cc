#include "format/tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qat::run_target([&] {
    const auto tokenizer = qat::tokenizer_from_json_text(qat::as_text(data, size), "tokenizer.json", 2000);
    tokenizer->decode(tokenizer->encode_with_bos(qat::kFuzzText));
    tokenizer->to_gguf("llama");
  });
}
