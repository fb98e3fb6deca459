#include "kernels/cuda/cuda_blas.h"

#include <cublas_v2.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <climits>

#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_faults.h"

namespace foretoken::cuda {

namespace {

using GemmEx = cublasStatus_t(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
                              const void*, cudaDataType, int, const void*, cudaDataType, int, const void*, void*,
                              cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t);
// The header overloads it; one of the overloads is this.
static_assert(sizeof(static_cast<GemmEx*>(&cublasGemmEx)) > 0);

// The header's macros say which version of a function is meant.
#define FT_NAME_OF(name) FT_TEXT_OF(name)
#define FT_TEXT_OF(name) #name
#define FT_FUNCTION(name) decltype(&::name) name = reinterpret_cast<decltype(&::name)>(function(FT_NAME_OF(name)))

/// The library, loaded when it is first wanted: linked, it would cost every start of the program 0.2 s and 215 MB for
/// relocations, whatever the command (cuBLAS 13.0).
class Library {
 public:
  static const Library& get() {
    static const Library library;
    return library;
  }

 private:
  void* const handle_ = load();

 public:
  FT_FUNCTION(cublasCreate);
  FT_FUNCTION(cublasDestroy);
  FT_FUNCTION(cublasSetStream);
  FT_FUNCTION(cublasSetWorkspace);
  FT_FUNCTION(cublasSetMathMode);
  FT_FUNCTION(cublasGetStatusName);
  FT_FUNCTION(cublasGetStatusString);
  GemmEx* gemm_ex = reinterpret_cast<GemmEx*>(function("cublasGemmEx"));

 private:
  // Where the system finds it, else where the toolkit lay that the program was built with. It stays loaded.
  static void* load() {
    const std::string name = fmt::format("libcublas.so.{}", CUBLAS_VER_MAJOR);
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      handle = dlopen(fmt::format("{}/{}", FORETOKEN_CUDA_LIBRARY_DIR, name).c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    if (handle == nullptr) fail_blas("loading it", dlerror(), name);
    return handle;
  }

  [[nodiscard]] void* function(const char* name) const {
    void* found = dlsym(handle_, name);
    if (found == nullptr) fail_blas("looking for a function", dlerror(), name);
    return found;
  }
};

void check(cublasStatus_t status, std::string_view what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const Library& library = Library::get();
  fail_blas(what, library.cublasGetStatusString(status), library.cublasGetStatusName(status));
}

int to_int(int64_t value) {
  FT_CHECK(value > 0 && value <= INT_MAX);
  return static_cast<int>(value);
}

}  // namespace

void require_blas() {
  static_cast<void>(Library::get());
}

Blas::Blas(const Stream& stream, void* workspace) : stream_(stream) {
  const Library& library = Library::get();
  cublasHandle_t handle = nullptr;
  check(library.cublasCreate(&handle), "starting it");
  try {
    // In this order: the stream's setting takes the workspace back to the library's own.
    check(library.cublasSetStream(handle, static_cast<cudaStream_t>(stream.handle())), "taking a stream");
    check(library.cublasSetWorkspace(handle, workspace, kBlasWorkspaceBytes), "taking work memory");
    // Where the columns are split between blocks, their parts are added in float too.
    check(
        library.cublasSetMathMode(
            handle, static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
        "asking for float sums");
  } catch (...) {
    library.cublasDestroy(handle);
    throw;
  }
  handle_ = handle;
}

Blas::~Blas() {
  Library::get().cublasDestroy(static_cast<cublasHandle_t>(handle_));
}

void Blas::multiply(const BlasProduct& p) const {
  FT_CHECK(p.type == WeightType::kF16 || p.type == WeightType::kBF16);
  const cudaDataType type = p.type == WeightType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
  const float one = 1.0f, zero = 0.0f;
  // The library counts by columns: rows of ours, one behind the other, are columns of its matrices.
  check(Library::get().gemm_ex(static_cast<cublasHandle_t>(handle_), CUBLAS_OP_T, CUBLAS_OP_N, to_int(p.num_outputs),
                               to_int(p.num_rows), to_int(p.num_cols), &one, p.a, type, to_int(p.a_stride), p.b, type,
                               to_int(p.b_stride), &zero, p.c, CUDA_R_32F, to_int(p.c_stride), CUBLAS_COMPUTE_32F,
                               CUBLAS_GEMM_DEFAULT),
        "multiplying");
}

}  // namespace foretoken::cuda
