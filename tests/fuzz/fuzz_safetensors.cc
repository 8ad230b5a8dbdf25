#include "format/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qat::run_target([&] {
    const qat::InputFile input(data, size);
    const qat::Safetensors file(input.path());
    for (const qat::TensorView& tensor : file.tensors()) {
      qat::touch(tensor.bytes);
      QAT_CHECK(file.find(tensor.name) == &tensor);
      const bool is_float = tensor.dtype == qat::DType::F32 || tensor.dtype == qat::DType::F16 ||
                            tensor.dtype == qat::DType::BF16 || tensor.dtype == qat::DType::F64;
      const size_t count = is_float ? to_floats(tensor, file.path()).size() : to_ints(tensor, file.path()).size();
      QAT_CHECK(count == static_cast<size_t>(tensor.count()));
    }
  });
}
