#pragma once

#include <httplib.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace foretoken {

/// A thread for each connection, up to a limit; further connections wait for one that ends. Threads come and go with
/// the connections.
class ConnectionThreads final : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(int max_threads) : max_threads_(max_threads) {}

  void enqueue(std::function<void()> task) override;
  /// Waits for all of them.
  void shutdown() override;

 private:
  void run(std::function<void()> task);

  const int max_threads_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::deque<std::function<void()>> waiting_;
  int num_threads_ = 0;
};

}  // namespace foretoken
