#include "engine/cuda/fetch_balance.h"

#include <algorithm>
#include <cmath>

namespace foretoken {

namespace {

// What one layer of one pass tells moves the means by this much. A guess: with 40 layers a pass they follow within a few.
constexpr double kRate = 1.0 / 64;

}  // namespace

FetchBalance::FetchBalance(double seconds_to_fetch, int most) : seconds_to_fetch_(seconds_to_fetch), most_(most) {}

int FetchBalance::fetched(bool has_chunks) const {
  const Means& means = has_chunks ? of_chunks_ : of_windows_;
  if (!means.is_known) return 1;
  const double balanced = means.missing * means.seconds / (means.seconds + seconds_to_fetch_);
  return std::clamp(static_cast<int>(std::lround(balanced)), 1, most_);
}

void FetchBalance::learn(bool has_chunks, int missing, int computed, double seconds) {
  Means& means = has_chunks ? of_chunks_ : of_windows_;
  const double rate = means.is_known ? kRate : 1.0;
  means.missing += rate * (missing - means.missing);
  if (computed == 0) return;
  means.seconds += rate * (seconds / computed - means.seconds);
  means.is_known = true;
}

}  // namespace foretoken
