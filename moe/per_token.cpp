#include <set>

#include "moe/expert_pass.h"
#include "moe/grouped.h"

namespace foretoken {

void per_token_experts(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, int num_rows,
                       MoeScratch& scratch) {
  ExpertPass pass(isa, team, &weights, &weights.shared, x, scratch);
  for (int r = 0; r < num_rows; ++r) {
    BucketList buckets;
    group_by_expert(scratch.routing, r, r + 1, weights.num_experts, buckets);
    pass.run(buckets, r == 0 && weights.has_shared() ? num_rows : 0);
  }
  scratch.distinct_experts =
      static_cast<int>(std::set<int32_t>(scratch.routing.experts.begin(), scratch.routing.experts.end()).size());
}

}  // namespace foretoken
