#pragma once

#include <cstdint>
#include <vector>

#include "moe/router.h"

namespace foretoken {

/// The rows of a window that one expert serves. A *slot* is one (row, rank) pair: slot = row * top_k + rank.
struct Bucket {
  int32_t expert = 0;       // kSharedExpert for the shared one
  int32_t slots_begin = 0;  // into BucketList::slots
  int32_t num_slots = 0;
};

inline constexpr int32_t kSharedExpert = -1;

/// Group by expert: one bucket for each distinct expert of a window, the fullest first (ties: lower expert first),
/// slots rising.
struct BucketList {
  std::vector<Bucket> buckets;
  std::vector<int32_t> slots;
  std::vector<int32_t> next;  // work memory of group_by_expert

  /// Room for all that group_by_expert can put here.
  void reserve(int num_experts, int64_t num_slots) {
    buckets.reserve(num_experts);
    slots.reserve(num_slots);
    next.reserve(static_cast<size_t>(num_experts) + 1);
  }
};

/// Buckets of rows [row_begin, row_end) of `routing`.
void group_by_expert(const Routing& routing, int row_begin, int row_end, int num_experts, BucketList& list);

}  // namespace foretoken
