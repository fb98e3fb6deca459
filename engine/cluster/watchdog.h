#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "engine/transport.h"

namespace foretoken {

/// What the main thread of a process of a cluster is at; the watchdog's thread reads it.
struct Activity {
  std::atomic<uint64_t> steps{0};    // messages, and pieces of a file that were loaded
  std::atomic<bool> waits{false};    // for another process
  std::atomic<bool> is_busy{false};  // rank 0: with what the others wait for
  std::atomic<int> worker{0};        // rank 0: the thread that is, or was last, or will be
};

/// Sees that a process of a cluster is gone or stands still, which who waits for it in a message may never learn. Every
/// rank has a connection of its own with rank 0, beside those that messages take, and a thread that says twice a
/// second that it lives and how far it is. Three things end everything:
///   - a connection that ends, or is silent for kSilenceSeconds;
///   - a process that stands still: for kSilenceSeconds it has taken no step, used no processor time and got nothing
///     from a disk. A slow one does some of that, and so does one that waits for a message, since it asks for it;
///     rank 0 may stand still while it is not busy, if it waits for what comes from outside: not where something holds
///     it, or its disk does not answer;
///   - a process that computes for kNoProgressSeconds without coming to the end of a loop over its weights.
///
/// Who finds it says so and tells the others to end without a word. Whoever was stopped for so long that the others have
/// given it up ends without a word as well, once it goes on.
class Watchdog {
 public:
  static constexpr double kSilenceSeconds = 6;
  static constexpr double kNoProgressSeconds = 120;

  /// Connects the ranks, all of which make one at the same time. on_loss(line) is called from the watchdog's thread, which
  /// handles no signals, and has to end the process: on rank 0 with one line that names the host, on rank 1 with one that
  /// names rank 0's, and with an empty one where another process says it. Throws InputError if a rank cannot reach rank 0.
  /// `activity` stays.
  Watchdog(Transport& transport, const Activity& activity, std::function<void(const std::string& line)> on_loss);
  /// From here on the others may go. The last thing that a process does with the cluster.
  ~Watchdog();
  /// Ends all other processes, without a word. This one has to end itself at once.
  void end_others();
  /// The same for a signal handler, which may only send: what the watchdog's thread does meanwhile goes on.
  void end_others_now() const;
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace foretoken
