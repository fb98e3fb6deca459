#include "tools/cli/output.h"

#include <errno.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/base/error.h"
#include "tools/cli/interruption.h"

namespace foretoken {

bool ResultStream::write(std::string_view text) {
  while (!reader_gone_ && !text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EPIPE || (errno == EINTR && interrupted())) {
      reader_gone_ = true;
    } else if (errno != EINTR) {
      throw InputError(fmt::format("writing to standard output failed: {}", std::strerror(errno)));
    }
  }
  return !reader_gone_;
}

namespace {

/// Calls `work`; its errors get the flag's name in front.
template <class Work>
void with_flag(const std::string& flag, Work&& work) {
  try {
    work();
  } catch (const InputError& error) {
    throw InputError(fmt::format("{} {}", flag, error.what()));
  }
}

}  // namespace

OutputFile::OutputFile(std::string path, std::string_view flag) : flag_(flag) {
  if (path.empty()) return;
  is_stdout_ = path == "-" || descriptor_of(path) == STDOUT_FILENO;
  if (!is_stdout_) with_flag(flag_, [&] { file_.emplace(std::move(path)); });
}

void OutputFile::write(std::string_view bytes) {
  if (is_stdout_) {
    ResultStream().write(bytes);
  } else if (file_) {
    with_flag(flag_, [&] { file_->write(bytes); });
  }
}

void OutputFile::commit() {
  if (file_) with_flag(flag_, [&] { file_->commit(); });
}

void check_one_stdout(std::initializer_list<std::pair<std::string_view, bool>> flags) {
  std::string_view first;
  for (const auto& [flag, is_stdout] : flags) {
    if (is_stdout && !first.empty())
      throw UsageError(fmt::format("{} and {}: standard output takes one of them", first, flag));
    if (is_stdout) first = flag;
  }
}

void write_json(OutputFile& file, const nlohmann::ordered_json& object) {
  if (!file.wanted()) return;
  file.write(object.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  file.commit();
}

}  // namespace foretoken
