#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/probe/int8_peak.h"

namespace foretoken {

class ThreadTeam;

/// Memory that this process can still take without swapping: the system's estimate (it counts file pages that can be
/// dropped), bounded by what the limits of our control groups leave.
[[nodiscard]] size_t available_memory_bytes();

/// Resident memory of this process: the most since the start or the last reset, and now. Includes pages of mapped
/// files.
[[nodiscard]] size_t peak_rss_bytes();
[[nodiscard]] size_t current_rss_bytes();
/// Where the system cannot do it (Linux before 4.0, /proc hidden), peaks go on from the start.
void reset_peak_rss();

/// "AMD EPYC 7763 64-Core Processor"; "unknown processor" where the system does not tell.
[[nodiscard]] std::string cpu_model_name();

/// Bytes of the last-level cache; 0 if unknown.
[[nodiscard]] size_t last_level_cache_bytes();

/// Bytes a second of reading a buffer in order with the whole team: the best of passes of up to 128 MiB over it, for
/// about `seconds` (two passes at least). `bytes` is the size of the buffer; 0: four times the last-level cache, 256
/// MiB to 1 GiB, at most a quarter of the available memory.
[[nodiscard]] double measure_read_bandwidth(ThreadTeam& team, size_t bytes = 0, double seconds = 0.5);

}  // namespace foretoken
