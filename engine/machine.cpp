#include "engine/machine.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <string_view>

#include "kernels/base/aligned_buffer.h"
#include "kernels/threads/control_group.h"
#include "kernels/threads/thread_team.h"

namespace foretoken {

namespace {

// The number after `key` at the start of a line ("MemAvailable:   123 kB", "inactive_file 123").
std::optional<size_t> find_number(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10);
  }
  return std::nullopt;
}

// Bytes that a group lets its processes still take; nothing without a limit. Pages of files count as used there, but
// are dropped when memory runs short.
std::optional<size_t> left_in_group(const ControlGroupFolder& folder) {
  const std::string limit_text =
      read_first_line(folder.path + (folder.is_v2 ? "/memory.max" : "/memory.limit_in_bytes"));
  if (limit_text.empty() || limit_text == "max") return std::nullopt;
  const size_t limit = std::strtoull(limit_text.c_str(), nullptr, 10);
  if (limit >= (size_t{1} << 60)) return std::nullopt;  // version 1 writes about 2^63 for none
  const std::string used_text =
      read_first_line(folder.path + (folder.is_v2 ? "/memory.current" : "/memory.usage_in_bytes"));
  const size_t used = std::strtoull(used_text.c_str(), nullptr, 10);
  const std::string stat = folder.path + "/memory.stat", prefix = folder.is_v2 ? "" : "total_";
  const size_t file_pages =
      find_number(stat, prefix + "inactive_file ").value_or(0) + find_number(stat, prefix + "active_file ").value_or(0);
  const size_t kept = used - std::min(used, file_pages);
  return limit - std::min(limit, kept);
}

constexpr size_t kKib = 1024;
constexpr size_t kMib = size_t{1} << 20;

// What is read and timed at once: 6 ms at 20 GB/s, long against the cost of a loop, short enough that some of them meet
// no other program.
constexpr size_t kPassBytes = 128 * kMib;

size_t bandwidth_buffer_bytes() {
  const size_t wanted = std::clamp<size_t>(4 * last_level_cache_bytes(), 256 * kMib, 1024 * kMib);
  return std::min(wanted, available_memory_bytes() / 4);
}

// Sum of a chunk's words. Four registers of 16 bytes a cache line; 4 KiB ahead hides the latency that the hardware's
// own prefetch leaves at page ends (14.0 GB/s on one Zen 3 core against 12.6 without).
uint64_t read_chunk(const std::byte* begin, size_t bytes) {
  typedef uint64_t Line __attribute__((vector_size(64), aligned(64)));
  const auto* lines = reinterpret_cast<const Line*>(begin);
  Line sum0 = {}, sum1 = {};
  for (size_t i = 0; i + 1 < bytes / sizeof(Line); i += 2) {
    __builtin_prefetch(lines + i + 64);
    __builtin_prefetch(lines + i + 65);
    sum0 += lines[i];
    sum1 += lines[i + 1];
  }
  sum0 += sum1;
  uint64_t sum = 0;
  for (int word = 0; word < 8; ++word) sum += sum0[word];
  return sum;
}

}  // namespace

size_t available_memory_bytes() {
  size_t available = std::numeric_limits<size_t>::max();
  if (const auto kib = find_number("/proc/meminfo", "MemAvailable:")) {
    available = *kib * kKib;
  } else {
    const long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGE_SIZE);
    if (pages > 0 && page_bytes > 0) available = static_cast<size_t>(pages) * static_cast<size_t>(page_bytes);
  }
  for (const ControlGroupFolder& folder : control_group_folders("memory")) {
    if (const auto left = left_in_group(folder)) available = std::min(available, *left);
  }
  return available;
}

size_t peak_rss_bytes() {
  if (const auto kib = find_number("/proc/self/status", "VmHWM:")) return *kib * kKib;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * kKib;
}

size_t current_rss_bytes() {
  if (const auto kib = find_number("/proc/self/status", "VmRSS:")) return *kib * kKib;
  return peak_rss_bytes();
}

void reset_peak_rss() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5\n";  // proc_pid_clear_refs(5): the peak becomes what is resident now
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

size_t last_level_cache_bytes() {
  for (const int name : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    if (const long bytes = sysconf(name); bytes > 0) return static_cast<size_t>(bytes);
  }
  return 0;
}

double measure_read_bandwidth(ThreadTeam& team, size_t bytes, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr size_t kChunk = kMib;
  const size_t wanted = std::max(kChunk, bytes != 0 ? bytes : bandwidth_buffer_bytes());
  const size_t num_passes = (wanted + kPassBytes - 1) / kPassBytes;
  const size_t pass_chunks = wanted / kChunk / num_passes;
  AlignedBuffer buffer(num_passes * pass_chunks * kChunk, "the measurement of the read bandwidth");
  std::byte* const data = buffer.data();
  // Written first: pages never written are all the one page of zeros, which the cache holds. In the loops of the
  // passes, so that they lie with those who will read them.
  for (size_t pass = 0; pass < num_passes; ++pass) {
    std::byte* const pass_data = data + pass * pass_chunks * kChunk;
    team.parallel_for(static_cast<int64_t>(pass_chunks), [&](int64_t chunk, int) {
      std::memset(pass_data + static_cast<size_t>(chunk) * kChunk, static_cast<int>(chunk) | 1, kChunk);
    });
  }
  double best = 0;
  std::atomic<uint64_t> sum{0};
  const auto begin = Clock::now();
  for (size_t pass = 0; pass < 2 || std::chrono::duration<double>(Clock::now() - begin).count() < seconds; ++pass) {
    const std::byte* const pass_data = data + pass % num_passes * pass_chunks * kChunk;
    const auto pass_begin = Clock::now();
    team.parallel_for(static_cast<int64_t>(pass_chunks), [&](int64_t chunk, int) {
      sum.fetch_add(read_chunk(pass_data + static_cast<size_t>(chunk) * kChunk, kChunk), std::memory_order_relaxed);
    });
    const double pass_seconds = std::chrono::duration<double>(Clock::now() - pass_begin).count();
    best = std::max(best, static_cast<double>(pass_chunks * kChunk) / pass_seconds);
  }
  return best;
}

}  // namespace foretoken
