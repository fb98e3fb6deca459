#pragma once

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace foretoken {

/// True if stderr is a terminal: only there are progress bars drawn.
[[nodiscard]] bool stderr_is_terminal();

/// Writes to stderr. Where stderr is full, closed or a pipe without a reader the text is lost: the result on standard
/// output is worth more than a message about it.
void print_message(std::string_view text);
template <class... Arguments>
void print_message(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  print_message(std::string_view(fmt::format(format, std::forward<Arguments>(arguments)...)));
}

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

}  // namespace foretoken
