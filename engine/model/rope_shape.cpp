#include "engine/model/rope_shape.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace foretoken {

namespace {

/// The pair, as a real number, that turns `turns` times within `context` positions.
double pair_that_turns(double turns, const RopeShape& shape) {
  return shape.dim * std::log(shape.scaling.first_context / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(shape.base));
}

}  // namespace

RopeTable RopeShape::table(int64_t num_positions) const {
  std::vector<double> frequencies;
  double first_mixed = 0, last_mixed = 0;  // pairs whose angles are neither kept nor divided
  if (scaling.yarn) {
    first_mixed = std::max(0.0, std::floor(pair_that_turns(scaling.beta_fast, *this)));
    last_mixed = std::min(dim - 1.0, std::ceil(pair_that_turns(scaling.beta_slow, *this)));
  }
  for (int i = 0; i < dim / 2; ++i) {
    const double kept = std::pow(base, -2.0 * i / dim);
    const double divided = kept / scaling.factor;
    if (!scaling.yarn) {
      frequencies.push_back(divided);
      continue;
    }
    const double way = std::clamp((i - first_mixed) / std::max(0.001, last_mixed - first_mixed), 0.0, 1.0);
    const double share = (1 - way) * scaling.extrapolation;
    frequencies.push_back(divided * (1 - share) + kept * share);
  }
  return RopeTable(frequencies, scaling.magnitude, pairs, num_positions);
}

}  // namespace foretoken
