#include "kernels/probe/int8_peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/probe/int8_peak_isa.h"
#include "kernels/threads/thread_team.h"

namespace foretoken {

namespace {

uint32_t scalar_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds) {
  uint32_t total = 0;
  for (int64_t round = 0; round < rounds; ++round) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kInt8BurstBytes; ++i) sum += w[i] * x[i % 64];
    total += static_cast<uint32_t>(sum);
  }
  return total;
}

}  // namespace

uint32_t int8_burst(Isa isa, const uint8_t* w, const int8_t* x, int64_t rounds) {
  switch (isa) {
    case Isa::kScalar:
      return scalar_int8_burst(w, x, rounds);
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2_int8_burst(w, x, rounds);
    case Isa::kAvx2Vnni:
      return avx2vnni_int8_burst(w, x, rounds);
    case Isa::kAvx512:
      return avx512_int8_burst(w, x, rounds);
    case Isa::kAvx512Vnni:
      return avx512vnni_int8_burst(w, x, rounds);
#else
    default:
      break;
#endif
  }
  FT_CHECK(false);
  return 0;
}

double measure_int8_peak(Isa isa, ThreadTeam& team, double seconds) {
  using Clock = std::chrono::steady_clock;
  std::vector<uint8_t> w(static_cast<size_t>(kInt8BurstBytes));
  std::vector<int8_t> x(64);
  for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<uint8_t>(i * 7 % 64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<int8_t>(static_cast<int>(i * 37 % 255) - 127);

  constexpr int64_t kRounds = 2000;  // 8 MB of dots: 100 to 200 us with vectors, far above the cost of a loop
  std::vector<uint32_t> sums(static_cast<size_t>(team.num_threads()));
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto part_begin = Clock::now();
    team.parallel_for(team.num_threads(),
                      [&](int64_t item, int) { sums[item] += int8_burst(isa, w.data(), x.data(), kRounds); });
    const double part = std::chrono::duration<double>(Clock::now() - part_begin).count();
    best = std::max(best, 2.0 * static_cast<double>(kInt8BurstBytes * kRounds * team.num_threads()) / part);
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  for (uint32_t sum : sums) FT_CHECK_EQ(sum, sums[0]);
  return best;
}

}  // namespace foretoken
