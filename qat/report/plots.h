// The figures of a report as inline SVG; what each shows and how to read it is said in the template.
#pragma once

#include <string>
#include <vector>

#include "qat/report/report.h"

namespace qat {

struct Panel {
  std::string title, svg;
};

// Series 0 is the float model, series i + 1 is models[i].
std::string size_plot(const Report& report);                // tensor bytes against mean KLD
std::string perplexity_plot(const Report& report);          // dots with both kinds of error bars
std::string quantile_plot(const Report& report);            // KLD from the median token to the worst
std::vector<Panel> weight_panels(const Report& report);     // relative error over the layers, one panel per role
std::vector<Panel> histogram_panels(const Report& report);  // levels of one tensor, one panel per model with codes
std::vector<Panel> training_panels(const Report& report);   // loss, held-out perplexity and KLD; none without runs

}  // namespace qat
