#include "moe/host_experts.h"

#include "kernels/base/error.h"
#include "moe/expert_pass.h"

namespace foretoken {

void host_experts(Isa isa, ThreadTeam& team, MoeVerify verify, const MoeWeights& weights, const RowBuffer& x,
                  int num_rows, std::span<const int32_t> places, MoeScratch& scratch, std::vector<int32_t>& slots) {
  FT_CHECK_EQ(static_cast<int>(places.size()), weights.num_experts);
  slots.clear();
  ExpertPass pass(isa, team, &weights, /*shared=*/nullptr, x, scratch);
  BucketList& list = scratch.buckets;
  const int rows_at_once = verify == MoeVerify::kGrouped ? num_rows : 1;
  for (int begin = 0; begin < num_rows; begin += rows_at_once) {
    group_by_expert(scratch.routing, begin, begin + rows_at_once, weights.num_experts, list);
    std::erase_if(list.buckets, [&](const Bucket& b) { return places[b.expert] >= 0; });
    if (list.buckets.empty()) continue;
    pass.run(list, /*num_shared_rows=*/0);
    for (const Bucket& bucket : list.buckets) {
      const auto first = list.slots.begin() + bucket.slots_begin;
      slots.insert(slots.end(), first, first + bucket.num_slots);
    }
  }
}

}  // namespace foretoken
