#include "kernels/cuda/emulation/access_checker.h"

#include <fmt/format.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/cuda/emulation/cuda_emulation.h"
#include "kernels/cuda/emulation/emulated_memory.h"
#include "kernels/cuda/emulation/warp_traffic.h"

namespace foretoken::cuda::emulation {

thread_local const RunningThread* running_thread = nullptr;

namespace {

constexpr uint16_t kSeveralLanes = 1024;  // + the warp
constexpr uint16_t kSeveralWarps = 2000, kSeveralBlocks = 2001;

struct Stamp {
  uint32_t block = 0;  // 0: none
  uint16_t thread = 0, barriers = 0, warp_barriers = 0;
  uint32_t place = 0;  // of the code, from the program's first byte
};

struct Cell {
  Stamp store, loads;
};

// One mapping for words and one for bytes; pages that nobody touches cost nothing.
template <size_t kGrain>
Cell* cells() {
  static Cell* const memory = [] {
    void* mapped = mmap(nullptr, DeviceMemory::kBytes / kGrain * sizeof(Cell), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    FT_CHECK(mapped != MAP_FAILED);
    return static_cast<Cell*>(mapped);
  }();
  return memory;
}

uint64_t num_accesses = 0;

// The program's own segments: code, constants, and tables that a GPU has in constant memory.
struct Image {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;
};

const Image& program_image() {
  static const Image image = [] {
    Image found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* to) {
          auto& result = *static_cast<Image*>(to);
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
            const auto* begin = reinterpret_cast<const std::byte*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
            if (result.begin == nullptr || begin < result.begin) result.begin = begin;
            if (begin + info->dlpi_phdr[i].p_memsz > result.end) result.end = begin + info->dlpi_phdr[i].p_memsz;
          }
          return 1;  // the first entry is the program
        },
        &found);
    return found;
  }();
  return image;
}

uint32_t place_of(const void* code) {
  return static_cast<uint32_t>(static_cast<const std::byte*>(code) - program_image().begin);
}

// file:line of a place, by binutils where they are installed.
std::string name_of_place(uint32_t place) {
  char program[4096];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  std::string name = fmt::format("+{:#x}", place);
  if (length <= 0) return name;
  program[length] = 0;
  // The call returns to the instruction behind it.
  const std::string command = fmt::format("addr2line -pse '{}' {:#x} 2>/dev/null", program, place - 1);
  if (FILE* pipe = popen(command.c_str(), "r"); pipe != nullptr) {
    char line[512];
    if (fgets(line, sizeof line, pipe) != nullptr && line[0] != '?') {
      name = line;
      while (!name.empty() && (name.back() == '\n' || name.back() == ' ')) name.pop_back();
    }
    pclose(pipe);
  }
  return name;
}

std::string name_of(const Stamp& s) {
  const std::string place = name_of_place(s.place);
  if (s.thread == kSeveralBlocks) return fmt::format("several blocks at {}", place);
  if (s.thread == kSeveralWarps) return fmt::format("several warps at {}", place);
  if (s.thread >= kSeveralLanes) return fmt::format("several lanes of warp {} at {}", s.thread - kSeveralLanes, place);
  return fmt::format("thread {} at {}", s.thread, place);
}

int warp_of(const Stamp& s) {
  if (s.thread < kSeveralLanes) return s.thread / 32;
  return s.thread < kSeveralWarps ? s.thread - kSeveralLanes : -1;
}

// No string of it may be left behind on the stack of a thread that is not resumed.
[[noreturn]] void fail_with(std::string (*describe)(const void*), const void* what) {
  static char text[1024];
  {
    const std::string described = describe(what);
    const size_t length = described.copy(text, sizeof text - 1);
    text[length] = 0;
  }
  fail(text);
}

struct Conflict {
  const char *first, *second;
  size_t offset;
  Stamp earlier, later;
};

[[noreturn]] void fail_conflict(const Conflict& conflict) {
  fail_with(
      [](const void* what) {
        const auto& c = *static_cast<const Conflict*>(what);
        return fmt::format("a race in {} memory: a {} by {}, then a {} by {}{}",
                           c.offset < DeviceMemory::kSharedBytes ? "shared" : "device", c.first, name_of(c.earlier),
                           c.second, name_of(c.later),
                           c.earlier.block == c.later.block ? " of the same block" : " of another block");
      },
      &conflict);
}

struct Access {
  const void* address;
  size_t size_bytes;
  bool is_store;
  uint32_t place;
};

[[noreturn]] void fail_access(const Access& access, const char* fault) {
  const std::pair<Access, const char*> both(access, fault);
  fail_with(
      [](const void* what) {
        const auto& [a, why] = *static_cast<const std::pair<Access, const char*>*>(what);
        return fmt::format("a {} of {} bytes {}, at {}", a.is_store ? "store" : "load", a.size_bytes, why,
                           name_of_place(a.place));
      },
      &both);
}

constexpr const char* kTooEarly =
    "of device memory that a kernel has stored to, before the thread has waited for the kernels ahead";

// A block's shared memory is its own: what other blocks had at the same place is over.
uint32_t oldest_block(const RunningThread& running, size_t offset) {
  return offset < DeviceMemory::kSharedBytes ? running.block : running.first_block;
}

bool ordered(uint32_t first_block, const Stamp& earlier, const Stamp& later) {
  if (earlier.block < first_block) return true;
  if (earlier.block != later.block || earlier.thread == kSeveralBlocks) return false;
  if (earlier.barriers < later.barriers || earlier.thread == later.thread) return true;
  return warp_of(earlier) == warp_of(later) && earlier.warp_barriers < later.warp_barriers;
}

void take_load(uint32_t first_block, Stamp& loads, const Stamp& me) {
  if (loads.block < first_block) {
    loads = me;
  } else if (loads.block != me.block) {
    loads = me;
    loads.thread = kSeveralBlocks;
  } else if (loads.thread == kSeveralBlocks) {
    // stays so for the rest of the grid
  } else if (loads.barriers < me.barriers || loads.thread == me.thread) {
    loads = me;
  } else if (warp_of(loads) != warp_of(me)) {
    loads.thread = kSeveralWarps;
  } else if (loads.warp_barriers < me.warp_barriers) {
    loads = me;
  } else {
    loads.thread = static_cast<uint16_t>(kSeveralLanes + warp_of(me));
  }
}

void look_at(const RunningThread& running, Cell& cell, const Stamp& me, bool is_store, size_t offset) {
  const uint32_t first_block = oldest_block(running, offset);
  if (!ordered(first_block, cell.store, me))
    fail_conflict({"store", is_store ? "store" : "load", offset, cell.store, me});
  if (!is_store) {
    take_load(first_block, cell.loads, me);
    return;
  }
  if (!ordered(first_block, cell.loads, me)) fail_conflict({"load", "store", offset, cell.loads, me});
  cell.store = me;
  cell.loads = {};
}

void look_at_word(const RunningThread& running, size_t word, unsigned bytes, const Stamp& me, const Access& access) {
  uint8_t& state = device_memory().states[word];
  const bool is_shared = word * 4 < DeviceMemory::kSharedBytes;
  if ((state & kAllocated) == 0) {
    fail_access(access, is_shared ? "outside every shared array" : "outside every allocation of device memory");
  }
  if (!running.has_waited && !is_shared) {
    if (access.is_store) fail_access(access, "to device memory before the thread has waited for the kernels ahead");
    if ((state & kStored) != 0) fail_access(access, kTooEarly);
  }
  if (access.is_store) {
    state = static_cast<uint8_t>(state | bytes | kStored);
  } else if ((state & bytes) != bytes) {
    fail_access(access,
                is_shared ? "of shared memory that nobody has written" : "of device memory that nobody has written");
  }
  Cell& whole = cells<4>()[word];
  if (bytes == kWrittenBytes && (state & kSplit) == 0) {
    look_at(running, whole, me, access.is_store, 4 * word);
    return;
  }
  Cell* parts = cells<1>() + 4 * word;
  if ((state & kSplit) == 0) {
    for (int i = 0; i < 4; ++i) parts[i] = whole;
    state |= kSplit;
  }
  for (unsigned i = 0; i < 4; ++i) {
    if ((bytes >> i & 1u) != 0) look_at(running, parts[i], me, access.is_store, 4 * word + i);
  }
}

bool is_inside(const std::byte* at, const std::byte* begin, const std::byte* end) {
  return at >= begin && at < end;
}

void look_at_access(const void* address, size_t size_bytes, bool is_store, const void* code) {
  const RunningThread* const running = running_thread;
  if (running == nullptr) return;
  const auto* at = static_cast<const std::byte*>(address);
  const DeviceMemory& memory = device_memory();
  if (!memory.contains(address)) {
    if (is_inside(at, running->stack_begin, running->stack_end) ||
        is_inside(at, running->parameters, running->parameters_end) || owned_by_machine(address))
      return;
    if (!is_store && (is_inside(at, program_image().begin, program_image().end) || is_registered(address))) return;
    fail_access({address, size_bytes, is_store, place_of(code)}, "of host memory in a kernel");
  }
  ++num_accesses;
  // A kernel may look at its own block's shared memory before the machine resumes it: never while it waits.
  const Stamp me{running->block, running->thread, running->barriers, running->warp_barriers, place_of(code)};
  const auto offset = static_cast<size_t>(at - memory.begin);
  const Access access{address, size_bytes, is_store, me.place};
  if (measures_traffic()) note_access(me.thread, me.place, offset, size_bytes, offset < DeviceMemory::kSharedBytes);
  const size_t end = offset + size_bytes;
  for (size_t word = offset / 4; word * 4 < end; ++word) {
    unsigned bytes = kWrittenBytes;
    if (word * 4 < offset) bytes = bytes << (offset - word * 4) & kWrittenBytes;
    if (end - word * 4 < 4) bytes &= (1u << (end - word * 4)) - 1u;
    look_at_word(*running, word, bytes, me, access);
  }
  preempt();
}

void look_at_aligned(const void* address, size_t size_bytes, bool is_store, const void* code) {
  if (running_thread != nullptr && reinterpret_cast<uintptr_t>(address) % size_bytes != 0)
    fail_access({address, size_bytes, is_store, place_of(code)}, "that is not aligned to its size");
  look_at_access(address, size_bytes, is_store, code);
}

// Ends the grid where a kernel has stored to one of the bytes.
void refuse_stored(const void* from, size_t size_bytes, const void* code, const char* fault) {
  const DeviceMemory& memory = device_memory();
  if (!memory.contains(from)) return;  // the load itself finds that
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(from) - memory.begin);
  if (offset < DeviceMemory::kSharedBytes) return;
  const Access access{from, size_bytes, /*is_store=*/false, place_of(code)};
  for (size_t word = offset / 4; word * 4 < offset + size_bytes; ++word) {
    if ((memory.states[word] & kAllocated) == 0) fail_access(access, "outside every allocation of device memory");
    if ((memory.states[word] & kStored) != 0) fail_access(access, fault);
  }
}

}  // namespace

void require_constant(const void* from, size_t size_bytes) {
  if (running_thread == nullptr || !running_thread->must_wait) return;
  refuse_stored(from, size_bytes, __builtin_return_address(0),
                "as of a constant, of device memory that a kernel has stored to");
}

void require_loadable(const void* from, size_t size_bytes) {
  if (running_thread == nullptr || running_thread->has_waited) return;
  refuse_stored(from, size_bytes, __builtin_return_address(0), kTooEarly);
}

void note_weights(const void* to, size_t size_bytes) {
  const DeviceMemory& memory = device_memory();
  if (running_thread == nullptr || !memory.contains(to)) return;
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(to) - memory.begin);
  for (size_t word = offset / 4; word * 4 < offset + size_bytes; ++word)
    memory.states[word] &= static_cast<uint8_t>(~kStored);
}

uint64_t accesses_checked() {
  return num_accesses;
}

}  // namespace foretoken::cuda::emulation

// What -fsanitize=thread calls. The names are the compiler's.
#define FT_ACCESS(bytes)                                                                        \
  void __tsan_read##bytes(void* at) {                                                           \
    foretoken::cuda::emulation::look_at_aligned(at, bytes, false, __builtin_return_address(0)); \
  }                                                                                             \
  void __tsan_write##bytes(void* at) {                                                          \
    foretoken::cuda::emulation::look_at_aligned(at, bytes, true, __builtin_return_address(0));  \
  }                                                                                             \
  void __tsan_volatile_read##bytes(void* at) {                                                  \
    __tsan_read##bytes(at);                                                                     \
  }                                                                                             \
  void __tsan_volatile_write##bytes(void* at) {                                                 \
    __tsan_write##bytes(at);                                                                    \
  }                                                                                             \
  void __tsan_unaligned_read##bytes(void* at) {                                                 \
    foretoken::cuda::emulation::look_at_access(at, bytes, false, __builtin_return_address(0));  \
  }                                                                                             \
  void __tsan_unaligned_write##bytes(void* at) {                                                \
    foretoken::cuda::emulation::look_at_access(at, bytes, true, __builtin_return_address(0));   \
  }

#pragma GCC diagnostic ignored "-Wmissing-declarations"
#pragma GCC diagnostic ignored "-Wbuiltin-declaration-mismatch"
extern "C" {
FT_ACCESS(1)
FT_ACCESS(2)
FT_ACCESS(4)
FT_ACCESS(8)
FT_ACCESS(16)
void __tsan_read_range(void* at, unsigned long size_bytes) {
  foretoken::cuda::emulation::look_at_access(at, size_bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* at, unsigned long size_bytes) {
  foretoken::cuda::emulation::look_at_access(at, size_bytes, true, __builtin_return_address(0));
}
// Host code of the same files: counts of references, guards of static variables. No kernel has atomics.
int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
char __tsan_atomic8_load(const volatile char* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}
