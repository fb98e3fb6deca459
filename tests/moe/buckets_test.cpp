#include "moe/buckets.h"

#include <catch2/catch.hpp>
#include <set>

#include "tests/engine/model/random_model.h"

namespace foretoken {
namespace {

Routing routing_of(int top_k, std::vector<int32_t> experts) {
  Routing routing;
  routing.resize(static_cast<int>(experts.size()) / top_k, top_k);
  routing.experts = std::move(experts);
  return routing;
}

struct Plain {
  int32_t expert;
  std::vector<int32_t> slots;
  bool operator==(const Plain&) const = default;
};

std::vector<Plain> buckets_of(const Routing& routing, int row_begin, int row_end, int num_experts) {
  BucketList list;
  group_by_expert(routing, row_begin, row_end, num_experts, list);
  std::vector<Plain> plain;
  for (const Bucket& b : list.buckets) {
    const auto begin = list.slots.begin() + b.slots_begin;
    plain.push_back({b.expert, {begin, begin + b.num_slots}});
  }
  return plain;
}

TEST_CASE("buckets: one for each distinct expert, the fullest first, the lower expert of equals, slots rising") {
  // Four rows of top 2; a slot is row * 2 + rank.
  const Routing routing = routing_of(2, {3, 1, 1, 0, 4, 1, 3, 4});
  using List = std::vector<Plain>;
  CHECK(buckets_of(routing, 0, 4, 5) == List{{1, {1, 2, 5}}, {3, {0, 6}}, {4, {4, 7}}, {0, {3}}});
  // A part of the window keeps its own slot numbers.
  CHECK(buckets_of(routing, 2, 4, 5) == List{{4, {4, 7}}, {1, {5}}, {3, {6}}});
  CHECK(buckets_of(routing, 1, 2, 5) == List{{0, {3}}, {1, {2}}});
  CHECK(buckets_of(routing, 2, 2, 5).empty());
  // All rows to one expert, one expert a row.
  CHECK(buckets_of(routing_of(1, {2, 2, 2}), 0, 3, 3) == List{{2, {0, 1, 2}}});
}

TEST_CASE("buckets hold every slot of the rows once") {
  for (const int num_experts : {1, 2, 13, 256}) {
    for (const int num_rows : {1, 2, 9, 64}) {
      const int top_k = std::min(num_experts, 4);
      std::vector<int32_t> experts;
      for (int r = 0; r < num_rows; ++r) {
        const TokenId first = test::random_ids(1, num_experts, static_cast<uint64_t>(r + num_experts))[0];
        for (int rank = 0; rank < top_k; ++rank) experts.push_back((first + rank) % num_experts);
      }
      const Routing routing = routing_of(top_k, experts);
      std::set<int32_t> slots, used;
      size_t fullest = static_cast<size_t>(num_rows) + 1;
      for (const Plain& bucket : buckets_of(routing, 0, num_rows, num_experts)) {
        CHECK(used.insert(bucket.expert).second);
        CHECK((!bucket.slots.empty() && bucket.slots.size() <= fullest));
        fullest = bucket.slots.size();
        CHECK(std::is_sorted(bucket.slots.begin(), bucket.slots.end()));
        for (int32_t slot : bucket.slots) {
          CHECK(experts[slot] == bucket.expert);
          CHECK(slots.insert(slot).second);
        }
      }
      CHECK(slots.size() == experts.size());
    }
  }
}

}  // namespace
}  // namespace foretoken
