#include "mtp/controller.h"

#include <algorithm>
#include <climits>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Drafts that gain less are not worth their risk: before any window with drafts was measured, and later.
constexpr double kLeastExpectedGain = 1.05, kLeastGain = 1.02;
// Several texts' drafts that gain less are measured against a pass without any after as many passes: how the arithmetic
// of many rows goes with their number is known least.
constexpr double kSureGain = 1.1;
constexpr int kLongestUnsure = 32;
// Part of its tokens that a resting sequence spends on probes; halved by each wrong one.
constexpr double kFirstSavingRate = 0.02, kLeastSavingRate = 0.0025;
// What was lost before a rest is saved first, up to as many tokens: the first drafts of a text that are never right
// cost about that.
constexpr double kMostLost = 1.5;
// Tokens of the prompt that wait until the first draft, about.
constexpr int kPromptsEnd = 64;
// While all sequences rest, costs are looked at again after as many passes.
constexpr int kRestingPlans = 16;
// The first pass of a batch that has drafts has so many at most; each further one twice as many as any before.
constexpr int kFirstDraftsOfBatch = 2;
// A draft that is less probable is never worth its row.
constexpr double kLeastProbable = 1e-3;

}  // namespace

DraftController::DraftController(const DecodeBytes& bytes, int max_drafts, bool fixed)
    : max_drafts_(max_drafts), fixed_(fixed), cost_(bytes) {}

void DraftController::reserve(int num_sequences) {
  candidates_.reserve(num_sequences);
  prefix_.reserve(num_sequences);
  chosen_.reserve(num_sequences);
  sequences_by_draft_.reserve(static_cast<size_t>(max_drafts_) + 1);
}

int DraftController::most_drafts(const DraftingSequence& sequence) const {
  const int most = std::clamp(sequence.limit, 0, max_drafts_);
  if (fixed_) return most;
  // Two drafts more than the widest window that was measured had: a jump of the costs is met by few windows, and drafts
  // that are never right are found out by short ones.
  const int widest = cost_.widest_window();
  return std::min(most, widest + 1);
}

int DraftController::most_drafts_of(int num_sequences) const {
  if (num_sequences <= 1) return INT_MAX;
  return std::max(kFirstDraftsOfBatch, 2 * cost_.most_further_rows());
}

void DraftController::give_most(const DraftingBatch& batch, std::span<int> num_drafts) const {
  for (size_t s = 0; s < batch.sequences.size(); ++s) num_drafts[s] = most_drafts(batch.sequences[s]);
}

void DraftController::choose(const DraftingBatch& batch, double tokens_per_ms, std::span<int> num_drafts) {
  const size_t num_sequences = batch.sequences.size();
  prefix_.assign(num_sequences, 1.0);
  chosen_.assign(num_sequences, 0);
  sequences_by_draft_.assign(static_cast<size_t>(max_drafts_) + 1, 0);
  PassShape pass = {static_cast<int>(num_sequences) + batch.prompt_spans,
                    static_cast<int>(num_sequences) + batch.prompt_rows, batch.prompt_rows};
  double tokens = static_cast<double>(num_sequences);
  for (size_t s = 0; s < num_sequences; ++s) {
    const DraftingSequence& sequence = batch.sequences[s];
    for (float confidence : sequence.confidences) {
      prefix_[s] *= sequence.history->rate(shared_, confidence);
      tokens += prefix_[s];
      ++sequences_by_draft_[chosen_[s]++];
    }
    pass.num_rows += chosen_[s];
    num_drafts[s] = chosen_[s];
  }
  const double pass_ms = cost_.pass_ms(pass);
  double drafts_ms = cost_.drafts_ms(sequences_by_draft_);

  const auto worth = [&](double all_tokens, double ms) {
    return tokens_per_ms > 0 ? all_tokens - tokens_per_ms * ms : all_tokens / ms;
  };
  double best = worth(tokens, pass_ms + drafts_ms);
  // What drafts can be worth is asked of as many as there may be, not of the few that begin.
  const int most = tokens_per_ms > 0 ? most_drafts_of(static_cast<int>(num_sequences)) : INT_MAX;
  while (pass.num_rows - batch.prompt_rows - static_cast<int>(num_sequences) < most) {
    size_t next = num_sequences;
    double probability = kLeastProbable;
    for (size_t s = 0; s < num_sequences; ++s) {
      if (chosen_[s] >= most_drafts(batch.sequences[s])) continue;
      const double right = prefix_[s] * batch.sequences[s].history->rate(shared_, num_sequences > 1);
      if (right <= probability) continue;
      probability = right;
      next = s;
    }
    if (next == num_sequences) break;
    prefix_[next] = probability;
    tokens += probability;
    ++pass.num_rows;
    const int draft = ++chosen_[next];
    int& others = sequences_by_draft_[static_cast<size_t>(draft) - 1];
    drafts_ms += cost_.another_draft_ms(draft, others++);
    const double now = worth(tokens, cost_.pass_ms(pass) + drafts_ms);
    if (now <= best) continue;
    best = now;
    std::copy(chosen_.begin(), chosen_.end(), num_drafts.begin());
  }
  if (tokens_per_ms == 0) tokens_per_ms_ = best;
}

// What a millisecond is worth is settled without the prompts, whose rows make no tokens. Who has too little left to say
// for what the drafter has to take in first is no candidate.
void DraftController::choose_without_prompts(const DraftingBatch& batch, std::span<int> num_drafts) {
  candidates_.assign(batch.sequences.begin(), batch.sequences.end());
  choose({candidates_}, 0, num_drafts);
  const double saved_ms = 1 / plain_tokens_per_ms_ - 1 / tokens_per_ms_;  // a token
  bool any_is_out = false;
  for (size_t s = 0; s < candidates_.size(); ++s) {
    DraftingSequence& candidate = candidates_[s];
    if (num_drafts[s] == 0 ||
        static_cast<double>(candidate.tokens_left) * saved_ms >= cost_.catch_up_ms(candidate.waiting))
      continue;
    candidate.limit = 0;
    any_is_out = true;
  }
  if (any_is_out) choose({candidates_}, 0, num_drafts);
}

// A token that is made beside prompts without a draft costs what its row adds to that pass.
double DraftController::tokens_per_ms_beside(const DraftingBatch& batch) const {
  if (batch.prompt_tokens_left <= 0) return tokens_per_ms_;
  double tokens_left = 0;
  for (const DraftingSequence& sequence : batch.sequences)
    tokens_left += static_cast<double>(sequence.tokens_left) / static_cast<double>(batch.sequences.size());
  const double passes = static_cast<double>(batch.prompt_tokens_left) / batch.prompt_rows;
  const double share = std::min(1.0, passes / std::max(tokens_left, 1.0));
  PassShape pass = {num_spans_ + batch.prompt_spans, num_spans_ + batch.prompt_rows, batch.prompt_rows};
  const double without = cost_.pass_ms(pass);
  ++pass.num_rows;
  return 1 / (share * (cost_.pass_ms(pass) - without) + (1 - share) / tokens_per_ms_);
}

double DraftController::cost_in_tokens(int num_drafts) const {
  double ms = cost_.further_rows_ms(num_spans_, num_drafts);
  for (int draft = 1; draft <= num_drafts; ++draft) ms += cost_.another_draft_ms(draft, 0);
  return ms * plain_tokens_per_ms_;
}

// Choosing takes a microsecond or two; passes of the smallest models take fifty.
bool DraftController::may_all_go_on_resting(const DraftingBatch& batch) {
  bool all_rest = batch.prompt_rows == 0 && !was_beside_prompts_ &&
                  static_cast<int>(batch.sequences.size()) == num_spans_ && ++plans_since_choice_ < kRestingPlans;
  for (const DraftingSequence& sequence : batch.sequences) {
    DraftHistory& history = *sequence.history;
    if (history.is_resting_ && sequence.limit > 0) {
      history.saved_ += history.saving_rate_;
      ++history.rested_;
    }
    all_rest &= sequence.limit <= 0 || (history.is_resting_ && history.saved_ < probe_cost(history));
  }
  return all_rest;
}

void DraftController::rest_or_probe(const DraftingBatch& batch, std::span<int> num_drafts) {
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    if (batch.sequences[s].limit <= 0) continue;
    DraftHistory& history = *batch.sequences[s].history;
    history.is_probing_ = false;
    if (num_drafts[s] > 0) {
      history.is_resting_ = false;
      continue;
    }
    if (!history.is_resting_) {
      history.is_resting_ = true;
      // Until the first draft the end of the prompt waits as well.
      history.rested_ = history.own_.has_counted() ? 0 : kPromptsEnd;
      history.saved_ = -history.lost_;
      history.lost_ = 0;
      if (history.saving_rate_ == 0) history.saving_rate_ = kFirstSavingRate;
    }
    history.probe_cost_ = cost_in_tokens(1);
    if (history.saved_ < probe_cost(history)) continue;
    history.saved_ = 0;
    history.rested_ = 0;
    history.is_probing_ = true;
    num_drafts[s] = 1;
  }
}

void DraftController::plan(const DraftingBatch& batch, std::span<int> num_drafts) {
  FT_CHECK_EQ(num_drafts.size(), batch.sequences.size());
  std::fill(num_drafts.begin(), num_drafts.end(), 0);
  if (fixed_) return give_most(batch, num_drafts);
  const bool nobody_drafts = std::all_of(batch.sequences.begin(), batch.sequences.end(),
                                         [](const DraftingSequence& sequence) { return sequence.limit <= 0; });
  if (nobody_drafts || !cost_.can_choose(static_cast<int>(batch.sequences.size())) || may_all_go_on_resting(batch))
    return;
  plans_since_choice_ = 0;
  was_beside_prompts_ = batch.prompt_rows > 0;
  num_spans_ = static_cast<int>(batch.sequences.size());
  plain_tokens_per_ms_ = num_spans_ / cost_.pass_ms({num_spans_, num_spans_});
  choose_without_prompts(batch, num_drafts);
  const double least_gain = cost_.widest_window() == 1 ? kLeastExpectedGain : kLeastGain;
  if (tokens_per_ms_ < least_gain * plain_tokens_per_ms_) {
    std::fill(num_drafts.begin(), num_drafts.end(), 0);
  } else if (num_spans_ > 1 && tokens_per_ms_ < kSureGain * plain_tokens_per_ms_ &&
             cost_.passes_since_plain(num_spans_) >= kLongestUnsure) {
    // Nobody rests: this pass shows what drafting is worth.
    std::fill(num_drafts.begin(), num_drafts.end(), 0);
    return;
  } else if (batch.prompt_rows > 0) {
    tokens_per_ms_ = tokens_per_ms_beside(batch);
    choose({candidates_, batch.prompt_spans, batch.prompt_rows}, tokens_per_ms_, num_drafts);
  }
  int left = most_drafts_of(num_spans_);
  for (int& drafts : num_drafts) {
    drafts = std::min(drafts, left);
    left -= drafts;
  }
  rest_or_probe(batch, num_drafts);
}

void DraftController::extend(const DraftingBatch& batch, std::span<int> num_drafts) {
  FT_CHECK_EQ(num_drafts.size(), batch.sequences.size());
  if (fixed_) return give_most(batch, num_drafts);
  choose(batch, tokens_per_ms_, num_drafts);
}

void DraftController::observe_acceptance(DraftHistory& history, std::span<const float> confidences, int num_accepted) {
  if (confidences.empty()) return;
  shared_.count(confidences, num_accepted);
  history.own_.count(confidences, num_accepted);
  if (fixed_ || num_spans_ == 0) return;
  history.lost_ += cost_in_tokens(static_cast<int>(confidences.size())) - num_accepted;
  history.lost_ = std::clamp(history.lost_, 0.0, kMostLost);
  if (num_accepted > 0) {
    history.saving_rate_ = kFirstSavingRate;
  } else if (history.is_probing_) {
    history.saving_rate_ = std::max(history.saving_rate_ / 2, kLeastSavingRate);
    history.lost_ = 0;  // it was saved up before
  }
}

int DraftController::plan(int limit) {
  const DraftingSequence sequence{&own_history_, limit, {}};
  int num_drafts = 0;
  plan({std::span(&sequence, 1)}, std::span(&num_drafts, 1));
  return num_drafts;
}

bool DraftController::worth_another(std::span<const float> confidences, int limit) {
  const DraftingSequence sequence{&own_history_, limit, confidences};
  int num_drafts = 0;
  extend({std::span(&sequence, 1)}, std::span(&num_drafts, 1));
  return num_drafts > static_cast<int>(confidences.size());
}

int DraftController::plan_after_first(float first_confidence, int limit) {
  const DraftingSequence sequence{&own_history_, limit, std::span(&first_confidence, 1)};
  int num_drafts = 0;
  extend({std::span(&sequence, 1)}, std::span(&num_drafts, 1));
  return std::max(num_drafts, 1);
}

}  // namespace foretoken
