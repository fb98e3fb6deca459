#include "kernels/cuda/emulation/emulated_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/base/error.h"
#include "kernels/cuda/emulation/cuda_emulation.h"

namespace foretoken::cuda::emulation {

namespace {

constexpr size_t kPage = 4096;

size_t round_to_pages(size_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

std::byte* reserve(size_t size_bytes, int protection) {
  void* mapped = mmap(nullptr, size_bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  FT_CHECK(mapped != MAP_FAILED);
  return static_cast<std::byte*>(mapped);
}

constexpr size_t kMappedBegin = DeviceMemory::kBytes - DeviceMemory::kMappedBytes;

class Heap {
 public:
  Heap() {
    memory_.begin = reserve(DeviceMemory::kBytes, PROT_NONE);
    memory_.states = reinterpret_cast<uint8_t*>(reserve(DeviceMemory::kBytes / 4, PROT_READ | PROT_WRITE));
    FT_CHECK(mprotect(memory_.begin, DeviceMemory::kSharedBytes, PROT_READ | PROT_WRITE) == 0);
  }

  [[nodiscard]] const DeviceMemory& memory() const { return memory_; }

  // Pages [begin, end) of an allocation; the data starts kGuardBytes after its begin, so that no kernel can count on more
  // alignment than a GPU gives. The page behind it stays unused.
  std::byte* allocate(size_t size_bytes, std::span<const Piece> pieces) {
    const DeviceAccess access;
    const std::lock_guard lock(mutex_);
    const size_t length = round_to_pages(DeviceMemory::kGuardBytes + size_bytes) + kPage;
    const size_t begin = find_room(length);
    live_.emplace(begin, Live{begin + length, begin + DeviceMemory::kGuardBytes + size_bytes});
    cursor_ = begin + length;
    if (cursor_ > top_) {
      FT_CHECK(mprotect(memory_.begin + top_, cursor_ - top_, PROT_READ | PROT_WRITE) == 0);
      top_ = cursor_;
    }
    std::byte* data = memory_.begin + begin + DeviceMemory::kGuardBytes;
    std::memset(data, 0xff, size_bytes);
    for (const Piece& piece : pieces) {
      FT_CHECK(piece.offset % 4 == 0 && piece.offset + piece.size_bytes <= size_bytes);
      std::memset(state_of(data + piece.offset), kAllocated, (piece.size_bytes + 3) / 4);
    }
    return data;
  }

  void free(std::byte* data) {
    const std::lock_guard lock(mutex_);
    const auto begin = static_cast<size_t>(data - memory_.begin) - DeviceMemory::kGuardBytes;
    const auto found = live_.find(begin);
    FT_CHECK(found != live_.end());
    const size_t length = found->second.end - begin;
    std::memset(memory_.states + begin / 4, 0, length / 4);
    FT_CHECK(madvise(memory_.begin + begin, length, MADV_DONTNEED) == 0);
    live_.erase(found);
  }

  std::byte* allocate_mapped(size_t size_bytes) {
    const std::lock_guard lock(mutex_);
    const size_t length = round_to_pages(DeviceMemory::kGuardBytes + size_bytes) + kPage;
    if (mapped_.empty()) mapped_cursor_ = kMappedBegin;
    const size_t begin = mapped_cursor_;
    FT_CHECK(begin + length <= DeviceMemory::kBytes);
    mapped_cursor_ += length;
    mapped_.emplace(begin, length);
    FT_CHECK(mprotect(memory_.begin + begin, length, PROT_READ | PROT_WRITE) == 0);
    std::byte* data = memory_.begin + begin + DeviceMemory::kGuardBytes;
    std::memset(data, 0xff, size_bytes);
    std::memset(state_of(data), kAllocated | kWrittenBytes, (size_bytes + 3) / 4);
    return data;
  }

  void free_mapped(std::byte* data) {
    const std::lock_guard lock(mutex_);
    const auto begin = static_cast<size_t>(data - memory_.begin) - DeviceMemory::kGuardBytes;
    const auto found = mapped_.find(begin);
    FT_CHECK(found != mapped_.end());
    std::memset(memory_.states + begin / 4, 0, found->second / 4);
    FT_CHECK(madvise(memory_.begin + begin, found->second, MADV_DONTNEED) == 0);
    FT_CHECK(mprotect(memory_.begin + begin, found->second, PROT_NONE) == 0);
    mapped_.erase(found);
  }

  void open() {
    const std::lock_guard lock(mutex_);
    if (++open_ == 1) protect(PROT_READ | PROT_WRITE);
  }
  void close() {
    const std::lock_guard lock(mutex_);
    if (--open_ == 0) protect(PROT_NONE);
  }

  // Whether the range lies in one allocation.
  [[nodiscard]] bool holds(const void* data, size_t size_bytes) {
    const std::lock_guard lock(mutex_);
    const auto begin = static_cast<size_t>(static_cast<const std::byte*>(data) - memory_.begin);
    const auto next = live_.upper_bound(begin);
    return next != live_.begin() && begin >= std::prev(next)->first + DeviceMemory::kGuardBytes &&
           begin + size_bytes <= std::prev(next)->second.data_end;
  }

  [[nodiscard]] uint8_t* state_of(const void* address) const {
    return memory_.states + static_cast<size_t>(static_cast<const std::byte*>(address) - memory_.begin) / 4;
  }

 private:
  // Next fit: what was freed is used again only after the whole range has been, so that a stale pointer is found.
  size_t find_room(size_t length) const {
    for (const size_t start : {cursor_, DeviceMemory::kSharedBytes}) {
      size_t at = start;
      auto next = live_.lower_bound(at);
      if (next != live_.begin()) at = std::max(at, std::prev(next)->second.end);
      for (; next != live_.end() && next->first - at < length; ++next) at = next->second.end;
      if (kMappedBegin - at >= length) return at;
    }
    FT_CHECK(!"the emulated device's address range is full");
    return 0;
  }

  void protect(int protection) {
    const size_t begin = DeviceMemory::kSharedBytes;
    if (top_ > begin) FT_CHECK(mprotect(memory_.begin + begin, top_ - begin, protection) == 0);
  }

  DeviceMemory memory_;
  std::recursive_mutex mutex_;
  struct Live {
    size_t end, data_end;
  };
  std::map<size_t, Live> live_;  // by begin
  size_t cursor_ = DeviceMemory::kSharedBytes, top_ = DeviceMemory::kSharedBytes;
  int open_ = 0;
  std::map<size_t, size_t> mapped_;  // length by begin
  size_t mapped_cursor_ = kMappedBegin;
};

Heap& heap() {
  static Heap* instance = new Heap;  // kernels may run until the very end
  return *instance;
}

}  // namespace

const DeviceMemory& device_memory() {
  return heap().memory();
}

std::byte* allocate_device_memory(size_t size_bytes, std::span<const Piece> pieces) {
  return heap().allocate(size_bytes, pieces);
}
void free_device_memory(std::byte* data) {
  heap().free(data);
}

std::byte* allocate_mapped_memory(size_t size_bytes) {
  return heap().allocate_mapped(size_bytes);
}
void free_mapped_memory(std::byte* data) {
  heap().free_mapped(data);
}

namespace {

struct Registered {
  std::mutex mutex;
  std::map<const std::byte*, size_t> sizes;  // by begin
};

Registered& registered() {
  static Registered* instance = new Registered;
  return *instance;
}

}  // namespace

void register_host_memory(const void* data, size_t size_bytes) {
  const std::lock_guard lock(registered().mutex);
  FT_CHECK(registered().sizes.emplace(static_cast<const std::byte*>(data), size_bytes).second);
}
void unregister_host_memory(const void* data) {
  const std::lock_guard lock(registered().mutex);
  FT_CHECK(registered().sizes.erase(static_cast<const std::byte*>(data)) == 1);
}
bool is_registered(const void* address) {
  const std::lock_guard lock(registered().mutex);
  const auto* at = static_cast<const std::byte*>(address);
  const auto next = registered().sizes.upper_bound(at);
  return next != registered().sizes.begin() && at < std::prev(next)->first + std::prev(next)->second;
}

void check_allocated(const void* data, size_t size_bytes) {
  if (size_bytes == 0 || !device_memory().contains(data)) return;
  if (!heap().holds(data, size_bytes))
    throw EmulationError(fmt::format("a copy or a fill of {} bytes leaves its allocation", size_bytes));
}

void mark_written(const void* data, size_t size_bytes, Writer writer) {
  if (size_bytes == 0 || !device_memory().contains(data)) return;
  uint8_t* state = heap().state_of(data);
  const size_t first = reinterpret_cast<uintptr_t>(data) % 4, num_words = (first + size_bytes + 3) / 4;
  for (size_t word = 0; word < num_words; ++word) {
    uint8_t bytes = kWrittenBytes;
    if (word == 0) bytes = static_cast<uint8_t>(bytes << first & kWrittenBytes);
    if (const size_t end = first + size_bytes - 4 * word; end < 4)
      bytes = static_cast<uint8_t>(bytes & ((1u << end) - 1u));
    if ((state[word] & kAllocated) == 0) continue;
    state[word] |= bytes;
    // A copy begins when all kernels ahead have ended, and the next kernel when it has.
    if (writer == Writer::kKernel) {
      state[word] |= kStored;
    } else if (bytes == kWrittenBytes) {
      state[word] &= static_cast<uint8_t>(~kStored);
    }
  }
}

DeviceAccess::DeviceAccess() {
  heap().open();
}
DeviceAccess::~DeviceAccess() {
  heap().close();
}

namespace {
size_t shared_used = 0;
}  // namespace

std::byte* take_shared(size_t size_bytes) {
  constexpr size_t kAlignment = 128;
  const DeviceMemory& memory = device_memory();
  const size_t begin = shared_used + kAlignment;
  shared_used = (begin + size_bytes + kAlignment - 1) / kAlignment * kAlignment;
  FT_CHECK(shared_used + kAlignment <= DeviceMemory::kSharedBytes);
  std::byte* data = memory.begin + begin;
  std::memset(data, 0xff, size_bytes);
  std::memset(memory.states + begin / 4, kAllocated, (size_bytes + 3) / 4);
  return data;
}

void clear_shared() {
  std::memset(device_memory().states, 0, shared_used / 4);
  shared_used = 0;
}

}  // namespace foretoken::cuda::emulation
