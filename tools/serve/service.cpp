#include "tools/serve/service.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "mtp/decoder.h"
#include "tools/serve/api_error.h"

namespace foretoken {

class Service::Job {
 public:
  AnswerChannel channel;
  std::vector<AnswerRequest> asked;  // until the engine's thread has taken them
  std::atomic<bool> is_left = false;
};

Service::Ticket::~Ticket() {
  job_->is_left = true;
  service_.wake();
}

AnswerChannel& Service::Ticket::channel() {
  return job_->channel;
}

Service::Service(const Model& model, const SessionOptions& session, const ServiceOptions& options)
    : model_(model),
      options_(options),
      bytes_(model.weights(), model.config()),
      engine_(model, session),
      scheduler_(engine_, options.scheduler) {
  metrics_.set_pages(engine_.num_pages(), engine_.free_pages());
  thread_ = std::thread([this] { run(); });
}

Service::~Service() {
  close();
  cut();
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  wake();
  thread_.join();
}

void Service::check_fits(const AnswerRequest& answer) const {
  const int64_t ctx_size = engine_.options().ctx_size;
  const auto prompt_tokens = static_cast<int64_t>(answer.prompt.size());
  const auto too_long = [&](const std::string& message) {
    return ApiError(400, "exceed_context_size_error", message,
                    {{"n_prompt_tokens", prompt_tokens}, {"n_ctx", ctx_size}});
  };
  if (prompt_tokens == 0) throw invalid_request("\"prompt\": gives no tokens");
  if (prompt_tokens >= ctx_size) throw too_long("the prompt: " + no_room_in_context(prompt_tokens, ctx_size));
  const int64_t positions = Generation::positions_needed(prompt_tokens, answer.max_new_tokens, ctx_size);
  if (pages_of(positions) > engine_.num_pages())
    throw too_long(no_room_in_pages(prompt_tokens, positions, engine_.num_pages()));
}

std::unique_ptr<Service::Ticket> Service::submit(std::vector<AnswerRequest> answers) {
  FT_CHECK(!answers.empty());
  for (const AnswerRequest& answer : answers) check_fits(answer);
  const auto count = static_cast<int>(answers.size());
  const int most = engine_.options().parallel + options_.max_queue;
  if (count > most) {
    throw invalid_request(
        fmt::format("{} answers are asked for; this server makes and queues {} at most", count, most));
  }
  if (is_closed_) throw unavailable("the server is about to end");
  if (num_unfinished_.fetch_add(count) + count > most) {
    num_unfinished_ -= count;
    throw unavailable(fmt::format("the queue is full: {} answers run or wait", most));
  }
  auto job = std::make_shared<Job>();
  job->asked = std::move(answers);
  {
    const std::lock_guard lock(mutex_);
    arrived_.push_back(job);
    is_awake_ = true;
  }
  wanted_.notify_one();
  return std::make_unique<Ticket>(*this, std::move(job));
}

void Service::between_steps(std::function<void(Scheduler&, const std::vector<const Answer*>&)> work) {
  auto entry = std::make_unique<Work>();
  entry->run = std::move(work);
  std::future<void> done = entry->done.get_future();
  {
    const std::lock_guard lock(mutex_);
    if (ends_) throw unavailable("the server is about to end");
    work_.push_back(std::move(entry));
    is_awake_ = true;
  }
  wanted_.notify_one();
  done.get();
}

void Service::cut() {
  is_cut_ = true;
  wake();
}

void Service::wake() {
  {
    const std::lock_guard lock(mutex_);
    is_awake_ = true;
  }
  wanted_.notify_one();
}

// ---- the engine's thread ----

void Service::run() {
  while (take_in()) {
    do_work();
    if (is_cut_) {
      end_all(StopReason::kInterrupted, "the server is about to end");
      continue;
    }
    cancel_left();
    begin_answers();
    step();
    finish_ended();
  }
  end_all(StopReason::kInterrupted, "the server is about to end");
  do_work();
}

// Waits until there is something to do. False once the service ends.
bool Service::take_in() {
  std::unique_lock lock(mutex_);
  wanted_.wait(lock, [&] { return is_awake_ || ends_ || !running_.empty(); });
  is_awake_ = false;
  for (std::shared_ptr<Job>& job : arrived_) {
    for (size_t i = 0; i < job->asked.size(); ++i) {
      running_.push_back(
          {job, std::make_unique<Answer>(model_, job->channel, static_cast<int>(i), std::move(job->asked[i]))});
    }
  }
  arrived_.clear();
  return !ends_;
}

// An answer that follows another one waits until that one has tokens or is over: what was read is then in the cache.
bool Service::has_to_wait(const Running& running) const {
  const int leader = running.answer->asked().follows;
  return leader >= 0 && std::any_of(running_.begin(), running_.end(), [&](const Running& other) {
           return other.job == running.job && other.answer != nullptr && other.answer->index() == leader &&
                  !other.answer->was_read();
         });
}

void Service::begin_answers() {
  for (Running& running : running_) {
    if (running.answer->has_begun() || has_to_wait(running)) continue;
    try {
      running.answer->begin(scheduler_);
    } catch (const std::exception& error) {
      count(*running.answer, *running.answer->fail(StopReason::kFailed, error.what()));
      running.answer.reset();
    }
  }
  std::erase_if(running_, [](const Running& running) { return running.answer == nullptr; });
}

// Whoever does not listen any more gets no further step.
void Service::cancel_left() {
  std::erase_if(running_, [&](Running& running) {
    if (!running.job->is_left) return false;
    Answer& answer = *running.answer;
    if (answer.has_begun()) scheduler_.cancel(answer.request());
    count(answer, *answer.fail(StopReason::kInterrupted, "the client has left"));
    if (answer.has_begun()) scheduler_.forget(answer.request());
    return true;
  });
}

void Service::do_work() {
  std::vector<std::unique_ptr<Work>> work;
  {
    const std::lock_guard lock(mutex_);
    work.swap(work_);
  }
  if (work.empty()) return;
  std::vector<const Answer*> answers;
  for (const Running& running : running_) {
    if (running.answer->has_begun()) answers.push_back(running.answer.get());
  }
  for (const std::unique_ptr<Work>& entry : work) {
    try {
      entry->run(scheduler_, answers);
      entry->done.set_value();
    } catch (...) {
      entry->done.set_exception(std::current_exception());
    }
  }
}

void Service::step() {
  try {
    scheduler_.admit();
    for (const Running& running : running_) running.answer->note_begin();
    if (scheduler_.step()) {
      const Generator::Step& step = scheduler_.last_step();
      metrics_.count_step(step, bytes_.trunk_pass(step.distinct_experts, 0, KvType::kF32).total());
    }
  } catch (const std::exception& error) {
    // Nobody can say which rows a broken pass has left behind: all of them go.
    end_all(StopReason::kFailed, error.what());
  }
  metrics_.set_load(scheduler_.num_active(), static_cast<int>(running_.size()) - scheduler_.num_active());
}

void Service::finish_ended() {
  std::erase_if(running_, [&](Running& running) {
    Answer& answer = *running.answer;
    if (!answer.has_begun()) return false;
    answer.report_prompt();
    if (!answer.request().is_finished()) return false;
    count(answer, *answer.end());
    scheduler_.forget(answer.request());
    return true;
  });
  if (running_.empty()) metrics_.set_load(0, 0);
  const PrefixCache& cache = scheduler_.cache();
  // Its pages are counted where it has changed.
  if (cache.bytes() != counted_cache_bytes_ || running_.empty())
    metrics_.set_cache(cache.num_checkpoints(), cache.bytes(), cache.num_pages());
  counted_cache_bytes_ = cache.bytes();
  metrics_.set_pages(engine_.num_pages(), engine_.free_pages());
}

void Service::count(const Answer& answer, const AnswerEnd& end) {
  metrics_.count_answer(end, answer.time_to_first_token_ms());
  --num_unfinished_;
}

void Service::end_all(StopReason reason, const std::string& why) {
  for (Running& running : running_) {
    Answer& answer = *running.answer;
    if (answer.has_begun()) scheduler_.cancel(answer.request());
    count(answer, *answer.fail(reason, why));
    if (answer.has_begun()) scheduler_.forget(answer.request());
  }
  running_.clear();
}

}  // namespace foretoken
