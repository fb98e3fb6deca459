#include "engine/gguf/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

[[noreturn]] void fail(const std::string& path, std::string_view what) {
  throw InputError(fmt::format("{}: {}", printable(path, 4096), what));
}

[[noreturn]] void fail_with_errno(const std::string& path, std::string_view what, int error) {
  const char* remedy = "";
  if (error == ENOENT || error == ENOTDIR) remedy = "; check the path";
  if (error == EACCES) remedy = "; give this user permission to read it";
  if (error == ENOMEM) remedy = "; raise the limit on address space (ulimit -v)";
  fail(path, fmt::format("{}: {}{}", what, std::strerror(error), remedy));
}

struct FileDescriptor {
  int fd = -1;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// All mappings, where a signal handler can read them. Those of more than so many parts are not found: a bus error then
// ends the program as it does by default.
std::array<std::atomic<const MappedFile::Mapping*>, 1024> mappings;

void add_mapping(const MappedFile::Mapping* mapping) {
  for (auto& slot : mappings) {
    const MappedFile::Mapping* free = nullptr;
    if (slot.compare_exchange_strong(free, mapping)) return;
  }
}

void remove_mapping(const MappedFile::Mapping* mapping) {
  for (auto& slot : mappings) {
    const MappedFile::Mapping* expected = mapping;
    if (slot.compare_exchange_strong(expected, nullptr)) return;
  }
}

bool same_time(const timespec& a, const timespec& b) {
  return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

}  // namespace

struct MappedFile::Opened {
  Opened(FileDescriptor&& descriptor, const struct stat& status, Mapping m)
      : file{std::exchange(descriptor.fd, -1)}, written_at(status.st_mtim), mapping(std::move(m)) {
    mapping.fd = file.fd;
    add_mapping(&mapping);
  }
  ~Opened() {
    remove_mapping(&mapping);
    ::munmap(const_cast<std::byte*>(mapping.begin), mapping.size_bytes);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  const FileDescriptor file;
  const timespec written_at;
  Mapping mapping;
};

MappedFile MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) fail(path, "cannot open: the name has a zero byte; check the path");
  // Non-blocking: opening a pipe must end in an error, not wait for a writer.
  FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.fd < 0) fail_with_errno(path, "cannot open", errno);
  struct stat status {};
  if (::fstat(file.fd, &status) != 0) fail_with_errno(path, "cannot read its size", errno);
  if (S_ISDIR(status.st_mode)) fail(path, "is a directory; name a .gguf file");
  if (!S_ISREG(status.st_mode)) fail(path, "is not a regular file (pipe, socket or device); name a .gguf file");
  if (status.st_size == 0) fail(path, "is empty (0 bytes); download it again");
  const auto size_bytes = static_cast<size_t>(status.st_size);
  // No advice to the system: the pages of --no-repack are read again in every pass, and MADV_SEQUENTIAL would make them
  // the first to be dropped; the default read-ahead serves the one pass of a repacking load.
  void* address = ::mmap(nullptr, size_bytes, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (address == MAP_FAILED) fail_with_errno(path, fmt::format("cannot map its {} bytes", size_bytes), errno);
  Mapping mapping{static_cast<const std::byte*>(address), size_bytes, file.fd, printable(path, 4096)};
  return MappedFile(std::make_unique<Opened>(std::move(file), status, std::move(mapping)));
}

MappedFile::MappedFile(std::unique_ptr<Opened> opened) : opened_(std::move(opened)) {}
MappedFile::~MappedFile() = default;
MappedFile::MappedFile(MappedFile&& other) noexcept = default;
MappedFile& MappedFile::operator=(MappedFile&& other) noexcept = default;

std::span<const std::byte> MappedFile::bytes() const {
  return {opened_->mapping.begin, opened_->mapping.size_bytes};
}

bool MappedFile::has_changed() const {
  struct stat status {};
  if (::fstat(opened_->file.fd, &status) != 0) return true;
  return static_cast<size_t>(status.st_size) != opened_->mapping.size_bytes ||
         !same_time(status.st_mtim, opened_->written_at);
}

const MappedFile::Mapping* MappedFile::find(const void* address) {
  const auto* byte = static_cast<const std::byte*>(address);
  for (const auto& slot : mappings) {
    const Mapping* mapping = slot;
    if (mapping != nullptr && byte >= mapping->begin && byte < mapping->begin + mapping->size_bytes) return mapping;
  }
  return nullptr;
}

size_t MappedFile::Mapping::size_now() const {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? static_cast<size_t>(status.st_size) : 0;
}

void prefer_huge_pages(std::span<const std::byte> bytes) {
  // Of the whole mapping at once: advice for a part of it would cut the mapping there, and the huge page with it.
  (void)::madvise(const_cast<std::byte*>(bytes.data()), bytes.size(), MADV_HUGEPAGE);
}

void populate_pages(const std::byte* begin, size_t size_bytes) {
  const auto page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page_bytes * page_bytes;
  const size_t bytes = reinterpret_cast<uintptr_t>(begin) + size_bytes - first;
  // Whatever the system refuses happens when the pages are touched.
#ifdef MADV_POPULATE_READ
  (void)::madvise(reinterpret_cast<void*>(first), bytes, MADV_POPULATE_READ);
#endif
}

void release_pages(const std::byte* begin, size_t size_bytes) {
  // Both ends are rounded down: pieces released in rising order then leave no page behind between them.
  const auto page_bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / page_bytes * page_bytes;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + size_bytes) / page_bytes * page_bytes;
  // A refusal only costs resident memory, so the result does not matter.
  if (last > first) (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace foretoken
