#pragma once

#include <cstdint>
#include <vector>

#include "kernels/base/isa.h"

namespace foretoken {

/// The experts each row of a window goes to.
struct Routing {
  int num_rows = 0;
  int top_k = 0;
  std::vector<int32_t> experts;  // [num_rows, top_k], by falling probability; ties: lower index first
  std::vector<float> weights;    // [num_rows, top_k], softmax probability, renormalised over the chosen ones
  std::vector<uint8_t> finite;   // [num_rows] 0: a logit was not finite, and the softmax may have lost it

  /// Makes room for `rows` x `k` choices.
  void resize(int rows, int k);
};

/// logits [num_experts] of one row (overwritten) -> its experts and weights in `routing`, which is already sized:
/// p = softmax(logits), the top_k largest, w = p / max(sum of the chosen p in rank order, 6.1e-5).
/// Different rows may be routed by different threads. REQUIRES: 1 <= top_k <= num_experts.
void route_row(Isa isa, float* logits, int num_experts, int row, Routing& routing);

}  // namespace foretoken
