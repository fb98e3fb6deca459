#include "kernels/base/aligned_buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>

#include "kernels/base/error.h"

namespace foretoken {

namespace {
constexpr size_t kHugePageBytes = size_t{2} << 20;
std::atomic<size_t> mapped_bytes{0};
}  // namespace

AlignedBuffer::AlignedBuffer(size_t size_bytes, std::string_view what) {
  if (size_bytes == 0) return;
  void* mapped = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw InputError(
        fmt::format("cannot allocate {:.1f} MiB for {}; free memory or choose a smaller --ctx-size or model",
                    static_cast<double>(size_bytes) / (1 << 20), what));
  }
  // Weights stream faster with fewer page walks; small buffers would only waste the rest of a huge page.
  if (size_bytes >= 4 * kHugePageBytes) madvise(mapped, size_bytes, MADV_HUGEPAGE);
  data_ = mapped;
  size_bytes_ = size_bytes;
  mapped_bytes += size_bytes;
}

size_t AlignedBuffer::all_bytes() {
  return mapped_bytes;
}

void AlignedBuffer::refuse_huge_page(size_t offset) {
  const auto begin = reinterpret_cast<uintptr_t>(data_), at = (begin + offset) / kHugePageBytes * kHugePageBytes;
  if (at == begin + offset) return;  // a huge page ends there anyway
  const uintptr_t first = std::max(at, begin), last = std::min(at + kHugePageBytes, begin + size_bytes_);
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_NOHUGEPAGE);
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ == nullptr) return;
  munmap(data_, size_bytes_);
  mapped_bytes -= size_bytes_;
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

}  // namespace foretoken
