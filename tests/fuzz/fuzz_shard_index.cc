#include "format/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const qat::InputDirectory directory;
  static const bool prepared = [] {
    qat::SafetensorsWriter(directory.path() + "/one.safetensors", {{"a", qat::DType::U8, {0}}}).commit();
    qat::SafetensorsWriter(directory.path() + "/two.safetensors", {{"b", qat::DType::U8, {0}}}).commit();
    return true;
  }();
  QAT_CHECK(prepared);
  return qat::run_target([&] {
    directory.put("model.safetensors.index.json", qat::as_text(data, size));
    const qat::Safetensors file(directory.path());
    QAT_CHECK(file.tensors().size() <= 2);
  });
}
