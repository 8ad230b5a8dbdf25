// Panels of codes by products of matrices of bytes (FEAT_I8MM). Compiled with its flags: see kernels_isa.h for what
// must not be used here.
#include "inference/code_panel_128.h"

namespace qat {

const CodePanelKernel* const kI8mmCodePanelKernels = kCodePanelKernels<Isa::i8mm>;

}  // namespace qat
