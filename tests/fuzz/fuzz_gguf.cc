#include "format/gguf.h"
#include "format/model_config.h"
#include "format/tokenizer.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const qat::InputFile input(data, size);
  return qat::run_target([&] {
    const qat::GgufFile file(input.path());
    for (const qat::GgufTensor& tensor : file.tensors()) qat::touch(tensor.bytes);
    qat::run_target([&] { model_config_from_gguf(file); });
    qat::run_target([&] {
      const auto tokenizer = tokenizer_from_gguf(file);
      tokenizer->decode(tokenizer->encode_with_bos(qat::kFuzzText));
    });
  });
}
