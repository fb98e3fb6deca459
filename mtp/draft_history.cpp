#include "mtp/draft_history.h"

#include <algorithm>

namespace foretoken {

namespace {

// Counts fade so that a change of text shows: some 33 drafts are remembered.
constexpr double kFade = 0.97;
// Published runs accept 0.8 to 0.9 of the first drafts; the first two readings outweigh that. In a batch, where the first
// drafts are few and a wrong one costs less, the first four do.
constexpr double kAssumedRate = 0.8, kAssumedRateWeight = 2, kAssumedRateWeightOfBatch = 4;
// Drafts that weigh as much as what confidences promise, for one confidence and for all.
constexpr double kPromiseWeight = 4;
// No draft is taken to be surer than that.
constexpr double kMostSure = 0.98;

}  // namespace

// Not a number is no confidence.
size_t AcceptanceCounts::bin_of(float confidence) {
  if (!(confidence > 0)) return 0;
  return std::min(static_cast<size_t>(std::min(confidence, 1.0f) * kBins), static_cast<size_t>(kBins - 1));
}

double AcceptanceCounts::promised(size_t bin) {
  return (static_cast<double>(bin) + 0.5) / kBins;
}

void AcceptanceCounts::count(std::span<const float> confidences, int num_accepted) {
  for (size_t i = 0; i < confidences.size() && static_cast<int>(i) <= num_accepted; ++i) {
    const double right = static_cast<int>(i) < num_accepted ? 1.0 : 0.0;
    const size_t bin = bin_of(confidences[i]);
    for (Rate* rate : {&by_confidence_[bin], &overall_}) {
      rate->right = rate->right * kFade + right;
      rate->all = rate->all * kFade + 1.0;
    }
    of_promised_.right = of_promised_.right * kFade + right;
    of_promised_.all = of_promised_.all * kFade + promised(bin);
  }
}

double AcceptanceCounts::rate(bool is_batch) const {
  const double weight = is_batch ? kAssumedRateWeightOfBatch : kAssumedRateWeight;
  return (overall_.right + weight * kAssumedRate) / (overall_.all + weight);
}

double AcceptanceCounts::rate(float confidence) const {
  const size_t bin = bin_of(confidence);
  const double kept = (of_promised_.right + kPromiseWeight) / (of_promised_.all + kPromiseWeight);
  const double expected = std::min(promised(bin) * kept, kMostSure);
  const Rate& counted = by_confidence_[bin];
  return (counted.right + kPromiseWeight * expected) / (counted.all + kPromiseWeight);
}

double DraftHistory::rate(const AcceptanceCounts& shared, float confidence) const {
  const AcceptanceCounts::Rate& own = own_.by_confidence_[AcceptanceCounts::bin_of(confidence)];
  return (own.right + kSharedWeight * shared.rate(confidence)) / (own.all + kSharedWeight);
}

double DraftHistory::rate(const AcceptanceCounts& shared, bool is_batch) const {
  return (own_.overall_.right + kSharedWeight * shared.rate(is_batch)) / (own_.overall_.all + kSharedWeight);
}

}  // namespace foretoken
