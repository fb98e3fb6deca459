#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/threads/thread_team.h"

namespace foretoken {

/// Kinds of work that a profile tells apart, [0, kMostWorkKinds): which ones, those who profile say (moe/work.h).
enum class Work : uint8_t;
inline constexpr size_t kMostWorkKinds = 16;

/// Where the time of a model's passes goes. Work items are timed on the thread that runs them; what a parallel loop
/// takes beyond its items (waking, waiting for the last one, idle members of the team) is its synchronisation.
///
/// In milliseconds of wall clock: sum over kinds of busy_ms / num_threads + synchronisation_ms = time inside parallel
/// loops and timed serial parts. What happens between passes is outside this profile. Thread rules: add() from the members
/// of the team, each with its own index; the rest from the calling thread between loops.
class WorkProfile {
 public:
  explicit WorkProfile(int num_threads) : by_thread_(static_cast<size_t>(num_threads)) {}

  void add(Work work, int thread_idx, int64_t ns, int64_t bytes) {
    Entry& entry = by_thread_[static_cast<size_t>(thread_idx)].entries[static_cast<size_t>(work)];
    entry.ns += ns;
    entry.bytes += bytes;
  }
  /// A loop over the whole team took `ns` of wall clock. Serial parts count with the one thread that worked.
  void add_loop(int64_t ns) { loop_ns_ += ns; }
  void clear();

  [[nodiscard]] int num_threads() const { return static_cast<int>(by_thread_.size()); }
  [[nodiscard]] double ms(Work work) const;      // busy time / num_threads
  [[nodiscard]] int64_t bytes(Work work) const;  // weights, cache and state that the items read or wrote
  [[nodiscard]] double synchronisation_ms() const;
  [[nodiscard]] double loops_ms() const { return static_cast<double>(loop_ns_) * 1e-6; }

  [[nodiscard]] static int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

 private:
  struct Entry {
    int64_t ns = 0;
    int64_t bytes = 0;
  };
  struct alignas(64) Thread {
    std::array<Entry, kMostWorkKinds> entries{};
  };
  std::vector<Thread> by_thread_;
  int64_t loop_ns_ = 0;
};

/// team.parallel_for, timed if `profile` is not nullptr; `items` is its first argument. body(item, thread_idx) returns
/// the bytes it read or wrote and the kind of its work.
struct WorkDone {
  Work work;
  int64_t bytes;
};
template <class Items, class Body>
void profiled_for(ThreadTeam& team, WorkProfile* profile, const Items& items, Body&& body) {
  if (profile == nullptr) {
    team.parallel_for(items, [&](int64_t item, int thread_idx) { (void)body(item, thread_idx); });
    return;
  }
  const int64_t begin = WorkProfile::now_ns();
  team.parallel_for(items, [&](int64_t item, int thread_idx) {
    const int64_t item_begin = WorkProfile::now_ns();
    const WorkDone done = body(item, thread_idx);
    profile->add(done.work, thread_idx, WorkProfile::now_ns() - item_begin, done.bytes);
  });
  profile->add_loop(WorkProfile::now_ns() - begin);
}

/// profiled_for over the rows of a pass, each a light piece of work on `values_per_row` values (norms, sums,
/// quantisation). A few short rows stay on the calling thread: a loop over the team costs about a microsecond, and so
/// does a row of 2,048.
inline constexpr int64_t kSerialValues = 2048;

template <class Body>
void profiled_rows(ThreadTeam& team, WorkProfile* profile, int64_t num_rows, int64_t values_per_row, Body&& body) {
  if (num_rows * values_per_row > kSerialValues) return profiled_for(team, profile, num_rows, body);
  profiled_for(team, profile, num_rows == 0 ? 0 : 1, [&](int64_t, int thread_idx) {
    WorkDone done = body(0, thread_idx);
    for (int64_t r = 1; r < num_rows; ++r) done.bytes += body(r, thread_idx).bytes;
    return done;
  });
}

}  // namespace foretoken
