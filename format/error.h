// The one error type for faults a user can mend, and a check for those only a programmer can.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace qat {

// Every control character written as \xNN: one line, and nothing that a terminal would obey.
std::string one_line(std::string_view text);

// Thrown for anything wrong with a file, a recipe or an argument. The text is one line, whatever a file put into it,
// that names the file, the place, what was expected and what was found. Only `main` catches it (exit status 1).
class Error : public std::runtime_error {
 public:
  explicit Error(std::string_view text) : std::runtime_error(one_line(text)) {}
};

// fail("model.gguf: tensor ", name, ": expected F32, found ", found): concatenates and throws Error.
template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream text;
  (text << ... << args);
  throw Error(text.str());
}

// Text that came out of a file, fit for a message: one_line() of its first 200 bytes.
std::string printable(std::string_view text);

[[noreturn]] void check_failed(const char* condition, const char* file, int line);

// Programmer faults; stays on in release builds.
#define QAT_CHECK(condition) ((condition) ? static_cast<void>(0) : ::qat::check_failed(#condition, __FILE__, __LINE__))

}  // namespace qat
