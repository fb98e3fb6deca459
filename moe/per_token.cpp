#include "moe/expert_pass.h"
#include "moe/grouped.h"

namespace foretoken {

void per_token_experts(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, int num_rows,
                       MoeScratch& scratch) {
  ExpertPass pass(isa, team, &weights, &weights.shared, x, scratch);
  for (int r = 0; r < num_rows; ++r) {
    group_by_expert(scratch.routing, r, r + 1, weights.num_experts, scratch.buckets);
    pass.run(scratch.buckets, r == 0 && weights.has_shared() ? num_rows : 0);
  }
  group_by_expert(scratch.routing, 0, num_rows, weights.num_experts, scratch.buckets);  // counts the distinct ones
  scratch.distinct_experts = static_cast<int>(scratch.buckets.buckets.size());
}

}  // namespace foretoken
