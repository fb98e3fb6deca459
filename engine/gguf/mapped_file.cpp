#include "engine/gguf/mapped_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  if (path.find('\0') != std::string::npos) fail(path, "cannot open: the name has a zero byte; check the path");
  // Non-blocking: opening a pipe must end in an error, not wait for a writer.
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
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
  return MappedFile({static_cast<const std::byte*>(address), size_bytes});
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
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
