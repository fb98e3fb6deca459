#include "kernels/base/error.h"

#include <cstdio>
#include <cstdlib>

namespace foretoken {

void check_failed(const char* file, int line, const char* expression, const std::string& values) {
  std::fprintf(stderr, "foretoken: internal error: %s:%d: %s is false%s%s\n", file, line, expression,
               values.empty() ? "" : ": ", values.c_str());
  std::abort();
}

}  // namespace foretoken
