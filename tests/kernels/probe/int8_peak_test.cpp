#include "kernels/probe/int8_peak.h"

#include <catch2/catch.hpp>
#include <random>
#include <vector>

#include "kernels/threads/thread_team.h"

using namespace foretoken;

// Only those exist whose instruction set this machine lacks.
namespace foretoken {
uint32_t emulated_avx512_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds);
uint32_t emulated_avx512vnni_int8_burst(const uint8_t* w, const int8_t* x, int64_t rounds);
}  // namespace foretoken

TEST_CASE("Every instruction set's burst does all of the work", "[int8_peak]") {
  std::mt19937 random(1);
  std::vector<uint8_t> w(static_cast<size_t>(kInt8BurstBytes));
  std::vector<int8_t> x(64);
  for (uint8_t& v : w) v = static_cast<uint8_t>(random() % 64);
  for (int8_t& v : x) v = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  int64_t sum = 0;
  for (size_t i = 0; i < w.size(); ++i) sum += w[i] * x[i % 64];
  for (int64_t rounds : {0, 1, 3}) {
    const auto expected = static_cast<uint32_t>(sum * rounds);
    for (Isa isa : supported_isas()) CHECK(int8_burst(isa, w.data(), x.data(), rounds) == expected);
#ifdef FORETOKEN_EMULATED_AVX512
    CHECK(emulated_avx512_int8_burst(w.data(), x.data(), rounds) == expected);
#endif
#ifdef FORETOKEN_EMULATED_AVX512VNNI
    CHECK(emulated_avx512vnni_int8_burst(w.data(), x.data(), rounds) == expected);
#endif
  }
}

TEST_CASE("The int8 peak is a positive number of operations", "[int8_peak]") {
  ThreadTeam team(2);
  for (Isa isa : supported_isas()) CHECK(measure_int8_peak(isa, team, 0.001) > 0);
}
