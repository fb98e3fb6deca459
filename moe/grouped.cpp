#include "moe/grouped.h"

#include "moe/expert_pass.h"

namespace foretoken {

void grouped_experts(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, int num_rows,
                     MoeScratch& scratch) {
  BucketList& buckets = scratch.buckets;
  group_by_expert(scratch.routing, 0, num_rows, weights.num_experts, buckets);
  scratch.distinct_experts = static_cast<int>(buckets.buckets.size());
  ExpertPass(isa, team, &weights, &weights.shared, x, scratch).run(buckets, weights.has_shared() ? num_rows : 0);
}

}  // namespace foretoken
