#pragma once

// The CUDA language as kernel bodies use it: from nvcc, or from cuda_emulation.h where a host compiler reads the .cu
// file. Names that the two do not share, or that CUDA spells per type, have one spelling here.

#ifdef __CUDACC__

#include <cuda_fp16.h>

#include <cstdint>

#define FT_UNROLL _Pragma("unroll")
#define FT_NO_UNROLL _Pragma("unroll 1")
#define FT_UNROLL_TWICE _Pragma("unroll 2")
#define FT_SHARED(type, name, count) __shared__ type name[count]
#define FT_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char ft_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(ft_dynamic_shared)

namespace foretoken::cuda {

__device__ __forceinline__ float half_bits_to_float(uint16_t h) {
  return __half2float(__ushort_as_half(h));
}
__device__ __forceinline__ uint16_t float_to_half_bits(float x) {
  return __half_as_ushort(__float2half_rn(x));
}

// Dependent launch (cuda_runtime_wrap.h): blocks of a kernel may be there while kernels ahead of it in the stream still
// run. So every thread of every kernel waits before its first access of what another kernel writes, also a thread that
// then finds nothing to do: a kernel has ended when its threads have, and only by their waiting does its end say that all
// kernels ahead have ended too. Before it a kernel may read what no kernel writes: weights, norms' weights.

/// Waits until all kernels ahead have ended and what they have stored can be read. At once where none is ahead.
__device__ __forceinline__ void wait_for_kernels_ahead() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The kernel behind this one may be started as soon as every block of this one has come here, or has ended. Then all of
/// them have their places, so that none is left waiting for one that the next kernel's blocks have taken.
__device__ __forceinline__ void start_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Asks for bytes that no kernel writes to be brought to the L2 cache: weights, before the wait. One thread of a warp
/// calls it. Address and size are multiples of 16.
__device__ __forceinline__ void prefetch_constant([[maybe_unused]] const void* from,
                                                  [[maybe_unused]] unsigned size_bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"(size_bytes));
#endif
}

/// Loads from device memory that no kernel writes, by the path for such data (ld.global.nc): weights. It also says that
/// the address is the device's: through a pointer that was chosen among several, the compiler does not know. Not for what
/// kernels ahead store: the compiler moves this load over the wait for them, in both directions.
template <class T>
__device__ __forceinline__ T load_constant(const T* p) {
  return __ldg(p);
}
/// Stores weights that kernels behind this one read by load_constant. REQUIRES: those kernels begin when this one has ended
/// (a copy or a fill stands between), and learn behind their wait which weights these are.
__device__ __forceinline__ void store_weights(uint32_t* p, uint32_t value) {
  *p = value;
}
/// Loads from device memory whoever writes it, and stays where it stands to the wait. It says whose the address is too.
template <class T>
__device__ __forceinline__ T load_global(const T* p) {
  __builtin_assume(__isGlobal(p));
  return *p;
}

/// Starts to bring 16 bytes from device memory to shared memory (cp.async): no register holds them, so that many are
/// under way. `to` is not to be touched until wait_for_copies() and a barrier of those who read it, nor are those bytes
/// to be read any more. Both are aligned to 16 bytes. kOnce: no other warp of the block asks for them, so that the L1
/// cache is passed by.
template <bool kOnce>
__device__ __forceinline__ void start_copy_16(void* to, const void* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kOnce) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  }
}
/// The thread's copies since the last call become a group, which may be empty.
__device__ __forceinline__ void end_copy_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits for this thread's groups but for the newest kUnderWay.
template <int kUnderWay>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kUnderWay) : "memory");
}

/// Tells the host by a flag (Flags) that what the calling thread has written, and what others of its block had written before
/// their last barrier, is there.
__device__ __forceinline__ void raise_flag(uint32_t* flag) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
}
/// Returns when the host has raised the flag; what the host wrote before is then there for this thread, and for others of its
/// block behind a barrier. REQUIRES: the launch says so (LaunchShape::waits_for).
__device__ __forceinline__ void wait_for_flag(const uint32_t* flag) {
  constexpr unsigned kNanoseconds = 200;  // a look takes a way over the bus and back
  for (uint32_t raised = 0; true; __nanosleep(kNanoseconds)) {
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(raised) : "l"(flag) : "memory");
    if (raised != 0) return;
  }
}

/// Four matrices of 8 rows of 16 bytes of shared memory (ldmatrix), which a warp loads together: lane l gives the address
/// of row l % 8 of matrix l / 8, aligned to 16 bytes, and gets of each matrix bytes 4 (l % 4) .. of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

/// C += A B over int8 fragments of a warp; see emulated_mma for the layout of the registers.
__device__ __forceinline__ void mma_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_16x8x16(int (&c)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

}  // namespace foretoken::cuda

#else
#include "kernels/cuda/emulation/cuda_emulation.h"
#endif

namespace foretoken::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffu;

/// Folds 32 lanes 16 -> 8 -> 4 -> 2 -> 1, lane i adding lane i + half (rule 2). By exchange, so that every lane gets
/// the sum: a + b and b + a are the same bits.
__device__ __forceinline__ float fold_lanes(float x) {
  for (int half = kWarpSize / 2; half > 0; half /= 2) x = x + __shfl_xor_sync(kAllLanes, x, half);
  return x;
}

__device__ __forceinline__ float max_of_lanes(float x) {
  for (int half = kWarpSize / 2; half > 0; half /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, x, half);
    x = other > x ? other : x;
  }
  return x;
}

}  // namespace foretoken::cuda
