#pragma once

#include <cstdint>
#include <span>

namespace foretoken {

/// The processes that compute a feed-forward part together; of one layer. Each has some output rows of gate, up and
/// down, and of routed experts those rows of each of them, or some experts whole.
class ExpertPeers {
 public:
  virtual ~ExpertPeers() = default;

  bool whole_experts = false;
  int64_t inner_begin = 0;                   // first row of this process's gate and up of every routed expert
  int64_t shared_inner_begin = 0;            // of the shared expert or a dense part
  int64_t hidden_begin = 0, hidden_end = 0;  // its rows of down
  int32_t expert_begin = 0, expert_end = 0;  // with whole_experts
  // Experts whose router logits it computes; all where each process does that for itself.
  bool shares_router = false;
  int64_t router_begin = 0, router_end = 0;

  /// With shares_router: completes router logits [num_rows, experts], of which this process has its experts'.
  virtual void gather_router(float* logits, int num_rows) = 0;

  /// Completes inner rows of which this process has its columns: `num_slots` rows of routed experts at `routed`, and
  /// `num_shared_rows` at `shared`.
  virtual void gather_inner(float* routed, int64_t num_slots, float* shared, int num_shared_rows) = 0;
  /// With whole_experts: completes what the slots add, of which this process has those of its own experts, and the
  /// shared inner rows. experts: [num_slots] of `partials` [num_slots, hidden_dim].
  virtual void gather_partials(float* partials, std::span<const int32_t> experts, float* shared,
                               int num_shared_rows) = 0;
  /// Completes rows of [hidden_dim] of which this process has columns [hidden_begin, hidden_end).
  virtual void gather_hidden(float* rows, int num_rows) = 0;
};

}  // namespace foretoken
