#pragma once

#include <filesystem>
#include <fstream>
#include <string>

namespace foretoken {

/// The letter that the kernel has for a process or a thread, from its `stat` under /proc: R runs, S sleeps, D waits for a
/// disk, T and t are stopped by a signal and by a debugger, Z and X have ended. '\0': there is none such.
[[nodiscard]] inline char process_state(const std::filesystem::path& stat_file) {
  std::ifstream file(stat_file);
  std::string stat;
  std::getline(file, stat, '\0');
  const size_t at = stat.rfind(") ");  // "number (name) state ...": the name may have any letters in it
  return at == std::string::npos || at + 2 >= stat.size() ? '\0' : stat[at + 2];
}

}  // namespace foretoken
