#include "format/error.h"
#include "format/mobile.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qat::run_target([&] {
    const std::string text(qat::as_text(data, size));
    const qat::MobileWidths widths(qat::mobile_quantization_from_json(text, "config.json"), "config.json");
    for (const char* module : {"model.layers.17.mlp.up_proj", "model.embed_tokens", "lm_head"}) {
      const int bits = widths.bits(module, qat::TensorKind::linear);
      QAT_CHECK(bits == 0 || bits == 2 || bits == 4 || bits == 8);
    }
  });
}
