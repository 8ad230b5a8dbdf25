#include "format/error.h"

#include <cstdio>
#include <cstdlib>

namespace qat {

void check_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: internal error: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace qat
