#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "mtp/scheduler.h"
#include "tools/bench/byte_model.h"
#include "tools/serve/answer.h"
#include "tools/serve/metrics.h"

namespace foretoken {

struct ServiceOptions {
  SchedulerOptions scheduler;
  int max_queue = 64;  // answers that may wait beside those that run
};

/// Answers requests from any number of threads with one engine, which runs on a thread of its own: answers are handed
/// over by a queue, and what becomes of them comes back through a channel a request.
class Service {
 public:
  /// Starts the thread. Throws InputError as Engine's constructor. REQUIRES: the model stays.
  Service(const Model& model, const SessionOptions& session, const ServiceOptions& options);
  /// Ends what still runs.
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  class Job;
  /// A request that was taken. When it goes, answers that still run are cancelled within one step.
  class Ticket {
   public:
    Ticket(Service& service, std::shared_ptr<Job> job) : service_(service), job_(std::move(job)) {}
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    [[nodiscard]] AnswerChannel& channel();

   private:
    Service& service_;
    const std::shared_ptr<Job> job_;
  };

  /// Takes a request's answers. Throws ApiError: 400 if one does not fit into the context or the pages, 503 if the queue
  /// is full or the service is about to end.
  [[nodiscard]] std::unique_ptr<Ticket> submit(std::vector<AnswerRequest> answers);

  /// Runs `work` on the engine's thread between two steps, and waits for it. Throws what it throws.
  void between_steps(std::function<void(Scheduler&, const std::vector<const Answer*>& running)> work);

  /// From now on nothing is taken.
  void close() { is_closed_ = true; }
  [[nodiscard]] bool is_closed() const { return is_closed_; }
  /// Ends all answers where they are.
  void cut();
  [[nodiscard]] int num_unfinished() const { return num_unfinished_; }

  [[nodiscard]] const Engine& engine() const { return engine_; }
  [[nodiscard]] const Model& model() const { return model_; }
  [[nodiscard]] Metrics& metrics() { return metrics_; }

 private:
  struct Work {
    std::function<void(Scheduler&, const std::vector<const Answer*>&)> run;
    std::promise<void> done;
  };
  struct Running {
    std::shared_ptr<Job> job;
    std::unique_ptr<Answer> answer;
  };

  void check_fits(const AnswerRequest& answer) const;
  void run();
  [[nodiscard]] bool take_in();
  [[nodiscard]] bool has_to_wait(const Running& running) const;
  void begin_answers();
  void cancel_left();
  void do_work();
  void step();
  void finish_ended();
  void count(const Answer& answer, const AnswerEnd& end);
  void end_all(StopReason reason, const std::string& why);
  void wake();

  const Model& model_;
  const ServiceOptions options_;
  const ByteModel bytes_;
  Engine engine_;
  Scheduler scheduler_;
  Metrics metrics_;

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::vector<std::shared_ptr<Job>> arrived_;  // under mutex_
  std::vector<std::unique_ptr<Work>> work_;    // under mutex_
  bool ends_ = false, is_awake_ = false;       // under mutex_
  std::atomic<bool> is_closed_ = false, is_cut_ = false;
  std::atomic<int> num_unfinished_ = 0;

  size_t counted_cache_bytes_ = 0;
  std::vector<Running> running_;  // of the engine's thread, in order of arrival
  std::thread thread_;            // last: it uses all of the above
};

}  // namespace foretoken
