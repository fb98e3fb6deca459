#pragma once

#include <cstddef>
#include <cstdint>

// Looks at every load and store of the emulated kernels. The .cu files are compiled with -fsanitize=thread, whose runtime
// is not linked: access_checker.cpp has the functions that the compiler calls instead. Found, and ended with an
// EmulationError that names both places:
//   - two accesses of a word, one of them a store, that nothing orders. Threads of a block are ordered by __syncthreads,
//     lanes of a warp also by __syncwarp; shuffles and ballots order nothing; blocks of a grid are never ordered;
//   - loads of bytes that nobody has written, in device and shared memory;
//   - accesses outside an allocation, a piece of one, or a shared array;
//   - accesses of host memory: all that is neither the thread's own stack nor the kernel's parameters or constants;
//   - in a dependent launch, before the thread has waited for the kernels ahead: stores to device memory, and loads of
//     words that a kernel has stored to since they were allocated, copied to or filled. Kernels ahead may still run then,
//     and which of them wrote a word, and whether it has ended, would hang on luck;
//   - load_constant of such words, before the wait or behind it.
//
// For each word of four bytes two stamps are kept, of the last store and of the loads since. Blocks run one after the other
// and get rising numbers, so a stamp from an earlier grid is known by its number, and one stamp can stand for all loads: it says
// "several lanes", "several warps" or "several blocks" where there was more than one. Words that are accessed in part
// have stamps for each byte.

namespace foretoken::cuda::emulation {

/// What the machine tells the checker of the thread that runs. One for each host thread that runs kernels.
struct RunningThread {
  uint32_t first_block = 0;  // of this grid
  uint32_t block = 0;        // rises over all grids
  uint16_t thread = 0;
  uint16_t barriers = 0;       // __syncthreads that the block has passed
  uint16_t warp_barriers = 0;  // __syncwarp of all lanes since then
  bool must_wait = false;      // the grid is a dependent launch
  bool has_waited = true;      // for the kernels ahead
  const std::byte *stack_begin = nullptr, *stack_end = nullptr;
  const std::byte *parameters = nullptr, *parameters_end = nullptr;
};

/// Set while a kernel's thread runs, by the host thread that runs it.
extern thread_local const RunningThread* running_thread;

/// Loads and stores that were looked at: shows that the checks were there.
[[nodiscard]] uint64_t accesses_checked();

}  // namespace foretoken::cuda::emulation
