#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/base/half.h"

// Stands in for nvcc where a host compiler reads a .cu file: the names that kernel bodies use, and a machine that runs
// one block at a time with a fiber per thread, so that every kernel's arithmetic is tested without a GPU. What it finds
// beside wrong bits: threads of a block that part at a barrier or a warp collective, results that depend on the order in
// which warps and lanes run (set_order, set_preemption) or streams go on (set_stream_order), threads that do not wait for
// the kernels ahead, and, by access_checker.h, races, loads of what nobody has written, accesses too early and of memory
// that is not the kernel's. What it cannot show: speed.

namespace foretoken::cuda {

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

/// A kernel did what no GPU would forgive. The message names the kernel's source lines.
class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace emulation {

using Site = std::source_location;

/// Order in which warps of a block, lanes of a warp and blocks of a grid take turns.
enum class Order { kForward, kBackward, kShuffled };
void set_order(Order order, uint32_t seed = 0);

/// From now on a thread of a kernel stops after one in so many of its memory accesses, at random, and another warp goes on. 0: never.
void set_preemption(uint32_t seed, int one_in);
/// How often that has happened.
[[nodiscard]] uint64_t preemptions();

/// Where a kernel's parameters lie: host memory that its threads may read.
struct Parameters {
  const void* begin = nullptr;
  size_t size_bytes = 0;
};

/// Runs body() once for each thread of the grid. Throws EmulationError. With must_wait each thread has to call
/// wait_for_kernels_ahead(), and before it may neither store to device memory nor load what a kernel has stored there.
void run_grid(uint3 grid, uint3 block, size_t dynamic_shared_bytes, const std::function<void()>& body,
              Parameters parameters = {}, bool must_wait = false);

/// Threads that run_grid has run, over all grids: shows that a test really went through the emulation.
[[nodiscard]] uint64_t threads_run();

/// Faults that the emulated device then has, for tests of what becomes of them. inject({}) ends them.
struct Faults {
  std::optional<size_t> memory_bytes;  // of the device: what does not fit is refused as cudaMalloc does
  /// Waits that go well before one finds that a kernel has crashed; from there on every call fails.
  std::optional<int> waits_until_lost;
};
void inject(const Faults& faults);

/// Work of different streams has no order: with a seed, streams that nobody waits for yet go on at random while another is
/// waited for. Without one, nothing runs that nobody waits for.
void set_stream_order(std::optional<uint32_t> seed);
/// Whether kernels may be recorded that were never launched: for tests of recordings alone.
void assume_kernels_loaded(bool loaded);

/// How often each kernel has run, by the name it is launched with, since the last call; launched alone or in a graph.
[[nodiscard]] std::map<std::string, uint64_t> take_kernel_counts();

// What the running thread sees.
struct Indices {
  uint3 thread, block, block_dim, grid_dim;
};
extern thread_local const Indices* indices;

void sync_block(Site site);
void sync_warp(uint32_t mask, Site site);
/// For the access checker: called after each access; whether an address is the machine's own.
void preempt();
[[nodiscard]] bool owned_by_machine(const void* address);
/// The running thread has waited for the kernels ahead.
void note_wait();
/// For load_constant and prefetch_constant, and for copies that are started: bytes that no kernel has stored to, or, of a
/// copy, that the thread may load now.
void require_constant(const void* from, size_t size_bytes);
void require_loadable(const void* from, size_t size_bytes);
/// For store_weights: what was stored may be loaded as a constant by kernels behind this one.
void note_weights(const void* to, size_t size_bytes);
/// Ends the grid with an EmulationError. Called from a kernel body.
[[noreturn]] void fail(const char* message);
/// All lanes of `mask` meet here; values[lane] are the `size_bytes` (at most 64) that each brought. Valid until the
/// lane's next collective.
const std::byte (*exchange(uint32_t mask, const void* value, size_t size_bytes, Site site))[64];
[[nodiscard]] int lane();
/// Copies of the running thread that are under way (start_copy_16): one more; the end of a group; the oldest one of a
/// group beyond the newest `groups_under_way`, if there is one.
struct AsyncCopy {
  void* to = nullptr;
  const void* from = nullptr;
};
void add_copy(AsyncCopy copy);
void end_copy_group();
[[nodiscard]] bool take_copy(int groups_under_way, AsyncCopy& copy);
[[nodiscard]] std::byte* shared_array(size_t size_bytes, Site site);
[[nodiscard]] std::byte* dynamic_shared();
/// Whether all of it is in one shared array of the running block.
[[nodiscard]] bool in_shared_memory(const void* data, size_t size_bytes);

template <class T>
T read_lane(const std::byte (*values)[64], int from) {
  T value;
  std::memcpy(&value, values[from], sizeof(T));
  return value;
}

}  // namespace emulation

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (::foretoken::cuda::emulation::indices->thread)
#define blockIdx (::foretoken::cuda::emulation::indices->block)
#define blockDim (::foretoken::cuda::emulation::indices->block_dim)
#define gridDim (::foretoken::cuda::emulation::indices->grid_dim)

#define FT_UNROLL
#define FT_NO_UNROLL
#define FT_UNROLL_TWICE

/// FT_SHARED(float, sums, 32): __shared__ float sums[32].
#define FT_SHARED(type, name, count)                                                     \
  type* const name = reinterpret_cast<type*>(::foretoken::cuda::emulation::shared_array( \
      sizeof(type) * static_cast<size_t>(count), std::source_location::current()))
/// FT_DYNAMIC_SHARED(int8_t, tile): extern __shared__ memory, sized by the launch.
#define FT_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::foretoken::cuda::emulation::dynamic_shared())

inline void __syncthreads(emulation::Site site = emulation::Site::current()) {
  emulation::sync_block(site);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, emulation::Site site = emulation::Site::current()) {
  emulation::sync_warp(mask, site);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32, emulation::Site site = emulation::Site::current()) {
  const int base = emulation::lane() & ~(width - 1);
  return emulation::read_lane<T>(emulation::exchange(mask, &value, sizeof value, site), base + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32,
                  emulation::Site site = emulation::Site::current()) {
  const int self = emulation::lane(), from = self ^ lane_mask;
  return emulation::read_lane<T>(emulation::exchange(mask, &value, sizeof value, site),
                                 (from & ~(width - 1)) == (self & ~(width - 1)) ? from : self);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   emulation::Site site = emulation::Site::current()) {
  const int self = emulation::lane(), from = self + static_cast<int>(delta);
  return emulation::read_lane<T>(emulation::exchange(mask, &value, sizeof value, site),
                                 from < (self & ~(width - 1)) + width ? from : self);
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate, emulation::Site site = emulation::Site::current()) {
  const std::byte(*values)[64] = emulation::exchange(mask, &predicate, sizeof predicate, site);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) {
    if ((mask >> i & 1u) != 0 && emulation::read_lane<bool>(values, i)) bits |= 1u << i;
  }
  return bits;
}

inline int __dp4a(int a, int b, int c) {
  uint32_t sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i) {
    const int x = static_cast<int8_t>(static_cast<uint32_t>(a) >> (8 * i)),
              y = static_cast<int8_t>(static_cast<uint32_t>(b) >> (8 * i));
    sum += static_cast<uint32_t>(x * y);
  }
  return static_cast<int>(sum);
}
/// Two 16-bit values of a by bytes 0 and 1 of b.
inline int __dp2a_lo(int a, int b, int c) {
  const int low = static_cast<int16_t>(a), high = a >> 16;
  const uint32_t sum = static_cast<uint32_t>(low * static_cast<int8_t>(b)) +
                       static_cast<uint32_t>(high * static_cast<int8_t>(static_cast<uint32_t>(b) >> 8));
  return static_cast<int>(static_cast<uint32_t>(c) + sum);
}
/// Two 16-bit values of a by bytes 2 and 3 of b.
inline int __dp2a_hi(int a, int b, int c) {
  return __dp2a_lo(a, b >> 16, c);
}
/// Byte i of the result is byte (selector >> 4i & 7) of y:x. A set fourth bit, which spreads a sign on the GPU, is a
/// mistake here.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = (static_cast<uint64_t>(y) << 32) | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t at = selector >> (4 * i) & 15u;
    if (at > 7) emulation::fail("__byte_perm: selector digit above 7");
    result |= static_cast<uint32_t>(bytes >> (8 * at) & 0xffu) << (8 * i);
  }
  return result;
}
inline float __fmaf_rn(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
inline int __float2int_rn(float x) {
  return static_cast<int>(__builtin_rintf(x));
}
inline int __popc(uint32_t x) {
  return __builtin_popcount(x);
}
inline int __ffs(uint32_t x) {
  return __builtin_ffs(static_cast<int>(x));
}

inline void wait_for_kernels_ahead() {
  emulation::note_wait();
}
inline void start_next_kernel() {}
inline void prefetch_constant(const void* from, unsigned size_bytes) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0 || size_bytes % 16 != 0)
    emulation::fail("prefetch_constant: not a multiple of 16 bytes");
  emulation::require_constant(from, size_bytes);
}
template <class T>
__forceinline__ T load_constant(const T* p) {
  emulation::require_constant(p, sizeof(T));
  return *p;
}
__forceinline__ void store_weights(uint32_t* p, uint32_t value) {
  *p = value;
  emulation::note_weights(p, sizeof value);
}
template <class T>
__forceinline__ T load_global(const T* p) {
  return *p;
}
inline float half_bits_to_float(uint16_t h) {
  return half_to_float(h);
}
inline uint16_t float_to_half_bits(float x) {
  return float_to_half(x);
}

// cp.async as late as it may be: the bytes arrive when they are waited for. But they may also arrive at once, so the place
// is overwritten when the copy is started: who reads it before finds NaN, and who still reads what was there has a race.
template <bool kOnce>
void start_copy_16(void* to, const void* from) {
  constexpr unsigned kNaN = 0x7fc0dead;
  emulation::require_loadable(from, 16);
  *static_cast<uint4*>(to) = uint4{kNaN, kNaN, kNaN, kNaN};
  emulation::add_copy({to, from});
}
inline void end_copy_group() {
  emulation::end_copy_group();
}
template <int kUnderWay>
void wait_for_copies() {
  emulation::AsyncCopy copy;
  while (emulation::take_copy(kUnderWay, copy)) *static_cast<uint4*>(copy.to) = *static_cast<const uint4*>(copy.from);
}

inline void raise_flag(uint32_t* flag) {
  *flag = 1;
}
// The runtime starts a kernel only when the flag that its launch names is raised, and threads here take turns with each
// other alone: to wait would be to wait for ever.
inline void wait_for_flag(const uint32_t* flag) {
  if (*flag == 0) emulation::fail("a wait for a flag that the launch does not name");
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16, as load_matrices in cuda_language.h. It orders no memory.
inline void load_matrices(uint32_t (&to)[4], const void* row, emulation::Site site = emulation::Site::current()) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("ldmatrix: a row that is not aligned to 16 bytes");
  if (!emulation::in_shared_memory(row, 16)) emulation::fail("ldmatrix: a row that is not in shared memory");
  const std::byte(*values)[64] = emulation::exchange(0xffffffffu, &row, sizeof row, site);
  const int group = emulation::lane() / 4, quad = emulation::lane() % 4;
  const std::byte* rows[4];
  for (int i = 0; i < 4; ++i) rows[i] = emulation::read_lane<const std::byte*>(values, 8 * i + group) + 4 * quad;
  for (int i = 0; i < 4; ++i) to[i] = *reinterpret_cast<const uint32_t*>(rows[i]);
}

// mma.sync.aligned.{m16n8k32,m16n8k16}.row.col.s32.s8.s8.s32, with the register layout that the PTX manual gives: lane
// = 4 * group + quad. A[row][k]: register i holds row group + 8 * (i % 2), k = 16 * (i / 2) + 4 * quad + byte;
// B[k][col]: register i holds k = 16 * i + 4 * quad + byte, col = group; C[row][col]: register i holds row group + 8 *
// (i / 2), col = 2 * quad + i % 2.
template <int kDepth>
void emulated_mma(int (&c)[4], const uint32_t (&a)[kDepth / 8], const uint32_t (&b)[kDepth / 16],
                  emulation::Site site) {
  struct Fragments {
    uint32_t a[kDepth / 8], b[kDepth / 16];
  } mine;
  std::memcpy(mine.a, a, sizeof mine.a);
  std::memcpy(mine.b, b, sizeof mine.b);
  const std::byte(*values)[64] = emulation::exchange(0xffffffffu, &mine, sizeof mine, site);
  const int group = emulation::lane() / 4, quad = emulation::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    for (int from = 0; from < 4;
         ++from) {  // the lanes that hold this row of A and this column of B, one quarter of k each
      const auto x = emulation::read_lane<Fragments>(values, 4 * group + from);
      const auto y = emulation::read_lane<Fragments>(values, 4 * (2 * quad + i % 2) + from);
      for (int k = 0; k < kDepth / 16; ++k)
        c[i] = __dp4a(static_cast<int>(x.a[2 * k + i / 2]), static_cast<int>(y.b[k]), c[i]);
    }
  }
}
inline void mma_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        emulation::Site site = emulation::Site::current()) {
  emulated_mma<32>(c, a, b, site);
}
inline void mma_16x8x16(int (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                        emulation::Site site = emulation::Site::current()) {
  emulated_mma<16>(c, a, b, site);
}

}  // namespace foretoken::cuda
