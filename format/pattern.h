// Regular expressions (PCRE2) searched anywhere in a name, as plans and quantization_config have them.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace qat {

class Pattern {
 public:
  // `place` begins every message: "plan rule" makes `plan rule "ffn_(": not a regular expression: ...`.
  Pattern(const std::string& text, const std::string& place);  // throws Error
  // Where the leftmost match begins. Throws Error when the search takes too long.
  std::optional<size_t> find(const std::string& name) const;
  bool found_in(const std::string& name) const { return find(name).has_value(); }

 private:
  std::string label_;
  std::shared_ptr<void> code_, match_;  // pcre2_code, pcre2_match_data
};

}  // namespace qat
