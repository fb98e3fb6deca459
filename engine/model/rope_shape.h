#pragma once

#include <cstdint>

#include "kernels/attention/rope.h"

namespace foretoken {

/// How rotations are stretched for contexts beyond those of the first training.
struct RopeScaling {
  double factor = 1;  // angles are divided by it
  /// YaRN (Peng et al. 2023, 3.2): pairs that turn more than beta_fast times within the first context keep their angles,
  /// those that turn less than beta_slow times have theirs divided, and between them both are mixed.
  bool yarn = false;
  double first_context = 0;  // of the first training
  double beta_fast = 32, beta_slow = 1;
  double extrapolation = 1;  // share of the kept angles where pairs keep them
  double magnitude = 1;      // of rotated queries and keys

  bool operator==(const RopeScaling&) const = default;
};

/// How a layer rotates queries and keys: the first `dim` values of a head in `pairs`, pair i by the angle
/// position * base^(-2i/dim), scaled.
struct RopeShape {
  int dim = 0;
  double base = 10000.0;
  RopePairs pairs = RopePairs::kHalves;
  RopeScaling scaling;

  bool operator==(const RopeShape&) const = default;

  [[nodiscard]] RopeTable table(int64_t num_positions) const;
};

}  // namespace foretoken
