#include "format/plan.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return qat::run_target([&] {
    for (const auto& [name, grid] :
         qat::resolved_plan_from_json(std::string(qat::as_text(data, size)), "qat_plan.json"))
      QAT_CHECK(qat::is_grid(grid));
  });
}
