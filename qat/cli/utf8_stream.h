// Bytes that come token by token, given out in whole UTF-8 characters.
#pragma once

#include <string>

namespace qat {

class Utf8Stream {
 public:
  // The characters that `bytes` completes. A byte that can be part of no character becomes U+FFFD.
  std::string add(const std::string& bytes);
  // What is left at the end: U+FFFD for an unfinished character, or nothing.
  std::string finish();

 private:
  std::string pending_;  // the beginning of a character
};

}  // namespace qat
