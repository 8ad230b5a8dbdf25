// "did you mean": the candidate nearest to a misspelt word.
#pragma once

#include <string>
#include <vector>

namespace qat {

// Insertions, deletions, substitutions and swaps of neighbours that turn a into b.
int edit_distance(const std::string& a, const std::string& b);
// The nearest candidate, or "" when none is near enough to have been meant (a third of its letters, at least two).
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);
// "; did you mean "steps"?" or "".
std::string suggestion(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace qat
