#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace foretoken {

/// A file that appears under its name only when it is whole. Until commit() its bytes go to NAME.part<pid> in the same
/// folder, and an older file of that name stays as it is; commit() gives the new one its name and the older one's
/// permissions.
///
/// Symbolic links are written through: the file that they lead to is the one that is replaced or made. What is no
/// regular file (a device, a pipe, an open descriptor such as /dev/stdout or /dev/fd/3) is written in place.
///
/// Any number of threads may call write_at() of a file that is not written in place.
class PartFile {
 public:
  /// Opening a named pipe waits for its reader. Throws InputError, "PATH: cannot write: why": a directory, no
  /// permission, a folder that is missing, the target of another PartFile.
  explicit PartFile(std::string path);
  ~PartFile();  // without commit(): removes what was begun
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  [[nodiscard]] bool is_in_place() const { return target_.empty(); }
  /// The regular file that commit() makes; empty if it is written in place.
  [[nodiscard]] const std::string& target() const { return target_; }

  // Each throws InputError, "PATH: writing failed: why", e.g. for a full disk.
  void write(std::string_view bytes);
  /// Of a file that is written in place the offsets must rise; what lies between them becomes zeros.
  void write_at(size_t offset, std::string_view bytes);
  /// Sets the size of the whole file, which write_at() then fills.
  void resize(size_t size_bytes);
  void commit();

 private:
  [[noreturn]] void fail(std::string_view doing, int error) const;
  void write_whole(std::string_view bytes);
  void forget_part() const;

  const std::string path_;
  std::string target_, part_;
  int fd_ = -1;
  int slot_ = -1;        // of the list that remove_part_files() reads
  size_t position_ = 0;  // that write() has reached
};

/// The number of the open descriptor that a path names: 1 for /dev/stdout, /dev/fd/1 and links to them.
[[nodiscard]] std::optional<int> descriptor_of(const std::string& path);

/// Removes the part files of all PartFiles that are open. For signal handlers that end the program: it calls nothing
/// that they may not call.
void remove_part_files();

}  // namespace foretoken
