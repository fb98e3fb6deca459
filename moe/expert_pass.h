#pragma once

#include <cstdint>

#include "moe/moe.h"

namespace foretoken {

/// Runs a list of buckets through gate, up and down: two parallel loops, gate-up then down, each split by (bucket x
/// range of output rows), so one loop serves all experts of a layer. Whoever finishes the last gate-up range of a
/// bucket quantises its inner rows: no third barrier. With peers (MoeScratch::peers) inner rows are completed between the
/// loops and then quantised.
class ExpertPass {
 public:
  /// Experts of `routed`, and `shared`: the shared one or a dense part. What run() is not asked for may be nullptr.
  ExpertPass(Isa isa, ThreadTeam& team, const MoeWeights* routed, const DenseWeights* shared, const RowBuffer& x,
             MoeScratch& scratch)
      : isa_(isa),
        team_(team),
        routed_(routed),
        shared_(shared),
        x_(x),
        scratch_(scratch),
        buckets_(scratch.pass_buckets_) {}

  /// Computes scratch.partials_ for every slot in `list`, and scratch.shared_ for rows [0, num_shared_rows) if it is >
  /// 0.
  void run(const BucketList& list, int num_shared_rows);

 private:
  [[nodiscard]] DenseWeights matrices(const Bucket& bucket) const;
  void collect(const BucketList& list, int num_shared_rows);
  // The loops over all buckets from number `first` on, before `end`.
  void run_gate_up();
  void run_down(size_t first, size_t end);
  void plan_items(size_t first, size_t end, bool down);
  // An item's matrix is its bucket, counted from `first`.
  void gate_up_item(const RowItem& at, int thread_idx);
  void down_item(const RowItem& at);
  void quantise_inner(const Bucket& bucket, int i);
  // All inner rows of buckets [first, end), once they are complete.
  void quantise_all(size_t first, size_t end);
  void run_with_peers(const BucketList& list, int num_shared_rows);
  [[nodiscard]] Work work_of(const Bucket& bucket) const;

  Isa isa_;
  ThreadTeam& team_;
  const MoeWeights* routed_;
  const DenseWeights* shared_;
  const RowBuffer& x_;
  MoeScratch& scratch_;
  std::vector<Bucket>& buckets_;  // the list's, and the shared expert in front
  size_t first_ = 0;              // of the buckets in the running loop
};

}  // namespace foretoken
