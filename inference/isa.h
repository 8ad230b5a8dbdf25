// Instruction sets the engine has kernels for, and which of them to use.
#pragma once

namespace qat {

// scalar is the reference: plain loops, sums in double. The others compute the same up to rounding and summation order.
enum class Isa { scalar, avx2 };

const char* isa_name(Isa isa);
// Whether this processor runs it (and this build has it): avx2 means AVX2, FMA and F16C.
bool isa_supported(Isa isa);
// The fastest supported one, unless the environment says QAT_ISA=scalar or QAT_ISA=avx2. Throws Error for another
// value, and for one that this processor does not run.
Isa select_isa();

}  // namespace qat
