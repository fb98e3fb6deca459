#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/logit_rules.h"
#include "engine/sampler.h"
#include "mtp/draft_history.h"
#include "mtp/drafter.h"
#include "mtp/forced_drafter.h"
#include "mtp/statistics.h"
#include "mtp/stopwatch.h"

namespace foretoken {

/// How a new token came to be.
struct TokenOrigin {
  enum class Kind { kPlain, kDraft, kCorrected, kBonus };  // kPlain: nobody drafted
  Kind kind = Kind::kPlain;
  int index = 0;       // among the tokens of its window; of an accepted draft: its position in the draft
  int num_drafts = 0;  // that its window had
};

/// What is asked of one text.
struct GenerationOptions {
  int64_t max_new_tokens = 128;  // n-predict; the context's end stops a generation too
  int max_drafts = 0;            // most drafts a window; 0: off. 0 .. kMaxDraft
  SamplingOptions sampling;
  LogitRules rules;  // bias, penalties, grammar
  bool ignore_eos = false;
  /// When it has ended, Generator::checkpoint() can take its state.
  bool keeps_state = false;
  ForcedText forced;  // drafts come from here as far as it reaches; an empty continuation: from the drafter

  /// Called before on_token(), also for a token that ends the text.
  std::function<void(const TokenOrigin&)> on_origin;
  /// Called for each new token, in order; false ends the generation.
  std::function<bool(TokenId)> on_token;
  /// Called with the logits [vocab_size] at each position in order: positions 0 .. prompt-1 too if all_prompt_logits is
  /// set. For checks.
  std::function<void(int64_t position, const float* logits)> on_logits;
  bool all_prompt_logits = false;
};

enum class StopReason { kNone, kLength, kEndOfGeneration, kContextFull, kInterrupted, kCallback, kFailed };
[[nodiscard]] std::string_view stop_reason_name(
    StopReason reason);  // "length", "end_of_generation", "context_full", "interrupted", "callback", "failed"; "" while
                         // it runs

/// What is said of a text that is too long, in front of what to do about it: that so many tokens leave no room for a new
/// one in a context of ctx_size.
[[nodiscard]] std::string no_room_in_context(int64_t num_tokens, int64_t ctx_size);
/// The same of a prompt and what is asked for behind it, which need more positions than there are pages for.
[[nodiscard]] std::string no_room_in_pages(int64_t prompt_tokens, int64_t positions, int num_pages);

/// One text that is being continued: its sequence in an engine, its prompt, the tokens so far. A Generator moves it on.
///
///   prompt read up to sequence.length(), then
///   tokens  [0, sequence.length())   prompt and new tokens that went through the trunk
///           last()                   the newest token, which has not
class Generation {
 public:
  /// REQUIRES: the sequence is empty; !prompt.empty(); both stay until the generation is gone.
  Generation(Sequence& sequence, std::vector<TokenId> prompt, GenerationOptions options);

  [[nodiscard]] Sequence& sequence() { return sequence_; }
  [[nodiscard]] const Sequence& sequence() const { return sequence_; }
  [[nodiscard]] const GenerationOptions& options() const { return options_; }
  [[nodiscard]] std::span<const TokenId> prompt() const { return prompt_; }
  /// New tokens; one that ended the generation is not among them.
  [[nodiscard]] const std::vector<TokenId>& ids() const { return ids_; }
  [[nodiscard]] const DecodeStatistics& statistics() const { return statistics_; }

  /// Prompt tokens that have not gone through the trunk.
  [[nodiscard]] int64_t unread() const {
    return std::max<int64_t>(0, static_cast<int64_t>(prompt_.size()) - sequence_.length());
  }
  [[nodiscard]] bool is_finished() const { return stop_reason_ != StopReason::kNone; }
  /// It has ended by itself, and its state is that of its text up to its last token but one.
  [[nodiscard]] bool has_kept_state() const {
    return options_.keeps_state && is_finished() && stop_reason_ != StopReason::kInterrupted &&
           stop_reason_ != StopReason::kFailed;
  }
  [[nodiscard]] StopReason stop_reason() const { return stop_reason_; }
  /// With StopReason::kFailed: one line that says why.
  [[nodiscard]] const std::string& failure() const { return failure_; }
  /// Ends it where it is.
  void stop(StopReason reason);

  /// Positions that it may come to need: its prompt and new tokens, as far as the context goes.
  [[nodiscard]] static int64_t positions_needed(int64_t prompt_tokens, int64_t max_new_tokens, int64_t ctx_size);

 private:
  friend class Generator;

  // A row whose choice nobody needs: a draft before it was wrong, or the rules leave no token.
  static constexpr TokenId kNoChoice = -1;

  // Most drafts that the coming window may have: no token beyond those asked for, none beyond the context.
  [[nodiscard]] int64_t tokens_left(int64_t ctx_size) const;
  [[nodiscard]] int most_drafts(int64_t ctx_size) const;
  // Hands one new token on; false ends the generation.
  bool emit(TokenId id, const TokenOrigin& origin, bool ends_text);
  void count_window(int num_accepted, int num_emitted);

  Sequence& sequence_;
  const std::vector<TokenId> prompt_;
  const GenerationOptions options_;
  std::vector<TokenId> ids_;
  TokenId last_ = 0;
  StopReason stop_reason_ = StopReason::kNone;
  std::string failure_;
  bool was_read_ = false;  // the prompt is behind it

  DraftWindow window_;                  // coming or running
  std::vector<TokenId> choices_;        // of the running window; kNoChoice where none was made
  std::optional<RuledChoice> ruled_;    // with options().rules; it knows the prompt and ids()
  std::string choice_failure_;          // why the choice behind the last one that was made could not be
  bool drafts_ = false;                 // drafts are made for it
  int planned_ = 0;                     // drafts planned for the coming window
  DraftHistory history_;                // for the controller
  std::vector<float> previous_hidden_;  // [hidden_dim] of the last prompt row that was read, for the drafter

  DecodeStatistics statistics_;
  Stopwatch watch_;  // runs from the first step on
  bool has_begun_ = false;
  bool on_device_ = false;  // a device runs its cycles by itself
};

}  // namespace foretoken
