#include "kernels/cuda/emulation/cuda_emulation.h"

#include <catch2/catch.hpp>
#include <vector>

// What the emulation promises: it runs kernels as a GPU would, and it refuses what a GPU would not forgive.

namespace foretoken::cuda {
namespace {

void run(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  emulation::run_grid({blocks, 1, 1}, {threads, 1, 1}, 0, body);
}

std::string failure(unsigned threads, const std::function<void()>& body) {
  try {
    run(1, threads, body);
  } catch (const EmulationError& error) {
    return error.what();
  }
  return "";
}

struct OrderGuard {
  ~OrderGuard() { emulation::set_order(emulation::Order::kForward); }
};

TEST_CASE("every thread of the grid runs once, with its own indices") {
  std::vector<int> seen(3 * 70, 0);
  const uint64_t before = emulation::threads_run();
  run(3, 70, [&] { ++seen[blockIdx.x * blockDim.x + threadIdx.x]; });
  for (const int count : seen) REQUIRE(count == 1);
  REQUIRE(emulation::threads_run() - before == 210);
}

TEST_CASE("shuffles and ballots move values between the lanes of a warp, in any order of the lanes") {
  OrderGuard guard;
  for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward, emulation::Order::kShuffled}) {
    emulation::set_order(order, 5);
    std::vector<int> across(64), down(64), from(64);
    std::vector<uint32_t> odd(64);
    run(1, 64, [&] {
      const auto t = threadIdx.x;
      const int value = static_cast<int>(t) * 10;
      across[t] = __shfl_xor_sync(0xffffffffu, value, 5);
      down[t] = __shfl_down_sync(0xffffffffu, value, 3);
      from[t] = __shfl_sync(0xffffffffu, value, 2, 8);
      odd[t] = __ballot_sync(0xffffffffu, t % 2 == 1);
    });
    for (int t = 0; t < 64; ++t) {
      const auto at = static_cast<size_t>(t);
      REQUIRE(across[at] == (t ^ 5) * 10);
      REQUIRE(down[at] == (t % 32 + 3 < 32 ? t + 3 : t) * 10);
      REQUIRE(from[at] == (t / 8 * 8 + 2) * 10);
      REQUIRE(odd[at] == 0xaaaaaaaau);
    }
  }
}

TEST_CASE("a barrier makes shared memory visible; without it some order of the threads shows the mistake") {
  OrderGuard guard;
  const auto reversed = [](bool with_barrier) {
    std::vector<int> out(128);
    run(1, 128, [&] {
      FT_SHARED(int, values, 128);
      const auto t = threadIdx.x;
      values[t] = static_cast<int>(t);
      if (with_barrier) __syncthreads();
      out[t] = values[127 - t];
    });
    bool right = true;
    for (int t = 0; t < 128; ++t) right = right && out[t] == 127 - t;
    return right;
  };
  for (const auto order : {emulation::Order::kForward, emulation::Order::kBackward}) {
    emulation::set_order(order);
    REQUIRE(reversed(true));
    REQUIRE_FALSE(reversed(false));
  }
}

TEST_CASE("threads that part at a barrier or a collective are refused") {
  REQUIRE(failure(64, [] {
            if (threadIdx.x < 40) __syncthreads();
          }).find("has ended") != std::string::npos);
  const auto two_barriers = [] {  // outside REQUIRE: a macro's arguments all stand on one line
    if (threadIdx.x < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  REQUIRE(failure(64, two_barriers).find("__syncthreads") != std::string::npos);
  REQUIRE(failure(32, [] {
            if (threadIdx.x != 7) __shfl_xor_sync(0xffffffffu, 1, 1);
          }).find("waits at the collective") != std::string::npos);
  REQUIRE(failure(20, [] { __syncwarp(); }).find("waits at the collective") != std::string::npos);
  REQUIRE(failure(32, [] { __shfl_xor_sync(0xffffu, 1, 1); }).find("its own mask") != std::string::npos);
  REQUIRE(failure(32, [] {
            FT_SHARED(char, much, 200 << 10);
            much[0] = 0;
          }).find("shared memory") != std::string::npos);
  // And the machine still works.
  REQUIRE(failure(64, [] { __syncthreads(); }).empty());
}

TEST_CASE("the integer instructions") {
  REQUIRE(__dp4a(static_cast<int>(0x80ff017fu), static_cast<int>(0x7f02ff01u), 5) ==
          5 + 127 * 1 + 1 * -1 + -1 * 2 + -128 * 127);
  const int pair = static_cast<int>((static_cast<uint32_t>(static_cast<uint16_t>(-2000)) << 16) | 1000u);
  REQUIRE(__dp2a_lo(pair, 0x0102fd3f, 7) == 7 + 1000 * 63 + -2000 * -3);
  REQUIRE(__dp2a_hi(pair, static_cast<int>(0xfd3f0102u), 7) == 7 + 1000 * 63 + -2000 * -3);
  REQUIRE(__byte_perm(0x33221100u, 0x77665544u, 0x7250u) == 0x77225500u);
  REQUIRE(__float2int_rn(2.5f) == 2);
  REQUIRE(__float2int_rn(-3.5f) == -4);
}

// A[row][k] = row - 3k, B[k][col] = 2k - col, by the register layout of the manual, against the plain product.
template <int kDepth, class Multiply>
void check_mma(Multiply multiply) {
  std::vector<int> out(16 * 8);
  run(1, 32, [&] {
    const int group = static_cast<int>(threadIdx.x) / 4, quad = static_cast<int>(threadIdx.x) % 4;
    const auto pack = [](auto value) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(static_cast<uint8_t>(value(i))) << (8 * i);
      return word;
    };
    uint32_t a[kDepth / 8], b[kDepth / 16];
    for (int i = 0; i < kDepth / 8; ++i) {
      a[i] = pack([&](int byte) { return group + 8 * (i % 2) - 3 * (16 * (i / 2) + 4 * quad + byte); });
    }
    for (int i = 0; i < kDepth / 16; ++i) b[i] = pack([&](int byte) { return 2 * (16 * i + 4 * quad + byte) - group; });
    int c[4] = {1, 1, 1, 1};
    multiply(c, a, b);
    for (int i = 0; i < 4; ++i) out[(group + 8 * (i / 2)) * 8 + 2 * quad + i % 2] = c[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      int sum = 1;
      for (int k = 0; k < kDepth; ++k) sum += (row - 3 * k) * (2 * k - col);
      REQUIRE(out[row * 8 + col] == sum);
    }
  }
}

TEST_CASE("tensor-core products of int8 fragments") {
  check_mma<32>([](auto& c, auto& a, auto& b) { mma_16x8x32(c, a, b); });
  check_mma<16>([](auto& c, auto& a, auto& b) { mma_16x8x16(c, a, b); });
}

}  // namespace
}  // namespace foretoken::cuda
