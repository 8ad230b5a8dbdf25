#include "inference/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <string>
#include <vector>

#include "format/error.h"

namespace qat {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  unsigned eax, ebx, ecx, edx;  // Clang 14 does not know "f16c" in __builtin_cpu_supports.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
bool has_avxvnni() {
  unsigned eax, ebx, ecx, edx;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1) != 0;
}
bool has_avx512() {
  unsigned eax, ebx, ecx, edx;
  if (!has_avx2() || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kNeeded = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if ((ebx & kNeeded) != kNeeded || (ecx & bit_AVX512VNNI) == 0) return false;
  // XCR0: that the system keeps the registers: of 128 and 256 bits, masks, upper halves, registers 16 to 31. AVX2's
  // test has seen that there is such a thing to ask.
  unsigned low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & 0xe6) == 0xe6;
}
#elif defined(__aarch64__)
// Bits of Linux's arm64 ABI.
bool has_neon() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }                 // HWCAP_ASIMDDP
bool has_i8mm() { return has_neon() && (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }  // HWCAP2_I8MM
#endif

struct IsaRow {
  Isa isa;
  const char* name;
  const char* needs;
  bool (*is_supported)();  // nullptr: everywhere
};

constexpr IsaRow kTable[] = {
    {Isa::scalar, "scalar", "", nullptr},
    {Isa::portable, "portable", "", nullptr},
#if defined(__x86_64__)
    {Isa::avx2, "avx2", "AVX2, FMA and F16C", has_avx2},
    {Isa::avxvnni, "avxvnni", "AVX-VNNI", has_avxvnni},
    {Isa::avx512, "avx512", "AVX-512 F, BW, DQ, VL and VNNI", has_avx512},
#elif defined(__aarch64__)
    {Isa::neon, "neon", "dot products of bytes (FEAT_DotProd)", has_neon},
    {Isa::i8mm, "i8mm", "products of matrices of bytes (FEAT_I8MM)", has_i8mm},
#endif
};
constexpr size_t kIsas = sizeof kTable / sizeof kTable[0];

const IsaRow* find(Isa isa) {
  for (const IsaRow& row : kTable)
    if (row.isa == isa) return &row;
  return nullptr;
}

bool runs(const IsaRow& row) { return row.is_supported == nullptr || row.is_supported(); }

std::string names() {
  std::string all;
  for (size_t i = 0; i < kIsas; ++i) all += (i == 0 ? "" : i + 1 < kIsas ? ", " : " or ") + std::string(kTable[i].name);
  return all;
}

}  // namespace

const char* isa_name(Isa isa) {
  const IsaRow* row = find(isa);
  return row != nullptr ? row->name : "none of this build";
}

Span<const Isa> built_isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> isas;
    for (const IsaRow& row : kTable) isas.push_back(row.isa);
    return isas;
  }();
  return all;
}

bool isa_supported(Isa isa) {
  const IsaRow* row = find(isa);
  return row != nullptr && runs(*row);
}

Isa select_isa() {
  const char* variable = std::getenv("QAT_ISA");
  if (variable == nullptr || *variable == '\0') {
    for (size_t i = kIsas; i-- > 0;)
      if (runs(kTable[i])) return kTable[i].isa;
  }
  for (const IsaRow& row : kTable) {
    if (std::string(variable) != row.name) continue;
    if (!runs(row)) fail("QAT_ISA=", variable, ": this processor does not have ", row.needs);
    return row.isa;
  }
  fail("QAT_ISA=", variable, ": expected ", names());
}

}  // namespace qat
