#include "format/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "format/error.h"

namespace qat {
namespace {

std::string message(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

PCRE2_SPTR units(const std::string& text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

Pattern::Pattern(const std::string& text, const std::string& place) : label_(place + " \"" + printable(text) + "\"") {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* const code = pcre2_compile(units(text), text.size(), 0, &error, &offset, nullptr);
  if (code == nullptr) fail(label_, ": not a regular expression: ", message(error), " at character ", offset);
  code_.reset(code, pcre2_code_free);
  match_.reset(pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
  QAT_CHECK(match_ != nullptr);
}

std::optional<size_t> Pattern::find(const std::string& name) const {
  auto* const match = static_cast<pcre2_match_data*>(match_.get());
  const auto* const code = static_cast<const pcre2_code*>(code_.get());
  const int result = pcre2_match(code, units(name), name.size(), 0, 0, match, nullptr);
  if (result >= 0) return pcre2_get_ovector_pointer(match)[0];
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  fail(label_, ": cannot be matched against ", name, ": ", message(result));
}

}  // namespace qat
