#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace foretoken {

/// Decides how many drafts a window gets, from what this run has measured: a draft is worth its cost while
///
///   P(the whole prefix is accepted) > lambda * (dV + d)
///
/// with lambda the best sustained tokens per millisecond, dV what one more row adds to a verify pass and d what one
/// more draft costs. It goes down to no drafts at all and probes, ever more rarely, whether they pay again. It changes
/// the speed alone: the text is the same for every decision.
///
/// Estimates: pass times by rows and draft times are running means (a reading counts at most twice the mean, for
/// machines that are busy elsewhere); acceptance is counted by the confidence that the MTP layer had in its draft.
class DraftController {
 public:
  /// max_drafts: the most drafts a window may get. fixed: always the most.
  DraftController(int max_drafts, bool fixed);

  /// Before a window: drafts worth making on average, 0 to `limit`.
  [[nodiscard]] int plan(int limit);

  /// After a draft of this window with the given confidences so far: is one more worth making?
  [[nodiscard]] bool worth_another(std::span<const float> confidences, int limit) const;

  /// The number of drafts of a window whose drafts are made in one go, from the confidence of the first, which is made
  /// already: at least 1. REQUIRES: limit >= 1.
  [[nodiscard]] int plan_after_first(float first_confidence, int limit) const;

  // What was measured.
  void observe_verify(int num_rows, double ms);
  /// is_first: the head alone; otherwise a chained step through the layer.
  void observe_draft(bool is_first, double ms) { learn(is_first ? first_draft_ms_ : step_ms_, ms); }
  void observe_refresh(double ms) { learn(refresh_ms_, ms); }
  /// confidences [drafted]; the first num_accepted were right.
  void observe_acceptance(std::span<const float> confidences, int num_accepted);

  /// Best expected tokens per millisecond and the number of drafts that gives it.
  struct Best {
    int num_drafts;
    double tokens_per_ms;
  };
  [[nodiscard]] Best best(int limit) const;

 private:
  static constexpr int kBins = 8;
  struct Mean {
    double value = 0;
    int64_t count = 0;
  };
  struct Rate {
    double right, all;
    [[nodiscard]] double value() const { return right / all; }
  };
  static void learn(Mean& mean, double value);
  [[nodiscard]] double verify_ms(int num_rows) const;
  [[nodiscard]] double draft_ms(int num_drafts) const;
  /// Most drafts of the next window: a pass one row wider than any that was measured. Starting at the longest window
  /// costs five plain passes where drafts are never right.
  [[nodiscard]] int reach() const;
  [[nodiscard]] const Rate& rate(float confidence) const;
  [[nodiscard]] bool pays(int k, double prefix) const;

  int max_drafts_;
  bool fixed_;
  std::vector<Mean> verify_ms_;  // [rows]
  Mean first_draft_ms_, step_ms_, refresh_ms_;
  std::array<Rate, kBins> by_confidence_;
  Rate overall_{1.2, 2.0};     // a guess that two readings outweigh
  int64_t plain_windows_ = 0;  // since the last window with drafts
  int64_t probe_after_ = 16;
};

}  // namespace foretoken
