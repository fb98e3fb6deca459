#include "tools/cli/output.h"

#include <errno.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"

namespace foretoken {

bool ResultStream::write(std::string_view text) {
  while (!reader_gone_ && !text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EPIPE) {
      reader_gone_ = true;
    } else if (errno != EINTR) {
      throw InputError(fmt::format("writing to standard output failed: {}", std::strerror(errno)));
    }
  }
  return !reader_gone_;
}

OutputFile::OutputFile(std::string path, std::string_view flag) : path_(std::move(path)), flag_(flag) {
  if (!wanted() || is_stdout()) return;
  struct stat info = {};
  const bool exists = stat(path_.c_str(), &info) == 0;
  if (exists && S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    fail("cannot write");
  }
  // A device or a pipe (/dev/null, /dev/fd/3) is written in place: renaming a file over it would replace it.
  const bool in_place = exists && !S_ISREG(info.st_mode);
  part_path_ = in_place ? "" : fmt::format("{}.part{}", path_, getpid());
  file_ = std::fopen(in_place ? path_.c_str() : part_path_.c_str(), "wb");
  if (file_ == nullptr) fail("cannot write");
}

OutputFile::~OutputFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  if (!part_path_.empty()) unlink(part_path_.c_str());
}

void OutputFile::fail(std::string_view doing) const {
  throw InputError(fmt::format("{} {}: {}: {}", flag_, path_, doing, std::strerror(errno)));
}

void OutputFile::write(std::string_view bytes) {
  if (!wanted()) return;
  if (is_stdout()) {
    ResultStream().write(bytes);
  } else if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) {
    fail("writing failed");
  }
}

void OutputFile::commit() {
  if (file_ == nullptr) return;
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0 || (!part_path_.empty() && std::rename(part_path_.c_str(), path_.c_str()) != 0)) {
    const int error = errno;
    if (!part_path_.empty()) unlink(part_path_.c_str());
    errno = error;
    fail("writing failed");
  }
}

void write_json(OutputFile& file, const nlohmann::ordered_json& object) {
  if (!file.wanted()) return;
  file.write(object.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  file.commit();
}

}  // namespace foretoken
