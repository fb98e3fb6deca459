#pragma once

#include <cstdint>

#include "moe/moe.h"

namespace foretoken {

/// Runs a list of buckets through gate, up and down: two parallel loops, gate-up then down, each split by (bucket x
/// range of output rows), so one loop serves all experts of a layer. Whoever finishes the last gate-up range of a
/// bucket quantises its inner rows: no third barrier.
class ExpertPass {
 public:
  ExpertPass(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, MoeScratch& scratch)
      : isa_(isa), team_(team), weights_(weights), x_(x), scratch_(scratch) {}

  /// Computes scratch.partials_ for every slot in `list`, and scratch.shared_ for rows [0, num_shared_rows) if it is >
  /// 0.
  void run(const BucketList& list, int num_shared_rows);

 private:
  struct Matrices {
    MatrixView gate, up, down;
  };
  [[nodiscard]] Matrices matrices(const Bucket& bucket) const;
  void collect(const BucketList& list, int num_shared_rows);
  int64_t plan_items(bool down);

  struct Item {
    size_t bucket;
    int64_t row_begin, row_end;
  };
  void gate_up_item(const Item& at, int thread_idx);
  void down_item(const Item& at);
  [[nodiscard]] Item find_item(int64_t item) const;

  Isa isa_;
  ThreadTeam& team_;
  const MoeWeights& weights_;
  const RowBuffer& x_;
  MoeScratch& scratch_;
  std::vector<Bucket> buckets_;  // the list's, and the shared expert in front
  bool planning_down_ = false;
  int64_t rows_per_item_ = 0;
};

}  // namespace foretoken
