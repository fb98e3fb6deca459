#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace foretoken {

/// Ends this process if the others do not come together with it: MPI waits for ever for one that was stopped while it
/// started. How long they may take to be read from a disk nobody can know, so that is kLimit; one that is seen to be
/// stopped on this host is given kStoppedLimit. The lowest rank that can says which it is.
class StartLimit {
 public:
  static constexpr std::chrono::seconds kStoppedLimit{6}, kLimit{30};

  explicit StartLimit(int rank);
  ~StartLimit();
  StartLimit(const StartLimit&) = delete;
  StartLimit& operator=(const StartLimit&) = delete;

 private:
  using Clock = std::chrono::steady_clock;

  void wait();
  /// Sleeps; true if all have come together, or have to end.
  [[nodiscard]] bool is_over_after(std::chrono::milliseconds time);
  void look_for_stopped();

  const int rank_;
  std::map<pid_t, Clock::time_point> stopped_since_;
  std::set<int> lower_ranks_;  // that were seen on this host
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_over_ = false;
  std::thread thread_;
};

/// Ends this process now, without a half-written file.
[[noreturn]] void end_at_once(int exit_code);

}  // namespace foretoken
