#include "moe/buckets.h"

#include <algorithm>

namespace foretoken {

void group_by_expert(const Routing& routing, int row_begin, int row_end, int num_experts, BucketList& list) {
  const int32_t slot_begin = row_begin * routing.top_k, slot_end = row_end * routing.top_k;
  // Counting sort: rows per expert, then where each expert's slots begin, then the slots in rising order.
  std::vector<int32_t>& next = list.next;
  next.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (int32_t slot = slot_begin; slot < slot_end; ++slot) ++next[static_cast<size_t>(routing.experts[slot]) + 1];
  list.buckets.clear();
  for (int32_t e = 0; e < num_experts; ++e) {
    const int32_t count = next[static_cast<size_t>(e) + 1];
    next[static_cast<size_t>(e) + 1] += next[e];
    if (count > 0) list.buckets.push_back({e, next[e], count});
  }
  list.slots.resize(slot_end - slot_begin);
  for (int32_t slot = slot_begin; slot < slot_end; ++slot) {
    const auto e = static_cast<size_t>(routing.experts[slot]);
    list.slots[next[e]++] = slot;
  }
  // Not std::stable_sort, which takes memory.
  std::sort(list.buckets.begin(), list.buckets.end(), [](const Bucket& a, const Bucket& b) {
    return a.num_slots > b.num_slots || (a.num_slots == b.num_slots && a.expert < b.expert);
  });
}

}  // namespace foretoken
