#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels/base/aligned_buffer.h"
#include "kernels/formats/matrix.h"
#include "kernels/rows/row_buffer.h"
#include "kernels/threads/row_items.h"
#include "kernels/threads/thread_team.h"
#include "moe/buckets.h"
#include "moe/expert_peers.h"
#include "moe/moe_verify.h"
#include "moe/router.h"
#include "moe/work.h"

namespace foretoken {

/// What a weight is for, as counts of bytes and plans tell weights apart.
enum class WeightRole { kAttention, kDeltaNet, kRouter, kRoutedExpert, kSharedExpert, kDense, kNorm, kMtp };

/// A gated feed-forward part: down . (silu(gate . x) * (up . x)). `Matrix` is how a matrix is held: MatrixView in the
/// host's memory, DeviceMatrix in a GPU's.
template <class Matrix>
struct BasicDenseWeights {
  Matrix gate, up;  // [dim, hidden_dim]
  Matrix down;      // [hidden_dim, dim]

  /// Of what `down` reads; gate and up may hold a process's share of it, as down may of its outputs.
  [[nodiscard]] int64_t dim() const { return down.num_cols; }

  /// Calls visit(role, member...) for every member that holds weights, with that member of each of `dense`.
  template <class Visit, class... Dense>
  static void for_each(WeightRole role, Visit&& visit, Dense&... dense) {
    visit(role, dense.gate...);
    visit(role, dense.up...);
    visit(role, dense.down...);
  }
};

/// One matrix of every expert, cut out of one tensor: expert e has rows [e * stride_rows + first_row, + num_rows) of
/// `all`. (A fused gate_up tensor holds two of them, with stride 2F.) Its products are multiplied by scales[e]: in the
/// host's memory e is the expert, in a GPU's its place there.
template <class Matrix>
struct BasicExpertMatrices {
  Matrix all;
  int64_t stride_rows = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
  VectorView scales = {};  // [num_experts]; empty: all 1
  [[nodiscard]] MatrixView expert(int64_t e) const requires std::is_same_v<Matrix, MatrixView> {
    const int64_t begin = e * stride_rows + first_row;
    MatrixView matrix = all.slice_rows(begin, begin + num_rows);
    if (scales.data != nullptr) matrix.scale = scales[e];
    return matrix;
  }
  /// From the first expert's first row on.
  [[nodiscard]] Matrix from_first() const { return all.slice_rows(first_row, all.num_rows); }
};

/// A mixture of experts. Its shared expert is optional (of no rows) and weighted by sigmoid(shared_router . x), or by 1
/// where shared_router is empty.
template <class Matrix>
struct BasicMoeWeights {
  int num_experts = 0;
  int top_k = 0;
  /// Experts that gate, up and down have room for: all, or of a split model fewer; then `places` says which.
  int capacity = 0;
  const int32_t* places = nullptr;       // [num_experts] in the matrices' memory; nullptr: expert e is the e-th
  Matrix router;                         // [num_experts, hidden_dim]
  BasicExpertMatrices<Matrix> gate, up;  // expert: [expert_dim, hidden_dim]
  BasicExpertMatrices<Matrix> down;      // expert: [hidden_dim, expert_dim]
  BasicDenseWeights<Matrix> shared;
  VectorView shared_router;  // [hidden_dim]
  [[nodiscard]] bool has_shared() const { return shared.dim() > 0; }
  [[nodiscard]] int64_t expert_dim() const { return down.all.num_cols; }

  /// As BasicDenseWeights::for_each, of all parts.
  template <class Visit, class... Moe>
  static void for_each(Visit&& visit, Moe&... moe) {
    visit(WeightRole::kRouter, moe.router...);
    visit(WeightRole::kRoutedExpert, moe.gate...);
    visit(WeightRole::kRoutedExpert, moe.up...);
    visit(WeightRole::kRoutedExpert, moe.down...);
    BasicDenseWeights<Matrix>::for_each(WeightRole::kSharedExpert, visit, moe.shared...);
    visit(WeightRole::kSharedExpert, moe.shared_router...);
  }
};

using DenseWeights = BasicDenseWeights<MatrixView>;
using ExpertMatrices = BasicExpertMatrices<MatrixView>;
using MoeWeights = BasicMoeWeights<MatrixView>;

/// Counts weight rows that the cores hand to the matrix kernels, by expert and matrix: what "each expert is read once"
/// is shown by.
class ExpertReads {
 public:
  enum Matrix { kGate, kUp, kDown, kNumMatrices };
  explicit ExpertReads(int num_experts);
  void add(int32_t expert, Matrix matrix, int64_t num_rows) {
    rows_[index(expert, matrix)].fetch_add(num_rows, std::memory_order_relaxed);
  }
  [[nodiscard]] int64_t rows(int32_t expert, Matrix matrix) const { return rows_[index(expert, matrix)].load(); }
  void clear();

 private:
  // Expert -1 is the shared one.
  [[nodiscard]] static size_t index(int32_t expert, Matrix matrix) {
    return static_cast<size_t>(expert + 1) * kNumMatrices + matrix;
  }
  std::vector<std::atomic<int64_t>> rows_;
};

/// Shapes that a MoeScratch must serve: the largest of all layers. A dense part counts as a shared expert.
struct MoeShape {
  int64_t hidden_dim = 0;
  int num_experts = 0;
  int top_k = 0;
  int64_t expert_dim = 0;
  int64_t shared_dim = 0;

  void add_dense(int64_t dim) { shared_dim = std::max(shared_dim, dim); }
  template <class Matrix>
  void add(const BasicMoeWeights<Matrix>& weights) {
    num_experts = std::max(num_experts, weights.num_experts);
    top_k = std::max(top_k, weights.top_k);
    expert_dim = std::max(expert_dim, weights.expert_dim());
    shared_dim = std::max(shared_dim, weights.shared.dim());
  }
};

/// Work buffers of the cores, taken once and used by every layer.
class MoeScratch {
 public:
  MoeScratch(const MoeShape& shape, int max_rows, int num_threads);
  [[nodiscard]] size_t size_bytes() const;

  /// Where reads are counted, or nullptr.
  ExpertReads* reads = nullptr;
  /// Where work is timed, or nullptr; of the MTP layer if is_mtp.
  WorkProfile* profile = nullptr;
  bool is_mtp = false;
  /// Who computes with this process, or nullptr: alone.
  ExpertPeers* peers = nullptr;

  /// The experts of the last moe_forward, and whether the router's numbers were finite.
  Routing routing;
  /// Distinct routed experts of the last moe_forward.
  int distinct_experts = 0;
  /// The running core's.
  BucketList buckets;

  /// What a slot adds, [hidden_dim], once a core has computed it.
  [[nodiscard]] const float* partial(int64_t slot) const {
    return partials_.data<const float>() + slot * shape_.hidden_dim;
  }

 private:
  friend class ExpertPass;
  friend void moe_forward(Isa, ThreadTeam&, MoeVerify, const MoeWeights&, const RowBuffer&, int, MoeScratch&,
                          RowBuffer&);
  friend void dense_forward(Isa, ThreadTeam&, const DenseWeights&, const RowBuffer&, int, MoeScratch&, RowBuffer&);

  RowBuffer inner_;              // [max_rows * top_k, expert_dim] silu(gate) * up of each slot
  RowBuffer shared_inner_;       // [max_rows, shared_dim]
  AlignedBuffer partials_;       // float [max_rows * top_k, hidden_dim] what each slot adds
  AlignedBuffer shared_;         // float [max_rows, hidden_dim]
  AlignedBuffer logits_;         // float [max_rows, num_experts]
  AlignedBuffer shared_weight_;  // float [max_rows]
  AlignedBuffer tiles_;          // float [num_threads][2][max_rows * kTileRows] gate and up before they meet
  AlignedBuffer sums_;           // float [num_threads][hidden_dim]
  MoeShape shape_;
  int max_rows_ = 0;

  // What the cores hand to the kernels; [bucket slots]. Their capacity is taken once.
  std::vector<Bucket> pass_buckets_;
  std::vector<RowView> inputs_, inners_;
  std::vector<float*> inner_rows_, outputs_;
  std::unique_ptr<std::atomic<int32_t>[]> open_items_;  // per bucket: gate-up items not yet done
  std::vector<RowItems::Matrix> item_rows_;             // by bucket
  RowItems items_;
};

/// Forms of the rows (RowView) that a layer's matrices meet: blocks to quantise by. Bit 0: 32, bit 1: 256.
[[nodiscard]] unsigned input_blocks(const MoeWeights& weights);
[[nodiscard]] unsigned input_blocks(const DenseWeights& weights);

/// residual[r] += MoE(x[r]) for rows [0, num_rows):
///   routed = sum over ranks, in rank order from 0, of fma(weight, down_e(silu(gate_e x) * up_e x));
///   then fma(sigmoid(shared_router . x), shared expert's output), then one add to the residual.
/// REQUIRES: x has the forms of input_blocks(weights); num_rows <= the scratch's max_rows.
/// `verify` chooses who computes: kGrouped reads each used expert once for the whole window, kPerToken once for each
/// (row, expert).
void moe_forward(Isa isa, ThreadTeam& team, MoeVerify verify, const MoeWeights& weights, const RowBuffer& x,
                 int num_rows, MoeScratch& scratch, RowBuffer& residual);

/// residual[r] += down . (silu(gate . x[r]) * (up . x[r])) for rows [0, num_rows). REQUIRES: as for moe_forward.
void dense_forward(Isa isa, ThreadTeam& team, const DenseWeights& weights, const RowBuffer& x, int num_rows,
                   MoeScratch& scratch, RowBuffer& residual);

}  // namespace foretoken
