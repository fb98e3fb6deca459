#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace foretoken {

/// A regular file mapped read-only. Its size is checked when it is opened; a file that another program cuts short
/// afterwards kills the process with SIGBUS, as for every mapped file.
class MappedFile {
 public:
  /// Throws InputError, one line that names the file and the reason: missing, a directory, no permission, not a regular
  /// file, empty.
  [[nodiscard]] static MappedFile open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

/// Drops the pages of [begin, begin + size_bytes) of a mapping from this process; they are read again when touched.
void release_pages(const std::byte* begin, size_t size_bytes);

}  // namespace foretoken
