#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

namespace foretoken {

/// Threads that are started once and share loops. The calling thread is member 0 of the team and works too.
///
/// Thread rules: one thread at a time may call parallel_for; bodies must not call it again. Between loops the members
/// spin for a short while (a decode step has a loop every few microseconds) and then sleep, so an idle team costs
/// nothing. Each member begins with a range of items of its own and then takes others' items, one by one: a member
/// whose core is taken away holds up one item, not its share.
class ThreadTeam {
 public:
  /// REQUIRES: 1 <= num_threads <= kMaxThreads.
  explicit ThreadTeam(int num_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  static constexpr int kMaxThreads = 1024;
  [[nodiscard]] int num_threads() const;

  /// Calls body(item, thread_idx) once for each item in [0, num_items), spread over the team; returns when all are
  /// done. What the bodies wrote is visible after it. Items of a member's range start in rising order: put big ones
  /// first. Exceptions must not leave a body. REQUIRES: num_items < 2^32.
  template <class Body>
  void parallel_for(int64_t num_items, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run(num_items, const_cast<void*>(static_cast<const void*>(&body)),
        [](void* context, int64_t item, int thread_idx) { (*static_cast<Plain*>(context))(item, thread_idx); });
  }

 private:
  using BodyFn = void (*)(void* context, int64_t item, int thread_idx);
  void run(int64_t num_items, void* context, BodyFn body);
  struct State;
  std::unique_ptr<State> state_;
};

/// Processors that this process may run on (affinity and cgroup quota respected): the default number of threads.
[[nodiscard]] int available_cores();

}  // namespace foretoken
