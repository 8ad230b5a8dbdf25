// Instruction sets the engine has kernels for, and which of them to use.
#pragma once

#include "format/span.h"

namespace qat {

// scalar is the reference: plain loops, sums in double. The others compute the same up to rounding and summation order.
// portable is vectors of 128 bits on any processor; avx2 is AVX2 with FMA and F16C; avxvnni adds dot products of bytes
// (AVX-VNNI), avx512 the same in 512 bits (AVX-512 F, BW, DQ, VL and VNNI); neon is ARM's vectors with dot products of
// bytes (FEAT_DotProd); i8mm adds products of matrices of bytes (FEAT_I8MM).
enum class Isa { scalar, portable, avx2, avxvnni, avx512, neon, i8mm };

const char* isa_name(Isa isa);
// Those that this build has kernels for, slowest first.
Span<const Isa> built_isas();
// Whether this processor runs it and this build has it.
bool isa_supported(Isa isa);
// The fastest supported one but never scalar, unless the environment says QAT_ISA=NAME. Throws Error for a name that is
// none of built_isas(), and for one that this processor does not run.
Isa select_isa();

}  // namespace qat
