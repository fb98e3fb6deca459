#include "tools/cli/terminal.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>

namespace foretoken {

bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) == 1;
}

bool stdout_is_terminal() {
  if (isatty(STDOUT_FILENO) != 1) return false;
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return true;
  const std::string output_of_mpirun = fmt::format("/proc/{}/fd/{}", ::getppid(), STDOUT_FILENO);
  const int fd = ::open(output_of_mpirun.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool is_terminal = isatty(fd) == 1;
  ::close(fd);
  return is_terminal;
}

void print_message(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

namespace {

// "1.20 of 2.40 GB", "12 of 45 runs"
std::string describe_amount(Unit unit, size_t done, size_t all) {
  switch (unit) {
    case Unit::kBytes:
      return fmt::format("{} of {}", format_bytes(static_cast<double>(done)), format_bytes(static_cast<double>(all)));
    case Unit::kTokens:
      return fmt::format("{} of {} tokens", done, all);
    case Unit::kRuns:
      return fmt::format("{} of {} runs", done, all);
    case Unit::kCases:
      return fmt::format("{} of {} cases", done, all);
  }
  return {};
}

std::string describe_rate(Unit unit, double rate) {
  switch (unit) {
    case Unit::kBytes:
      return format_bytes(rate) + "/s";
    case Unit::kTokens:
      return fmt::format("{:.{}f} tok/s", rate, rate < 100 ? 1 : 0);
    case Unit::kRuns:
    case Unit::kCases:
      return rate >= 1 ? fmt::format("{:.1f}/s", rate) : fmt::format("{:.1f} s each", 1 / rate);
  }
  return {};
}

std::string describe_time_left(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{} s left", whole);
  if (whole < 3600) return fmt::format("{}:{:02} min left", whole / 60, whole % 60);
  return fmt::format("{}:{:02} h left", whole / 3600, whole / 60 % 60);
}

// Columns of the terminal; 0: unknown.
size_t terminal_width() {
  winsize size = {};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

}  // namespace

std::string describe_progress(std::string_view what, Unit unit, size_t done, size_t all, double seconds,
                              std::string_view note) {
  constexpr size_t kWidth = 24;
  const double share = all == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(all);
  const auto filled = static_cast<size_t>(share * kWidth);
  std::string text = fmt::format("{} [{}{}] {:3.0f}%  {}", what, std::string(filled, '#'),
                                 std::string(kWidth - filled, ' '), 100 * share, describe_amount(unit, done, all));
  // A rate of the first moments says nothing.
  if (done > 0 && seconds >= 0.2) {
    const double rate = static_cast<double>(done) / seconds;
    text +=
        fmt::format(", {}, {}", describe_rate(unit, rate), describe_time_left(static_cast<double>(all - done) / rate));
  }
  if (!note.empty()) text += fmt::format(", {}", note);
  return text;
}

ProgressBar::ProgressBar(std::string_view what, Unit unit) : what_(what), unit_(unit), enabled_(stderr_is_terminal()) {}

ProgressBar::~ProgressBar() {
  wipe();
}

void ProgressBar::wipe() {
  if (drawn_) print_message("\r\033[K");
  drawn_ = false;
}

void ProgressBar::show(size_t done, size_t all, std::string_view note) {
  if (!enabled_ || drawing_.test_and_set(std::memory_order_acquire)) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ >= std::chrono::milliseconds(100)) {
    std::string line =
        describe_progress(what_, unit_, done, all, std::chrono::duration<double>(now - begin_).count(), note);
    // A line that wraps could not be drawn over.
    if (const size_t width = terminal_width(); width > 1 && line.size() >= width) line.resize(width - 1);
    print_message("\r\033[K{}", line);
    last_ = now;
    drawn_ = true;
  }
  drawing_.clear(std::memory_order_release);
}

std::string format_bytes(double bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 999.5 && unit + 1 < kUnits.size()) {
    bytes /= 1000;
    ++unit;
  }
  const int decimals = unit == 0 || bytes >= 99.95 ? 0 : bytes >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", bytes, decimals, kUnits[unit]);
}

}  // namespace foretoken
