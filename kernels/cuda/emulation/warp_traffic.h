#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

// How the loads and stores of emulated kernels would reach a GPU's memory: all lanes of a warp at once, instruction by
// instruction. Device memory comes in sectors of 32 bytes: an instruction costs as many as its lanes touch together.
// Shared memory has 32 banks of four bytes: an instruction takes as many passes as the busiest bank has words, lanes
// that want eight or sixteen bytes each going by halves or quarters of a warp (CUDA C++ Programming Guide, "Shared
// Memory"). Caches are not modelled: a sector that two instructions touch counts twice.
//
// Instructions are those of the host's compiler. Accesses of a lane one behind the other that together are one aligned
// vector of 8 or 16 bytes, by different instructions, count as one: that compiler takes vectors apart.

namespace foretoken::cuda::emulation {

struct WarpTraffic {
  uint64_t device_instructions = 0;
  uint64_t device_bytes = 0;    // that the lanes asked for; what several of them asked for counts once
  uint64_t device_sectors = 0;  // that they lie in
  uint64_t shared_instructions = 0;
  uint64_t shared_passes = 0;        // over the banks
  uint64_t shared_least_passes = 0;  // the same without conflicts

  /// Share of the bytes moved that was asked for.
  [[nodiscard]] double device_efficiency() const {
    return device_sectors == 0 ? 1 : static_cast<double>(device_bytes) / (32.0 * static_cast<double>(device_sectors));
  }
};

/// Begins to count, from zero, or ends it. Kernels run several times slower meanwhile.
void measure_traffic(bool on);
/// Of all grids since then, by the name they were launched with.
[[nodiscard]] const std::map<std::string, WarpTraffic>& traffic_by_kernel();

// For the machine and the access checker.

[[nodiscard]] bool measures_traffic();
/// The grid that follows is of this kernel.
void begin_grid_traffic(const char* kernel);
/// A thread of the running block accesses memory. place: of the code.
void note_access(uint16_t thread, uint32_t place, size_t offset, size_t size_bytes, bool is_shared);
/// The block has ended.
void end_block_traffic();

}  // namespace foretoken::cuda::emulation
