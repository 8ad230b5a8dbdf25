#include "inference/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <string>

#include "format/error.h"

namespace qat {
namespace {

#if defined(__x86_64__)
// Clang 14 does not know "f16c" in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

const char* isa_name(Isa isa) { return isa == Isa::avx2 ? "avx2" : "scalar"; }

bool isa_supported(Isa isa) {
  if (isa == Isa::scalar) return true;
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#else
  return false;
#endif
}

Isa select_isa() {
  const char* variable = std::getenv("QAT_ISA");
  if (variable == nullptr || *variable == '\0') return isa_supported(Isa::avx2) ? Isa::avx2 : Isa::scalar;
  for (const Isa isa : {Isa::scalar, Isa::avx2}) {
    if (std::string(variable) != isa_name(isa)) continue;
    if (!isa_supported(isa)) fail("QAT_ISA=", variable, ": this processor does not have AVX2, FMA and F16C");
    return isa;
  }
  fail("QAT_ISA=", variable, ": expected scalar or avx2");
}

}  // namespace qat
