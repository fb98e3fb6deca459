#pragma once

#include <cstddef>
#include <string_view>

namespace foretoken::cuda {

// What a user reads when a call of the CUDA runtime fails, the same from the runtime and from its emulation: one line
// that names the call, CUDA's own reason and what to do.

/// `size_bytes` of device memory for `what` were refused.
[[noreturn]] void refuse_memory(size_t size_bytes, std::string_view what, size_t free_bytes, size_t total_bytes);

/// The call that was doing `what` failed. `name` is CUDA's, as cudaErrorLaunchFailure; `reason` its text.
[[noreturn]] void fail_call(std::string_view what, std::string_view reason, std::string_view name);

/// A call of cuBLAS that was doing `what` failed; reason and name as above.
[[noreturn]] void fail_blas(std::string_view what, std::string_view reason, std::string_view name);

/// True for the errors after which every further call of the process fails: a kernel that crashed or hung, memory that
/// could not be corrected, a device that is gone.
[[nodiscard]] bool is_lost(std::string_view name);

}  // namespace foretoken::cuda
