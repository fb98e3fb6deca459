#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#include <cstdio>

#include "kernels/cuda/cuda_device.h"

// Without a GPU the tests that need one are skipped, never passed: ctest takes the exit code 77 for that.
int main(int argc, char** argv) {
  Catch::Session session;
  if (const int status = session.applyCommandLine(argc, argv); status != 0) return status;
  const auto& options = session.configData();
  const bool lists_only = options.listTests || options.listTags || options.listReporters || options.listTestNamesOnly;
  if (const foretoken::cuda::DeviceQuery query = foretoken::cuda::query_device(); !lists_only && !query.device) {
    std::printf("SKIPPED: %s\n", query.reason.c_str());
    return 77;
  }
  return session.run();
}
