#include <catch2/catch.hpp>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_faults.h"

namespace foretoken {
namespace {

using Catch::Matchers::Contains;

#ifdef FORETOKEN_HAVE_CUDA

// Needs no GPU: the toolkit that a build with CUDA was made with has the library.
TEST_CASE("cuBLAS is found when it is wanted, with every function that is called") {
  CHECK_NOTHROW(cuda::require_blas());
}

TEST_CASE("What cuBLAS refuses is one line with the way out") {
  std::string text;
  try {
    cuda::fail_blas("starting it", "the resource allocation failed", "CUBLAS_STATUS_ALLOC_FAILED");
  } catch (const InputError& error) {
    text = error.what();
  }
  CHECK(text ==
        "cuBLAS: starting it: the resource allocation failed (CUBLAS_STATUS_ALLOC_FAILED); run without --cublas");
}

#else

TEST_CASE("A program without CUDA has no cuBLAS") {
  CHECK_THROWS_WITH(cuda::require_blas(), Contains("built without CUDA"));
}

#endif

}  // namespace
}  // namespace foretoken
