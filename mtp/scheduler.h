#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "mtp/generation.h"
#include "mtp/generator.h"
#include "mtp/prefix_cache.h"

namespace foretoken {

struct SchedulerOptions {
  GeneratorOptions generator;
  /// A step with running texts in it reads no more of waiting prompts than fits into so many milliseconds, as far as
  /// that can be known before: the longest gap between two tokens of a running text stays about there. At least
  /// kLeastPromptRows rows are read.
  double step_ms = 200;
  /// Memory for checkpoints of texts, from which others that begin alike go on; 0: none are kept. Their full pages are
  /// the engine's, as long as no text needs them.
  size_t cache_bytes = 0;
  int most_checkpoints = INT32_MAX;  // of all texts together
  /// While a prompt is read there is a checkpoint every so many positions, and one near its end.
  int64_t checkpoint_every = 2048;
};

/// Decides who is in a step: the window of every running text, then chunks of prompts that wait to be read, first come
/// first served, as far as rows and time of the step go. A text begins when a sequence and pages for all that it may
/// come to need are free, so that it never has to stop half-way; until then it waits. One thread at a time may call it.
class Scheduler {
 public:
  static constexpr int kLeastPromptRows = 8;

  Scheduler(Engine& engine, const SchedulerOptions& options);
  ~Scheduler();

  /// One text from its arrival to its end. Lives until forget().
  class Request;

  /// Puts a text at the end of the queue. Throws InputError if it can never fit: the prompt leaves no room in the
  /// context, or it needs more pages than there are; UsageError for sampling options out of range.
  /// uses_cache: it may begin from a checkpoint, and leaves some.
  Request& add(std::vector<TokenId> prompt, GenerationOptions options, bool uses_cache = true);

  /// Begins the texts that find a sequence and pages. step() does it first of all.
  void admit();
  /// Runs one step. False if nothing was there to do. Throws Interrupted as Generator::step.
  bool step();
  [[nodiscard]] const Generator::Step& last_step() const { return last_step_; }

  /// Ends a text, waiting or running.
  void cancel(Request& request);
  /// Its result is not needed any more. REQUIRES: it is finished.
  void forget(Request& request);

  /// The text that the engine's slot `slot` left last, as far as it is in the cache, as bytes for restore_text() of any
  /// scheduler over the same model and KV type. Throws InputError if there is none, or no sequence is free for it now.
  [[nodiscard]] std::vector<std::byte> save_text(int slot, int64_t* num_tokens);
  /// Puts a saved text into the cache, as the one that `slot` left; its number of tokens. Throws InputError if the bytes
  /// are not of save_text(), damaged, or of another model, or if there is no room for it now.
  int64_t restore_text(int slot, std::span<const std::byte> saved);
  /// Forgets it; its number of tokens.
  int64_t erase_text(int slot);

  [[nodiscard]] PrefixCache& cache() { return cache_; }
  [[nodiscard]] const PrefixCache& cache() const { return cache_; }

  [[nodiscard]] int num_waiting() const { return static_cast<int>(waiting_.size()); }
  [[nodiscard]] int num_active() const { return static_cast<int>(active_.size()); }

 private:
  [[nodiscard]] bool begin(Request& request);
  [[nodiscard]] bool could_fit(const Request& request, const TextCheckpoint* from) const;
  [[nodiscard]] int64_t next_checkpoint(const Request& request) const;
  void take_checkpoints();
  void keep(Request& request);
  [[nodiscard]] std::vector<TokenId>& text_of(int slot);
  [[nodiscard]] int prompt_rows_within(double ms, int num_windows) const;
  void observe(const Generator::Step& step);
  void retire();

  Engine& engine_;
  const SchedulerOptions options_;
  Generator generator_;
  PrefixCache cache_;
  std::vector<std::vector<TokenId>> slot_texts_;  // [parallel] what each slot left in the cache last
  std::vector<std::unique_ptr<Request>> requests_;
  std::deque<Request*> waiting_;  // no sequence yet
  std::vector<Request*> active_;  // in order of arrival
  std::vector<Generator::Part> parts_;
  Generator::Step last_step_;

  // What was measured: milliseconds of steps without prompt rows, and of a prompt row beside them.
  double window_step_ms_ = 0;
  double prompt_row_ms_ = 0;
};

class Scheduler::Request {
 public:
  [[nodiscard]] bool is_finished() const;
  /// It is in the queue: no sequence, or not enough pages, are free.
  [[nodiscard]] bool is_waiting() const { return generation_ == nullptr && !was_cancelled_; }
  [[nodiscard]] std::span<const TokenId> prompt() const;
  /// Of its sequence in the engine; -1 while it has none.
  [[nodiscard]] int slot() const { return sequence_ == nullptr ? -1 : sequence_->state().slot; }
  /// Tokens of the prompt that have been read.
  [[nodiscard]] int64_t prompt_read() const;
  /// Of them, those that came from the cache.
  [[nodiscard]] int64_t cached_tokens() const { return cached_tokens_; }
  [[nodiscard]] const std::vector<TokenId>& ids() const;
  [[nodiscard]] StopReason stop_reason() const;
  [[nodiscard]] const DecodeStatistics& statistics() const;
  /// With StopReason::kFailed: one line that says why.
  [[nodiscard]] const std::string& failure() const { return generation_->failure(); }

 private:
  friend class Scheduler;
  std::vector<TokenId> prompt_;  // until it begins
  GenerationOptions options_;
  std::unique_ptr<Sequence> sequence_;  // while it is active
  std::unique_ptr<Generation> generation_;
  int64_t positions_ = 0;
  int64_t cached_tokens_ = 0;
  int64_t turn_end_ = 0;  // of the prompt, where its last checkpoint is taken; 0: nowhere
  bool uses_cache_ = false;
  bool was_cancelled_ = false;  // while it waited
  int64_t prompt_read_ = 0;     // when its sequence went
};

}  // namespace foretoken
