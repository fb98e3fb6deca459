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
// Prompts shorter than this are read again sooner than copied. The end of the last turn counts as a prompt's end if no
// more tokens than that follow it: what opens the answer's turn.
constexpr int64_t kLeastCached = 32;

void learn(double& mean, double value) {
  mean = mean == 0 ? value : mean + kLearningRate * (value - mean);
}

/// Where the prompt's last checkpoint is worth most: behind its last turn, which the next request repeats, whatever it
/// makes of the answer; without turns, at its last token but one.
int64_t last_checkpoint(const Tokenizer& tokenizer, std::span<const TokenId> prompt) {
  const auto tokens = static_cast<int64_t>(prompt.size());
  if (tokens < kLeastCached) return 0;
  for (int64_t end = tokens - 1; end > std::max<int64_t>(0, tokens - kLeastCached); --end) {
    if (tokenizer.is_end_of_generation(prompt[static_cast<size_t>(end) - 1])) return end;
  }
  return tokens - 1;
}

}  // namespace

bool Scheduler::Request::is_finished() const {
  return was_cancelled_ || (generation_ != nullptr && generation_->is_finished());
}

std::span<const TokenId> Scheduler::Request::prompt() const {
  return generation_ != nullptr ? generation_->prompt() : std::span<const TokenId>(prompt_);
}

int64_t Scheduler::Request::prompt_read() const {
  if (sequence_ == nullptr || generation_ == nullptr) return prompt_read_;
  return static_cast<int64_t>(generation_->prompt().size()) - generation_->unread();
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
    : engine_(engine),
      options_(options),
      generator_(engine, options.generator),
      cache_(options.cache_bytes, options.most_checkpoints) {
  const auto parallel = static_cast<size_t>(engine.options().parallel);
  active_.reserve(parallel);
  slot_texts_.resize(parallel);
  parts_.reserve(parallel);
}

Scheduler::~Scheduler() {
  for (Request* request : active_) generator_.leave(*request->generation_);
}

Scheduler::Request& Scheduler::add(std::vector<TokenId> prompt, GenerationOptions options, bool uses_cache) {
  FT_CHECK(!prompt.empty());
  options.sampling.check();
  options.rules.check(engine_.model().config().vocab_size);
  const int64_t ctx_size = engine_.options().ctx_size;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  check_prompt_length(engine_.model(), prompt_tokens, ctx_size);
  auto request = std::make_unique<Request>();
  request->positions_ = Generation::positions_needed(prompt_tokens, options.max_new_tokens, ctx_size);
  if (pages_of(request->positions_) > engine_.num_pages()) {
    throw InputError(no_room_in_pages(prompt_tokens, request->positions_, engine_.num_pages()) +
                     ": raise --kv-memory, or ask for less");
  }
  request->uses_cache_ = uses_cache && options_.cache_bytes > 0;
  if (request->uses_cache_) request->turn_end_ = last_checkpoint(engine_.model().tokenizer(), prompt);
  options.keeps_state = request->uses_cache_;
  request->prompt_ = std::move(prompt);
  request->options_ = std::move(options);
  waiting_.push_back(request.get());
  return *requests_.emplace_back(std::move(request));
}

// First come, first served: who finds no room keeps the others behind it waiting too.
void Scheduler::admit() {
  while (!waiting_.empty() && engine_.free_slots() > 0) {
    Request& request = *waiting_.front();
    if (!begin(request)) return;
    waiting_.pop_front();
    active_.push_back(&request);
  }
}

// With nothing in the cache but `from`, there would be pages for it beside the running texts'.
bool Scheduler::could_fit(const Request& request, const TextCheckpoint* from) const {
  std::vector<bool> is_used(static_cast<size_t>(engine_.num_pages()));
  for (const Request* running : active_) {
    for (const int32_t page : running->sequence_->state().pages) is_used[page] = true;
  }
  int64_t shared = 0;
  if (from != nullptr) {
    shared = from->sequence->num_pages();
    for (const int32_t page : from->sequence->pages()) is_used[page] = true;
  }
  return pages_of(request.positions_) - shared <= std::count(is_used.begin(), is_used.end(), false);
}

// Pages that only the cache has are free for whoever needs them.
bool Scheduler::begin(Request& request) {
  const TextCheckpoint* from = nullptr;
  if (request.uses_cache_) from = cache_.find(request.prompt_, request.options_.max_drafts > 0);
  const auto missing = [&] {
    const int64_t shared = from == nullptr ? 0 : from->sequence->num_pages();
    return pages_of(request.positions_) - shared > engine_.free_pages();
  };
  if (missing() && from != nullptr && !could_fit(request, from)) from = nullptr;
  if (missing() && !could_fit(request, from)) return false;
  while (missing()) FT_CHECK(cache_.drop_oldest(from));
  request.sequence_ = std::make_unique<Sequence>(engine_);
  text_of(request.sequence_->state().slot).clear();  // whoever had it before is over
  if (from != nullptr) {
    request.cached_tokens_ = from->length();
    request.generation_ =
        generator_.resume(*from, *request.sequence_, std::move(request.prompt_), std::move(request.options_));
    FT_CHECK(request.generation_ != nullptr);
  } else {
    request.generation_ =
        std::make_unique<Generation>(*request.sequence_, std::move(request.prompt_), std::move(request.options_));
  }
  FT_CHECK(request.sequence_->reserve(request.positions_));
  return true;
}

// Position up to which the prompt is read in one go.
int64_t Scheduler::next_checkpoint(const Request& request) const {
  const int64_t at = request.generation_->sequence().length(), end = static_cast<int64_t>(request.prompt().size());
  if (!request.uses_cache_) return end;
  const int64_t every = (at / options_.checkpoint_every + 1) * options_.checkpoint_every;
  return std::min({end, every, request.turn_end_ > at ? request.turn_end_ : end});
}

// Of prompts that have come to a position worth keeping.
void Scheduler::take_checkpoints() {
  for (Request* request : active_) {
    const Generation& g = *request->generation_;
    const int64_t at = g.sequence().length();
    if (!request->uses_cache_ || g.is_finished() || g.unread() == 0 || at <= request->cached_tokens_) continue;
    if (at == request->turn_end_ || at % options_.checkpoint_every == 0) keep(*request);
  }
}

// The text as far as it stands in the trunk.
void Scheduler::keep(Request& request) {
  Generation& g = *request.generation_;
  const auto length = static_cast<size_t>(g.sequence().length());
  std::vector<TokenId> text(g.prompt().begin(), g.prompt().end());
  text.insert(text.end(), g.ids().begin(), g.ids().end());
  if (length == 0 || length > text.size()) return;
  text.resize(length);
  text_of(g.sequence().state().slot) = text;
  if (cache_.has(text, g.options().max_drafts > 0)) return;
  if (std::unique_ptr<TextCheckpoint> checkpoint = generator_.checkpoint(g)) cache_.insert(text, std::move(checkpoint));
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
  int64_t other_prompt_tokens = 0;
  for (const Request* request : waiting_) other_prompt_tokens += static_cast<int64_t>(request->prompt_.size());
  for (Request* request : active_) {
    const int64_t unread = request->generation_->unread();
    if (unread > 0 && rows <= 0) other_prompt_tokens += unread;
    if (unread == 0 || rows <= 0) continue;
    const int64_t until = next_checkpoint(*request) - request->generation_->sequence().length();
    const int chunk = static_cast<int>(std::min<int64_t>({unread, rows, until}));
    parts_.push_back({request->generation_.get(), chunk});
    rows -= chunk;
  }
  try {
    last_step_ = generator_.step(parts_, other_prompt_tokens);
  } catch (const Interrupted&) {
    retire();
    throw;
  }
  observe(last_step_);
  take_checkpoints();
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
    if (request->generation_->has_kept_state() && request->generation_->sequence().length() >= kLeastCached)
      keep(*request);
    generator_.leave(*request->generation_);
    request->prompt_read_ = request->prompt_read();
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
