#include "engine/machine.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>

#include "kernels/base/aligned_buffer.h"
#include "kernels/threads/thread_team.h"

using namespace foretoken;

TEST_CASE("Available memory is some, and less than the machine has", "[machine]") {
  const size_t all = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
  const size_t available = available_memory_bytes();
  CHECK(available > 0);
  CHECK(available < all);
}

TEST_CASE("Resident memory follows what is touched", "[machine]") {
  constexpr size_t kBytes = size_t{96} << 20, kSlack = size_t{8} << 20;
  reset_peak_rss();
  const size_t before = current_rss_bytes();
  {
    AlignedBuffer buffer(kBytes);
    std::memset(buffer.data(), 1, kBytes);
    CHECK(current_rss_bytes() + kSlack > before + kBytes);
  }
  CHECK(current_rss_bytes() < before + kSlack);
  CHECK(peak_rss_bytes() + kSlack > before + kBytes);
  reset_peak_rss();
  CHECK(peak_rss_bytes() < before + kSlack);
}

TEST_CASE("The processor has a name", "[machine]") {
  CHECK_FALSE(cpu_model_name().empty());
}

TEST_CASE("The read bandwidth is that of memory", "[machine]") {
  ThreadTeam team(2);
  // Whole-number limits far outside anything real: 0.1 GB/s is a bus of the 1990s, 5 TB/s no cache of two cores.
  const double bytes_per_second = measure_read_bandwidth(team, size_t{64} << 20, 0.02);
  CHECK(bytes_per_second > 1e8);
  CHECK(bytes_per_second < 5e12);
}

TEST_CASE("Bandwidth and int8 peak here", "[machine][.speed]") {
  WARN(cpu_model_name() << ", last-level cache " << last_level_cache_bytes() / 1e6 << " MB");
  for (int threads : {1, 2}) {
    ThreadTeam team(threads);
    WARN(threads << " threads: " << measure_read_bandwidth(team) / 1e9
                 << " GB/s, bytes given: " << measure_read_bandwidth(team, size_t{1} << 30, 1.0) / 1e9);
    for (Isa isa : supported_isas()) WARN(isa_name(isa) << ": " << measure_int8_peak(isa, team) / 1e9 << " Gop/s");
  }
}
