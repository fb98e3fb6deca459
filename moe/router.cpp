#include "moe/router.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "kernels/rows/elementwise.h"
#include "kernels/select/softmax.h"

namespace foretoken {

namespace {

// Sums below it would blow rounding noise up; the value is the smallest normal half, as the models were trained with.
constexpr float kSmallestWeightSum = 6.103515625e-5f;

// The top_k largest of p by insertion into a sorted list: for 8 of 256 nearly every value fails the first comparison.
// A value enters only if it is larger than the smallest kept one, so of equals the lower index stays in front.
void select_top_k(const float* p, int num_experts, int top_k, int32_t* experts, float* weights) {
  int kept = 0;
  for (int e = 0; e < num_experts; ++e) {
    if (kept == top_k && !(p[e] > weights[top_k - 1])) continue;
    int at = kept < top_k ? kept++ : top_k - 1;
    for (; at > 0 && p[e] > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      experts[at] = experts[at - 1];
    }
    weights[at] = p[e];
    experts[at] = e;
  }
}

}  // namespace

void Routing::resize(int rows, int k) {
  num_rows = rows;
  top_k = k;
  experts.resize(static_cast<size_t>(rows) * static_cast<size_t>(k));
  weights.resize(experts.size());
  finite.resize(rows);
}

void route_row(Isa isa, float* logits, int num_experts, int row, Routing& routing) {
  const int top_k = routing.top_k;
  FT_CHECK(top_k >= 1 && top_k <= num_experts);
  int32_t* experts = &routing.experts[static_cast<size_t>(row) * static_cast<size_t>(top_k)];
  float* weights = &routing.weights[static_cast<size_t>(row) * static_cast<size_t>(top_k)];
  routing.finite[row] = std::isfinite(largest_magnitude(isa, logits, num_experts)) ? 1 : 0;
  softmax(isa, logits, num_experts, logits);
  select_top_k(logits, num_experts, top_k, experts, weights);
  float sum = 0;
  for (int rank = 0; rank < top_k; ++rank) sum += weights[rank];
  sum = std::max(sum, kSmallestWeightSum);
  for (int rank = 0; rank < top_k; ++rank) weights[rank] /= sum;
}

}  // namespace foretoken
