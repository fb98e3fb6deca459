#pragma once

#include <chrono>
#include <thread>

namespace foretoken {

/// How to wait for another process: ask again and again at first, since in a pass the others are late by some
/// microseconds; then sleep in between, so that whoever is waited for gets the core where processes outnumber cores.
///
/// Over a network each question is a system call, and an answer that is not there soon takes long: from then on the core
/// is offered to others between any two, since whoever carries the packets may need it. Two processes on two cores that
/// waited without that got messages of 0.14 ms in 0.4 ms.
class Patience {
 public:
  enum class For { kMemory, kNetwork };
  explicit Patience(For what = For::kMemory) : is_for_network_(what == For::kNetwork) {}

  /// Between two questions.
  void wait() {
    // A look at the clock costs as much as some questions.
    if (++num_waits_ % kWaitsPerLook != 0)
      return is_for_network_ && num_waits_ > kEagerQuestions ? std::this_thread::yield() : pause_core();
    const auto now = std::chrono::steady_clock::now();
    if (!has_begun_) begin_ = now;
    has_begun_ = true;
    const auto waited = now - begin_;
    const auto spin_time = is_for_network_ ? kNetworkSpinTime : kSpinTime;
    if (waited > spin_time) std::this_thread::sleep_for(waited > kEagerTime ? kIdleSleep : kShortSleep);
    if (waited > spin_time) num_waits_ = kWaitsPerLook - 1;
  }
  /// How long it has taken, from the first look at the clock on.
  [[nodiscard]] double seconds() const {
    return has_begun_ ? std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count() : 0;
  }

 private:
  // Between two commands of a text that is decoded there is less than kEagerTime.
  static constexpr std::chrono::microseconds kSpinTime{200}, kNetworkSpinTime{2'000}, kEagerTime{20'000},
      kShortSleep{20}, kIdleSleep{200};
  static constexpr int kWaitsPerLook = 16;
  static constexpr int kEagerQuestions = 24;  // some 30 microseconds of them over a network

  static void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const bool is_for_network_;
  std::chrono::steady_clock::time_point begin_;
  bool has_begun_ = false;
  int num_waits_ = 0;
};

}  // namespace foretoken
