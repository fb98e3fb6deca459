#include "mtp/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "mtp/decoder.h"

namespace foretoken {

namespace {

// Weight of a new reading.
constexpr double kLearningRate = 0.3;
// Prompt rows of a step before any was measured.
constexpr int kFirstPromptRows = 16;

void learn(double& mean, double value) {
  mean = mean == 0 ? value : mean + kLearningRate * (value - mean);
}

}  // namespace

bool Scheduler::Request::is_finished() const {
  return was_cancelled_ || (generation_ != nullptr && generation_->is_finished());
}

std::span<const TokenId> Scheduler::Request::prompt() const {
  return generation_ != nullptr ? generation_->prompt() : std::span<const TokenId>(prompt_);
}

const std::vector<TokenId>& Scheduler::Request::ids() const {
  static const std::vector<TokenId> none;
  return generation_ != nullptr ? generation_->ids() : none;
}

StopReason Scheduler::Request::stop_reason() const {
  if (was_cancelled_) return StopReason::kInterrupted;
  return generation_ != nullptr ? generation_->stop_reason() : StopReason::kNone;
}

const DecodeStatistics& Scheduler::Request::statistics() const {
  static const DecodeStatistics none;
  return generation_ != nullptr ? generation_->statistics() : none;
}

Scheduler::Scheduler(Engine& engine, const SchedulerOptions& options)
    : engine_(engine), options_(options), generator_(engine, options.generator) {
  const auto parallel = static_cast<size_t>(engine.options().parallel);
  active_.reserve(parallel);
  parts_.reserve(parallel);
}

Scheduler::~Scheduler() {
  for (Request* request : active_) generator_.leave(*request->generation_);
}

Scheduler::Request& Scheduler::add(std::vector<TokenId> prompt, GenerationOptions options) {
  FT_CHECK(!prompt.empty());
  options.sampling.check();
  options.rules.check(engine_.model().config().vocab_size);
  const int64_t ctx_size = engine_.options().ctx_size;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  check_prompt_length(engine_.model(), prompt_tokens, ctx_size);
  auto request = std::make_unique<Request>();
  request->positions_ = Generation::positions_needed(prompt_tokens, options.max_new_tokens, ctx_size);
  if (pages_of(request->positions_) > engine_.num_pages()) {
    throw InputError(fmt::format(
        "a prompt of {} tokens and {} new ones need {} positions of KV memory; {} are there: raise --kv-memory, or ask "
        "for less",
        prompt_tokens, request->positions_ - prompt_tokens, request->positions_,
        int64_t{engine_.num_pages()} * kPagePositions));
  }
  request->prompt_ = std::move(prompt);
  request->options_ = std::move(options);
  waiting_.push_back(request.get());
  return *requests_.emplace_back(std::move(request));
}

// First come, first served: who finds no room keeps the others behind it waiting too.
void Scheduler::admit() {
  while (!waiting_.empty() && engine_.free_slots() > 0) {
    Request& request = *waiting_.front();
    if (pages_of(request.positions_) > engine_.free_pages()) return;
    request.sequence_ = std::make_unique<Sequence>(engine_);
    FT_CHECK(request.sequence_->reserve(request.positions_));
    request.generation_ =
        std::make_unique<Generation>(*request.sequence_, std::move(request.prompt_), std::move(request.options_));
    waiting_.pop_front();
    active_.push_back(&request);
  }
}

bool Scheduler::step() {
  admit();
  if (active_.empty()) return false;
  parts_.clear();
  int num_windows = 0, window_rows = 0;
  const int most_window_rows = options_.generator.max_drafts + 1;
  for (Request* request : active_) {
    if (request->generation_->unread() > 0) continue;
    parts_.push_back({request->generation_.get(), 0});
    ++num_windows;
    window_rows += most_window_rows;
  }
  int rows = std::min({engine_.options().prompt_chunk, engine_.max_rows() - window_rows,
                       prompt_rows_within(options_.step_ms, num_windows)});
  for (Request* request : active_) {
    const int64_t unread = request->generation_->unread();
    if (unread == 0 || rows <= 0) continue;
    const int chunk = static_cast<int>(std::min<int64_t>(unread, rows));
    parts_.push_back({request->generation_.get(), chunk});
    rows -= chunk;
  }
  try {
    last_step_ = generator_.step(parts_);
  } catch (const Interrupted&) {
    retire();
    throw;
  }
  observe(last_step_);
  retire();
  return true;
}

// Rows of prompts that may join the windows of a step.
int Scheduler::prompt_rows_within(double ms, int num_windows) const {
  if (num_windows == 0) return engine_.options().prompt_chunk;
  if (prompt_row_ms_ == 0) return kFirstPromptRows;
  const double rows = (ms - window_step_ms_) / prompt_row_ms_;
  return static_cast<int>(std::clamp(rows, static_cast<double>(kLeastPromptRows), 1e6));
}

void Scheduler::observe(const Generator::Step& step) {
  if (step.prompt_rows == 0) {
    learn(window_step_ms_, step.whole_ms);
  } else {
    const double rest = step.num_windows == 0 ? 0.0 : window_step_ms_;
    learn(prompt_row_ms_, std::max(0.0, step.whole_ms - rest) / step.prompt_rows);
  }
}

// Finished texts give their sequences back.
void Scheduler::retire() {
  std::erase_if(active_, [&](Request* request) {
    if (!request->generation_->is_finished()) return false;
    generator_.leave(*request->generation_);
    request->sequence_.reset();
    return true;
  });
}

void Scheduler::cancel(Request& request) {
  if (request.is_finished()) return;
  if (request.is_waiting()) {
    request.was_cancelled_ = true;
    std::erase(waiting_, &request);
    return;
  }
  request.generation_->stop(StopReason::kInterrupted);
  retire();
}

void Scheduler::forget(Request& request) {
  FT_CHECK(request.is_finished());
  std::erase_if(requests_, [&](const auto& held) { return held.get() == &request; });
}

}  // namespace foretoken
