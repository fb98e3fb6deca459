#include "mtp/controller.h"

#include <algorithm>

namespace foretoken {

namespace {

// Weight of a new reading once a few are in.
constexpr double kLearningRate = 0.15;
// What one more row is taken to add to a pass before any wide pass was measured: little, so that drafting gets tried.
constexpr double kAssumedRowCost = 0.08;
// Draft time as a share of a plain pass, before any was measured.
constexpr double kAssumedDraftCost = 0.06;
// Counts fade so that a change of text shows: some 200 drafts are remembered.
constexpr double kFade = 0.995;
// Plain windows between two probes grow up to this: a probe costs a third of a token at most.
constexpr int64_t kMaxProbeDistance = 256;

}  // namespace

DraftController::DraftController(int max_drafts, bool fixed)
    : max_drafts_(max_drafts), fixed_(fixed), verify_ms_(static_cast<size_t>(max_drafts) + 2) {
  for (int bin = 0; bin < kBins; ++bin) {
    // Prior: a draft is right as often as its confidence says.
    by_confidence_[static_cast<size_t>(bin)] = {2.0 * (bin + 0.5) / kBins, 2.0};
  }
}

void DraftController::learn(Mean& mean, double value) {
  if (mean.count > 0) value = std::min(value, 2 * mean.value);
  ++mean.count;
  mean.value += (value - mean.value) * std::max(kLearningRate, 1.0 / static_cast<double>(mean.count));
}

double DraftController::verify_ms(int num_rows) const {
  const Mean& exact = verify_ms_[static_cast<size_t>(num_rows)];
  if (exact.count > 0) return exact.value;
  // From the nearest narrower pass that was measured, along the slope between the two widest measured ones.
  int last = 0, before = 0;
  for (int n = 1; n < static_cast<int>(verify_ms_.size()); ++n) {
    if (verify_ms_[static_cast<size_t>(n)].count == 0 || n > num_rows) continue;
    before = last;
    last = n;
  }
  if (last == 0) return 0;
  const double at = verify_ms_[static_cast<size_t>(last)].value;
  double slope = kAssumedRowCost * verify_ms_[1].value;
  if (before > 0) slope = std::max(0.0, (at - verify_ms_[static_cast<size_t>(before)].value) / (last - before));
  return at + slope * (num_rows - last);
}

double DraftController::draft_ms(int num_drafts) const {
  if (num_drafts == 0) return 0;
  const double assumed = kAssumedDraftCost * verify_ms(1);
  const double first = first_draft_ms_.count > 0 ? first_draft_ms_.value : assumed;
  const double step = step_ms_.count > 0 ? step_ms_.value : assumed;
  const double refresh = refresh_ms_.count > 0 ? refresh_ms_.value : assumed;
  return first + refresh + (num_drafts - 1) * step;
}

const DraftController::Rate& DraftController::rate(float confidence) const {
  const int bin = std::clamp(static_cast<int>(confidence * kBins), 0, kBins - 1);
  return by_confidence_[static_cast<size_t>(bin)];
}

DraftController::Best DraftController::best(int limit) const {
  Best best{0, 0};
  double expected = 1, prefix = 1;
  for (int k = 0; k <= std::min(limit, max_drafts_); ++k) {
    if (k > 0) expected += prefix *= overall_.value();
    const double ms = verify_ms(k + 1) + draft_ms(k);
    if (ms <= 0) break;
    if (expected / ms > best.tokens_per_ms) best = {k, expected / ms};
  }
  return best;
}

int DraftController::reach() const {
  size_t widest = 1;
  for (size_t rows = 1; rows < verify_ms_.size(); ++rows) {
    if (verify_ms_[rows].count > 0) widest = rows;
  }
  return static_cast<int>(widest);
}

int DraftController::plan(int limit) {
  limit = std::min(limit, max_drafts_);
  if (fixed_ || limit == 0) return limit;
  limit = std::min(limit, reach());
  // The first plain pass gives the measure for all others; the second is free of what a first touch costs.
  if (verify_ms_[1].count < 2) return 0;
  const int chosen = best(limit).num_drafts;
  if (chosen > 0) {
    plain_windows_ = 0;
    probe_after_ = 16;
    return chosen;
  }
  if (++plain_windows_ < probe_after_) return 0;
  plain_windows_ = 0;
  probe_after_ = std::min(2 * probe_after_, kMaxProbeDistance);
  return 1;
}

bool DraftController::worth_another(std::span<const float> confidences, int limit) const {
  const int k = static_cast<int>(confidences.size());
  if (k >= std::min(limit, max_drafts_)) return false;
  if (fixed_) return true;
  if (k >= reach()) return false;
  double prefix = 1;
  for (float confidence : confidences) prefix *= rate(confidence).value();
  return pays(k, prefix);
}

// Whether draft k + 1 pays behind k drafts that are all right with probability `prefix`.
bool DraftController::pays(int k, double prefix) const {
  const double step = step_ms_.count > 0 ? step_ms_.value : kAssumedDraftCost * verify_ms(1);
  const double row = std::max(0.0, verify_ms(k + 2) - verify_ms(k + 1));
  // The next one's own confidence is not known yet.
  return prefix * overall_.value() > best(max_drafts_).tokens_per_ms * (row + step);
}

int DraftController::plan_after_first(float first_confidence, int limit) const {
  limit = std::min(limit, max_drafts_);
  if (fixed_) return limit;
  limit = std::min(limit, reach());
  int k = 1;
  for (double prefix = rate(first_confidence).value(); k < limit && pays(k, prefix); ++k) prefix *= overall_.value();
  return k;
}

void DraftController::observe_verify(int num_rows, double ms) {
  learn(verify_ms_[static_cast<size_t>(num_rows)], ms);
}

void DraftController::observe_acceptance(std::span<const float> confidences, int num_accepted) {
  // A draft behind a wrong one was never judged.
  for (size_t i = 0; i < confidences.size() && static_cast<int>(i) <= num_accepted; ++i) {
    const double right = static_cast<int>(i) < num_accepted ? 1.0 : 0.0;
    const int bin = std::clamp(static_cast<int>(confidences[i] * kBins), 0, kBins - 1);
    for (Rate* rate : {&by_confidence_[static_cast<size_t>(bin)], &overall_}) {
      rate->right = rate->right * kFade + right;
      rate->all = rate->all * kFade + 1.0;
    }
  }
}

}  // namespace foretoken
