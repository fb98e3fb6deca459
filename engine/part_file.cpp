#include "engine/part_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

namespace fs = std::filesystem;

constexpr int kMaxLinks = 40;  // as the system follows at most

// The part files that are open, where a signal handler can read them: fixed memory, a flag for each entry that is set
// after its name was written.
struct PartName {
  std::atomic<bool> is_open{false};
  std::array<char, PATH_MAX> name;
};
std::array<PartName, 16> part_names;
std::mutex part_names_mutex;  // of those who add and remove

// -1: there is no room, and a signal will leave this file behind.
int add_part_name(const std::string& name) {
  const std::lock_guard lock(part_names_mutex);
  for (size_t i = 0; i < part_names.size() && name.size() < PATH_MAX; ++i) {
    if (part_names[i].is_open) continue;
    std::copy_n(name.c_str(), name.size() + 1, part_names[i].name.data());
    part_names[i].is_open = true;
    return static_cast<int>(i);
  }
  return -1;
}

bool is_part_name(const std::string& name) {
  const std::lock_guard lock(part_names_mutex);
  return std::any_of(part_names.begin(), part_names.end(),
                     [&](const PartName& part) { return part.is_open && name == part.name.data(); });
}

// A path with its last component's links followed as far as they go.
struct Resolved {
  std::string path;
  std::optional<int> descriptor;
};

// Throws std::error_code for links in a circle.
Resolved resolve(const std::string& path) {
  fs::path at = path;
  for (int i = 0; i < kMaxLinks; ++i) {
    std::error_code error;
    if (!fs::is_symlink(fs::symlink_status(at, error))) return {at.string(), std::nullopt};
    // /proc/self/fd/1: a link only by its looks. Opening it again would begin at the file's start.
    const fs::path folder = fs::canonical(at.has_parent_path() ? at.parent_path() : ".", error);
    if (!error && folder == fmt::format("/proc/{}/fd", ::getpid())) {
      const std::string name = at.filename().string();
      if (!name.empty() && name.size() < 10 && std::all_of(name.begin(), name.end(), ::isdigit))
        return {at.string(), std::stoi(name)};
    }
    const fs::path next = fs::read_symlink(at, error);
    if (error) throw error;
    at = at.parent_path() / next;  // an absolute `next` stands for itself
  }
  throw std::make_error_code(std::errc::too_many_symbolic_link_levels);
}

}  // namespace

PartFile::PartFile(std::string path) : path_(std::move(path)) {
  constexpr std::string_view kOpening = "cannot write";
  Resolved resolved;
  try {
    resolved = resolve(path_);
  } catch (const std::error_code& error) {
    fail(kOpening, error.value());
  }
  if (resolved.descriptor) {
    fd_ = ::fcntl(*resolved.descriptor, F_DUPFD_CLOEXEC, 3);
    if (fd_ < 0) fail(kOpening, errno);
    return;
  }
  struct stat info = {};
  const bool exists = ::stat(resolved.path.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) fail(kOpening, EISDIR);
  if (exists && !S_ISREG(info.st_mode)) {
    fd_ = ::open(resolved.path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd_ < 0) fail(kOpening, errno);
    return;
  }
  // Replacing a file needs no permission to write to it, so that is asked for here.
  if (exists && ::access(resolved.path.c_str(), W_OK) != 0) fail(kOpening, errno);
  target_ = resolved.path;
  part_ = fmt::format("{}.part{}", target_, ::getpid());
  if (is_part_name(part_))
    throw InputError(fmt::format("{}: cannot write: another output has the same name", printable(path_, PATH_MAX)));
  slot_ = add_part_name(part_);  // before it is there: a signal may come between
  fd_ = ::open(part_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) {
    const int error = errno;
    forget_part();
    fail(exists && error != ENAMETOOLONG ? "cannot write a new file beside it" : kOpening, error);
  }
  if (exists) (void)::fchmod(fd_, info.st_mode & 07777);
}

PartFile::~PartFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  if (is_in_place()) return;
  ::unlink(part_.c_str());
  forget_part();
}

void PartFile::forget_part() const {
  if (slot_ >= 0) part_names[slot_].is_open = false;
}

void PartFile::fail(std::string_view doing, int error) const {
  const char* remedy = "";
  if (error == ENOSPC || error == EDQUOT) remedy = "; free some space";
  if (error == EFBIG) remedy = "; raise the limit on file sizes (ulimit -f)";
  const std::string shown = target_.empty() || target_ == path_
                                ? printable(path_, PATH_MAX)
                                : fmt::format("{} (-> {})", printable(path_, PATH_MAX), printable(target_, PATH_MAX));
  throw InputError(fmt::format("{}: {}: {}{}", shown, doing, std::strerror(error), remedy));
}

void PartFile::write_whole(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("writing failed", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
    position_ += static_cast<size_t>(written);
  }
}

void PartFile::write(std::string_view bytes) {
  write_whole(bytes);
}

void PartFile::write_at(size_t offset, std::string_view bytes) {
  if (is_in_place()) {
    FT_CHECK(offset >= position_);
    while (position_ < offset) write_whole(std::string(std::min<size_t>(offset - position_, 1 << 16), '\0'));
    write_whole(bytes);
    return;
  }
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("writing failed", errno);
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<size_t>(written);
  }
}

void PartFile::resize(size_t size_bytes) {
  if (is_in_place()) return;
  if (::ftruncate(fd_, static_cast<off_t>(size_bytes)) != 0)
    fail(fmt::format("cannot make it {} bytes long", size_bytes), errno);
}

void PartFile::commit() {
  const int fd = fd_;
  int error = ::close(fd) == 0 ? 0 : errno;
  fd_ = -1;
  if (is_in_place()) {
    if (error != 0) fail("writing failed", error);
    return;
  }
  if (error == 0 && ::rename(part_.c_str(), target_.c_str()) != 0) error = errno;
  if (error != 0) ::unlink(part_.c_str());
  forget_part();
  if (error != 0) fail("cannot give the finished file its name", error);
}

std::optional<int> descriptor_of(const std::string& path) {
  try {
    return resolve(path).descriptor;
  } catch (const std::error_code&) {
    return std::nullopt;  // opening it says why
  }
}

void remove_part_files() {
  for (const PartName& part : part_names) {
    if (part.is_open) ::unlink(part.name.data());
  }
}

}  // namespace foretoken
