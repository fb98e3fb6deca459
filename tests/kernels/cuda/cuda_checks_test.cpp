#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_language.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/cuda/emulation/access_checker.h"
#include "kernels/cuda/emulation/cuda_emulation.h"
#include "kernels/cuda/emulation/warp_traffic.h"
#include "tests/kernels/cuda/cuda_test_support.h"

// What the emulation finds, each shown by a kernel or by host code with that mistake, and by its neighbour without it.
// This file is compiled as the kernels are: its loads and stores are looked at. Its kernels know of no other kernels, and
// are launched in order, but for those of a chain.

namespace foretoken::cuda {
namespace {

using Catch::Matchers::Contains;

// --- Kernels with one mistake each, chosen by a flag.

__global__ void reverse_in_shared(int* out, bool with_barrier) {
  FT_SHARED(int, values, 64);
  const unsigned t = threadIdx.x;
  values[t] = 0;
  __syncthreads();
  values[t] = static_cast<int>(t);
  if (with_barrier) __syncthreads();
  out[t] = values[63 - t];
}

enum class Between { kNothing, kShuffle, kSyncWarp };
__global__ void reverse_in_warp(int* out, Between between) {
  FT_SHARED(int, values, 32);
  const unsigned t = threadIdx.x;
  values[t] = 0;
  __syncthreads();
  values[t] = static_cast<int>(t);
  if (between == Between::kShuffle) __shfl_xor_sync(kAllLanes, 0, 1);
  if (between == Between::kSyncWarp) __syncwarp();
  out[t] = values[31 - t];
}

// The second round's store meets the first round's load.
__global__ void reuse_shared(int* out, bool with_second_barrier) {
  FT_SHARED(int, value, 1);
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) value[0] = round;
    __syncthreads();
    out[2 * threadIdx.x + static_cast<unsigned>(round)] = value[0];
    if (with_second_barrier) __syncthreads();
  }
}

// A ring of two slots of shared memory, which copies fill: a lane copies 16 bytes and adds up those of another lane.
enum class CopyMistake { kNone, kNoWait, kWaitsForOneTooFew, kNoBarrierBehindWait, kNoBarrierBeforeReuse };
__global__ void sum_by_copies(const int* from, int num_rounds, int* out, CopyMistake mistake) {
  FT_SHARED(uint4, ring, 2 * 32);
  const unsigned lane = threadIdx.x;
  const auto start = [&](int round) {
    if (round < num_rounds)
      start_copy_16<true>(ring + round % 2 * 32 + lane, from + (round * 32 + static_cast<int>(lane)) * 4);
    end_copy_group();
  };
  start(0);
  start(1);
  int sum = 0;
  for (int round = 0; round < num_rounds; ++round) {
    if (mistake == CopyMistake::kWaitsForOneTooFew) {
      wait_for_copies<2>();
    } else if (mistake != CopyMistake::kNoWait) {
      wait_for_copies<1>();
    }
    if (mistake != CopyMistake::kNoBarrierBehindWait) __syncwarp();
    sum += static_cast<int>(ring[round % 2 * 32 + (lane ^ 1u)].x);
    if (mistake != CopyMistake::kNoBarrierBeforeReuse) __syncwarp();
    start(round + 2);
  }
  out[lane] = sum;
}

// Every lane stores a row of 16 bytes; the warp loads all of them as four matrices.
enum class MatrixMistake { kNone, kNotAligned, kNotShared, kNoBarrier };
__global__ void load_stored_matrices(const std::byte* device, uint32_t* out, MatrixMistake mistake) {
  FT_SHARED(uint4, rows, 32 + 1);
  const unsigned lane = threadIdx.x;
  rows[lane + 1] = uint4{};
  __syncwarp();
  rows[lane] = uint4{4 * lane, 4 * lane + 1, 4 * lane + 2, 4 * lane + 3};
  if (mistake != MatrixMistake::kNoBarrier) __syncwarp();
  const auto* row = reinterpret_cast<const std::byte*>(rows + lane);
  if (mistake == MatrixMistake::kNotAligned && lane == 5) row += 8;
  if (mistake == MatrixMistake::kNotShared) row = device + 16 * lane;
  uint32_t words[4];
  load_matrices(words, row);
  for (unsigned i = 0; i < 4; ++i) out[4 * lane + i] = words[i];
}

__global__ void store_by_block(int* out, unsigned stride) {
  if (threadIdx.x == 0) out[blockIdx.x * stride] = 1;
}

// Every block reads word 0; the last one writes it.
__global__ void read_and_store(int* out, bool stores) {
  const int value = out[0];
  if (stores && blockIdx.x + 1 == gridDim.x) out[0] = value + 1;
}

__global__ void store_bytes(int8_t* out, unsigned shift) {
  out[(threadIdx.x + blockIdx.x * blockDim.x) >> shift] = 1;
}

__global__ void read_shared_unwritten(int* out) {
  FT_SHARED(int, values, 32);
  if (threadIdx.x < 31) values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void copy_words(int* out, const int* from, int offset) {
  out[threadIdx.x] = from[static_cast<int>(threadIdx.x) + offset];
}

__global__ void read_wide(int* out, const std::byte* from, int offset) {
  out[threadIdx.x] = static_cast<int>(*reinterpret_cast<const uint64_t*>(from + offset));
}

__global__ void tell_host(int* values, uint32_t* flag) {
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) raise_flag(flag);
}

__global__ void hear_host(const uint32_t* flag, const int* from, int* to) {
  if (threadIdx.x == 0) wait_for_flag(flag);
  __syncthreads();
  to[threadIdx.x] = from[threadIdx.x];
}

__global__ void add_one(int* values) {
  values[threadIdx.x] += 1;
}

__global__ void never_launched(int* values) {
  values[threadIdx.x] = 0;
}

std::string failure(const std::function<void()>& body) {
  try {
    body();
  } catch (const EmulationError& error) {
    return error.what();
  }
  return "";
}

template <class... Parameters, class... Arguments>
std::string run(unsigned blocks, unsigned threads, void (*kernel)(Parameters...), Arguments... arguments) {
  return failure([&] {
    const Stream stream(Launches::kInOrder);
    launch(stream, {{blocks, 1, 1}, {threads, 1, 1}}, "kernel", kernel, arguments...);
    stream.synchronize();
  });
}

DeviceBuffer zeros(size_t size_bytes) {
  DeviceBuffer buffer(size_bytes);
  const Stream stream(Launches::kInOrder);
  fill_zero(stream, buffer.data(), size_bytes);
  stream.synchronize();
  return buffer;
}

TEST_CASE("Checks: rows of matrices that a warp loads are in shared memory, aligned and waited for") {
  const DeviceBuffer device = zeros(512), out = zeros(512);
  const auto load = [&](MatrixMistake mistake) {
    return run(1, 32, load_stored_matrices, device.data<std::byte>(), out.data<uint32_t>(), mistake);
  };
  CHECK(load(MatrixMistake::kNone) == "");
  const Stream stream;
  const auto words = test::download<uint32_t>(stream, out.data(), 128);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) CHECK(words[4 * lane + i] == 4 * (8 * i + lane / 4) + lane % 4);
  }
  CHECK_THAT(load(MatrixMistake::kNotAligned), Contains("ldmatrix: a row that is not aligned to 16 bytes"));
  CHECK_THAT(load(MatrixMistake::kNotShared), Contains("ldmatrix: a row that is not in shared memory"));
  CHECK_THAT(load(MatrixMistake::kNoBarrier), Contains("a race in shared memory"));
}

TEST_CASE("Checks: threads of a block are ordered by barriers alone") {
  const DeviceBuffer out = zeros(1024);
  const uint64_t before = emulation::accesses_checked();
  CHECK_THAT(run(1, 64, reverse_in_shared, out.data<int>(), false),
             Contains("a race in shared memory") && Contains("cuda_checks_test.cpp:") && Contains("same block"));
  CHECK(run(1, 64, reverse_in_shared, out.data<int>(), true).empty());
  CHECK(emulation::accesses_checked() >= before + 128);
  CHECK_THAT(run(1, 64, reuse_shared, out.data<int>(), false),
             Contains("a load by several") && Contains("then a store by thread 0"));
  CHECK(run(1, 64, reuse_shared, out.data<int>(), true).empty());
}

TEST_CASE("Checks: lanes of a warp are ordered by __syncwarp, not by shuffles") {
  const DeviceBuffer out = zeros(1024);
  CHECK_THAT(run(1, 32, reverse_in_warp, out.data<int>(), Between::kNothing), Contains("a race in shared memory"));
  CHECK_THAT(run(1, 32, reverse_in_warp, out.data<int>(), Between::kShuffle), Contains("a race in shared memory"));
  CHECK(run(1, 32, reverse_in_warp, out.data<int>(), Between::kSyncWarp).empty());
}

TEST_CASE("Checks: blocks of a grid are never ordered, grids always") {
  const DeviceBuffer out = zeros(1024);
  CHECK_THAT(run(4, 32, store_by_block, out.data<int>(), 0u),
             Contains("a race in device memory") && Contains("another block"));
  CHECK(run(4, 32, store_by_block, out.data<int>(), 1u).empty());
  CHECK(run(4, 32, read_and_store, out.data<int>(), false).empty());
  CHECK_THAT(run(4, 1, read_and_store, out.data<int>(), true), Contains("a load by several blocks"));
  CHECK(run(1, 1, read_and_store, out.data<int>(), true).empty());
}

TEST_CASE("Checks: neighbouring bytes of a word are apart, the same byte is not") {
  const DeviceBuffer out = zeros(1024);
  CHECK(run(2, 32, store_bytes, out.data<int8_t>(), 0u).empty());
  CHECK_THAT(run(1, 32, store_bytes, out.data<int8_t>(), 1u), Contains("a race in device memory"));
}

TEST_CASE("Checks: what nobody has written is not read") {
  const DeviceBuffer out = zeros(1024), fresh(1024);
  CHECK_THAT(run(1, 32, read_shared_unwritten, out.data<int>()), Contains("shared memory that nobody has written"));
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), fresh.data<int>(), 0),
             Contains("device memory that nobody has written"));
  CHECK(run(1, 32, copy_words, fresh.data<int>(), out.data<int>(), 0).empty());
  CHECK(run(1, 32, copy_words, out.data<int>(), fresh.data<int>(), 0).empty());
}

TEST_CASE("Checks: every allocation, piece and shared array ends where it ends") {
  const DeviceBuffer out = zeros(1024), source = zeros(128);
  CHECK(run(1, 32, copy_words, out.data<int>(), source.data<int>(), 0).empty());
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), source.data<int>(), 1), Contains("outside every allocation"));
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), source.data<int>(), -1), Contains("outside every allocation"));
  const BufferPiece pieces[] = {{0, 128}, {128 + guard_bytes(), 128}};
  const DeviceBuffer parts(256 + 2 * guard_bytes(), "two pieces", pieces);
  const Stream stream(Launches::kInOrder);
  fill_zero(stream, parts.data(), parts.size_bytes());
  stream.synchronize();
  CHECK(run(1, 32, copy_words, out.data<int>(), parts.data<int>(), 0).empty());
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), parts.data<int>(), 1), Contains("outside every allocation"));
  const int* stale = nullptr;
  {
    const DeviceBuffer short_lived = zeros(128);
    stale = short_lived.data<int>();
  }
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), stale, 0), Contains("outside every allocation"));
  CHECK_THAT(failure([&] {
               copy_to_device(stream, source.data(), std::vector<int>(33).data(), 33 * sizeof(int));
               stream.synchronize();
             }),
             Contains("leaves its allocation"));
}

TEST_CASE("Checks: wide loads are aligned to their size") {
  const DeviceBuffer out = zeros(1024), source = zeros(128);
  CHECK(run(1, 1, read_wide, out.data<int>(), source.data(), 8).empty());
  CHECK_THAT(run(1, 1, read_wide, out.data<int>(), source.data(), 4), Contains("not aligned"));
}

TEST_CASE("Checks: kernels do not touch host memory") {
  const DeviceBuffer out = zeros(1024);
  std::vector<int> ordinary(32);
  const PinnedBuffer pinned(128);
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), ordinary.data(), 0), Contains("host memory in a kernel"));
  CHECK_THAT(run(1, 32, copy_words, out.data<int>(), pinned.data<int>(), 0), Contains("host memory in a kernel"));
  CHECK_THAT(run(1, 32, copy_words, ordinary.data(), out.data<int>(), 0), Contains("host memory in a kernel"));
}

TEST_CASE("Checks: the host does not touch device memory") {
  const DeviceBuffer buffer = zeros(1024);
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    *buffer.data<volatile int>() = 1;
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
}

TEST_CASE("Checks: preempted threads go on, and what barriers order stays as it is") {
  const DeviceBuffer out = zeros(1024);
  const uint64_t before = emulation::preemptions();
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    emulation::set_preemption(seed, 3);
    CHECK(run(2, 32, reverse_in_warp, out.data<int>(), Between::kNothing) != "");
    CHECK(run(1, 64, reverse_in_shared, out.data<int>(), true).empty());
    const Stream stream(Launches::kInOrder);
    std::vector<int> values(64);
    copy_to_host(stream, values.data(), out.data(), values.size() * sizeof(int));
    for (int t = 0; t < 64; ++t) REQUIRE(values[t] == 63 - t);
  }
  emulation::set_preemption(0, 0);
  CHECK(emulation::preemptions() > before + 100);
}

TEST_CASE("Late: nothing has happened before somebody waits") {
  const DeviceBuffer values = zeros(128);
  const PinnedBuffer result(128);
  std::memset(result.data(), 0, 128);
  const Stream stream(Launches::kInOrder);
  launch(stream, {{1}, {32}}, "add_one", add_one, values.data<int>());
  copy_to_host(stream, result.data(), values.data(), 128);
  CHECK(result.data<int>()[5] == -1);  // poisoned
  stream.synchronize();
  CHECK(result.data<int>()[5] == 1);
  Event begin(/*with_time=*/true), end(true), timeless;
  begin.record(stream);
  end.record(stream);
  CHECK_THAT(failure([&] { static_cast<void>(end.milliseconds_since(begin)); }), Contains("before they have happened"));
  end.synchronize();
  CHECK(end.milliseconds_since(begin) >= 0);
  timeless.record(stream);
  timeless.synchronize();
  CHECK_THAT(failure([&] { static_cast<void>(timeless.milliseconds_since(begin)); }), Contains("event that has none"));
}

TEST_CASE("Late: pinned memory is read when the copy runs, other memory at the call") {
  const DeviceBuffer values = zeros(128);
  const PinnedBuffer source(128);
  std::memset(source.data(), 0, 128);
  const Stream stream(Launches::kInOrder);
  copy_to_device(stream, values.data(), source.data(), 128);
  source.data<int>()[3] = 7;
  CHECK_THAT(failure([&] { stream.synchronize(); }), Contains("written to before the copy had run"));
  std::vector<int> ordinary(32, 4);
  copy_to_device(stream, values.data(), ordinary.data(), 128);
  ordinary.assign(32, 5);
  std::vector<int> seen(32);
  copy_to_host(stream, seen.data(), values.data(), 128);
  CHECK(seen == std::vector<int>(32, 4));
}

TEST_CASE("Late: host and device tell each other by flags") {
  const DeviceBuffer result = zeros(128);
  const MappedBuffer up(128), down(128);
  const Flags flags(2);
  const Stream stream(Launches::kInOrder);
  std::vector<int> seen(32);
  const auto list = [&] {
    launch(stream, {{1}, {32}}, "tell_host", tell_host, up.data<int>(), flags.words());
    launch(stream, {{1}, {32}, 0, flags.words() + 1}, "hear_host", hear_host, flags.words() + 1, down.data<const int>(),
           result.data<int>());
  };
  const auto answer = [&](int factor) {
    flags.wait(stream, 1);
    for (int i = 0; i < 32; ++i) down.data<int>()[i] = factor * up.data<int>()[i];
    flags.raise(1);
    copy_to_host(stream, seen.data(), result.data(), 128);
  };
  list();
  CHECK(up.data<int>()[5] == -1);  // nothing has happened
  answer(2);
  CHECK(seen[5] == 10);
  // In a recording, which is launched as a whole.
  const Graph graph(stream, list);
  for (const int factor : {3, 4}) {
    for (int i = 0; i < 2; ++i) flags.lower(i);
    graph.launch(stream);
    answer(factor);
    CHECK(seen[5] == 5 * factor);
  }

  // What would wait for ever.
  flags.lower(0);
  flags.lower(1);
  CHECK_THAT(failure([&] { flags.wait(stream, 1); }), Contains("nothing in the stream brings about"));
  list();
  CHECK_THAT(failure([&] { flags.wait(stream, 2); }),
             Contains("hear_host waits for a flag that the host has not raised"));
  CHECK_THAT(failure([&] { stream.synchronize(); }),
             Contains("hear_host waits for a flag that the host has not raised"));
  flags.raise(1);
  stream.synchronize();
  flags.lower(1);
  launch(stream, {{1}, {32}}, "hear_host", hear_host, flags.words() + 1, down.data<const int>(), result.data<int>());
  CHECK_THAT(failure([&] { stream.synchronize(); }), Contains("a flag that the launch does not name"));
  // Memory that is pinned and not mapped is no kernel's.
  const PinnedBuffer pinned(128);
  flags.raise(1);
  launch(stream, {{1}, {32}}, "hear_host", hear_host, flags.words() + 1, pinned.data<const int>(), result.data<int>());
  CHECK_THAT(failure([&] { stream.synchronize(); }), Contains("of host memory in a kernel"));
}

TEST_CASE("Late: streams have no order among each other") {
  // Two streams add to the same values: with a wait between them all is well, without one some order shows it.
  const auto copy_is_seen = [](bool waits, uint32_t seed) {
    emulation::set_stream_order(seed);
    const DeviceBuffer values = zeros(128), copy = zeros(128);
    const Stream first(Launches::kInOrder), second(Launches::kInOrder);
    launch(first, {{1}, {32}}, "add_one", add_one, values.data<int>());
    if (waits) first.synchronize();
    copy_on_device(second, copy.data(), values.data(), 128);
    std::vector<int> seen(32);
    copy_to_host(second, seen.data(), copy.data(), 128);
    return seen[0] == 1;
  };
  int wrong = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    CHECK(copy_is_seen(true, seed));
    wrong += copy_is_seen(false, seed) ? 0 : 1;
  }
  emulation::set_stream_order(std::nullopt);
  CHECK(wrong > 0);
  CHECK(wrong < 20);
}

TEST_CASE("Graphs: what a capture refuses") {
  const DeviceBuffer values = zeros(128);
  const PinnedBuffer pinned(128);
  std::vector<int> ordinary(32);
  const Stream stream(Launches::kInOrder);
  const Event event;
  const auto record = [&](const std::function<void()>& work) {
    return failure([&] { const Graph graph(stream, work); });
  };
  CHECK_THAT(record([&] { const DeviceBuffer buffer(16); }), Contains("allocating memory while a graph is recorded"));
  CHECK_THAT(record([&] { const PinnedBuffer buffer(16); }), Contains("pinning memory"));
  CHECK_THAT(record([&] { stream.synchronize(); }), Contains("waiting for a stream"));
  CHECK_THAT(record([&] { event.synchronize(); }), Contains("waiting for an event"));
  CHECK_THAT(record([&] { copy_to_device(stream, values.data(), ordinary.data(), 128); }), Contains("not pinned"));
  CHECK_THAT(record([&] { copy_to_host(stream, ordinary.data(), values.data(), 128); }), Contains("not pinned"));
  CHECK_THAT(record([&] {
               launch(stream, {{1}, {32}}, "never_launched", never_launched, values.data<int>());
             }),
             Contains("never_launched was never launched"));
  launch(stream, {{1}, {32}}, "add_one", add_one, values.data<int>());
  CHECK(record([&] { launch(stream, {{1}, {32}}, "add_one", add_one, values.data<int>()); }).empty());
  CHECK(record([&] { copy_to_host(stream, pinned.data(), values.data(), 128); }).empty());
}

TEST_CASE("Graphs: a recording that is out of date is found at its replay") {
  const DeviceBuffer values = zeros(128), other = zeros(128);
  const Stream stream(Launches::kInOrder);
  int* target = values.data<int>();
  unsigned threads = 32;
  int times = 1;
  const auto work = [&] {
    for (int i = 0; i < times; ++i) launch(stream, {{1}, {threads}}, "add_one", add_one, target);
  };
  work();
  const Graph graph(stream, work);
  CHECK(failure([&] { graph.require_same(Graph(stream, work)); }).empty());
  target = other.data<int>();
  CHECK_THAT(failure([&] { graph.require_same(Graph(stream, work)); }),
             Contains("out of date") && Contains("another shape or parameters"));
  target = values.data<int>();
  threads = 16;
  CHECK_THAT(failure([&] { graph.require_same(Graph(stream, work)); }), Contains("out of date"));
  threads = 32;
  times = 2;
  CHECK_THAT(failure([&] { graph.require_same(Graph(stream, work)); }),
             Contains("is nothing, and now it would be add_one"));
  times = 1;
  for (int i = 0; i < 2; ++i) {
    CHECK(failure([&] { graph.require_same(Graph(stream, work)); }).empty());
    graph.launch(stream);
  }
  std::vector<int> seen(32);
  copy_to_host(stream, seen.data(), values.data(), 128);
  CHECK(seen == std::vector<int>(32, 3));
}

// --- Dependent launches.

// A kernel of a chain: what the kernel ahead has stored, and a weight more.
enum class ChainMistake {
  kNone,
  kLoadsEarly,
  kStoresEarly,
  kCopiesEarly,
  kLoadsAsConstant,
  kOneWarpEndsEarly,
  kNoWait
};
__global__ void add_weights(const int* weights, const int* from, int* to, ChainMistake mistake) {
  FT_SHARED(uint4, copied, 64);
  const unsigned t = threadIdx.x;
  start_next_kernel();
  if (t == 0) prefetch_constant(weights, 64 * sizeof(int));
  const int weight = load_constant(weights + t);  // no kernel writes it: at any time
  if (mistake == ChainMistake::kOneWarpEndsEarly && t >= 32) return;
  if (mistake == ChainMistake::kLoadsEarly) copied[t].x = static_cast<unsigned>(from[t]);
  if (mistake == ChainMistake::kStoresEarly) to[t] = 0;
  if (mistake == ChainMistake::kCopiesEarly) start_copy_16<true>(copied + t, from + t / 4 * 4);
  if (mistake != ChainMistake::kNoWait) wait_for_kernels_ahead();
  const int ahead = mistake == ChainMistake::kLoadsAsConstant ? load_constant(from + t) : load_global(from + t);
  to[t] = ahead + weight;
}

struct Chain {
  DeviceBuffer weights = zeros(256), values[2] = {zeros(256), zeros(256)};

  // Kernel after kernel, each from the other's values, with a copy between them or not.
  std::string run(ChainMistake mistake, int num_kernels, Launches launches = Launches::kDependent,
                  bool copies_between = false) const {
    return failure([&] {
      const Stream stream(launches);
      for (const DeviceBuffer& buffer : values) fill_zero(stream, buffer.data(), 256);
      for (int i = 0; i < num_kernels; ++i) {
        const DeviceBuffer &from = values[i % 2], &to = values[1 - i % 2];
        if (copies_between) copy_on_device(stream, from.data(), weights.data(), 256);
        launch(stream, {{1}, {64}}, "add_weights", add_weights, weights.data<int>(), from.data<int>(), to.data<int>(),
               mistake);
      }
      stream.synchronize();
    });
  }
};

TEST_CASE("Dependent launches: before its wait a thread neither loads what a kernel has stored nor stores") {
  const Chain chain;
  CHECK(chain.run(ChainMistake::kNone, 4).empty());
  for (const auto mistake : {ChainMistake::kLoadsEarly, ChainMistake::kCopiesEarly}) {
    CHECK_THAT(chain.run(mistake, 2), Contains("add_weights: a load of") && Contains("that a kernel has stored to") &&
                                          Contains("before the thread has waited for the kernels ahead, at"));
    CHECK(chain.run(mistake, 1).empty());  // what a fill has written
    CHECK(chain.run(mistake, 2, Launches::kDependent, /*copies_between=*/true).empty());
    CHECK(chain.run(mistake, 2, Launches::kInOrder).empty());
  }
  CHECK_THAT(chain.run(ChainMistake::kStoresEarly, 1),
             Contains("add_weights: a store of 4 bytes to device memory before the thread has waited"));
  CHECK(chain.run(ChainMistake::kStoresEarly, 2, Launches::kInOrder).empty());
}

TEST_CASE("Dependent launches: every thread waits, also one that has nothing to do") {
  const Chain chain;
  CHECK_THAT(chain.run(ChainMistake::kOneWarpEndsEarly, 1),
             Contains("thread (32,0,0) of block (0,0,0) ends without wait_for_kernels_ahead()"));
  CHECK(chain.run(ChainMistake::kOneWarpEndsEarly, 2, Launches::kInOrder).empty());
  CHECK_THAT(chain.run(ChainMistake::kNoWait, 1), Contains("before the thread has waited"));
}

TEST_CASE("Dependent launches: what a kernel has stored is not loaded as a constant, behind the wait neither") {
  const Chain chain;
  CHECK_THAT(chain.run(ChainMistake::kLoadsAsConstant, 2), Contains("as of a constant"));
  CHECK(chain.run(ChainMistake::kLoadsAsConstant, 1).empty());
  CHECK(chain.run(ChainMistake::kLoadsAsConstant, 2, Launches::kDependent, /*copies_between=*/true).empty());
  CHECK(chain.run(ChainMistake::kLoadsAsConstant, 2, Launches::kInOrder).empty());
}

TEST_CASE("Dependent launches: a graph that is replayed is held to it too") {
  const Chain chain;
  emulation::assume_kernels_loaded(true);
  const Stream stream;
  ChainMistake mistake = ChainMistake::kNone;
  const auto work = [&] {
    for (int i = 0; i < 2; ++i) {
      launch(stream, {{1}, {64}}, "add_weights", add_weights, chain.weights.data<int>(), chain.values[i].data<int>(),
             chain.values[1 - i].data<int>(), mistake);
    }
  };
  const auto replay = [&] {
    const Graph graph(stream, work);
    return failure([&] {
      graph.launch(stream);
      stream.synchronize();
    });
  };
  CHECK(replay().empty());
  mistake = ChainMistake::kLoadsEarly;
  CHECK_THAT(replay(), Contains("before the thread has waited"));
  emulation::assume_kernels_loaded(false);
}

// --- Limits.

__global__ void large_static_arrays(int* out, bool with_second) {
  FT_SHARED(int, first, 6 << 10);
  first[threadIdx.x] = 1;
  if (with_second) {
    FT_SHARED(int, second, (6 << 10) + 1);
    second[threadIdx.x] = 1;
  }
  out[threadIdx.x] = first[threadIdx.x];
}

TEST_CASE("Limits: static shared memory and the threads of a block") {
  const DeviceBuffer values = zeros(4096);
  const auto run = [&](const char* name, unsigned threads, bool with_second) {
    return failure([&] {
      const Stream stream(Launches::kInOrder);
      launch(stream, {{1}, {threads}}, name, large_static_arrays, values.data<int>(), with_second);
      stream.synchronize();
    });
  };
  CHECK(run("large_static_arrays", 32, false).empty());
  CHECK_THAT(run("large_static_arrays", 32, true), Contains("static shared memory: 49156 bytes"));
  // Bounds are known by the kernel's name: cuda_quant_dot has 128, cuda_rms_norm_rows 1024.
  CHECK(run("cuda_quant_dot", 128, false).empty());
  CHECK_THAT(run("cuda_quant_dot", 160, false), Contains("blocks of 160 threads, its launch bounds allow 128"));
  CHECK(run("cuda_rms_norm_rows", 160, false).empty());
}

// --- Traffic.

__global__ void load_with_stride(const int* from, int* out, unsigned stride) {
  out[threadIdx.x] = from[threadIdx.x * stride];
}
__global__ void load_vectors(const int* from, int* out) {
  const int* at = from + 4 * threadIdx.x;
  const int a = at[0], b = at[1], c = at[2], d = at[3];
  out[threadIdx.x] = a + b + c + d;
}
__global__ void load_shared_with_stride(int* out, unsigned stride) {
  FT_SHARED(int, values, 32 * 32);
  for (unsigned i = threadIdx.x; i < 32 * 32; i += 32) values[i] = static_cast<int>(i);
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x * stride];
}

TEST_CASE("Copies to shared memory: not read before they are waited for, nor started over what is read") {
  constexpr int kRounds = 5;
  const Stream stream(Launches::kInOrder);
  std::vector<int> values(kRounds * 32 * 4);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i * i % 1001);
  const DeviceBuffer from = test::upload(stream, values), out = zeros(128);
  std::vector<int> sums(32, 0);
  for (size_t i = 0; i < kRounds * 32; ++i) sums[i % 32 ^ 1] += values[4 * i];
  const auto said = [&](CopyMistake mistake) {
    return run(1, 32, sum_by_copies, from.data<int>(), kRounds, out.data<int>(), mistake);
  };
  const auto is_right = [&](CopyMistake mistake) {
    CHECK(said(mistake).empty());
    return test::download<int>(stream, out.data(), 32) == sums;
  };
  CHECK(is_right(CopyMistake::kNone));
  CHECK_FALSE(is_right(CopyMistake::kNoWait));
  CHECK_FALSE(is_right(CopyMistake::kWaitsForOneTooFew));
  // The order of lanes decides what is met first: bytes that nobody has written yet, or the race.
  CHECK_THAT(said(CopyMistake::kNoBarrierBehindWait), Contains("shared memory"));
  CHECK_THAT(said(CopyMistake::kNoBarrierBeforeReuse), Contains("a race in shared memory"));
}

TEST_CASE("Traffic: sectors of device memory and passes over the banks of shared memory") {
  const DeviceBuffer from = zeros(32 * 32 * 4), out = zeros(128);
  const auto measure = [&](const std::function<void(const Stream&)>& work) {
    emulation::measure_traffic(true);
    const Stream stream(Launches::kInOrder);
    work(stream);
    stream.synchronize();
    emulation::measure_traffic(false);
    return emulation::traffic_by_kernel().at("kernel");
  };
  // A load and a store, 128 bytes each in four sectors. At a stride of 2 the load touches eight, at 8 one for each lane.
  for (const auto& [stride, sectors] : {std::pair{1u, 4u}, {2u, 8u}, {8u, 32u}, {0u, 1u}}) {
    const auto traffic = measure([&](const Stream& stream) {
      launch(stream, {{1}, {32}}, "kernel", load_with_stride, from.data<int>(), out.data<int>(), stride);
    });
    CHECK(traffic.device_instructions == 2);
    CHECK(traffic.device_sectors == sectors + 4);
    CHECK(traffic.device_bytes == (stride == 0 ? 4 : 128) + 128);
    CHECK(traffic.shared_instructions == 0);
  }
  const auto vectors = measure([&](const Stream& stream) {
    launch(stream, {{1}, {32}}, "kernel", load_vectors, from.data<int>(), out.data<int>());
  });
  CHECK(vectors.device_instructions == 2);
  CHECK(vectors.device_sectors == 16 + 4);
  // 32 stores and a load; at a stride of 2 two lanes meet in each bank, at 32 all in one.
  for (const auto& [stride, passes] : {std::pair{1u, 1u}, {2u, 2u}, {32u, 32u}, {31u, 1u}, {0u, 1u}}) {
    const auto traffic = measure([&](const Stream& stream) {
      launch(stream, {{1}, {32}}, "kernel", load_shared_with_stride, out.data<int>(), stride);
    });
    CHECK(traffic.shared_instructions == 33);
    CHECK(traffic.shared_passes == 32 + passes);
    CHECK(traffic.shared_least_passes == 33);
  }
}

}  // namespace
}  // namespace foretoken::cuda
