#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/isa.h"

namespace foretoken {

/// Which values of a head turn together: (i, i + rope_dim/2), as in NEOX, or (2i, 2i + 1), as in the paper.
enum class RopePairs { kHalves, kAdjacent };

/// cos and sin of position * base^(-2i/rope_dim), i in [0, rope_dim/2), computed in double and rounded to float once,
/// for positions [0, num_positions). Su et al. 2021. Every backend reads this table.
class RopeTable {
 public:
  RopeTable(int rope_dim, double base, int64_t num_positions);
  /// Angles position * frequencies[i] for pair i; `magnitude` multiplies cos and sin before they are rounded (YaRN).
  RopeTable(std::span<const double> frequencies, double magnitude, RopePairs pairs, int64_t num_positions);
  [[nodiscard]] int rope_dim() const { return rope_dim_; }
  [[nodiscard]] RopePairs pairs() const { return pairs_; }
  [[nodiscard]] const float* cos(int64_t position) const { return &values_[position * rope_dim_]; }
  [[nodiscard]] const float* sin(int64_t position) const { return cos(position) + rope_dim_ / 2; }

 private:
  int rope_dim_;
  RopePairs pairs_;
  std::vector<float> values_;  // [num_positions][cos rope_dim/2 | sin rope_dim/2]
};

/// Rotates the first rope_dim values of x in the table's pairs (a, b), in place; the others pass through:
/// a' = fma(a, c, -(b*s)), b' = fma(a, s, b*c).
void rope(Isa isa, const RopeTable& table, int64_t position, float* x);

}  // namespace foretoken
