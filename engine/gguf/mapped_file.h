#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace foretoken {

/// A regular file mapped read-only. Its size is checked when it is opened; reading a part that another program cuts off
/// afterwards raises SIGBUS, as for every mapped file: find() tells a signal handler which file that was.
class MappedFile {
 public:
  /// What a signal handler may know about a mapping.
  struct Mapping {
    const std::byte* begin = nullptr;
    size_t size_bytes = 0;
    int fd = -1;
    std::string shown_path;  // printable
    /// The size that the file has now; 0 if nobody knows.
    [[nodiscard]] size_t size_now() const;
  };

  /// Throws InputError, one line that names the file and the reason: missing, a directory, no permission, not a regular
  /// file, empty.
  [[nodiscard]] static MappedFile open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  [[nodiscard]] std::span<const std::byte> bytes() const;

  /// True if the file's bytes are no longer those that were opened, by its size and the time it was last written to.
  /// Another file that took its name is not meant: this one stays readable.
  [[nodiscard]] bool has_changed() const;

  /// The mapping that holds `address`; nullptr: none. May be called in a signal handler.
  [[nodiscard]] static const Mapping* find(const void* address);

 private:
  struct Opened;
  explicit MappedFile(std::unique_ptr<Opened> opened);
  std::unique_ptr<Opened> opened_;
};

/// Asks for huge pages, where the system has them for files: its page cache then holds the file so for the next process
/// too. `bytes`: a whole mapping.
void prefer_huge_pages(std::span<const std::byte> bytes);

/// Brings the pages of [begin, begin + size_bytes) of a mapping into memory.
void populate_pages(const std::byte* begin, size_t size_bytes);

/// Drops the pages of [begin, begin + size_bytes) of a mapping from this process; they are read again when touched.
void release_pages(const std::byte* begin, size_t size_bytes);

}  // namespace foretoken
