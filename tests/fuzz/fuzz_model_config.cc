#include "format/model_config.h"
#include "format/tensor_table.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qat::run_target([&] {
    const qat::ModelConfig config = qat::model_config_from_json(std::string(qat::as_text(data, size)), "config.json");
    // What was accepted must be usable: no size that overflows, no layer that is not there.
    for (const qat::TensorInfo& info : tensor_table(config)) QAT_CHECK(tensor_bytes(qat::DType::F32, info.shape));
    for (const qat::LayerConfig& layer : config.layers) rope_frequencies(config, layer);
    rope_divisors(config);
  });
}
