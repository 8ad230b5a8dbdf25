// --plan dynamic: the types that cost the model least under a size budget.
#pragma once

#include <string>

#include "export/ptq.h"

namespace qat {

// budget: "4.5" (bits per weight, over all matrices that a plan may quantize), "700MB" (the GGUF file), or the name of
// a plan whose file may not be exceeded. Throws Error when it is none of these.
void check_budget(const std::string& budget);

// Measures what types cost (export/sensitivity.h) with a progress bar, chooses, prints the rules, and returns `plan`
// (q4_0, with the user's rules) with them. Throws Error before the work begins when the budget cannot be met.
Plan choose_types(const std::string& model, const Plan& plan, const std::string& budget, const PtqOptions& options);

}  // namespace qat
