#pragma once

#include <span>

namespace foretoken {

/// Middle value; mean of the two middle ones for an even count. REQUIRES: !values.empty().
[[nodiscard]] double median(std::span<const double> values);

struct Interval {
  double low = 0;
  double high = 0;
};

/// 95% percentile bootstrap interval of the median: kResamples drawings with replacement from a generator with a fixed
/// seed, so the same samples give the same interval. One sample gives an interval of one point. Source: B. Efron, R.
/// Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. REQUIRES: !values.empty().
[[nodiscard]] Interval bootstrap_median(std::span<const double> values);

inline constexpr int kResamples = 10000;

}  // namespace foretoken
