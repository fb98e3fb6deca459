#include "tools/serve/connection_threads.h"

namespace foretoken {

void ConnectionThreads::enqueue(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  if (num_threads_ >= max_threads_) {
    waiting_.push_back(std::move(task));
    return;
  }
  ++num_threads_;
  try {
    std::thread([this, first = std::move(task)]() mutable { run(std::move(first)); }).detach();
  } catch (const std::system_error&) {
    // The system has no thread left: the connection is dropped, its socket closes with the process.
    --num_threads_;
  }
}

void ConnectionThreads::run(std::function<void()> task) {
  while (true) {
    task();
    const std::lock_guard lock(mutex_);
    if (waiting_.empty()) {
      --num_threads_;
      ended_.notify_all();
      return;
    }
    task = std::move(waiting_.front());
    waiting_.pop_front();
  }
}

void ConnectionThreads::shutdown() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return num_threads_ == 0; });
}

}  // namespace foretoken
