#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "engine/session.h"

namespace foretoken {

/// The MTP layer's side of a sequence: its KV rows follow the trunk's accepted tokens, and its last row holds the first
/// draft.
///
///   KV rows [0, filled())            from the trunk's true hiddens
///   KV rows [filled(), ...)          from chained drafts; overwritten by the next follow()
///
/// Tokens may be handed over without being computed at once (defer): while drafting does not pay, they wait with their
/// hiddens and are computed together when a draft is wanted again, or when kMaxDeferred of them wait.
class Drafter {
 public:
  explicit Drafter(Session& session);

  static constexpr int kMaxDeferred = 64;

  /// Forgets the sequence.
  void reset();

  /// Tokens at positions [filled(), ...) become known, hidden[r] as in defer(); their keys and values are computed at
  /// once, the last row goes through the whole layer, so that next_draft() may be asked for. REQUIRES: nothing is
  /// deferred; ids.size() <= session.max_rows().
  void follow(std::span<const TokenId> ids, std::span<const float* const> hidden);

  /// Tokens at positions [filled() + deferred(), ...) whose preceding hiddens are hidden[r] (the trunk's, [hidden_dim]
  /// each) become known; they wait until flush().
  void defer(std::span<const TokenId> ids, std::span<const float* const> hidden);

  /// Computes what waits; afterwards next_draft() can be asked for. REQUIRES: filled() + deferred() > 0.
  void flush();

  /// One draft for the position behind the last known or drafted one. The first call after flush() reads the head
  /// alone; each further call runs the MTP layer over the draft before it. `confidence` is the softmax probability of
  /// the drafted token within the draft vocabulary.
  /// Where fault() has something to say afterwards, neither draft nor confidence means anything.
  [[nodiscard]] TokenId next_draft(const SamplingOptions& sampling, float& confidence);

  /// Chained steps so far take this token as the last draft instead of the one next_draft returned (forced drafts).
  void replace_last(TokenId id) { last_draft_ = id; }

  /// What was not finite in the MTP layer's rows, once something was: its drafts are worth nothing from then on.
  [[nodiscard]] const std::optional<std::string>& fault() const { return fault_; }

  [[nodiscard]] int64_t filled() const { return filled_; }
  [[nodiscard]] int deferred() const { return static_cast<int>(ids_.size()); }

 private:
  void look_for_fault() {
    if (!fault_) fault_ = session_.mtp_fault();
  }

  Session& session_;
  int64_t filled_ = 0;
  int last_row_ = -1;   // of the session's last mtp_forward: what next_draft continues from; -1: nothing
  int num_drafts_ = 0;  // since flush()
  TokenId last_draft_ = 0;
  std::vector<TokenId> ids_;   // deferred
  std::vector<float> hidden_;  // [deferred, hidden_dim]
  std::optional<std::string> fault_;
};

}  // namespace foretoken
