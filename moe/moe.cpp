#include "moe/moe.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/error.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"
#include "moe/expert_pass.h"
#include "moe/grouped.h"

namespace foretoken {

namespace {

constexpr int64_t kTileRows = 64;           // as in expert_pass.cpp
constexpr int64_t kRouterRowsPerItem = 64;  // 64 experts x 2048 floats: 512 KiB

unsigned block_bit(const MatrixView& m) {
  const int block = m.num_rows == 0 ? 0 : weight_type_info(m.type).activation_block;
  return block == 0 ? 0u : block == 32 ? 1u : 2u;
}

size_t floats(int64_t count) {
  return static_cast<size_t>(count) * sizeof(float);
}

// Router logits of all rows, their experts and weights, and the shared expert's weight.
void choose_experts(Isa isa, ThreadTeam& team, const MoeWeights& weights, const RowBuffer& x, int num_rows,
                    MoeScratch& scratch, std::vector<RowView>& inputs, RowItems& items, float* logits,
                    float* shared_weight) {
  Routing& routing = scratch.routing;
  const Work work = scratch.is_mtp ? Work::kMtpLayer : Work::kRouter;
  const int num_experts = weights.num_experts;
  routing.resize(num_rows, weights.top_k);
  inputs.resize(num_rows);
  for (int r = 0; r < num_rows; ++r) inputs[r] = x.view(r);
  const bool is_shared = scratch.peers != nullptr && scratch.peers->shares_router;
  const int64_t first = is_shared ? scratch.peers->router_begin : 0;
  const RowItems::Matrix router{is_shared ? scratch.peers->router_end - first : num_experts, kRouterRowsPerItem};
  items.plan(team.nodes(), {&router, 1});
  profiled_for(team, scratch.profile, items.node_ends(), [&](int64_t item, int) {
    const RowItem own = items.find(item);
    const int64_t begin = first + own.row_begin, end = first + own.row_end;
    thread_local std::vector<float*> outputs;
    outputs.reserve(x.max_rows());
    outputs.resize(num_rows);
    for (int r = 0; r < num_rows; ++r) outputs[r] = logits + static_cast<int64_t>(r) * num_experts + begin;
    matmul_rows(isa, weights.router, begin, end, inputs.data(), num_rows, outputs.data());
    return WorkDone{work, (end - begin) * static_cast<int64_t>(weights.router.row_bytes())};
  });
  if (is_shared) scratch.peers->gather_router(logits, num_rows);
  const auto route = [&](int64_t r, int) {
    route_row(isa, logits + r * num_experts, num_experts, static_cast<int>(r), routing);
    if (weights.shared_router != nullptr) {
      const float gate = float_dot(isa, weights.shared_router, x.row(r), x.num_cols());
      if (!std::isfinite(gate)) routing.finite[r] = 0;  // a sigmoid makes 0 or 1 of infinity
      shared_weight[r] = 1.0f;
      sigmoid_gate(isa, &gate, 1, &shared_weight[r]);
    }
    return WorkDone{work, 0};
  };
  profiled_rows(team, scratch.profile, num_rows, x.num_cols(), route);
}

}  // namespace

ExpertReads::ExpertReads(int num_experts) : rows_((static_cast<size_t>(num_experts) + 1) * kNumMatrices) {
  clear();
}

void ExpertReads::clear() {
  for (auto& rows : rows_) rows.store(0);
}

MoeScratch::MoeScratch(const MoeShape& shape, int max_rows, int num_threads)
    : inner_(int64_t{max_rows} * shape.top_k, shape.expert_dim),
      shared_inner_(shape.shared_dim > 0 ? max_rows : 0, shape.shared_dim),
      partials_(floats(int64_t{max_rows} * shape.top_k * shape.hidden_dim)),
      shared_(floats(shape.shared_dim > 0 ? max_rows * shape.hidden_dim : 0)),
      logits_(floats(int64_t{max_rows} * shape.num_experts)),
      shared_weight_(floats(max_rows)),
      tiles_(floats(int64_t{num_threads} * 2 * max_rows * kTileRows)),
      sums_(floats(num_threads * shape.hidden_dim)),
      shape_(shape),
      max_rows_(max_rows),
      open_items_(new std::atomic<int32_t>[static_cast<size_t>(shape.num_experts) + 1]) {
  const int64_t routed_slots = int64_t{max_rows} * shape.top_k;
  const auto num_slots = static_cast<size_t>(routed_slots + max_rows);
  const auto num_buckets = static_cast<size_t>(shape.num_experts) + 1;
  routing.resize(max_rows, shape.top_k);
  buckets.reserve(shape.num_experts, routed_slots);
  pass_buckets_.reserve(num_buckets);
  inputs_.reserve(num_slots);
  inners_.reserve(num_slots);
  inner_rows_.reserve(num_slots);
  outputs_.reserve(num_slots);
  item_rows_.reserve(num_buckets);
  items_.reserve(num_buckets);
}

size_t MoeScratch::size_bytes() const {
  return inner_.size_bytes() + shared_inner_.size_bytes() + partials_.size_bytes() + shared_.size_bytes() +
         logits_.size_bytes() + shared_weight_.size_bytes() + tiles_.size_bytes() + sums_.size_bytes();
}

unsigned input_blocks(const MoeWeights& weights) {
  return block_bit(weights.router) | block_bit(weights.gate.all) | block_bit(weights.up.all) |
         input_blocks(weights.shared);
}

unsigned input_blocks(const DenseWeights& weights) {
  return block_bit(weights.gate) | block_bit(weights.up);
}

void moe_forward(Isa isa, ThreadTeam& team, MoeVerify verify, const MoeWeights& weights, const RowBuffer& x,
                 int num_rows, MoeScratch& scratch, RowBuffer& residual) {
  FT_CHECK(num_rows <= scratch.max_rows_);
  const int64_t dim = scratch.shape_.hidden_dim;
  float* shared_weight = scratch.shared_weight_.data<float>();
  choose_experts(isa, team, weights, x, num_rows, scratch, scratch.inputs_, scratch.items_,
                 scratch.logits_.data<float>(), shared_weight);
  (verify == MoeVerify::kGrouped ? grouped_experts : per_token_experts)(isa, team, weights, x, num_rows, scratch);

  // Where outputs are shared out, each process adds up its own columns; whole experts without a shared one are known to
  // all in all columns.
  const bool has_all = scratch.peers == nullptr || (scratch.peers->whole_experts && !weights.has_shared());
  const int64_t begin = has_all ? 0 : scratch.peers->hidden_begin;
  const int64_t count = has_all ? dim : scratch.peers->hidden_end - begin;
  const WorkDone combined{scratch.is_mtp ? Work::kMtpLayer : Work::kRows, 0};
  profiled_rows(team, scratch.profile, num_rows, dim, [&](int64_t r, int thread_idx) {
    const float* shared = scratch.shared_.data<float>() + r * dim + begin;
    float* sum = scratch.sums_.data<float>() + thread_idx * dim;
    std::fill_n(sum, count, 0.0f);
    for (int rank = 0; rank < weights.top_k; ++rank) {
      const int64_t slot = r * weights.top_k + rank;
      add_scaled(isa, scratch.routing.weights[slot], scratch.partials_.data<float>() + slot * dim + begin, count, sum);
    }
    if (weights.has_shared()) add_scaled(isa, weights.shared_router ? shared_weight[r] : 1.0f, shared, count, sum);
    add(isa, sum, count, residual.row(r) + begin);
    return combined;
  });
  if (!has_all) scratch.peers->gather_hidden(residual.row(0), num_rows);
}

void dense_forward(Isa isa, ThreadTeam& team, const DenseWeights& weights, const RowBuffer& x, int num_rows,
                   MoeScratch& scratch, RowBuffer& residual) {
  FT_CHECK(num_rows <= scratch.max_rows_);
  const int64_t dim = scratch.shape_.hidden_dim;
  ExpertPass(isa, team, /*routed=*/nullptr, &weights, x, scratch).run(BucketList{}, num_rows);
  const int64_t begin = scratch.peers == nullptr ? 0 : scratch.peers->hidden_begin;
  const int64_t count = scratch.peers == nullptr ? dim : scratch.peers->hidden_end - begin;
  const WorkDone added{scratch.is_mtp ? Work::kMtpLayer : Work::kRows, 0};
  profiled_rows(team, scratch.profile, num_rows, dim, [&](int64_t r, int) {
    add(isa, scratch.shared_.data<float>() + r * dim + begin, count, residual.row(r) + begin);
    return added;
  });
  if (scratch.peers != nullptr) scratch.peers->gather_hidden(residual.row(0), num_rows);
}

}  // namespace foretoken
