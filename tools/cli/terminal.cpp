#include "tools/cli/terminal.h"

#include <unistd.h>

#include <array>
#include <cerrno>

namespace foretoken {

bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) == 1;
}

void print_message(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

ProgressBar::ProgressBar(std::string_view what) : what_(what), enabled_(stderr_is_terminal()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) print_message("\r\033[K");
}

void ProgressBar::show(size_t done, size_t all) {
  if (!enabled_ || drawing_.test_and_set(std::memory_order_acquire)) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ >= std::chrono::milliseconds(100)) {
    constexpr int kWidth = 40;
    const double share = all == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(all);
    const int filled = static_cast<int>(share * kWidth);
    print_message("\r\033[K{} [{}{}] {:3.0f}%", what_, std::string(filled, '#'), std::string(kWidth - filled, ' '),
                  100 * share);
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
