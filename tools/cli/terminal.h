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

/// True if somebody reads standard output at a terminal. mpirun gives every process a terminal of its own and passes on
/// what comes there: then what counts is mpirun's own standard output.
[[nodiscard]] bool stdout_is_terminal();

/// Writes to stderr. Where stderr is full, closed or a pipe without a reader the text is lost: the result on standard
/// output is worth more than a message about it.
void print_message(std::string_view text);
template <class... Arguments>
void print_message(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  print_message(std::string_view(fmt::format(format, std::forward<Arguments>(arguments)...)));
}

/// What a progress bar counts.
enum class Unit { kBytes, kTokens, kRuns, kCases };

/// "loading [####    ]  50%  1.20 of 2.40 GB, 0.80 GB/s, 1.5 s left", then ", " and the note if there is one.
[[nodiscard]] std::string describe_progress(std::string_view what, Unit unit, size_t done, size_t all, double seconds,
                                            std::string_view note = {});

/// One line on stderr for something that a person waits for: how much is done of how much, the rate and the time left.
/// Redrawn in place at most ten times a second, cut to the terminal's width, and wiped at the end. Draws nothing where
/// stderr is no terminal. show() may be called from several threads; a call that finds another one drawing returns at
/// once.
class ProgressBar {
 public:
  ProgressBar(std::string_view what, Unit unit);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(size_t done, size_t all, std::string_view note = {});
  /// Removes the line: other text may follow.
  void wipe();

 private:
  const std::string what_;
  const Unit unit_;
  const bool enabled_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::atomic_flag drawing_ = ATOMIC_FLAG_INIT;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// "1.23 GB", "4.5 kB": decimal units, three digits.
[[nodiscard]] std::string format_bytes(double bytes);

}  // namespace foretoken
