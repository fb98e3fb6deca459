#pragma once

#include <cstdint>
#include <vector>

#include "kernels/isa.h"

namespace foretoken {

/// The experts each row of a window goes to.
struct Routing {
  int num_rows = 0;
  int top_k = 0;
  std::vector<int32_t> experts;  // [num_rows, top_k], by falling probability; ties: lower index first
  std::vector<float> weights;    // [num_rows, top_k], softmax probability, renormalised over the chosen ones
};

/// logits [num_rows, num_experts] -> experts and weights of each row: p = softmax(logits), the top_k largest,
/// w = p / max(sum of the chosen p in rank order, 6.1e-5).
/// REQUIRES: 1 <= top_k <= num_experts.
void route(Isa isa, const float* logits, int num_rows, int num_experts, int top_k, Routing& routing);

}  // namespace foretoken
