#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

namespace foretoken {

/// True if stderr is a terminal: only there are progress bars drawn.
[[nodiscard]] bool stderr_is_terminal();

/// One line on stderr, redrawn in place, at most ten times a second, and wiped at the end. Draws nothing where stderr
/// is no terminal. show() may be called from several threads; a call that finds another one drawing returns at once.
class ProgressBar {
 public:
  explicit ProgressBar(std::string_view what);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(size_t done, size_t all);

 private:
  const std::string what_;
  const bool enabled_;
  std::atomic_flag drawing_ = ATOMIC_FLAG_INIT;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// "1.23 GB", "4.5 kB": decimal units, three digits.
[[nodiscard]] std::string format_bytes(double bytes);

/// Makes SIGINT and SIGTERM set the flag below. The signal after the first one ends the process as usual: a generation
/// that does not come to its next window can still be stopped.
void catch_interrupts();
[[nodiscard]] const std::atomic<bool>& interrupted();

}  // namespace foretoken
