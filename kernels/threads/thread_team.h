#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>

#include "kernels/threads/numa.h"

namespace foretoken {

/// Threads that are started once and share loops. The calling thread is member 0 of the team and works too.
///
/// Thread rules: one thread at a time may call parallel_for; bodies must not call it again. Between loops the members
/// spin for a short while (a decode step has a loop every few microseconds) and then sleep, so an idle team costs
/// nothing. Each member begins with a range of items of its own and then takes others' items, one by one: a member
/// whose core is taken away holds up one item, not its share.
///
/// Over several nodes of memory the members are laid in order, each kept on its node's processors, and take from their
/// own node's members first. The calling thread is kept on the first node from its first loop on, until the team is
/// gone; a team belongs to the thread that made it.
class ThreadTeam {
 public:
  /// REQUIRES: 1 <= num_threads <= kMaxThreads.
  explicit ThreadTeam(int num_threads, NumaNodes nodes = NumaNodes::of_machine());
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  static constexpr int kMaxThreads = 1024;
  [[nodiscard]] int num_threads() const;
  /// Nodes that loops are shared out over: one if the team has one member only.
  [[nodiscard]] const NumaNodes& nodes() const;
  [[nodiscard]] int node_of(int thread_idx) const;

  /// While *stop is true, loops end without calling their bodies for the items that are left: whoever waits for them
  /// looks at it too, and throws the results away. nullptr: never.
  void set_stop(const std::atomic<bool>* stop);

  /// Calls body(item, thread_idx) once for each item in [0, num_items), spread over the team; returns when all are
  /// done. What the bodies wrote is visible after it. Items of a member's range start in rising order: put big ones
  /// first. Exceptions must not leave a body. REQUIRES: num_items < 2^32.
  template <class Body>
  void parallel_for(int64_t num_items, Body&& body) {
    run(num_items, {}, context_of(body), call<std::remove_reference_t<Body>>);
  }

  /// The same with items whose memory lies on known nodes: [node_ends[n - 1], node_ends[n]) on node n, from 0 on.
  /// REQUIRES: node_ends rises and has nodes().count() numbers, which stay until the loop is done.
  template <class Body>
  void parallel_for(std::span<const int64_t> node_ends, Body&& body) {
    run(node_ends.back(), node_ends, context_of(body), call<std::remove_reference_t<Body>>);
  }

 private:
  using BodyFn = void (*)(void* context, int64_t item, int thread_idx);
  template <class Body>
  static void* context_of(Body& body) {
    return const_cast<void*>(static_cast<const void*>(&body));
  }
  template <class Body>
  static void call(void* context, int64_t item, int thread_idx) {
    (*static_cast<Body*>(context))(item, thread_idx);
  }
  void run(int64_t num_items, std::span<const int64_t> node_ends, void* context, BodyFn body);
  struct State;
  std::unique_ptr<State> state_;
};

/// Loops that the teams of this process have come to the end of. Whoever watches a process sees by it that it gets on.
[[nodiscard]] uint64_t num_loops_done();

/// Processors that this process may run on (affinity and cgroup quota respected): the default number of threads.
[[nodiscard]] int available_cores();

}  // namespace foretoken
