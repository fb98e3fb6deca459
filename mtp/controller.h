#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "engine/device_cycle.h"
#include "mtp/cost_model.h"
#include "mtp/draft_history.h"

namespace foretoken {

/// A sequence of the coming pass, as the controller sees it.
struct DraftingSequence {
  DraftHistory* history = nullptr;
  int limit = 0;                       // most drafts it may have: 0 for one that does not draft
  std::span<const float> confidences;  // of the drafts of this window that are made already
  int64_t tokens_left = INT64_MAX;     // that it may still make
  int waiting = 0;                     // tokens that the drafter takes in before it can draft
};

/// The coming pass: windows, and prompt chunks of other sequences beside them.
struct DraftingBatch {
  std::span<const DraftingSequence> sequences;
  int prompt_spans = 0;
  int prompt_rows = 0;
  int64_t prompt_tokens_left = 0;  // of prompts that are still to be read, those of this pass included; 0: not known
};

/// Decides how many drafts each window of a pass gets. One more draft of a sequence is worth
///
///   P(it and all drafts before it are right)   tokens, and costs
///   lambda * (dV + d)                          tokens
///
/// with lambda the best tokens per millisecond that this batch can reach, dV what one more row adds to this pass and d
/// what the draft adds to the drafting. Drafts are added in falling order of their probability as long as that pays; so
/// many sequences shrink each other's drafts, and beside a prompt chunk, whose time is spent anyway, they may grow. But
/// tokens that can be made beside prompts without drafts cost no more than their rows: the more of its tokens a
/// sequence would make there, the less a draft saves.
///
/// It starts from the costs that CostModel derives from bytes and the prompt's pass, and from what the drafter's
/// confidences promise: before anything was measured for one sequence, after one plain pass for several. Where no draft
/// can pay on that ground, none is tried. The first drafts of a batch are few, and become more as their cost shows. A
/// sequence that has not much left to say does not begin, if the drafter would first have to take in more of its text
/// than drafts can win back. A sequence whose drafts do not pay rests, and probes with a single draft once
/// it has saved up what a wrong one costs: a share of its time that is small and shrinks with each failure.
///
/// It changes the speed alone: the text is the same for every decision. One thread at a time may call it.
class DraftController {
 public:
  /// max_drafts: the most drafts a window may get. fixed: always the most.
  DraftController(const DecodeBytes& bytes, int max_drafts, bool fixed);

  /// Room for batches of so many.
  void reserve(int num_sequences);

  // A batch of sequences.

  /// Before drafting: drafts that each window is likely to get, 0 to its limit. num_drafts [sequences]. Call it once a
  /// pass: resting sequences count passes by it.
  void plan(const DraftingBatch& batch, std::span<int> num_drafts);

  /// While drafting, with the confidences so far: drafts that each window should get in all, not below those that it
  /// has. Windows that got 0 from plan() have a limit of 0 here. Call it again after each further draft.
  void extend(const DraftingBatch& batch, std::span<int> num_drafts);

  /// confidences [drafted] of a window of this sequence; the first num_accepted were right.
  void observe_acceptance(DraftHistory& history, std::span<const float> confidences, int num_accepted);

  /// What passes and drafts cost: to be told of each.
  [[nodiscard]] CostModel& cost() { return cost_; }

  // One sequence, whose history the controller keeps itself.

  /// Before a window: drafts that it is likely to get, 0 to `limit`.
  [[nodiscard]] int plan(int limit);

  /// After a draft of this window with the given confidences so far: is one more worth making?
  [[nodiscard]] bool worth_another(std::span<const float> confidences, int limit);

  /// The number of drafts of a window whose drafts are made in one go, from the confidence of the first, which is made
  /// already: at least 1. REQUIRES: limit >= 1.
  [[nodiscard]] int plan_after_first(float first_confidence, int limit);

  void observe_verify(int num_rows, double distinct_experts, double ms) {
    cost_.observe_window({1, num_rows}, distinct_experts, ms);
  }
  void observe_prompt(int num_rows, double distinct_experts, double ms) {
    cost_.observe_prompt({1, num_rows}, distinct_experts, ms);
  }
  /// is_first: the head alone; otherwise a chained step through the layer.
  void observe_draft(bool is_first, double ms) {
    is_first ? cost_.observe_first_draft(1, ms) : cost_.observe_step(1, ms);
  }
  void observe_refresh(double ms) { cost_.observe_refresh(1, ms); }
  void observe_acceptance(std::span<const float> confidences, int num_accepted) {
    observe_acceptance(own_history_, confidences, num_accepted);
  }

 private:
  [[nodiscard]] int most_drafts(const DraftingSequence& sequence) const;
  // Of all windows together.
  [[nodiscard]] int most_drafts_of(int num_sequences) const;
  void choose_without_prompts(const DraftingBatch& batch, std::span<int> num_drafts);
  [[nodiscard]] double tokens_per_ms_beside(const DraftingBatch& batch) const;
  void give_most(const DraftingBatch& batch, std::span<int> num_drafts) const;
  // Drafts that are worth most at this worth of a millisecond; 0: those that make most tokens a millisecond, which
  // becomes lambda_.
  void choose(const DraftingBatch& batch, double tokens_per_ms, std::span<int> num_drafts);
  [[nodiscard]] bool may_all_go_on_resting(const DraftingBatch& batch);
  void rest_or_probe(const DraftingBatch& batch, std::span<int> num_drafts);
  // Of a window's drafts, in tokens of plain decoding.
  [[nodiscard]] double cost_in_tokens(int num_drafts) const;
  // What it costs, in the same, to find out by one draft whether drafts pay again. Tokens that wait are taken in for
  // that; in a long rest, in which they are taken in now and then, half of the most that may wait.
  [[nodiscard]] double probe_cost(const DraftHistory& history) const {
    const int waiting = std::min(history.rested_, DeviceCycle::kMaxDeferred / 2);
    return history.probe_cost_ + cost_.catch_up_ms(waiting) * plain_tokens_per_ms_;
  }

  const int max_drafts_;
  const bool fixed_;
  CostModel cost_;
  AcceptanceCounts shared_;
  DraftHistory own_history_;

  double tokens_per_ms_ = 0;  // lambda: of the last plan
  double plain_tokens_per_ms_ = 0;
  int num_spans_ = 0;  // of the last plan
  int plans_since_choice_ = 0;
  bool was_beside_prompts_ = false;  // at the last choice

  std::vector<DraftingSequence> candidates_;
  std::vector<double> prefix_;           // [sequences] probability that all its drafts so far are right
  std::vector<int> chosen_;              // [sequences]
  std::vector<int> sequences_by_draft_;  // [max_drafts]
};

}  // namespace foretoken
