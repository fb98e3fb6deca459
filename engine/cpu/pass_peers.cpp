#include "engine/cpu/pass_peers.h"

#include <algorithm>
#include <array>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Values of the largest message of a pass of one row.
int64_t most_values(const ModelShapes& shapes, ClusterMode mode) {
  if (mode == ClusterMode::kLayers) return 0;
  const MoeShape& moe = shapes.moe;
  const int64_t slot = mode == ClusterMode::kExperts ? moe.hidden_dim : moe.expert_dim;
  return std::max({shapes.attended_dim, shapes.delta_out_dim, shapes.hidden_dim, moe.top_k * slot + moe.shared_dim,
                   int64_t{moe.num_experts}});
}

}  // namespace

PassPeers::PassPeers(Transport& transport, const ModelShare& share, const ModelShapes& shapes, int64_t max_rows)
    : transport_(transport),
      share_(share),
      hidden_dim_(shapes.hidden_dim),
      message_(static_cast<size_t>(max_rows * most_values(shapes, share.plan.mode))),
      ends_(static_cast<size_t>(share.plan.num_ranks())),
      byte_ends_(ends_.size()) {
  FT_CHECK_EQ(transport.num_ranks(), share.plan.num_ranks());
  FT_CHECK_EQ(transport.rank(), share.rank);
  whole_experts = share.plan.mode == ClusterMode::kExperts;
  shares_router = transport.shares_memory();
  hidden_begin = share.plan.hidden.begin(share.rank);
  hidden_end = share.plan.hidden.end(share.rank);
}

float* PassPeers::pack(const Part& part, int of_rank, float* at) const {
  for (int64_t r = 0; r < part.num_rows; ++r) {
    for (const RowRange& columns : part.owners->of(of_rank))
      at = std::copy(part.rows + r * part.num_columns + columns.begin, part.rows + r * part.num_columns + columns.end,
                     at);
  }
  return at;
}

const float* PassPeers::unpack(const Part& part, int of_rank, const float* at) const {
  for (int64_t r = 0; r < part.num_rows; ++r) {
    for (const RowRange& columns : part.owners->of(of_rank)) {
      const int64_t count = columns.end - columns.begin;
      std::copy_n(at, count, part.rows + r * part.num_columns + columns.begin);
      at += count;
    }
  }
  return at;
}

void PassPeers::exchange() {
  for (size_t i = 0; i < ends_.size(); ++i) byte_ends_[i] = ends_[i] * static_cast<int64_t>(sizeof(float));
  transport_.all_gather(reinterpret_cast<std::byte*>(message_.data()), byte_ends_);
}

void PassPeers::gather(std::span<const Part> parts) {
  int64_t end = 0;
  for (int rank = 0; rank < plan().num_ranks(); ++rank) {
    if (rank == this->rank()) {
      float* at = message_.data() + end;
      for (const Part& part : parts) at = pack(part, rank, at);
    }
    for (const Part& part : parts) end += part.num_rows * part.owners->count(rank);
    ends_[rank] = end;
  }
  FT_CHECK(end <= static_cast<int64_t>(message_.size()));
  if (end == 0) return;
  exchange();
  for (int rank = 0; rank < plan().num_ranks(); ++rank) {
    if (rank == this->rank()) continue;
    const float* at = message_.data() + (rank == 0 ? 0 : ends_[static_cast<size_t>(rank) - 1]);
    for (const Part& part : parts) at = unpack(part, rank, at);
  }
}

void PassPeers::gather_mixer(int layer, float* rows, int64_t num_columns, int num_rows) {
  const Part part{rows, num_columns, num_rows, &plan().layers[layer].mixer};
  gather({&part, 1});
}

void PassPeers::gather_hidden(float* rows, int num_rows) {
  const Part part{rows, hidden_dim_, num_rows, &plan().hidden};
  gather({&part, 1});
}

void PassPeers::gather_router(float* logits, int num_rows) {
  const Part part{logits, layer_->router.num_rows(), num_rows, &layer_->router};
  gather({&part, 1});
}

void PassPeers::begin_feed_forward(int layer) {
  layer_ = &plan().layers[layer];
  if (layer_->router.num_ranks() > 0) {
    router_begin = layer_->router.begin(rank());
    router_end = layer_->router.end(rank());
  }
  inner_dim_ = layer_->inner.num_rows();
  shared_dim_ = layer_->shared_inner.num_rows();
  inner_begin = inner_dim_ == 0 ? 0 : layer_->inner.begin(rank());
  shared_inner_begin = shared_dim_ == 0 ? 0 : layer_->shared_inner.begin(rank());
  if (!whole_experts || layer_->experts.num_ranks() == 0) return;
  expert_begin = static_cast<int32_t>(layer_->experts.begin(rank()));
  expert_end = static_cast<int32_t>(layer_->experts.end(rank()));
}

void PassPeers::gather_inner(float* routed, int64_t num_slots, float* shared, int num_shared_rows) {
  std::array<Part, 2> parts;
  size_t count = 0;
  if (num_slots > 0) parts[count++] = {routed, inner_dim_, num_slots, &layer_->inner};
  if (num_shared_rows > 0) parts[count++] = {shared, shared_dim_, num_shared_rows, &layer_->shared_inner};
  gather(std::span(parts).first(count));
}

void PassPeers::gather_partials(float* partials, std::span<const int32_t> experts, float* shared, int num_shared_rows) {
  const int num_ranks = plan().num_ranks();
  const Part inner{shared, shared_dim_, num_shared_rows, &layer_->shared_inner};
  int64_t end = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    float* at = message_.data() + end;
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      if (!layer_->experts.owns(rank, experts[slot])) continue;
      end += hidden_dim_;
      if (rank == this->rank()) at = std::copy_n(partials + static_cast<int64_t>(slot) * hidden_dim_, hidden_dim_, at);
    }
    if (rank == this->rank() && num_shared_rows > 0) pack(inner, rank, at);
    if (num_shared_rows > 0) end += num_shared_rows * layer_->shared_inner.count(rank);
    ends_[rank] = end;
  }
  FT_CHECK(end <= static_cast<int64_t>(message_.size()));
  if (end == 0) return;
  exchange();
  for (int rank = 0; rank < num_ranks; ++rank) {
    if (rank == this->rank()) continue;
    const float* at = message_.data() + (rank == 0 ? 0 : ends_[static_cast<size_t>(rank) - 1]);
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      if (!layer_->experts.owns(rank, experts[slot])) continue;
      std::copy_n(at, hidden_dim_, partials + static_cast<int64_t>(slot) * hidden_dim_);
      at += hidden_dim_;
    }
    if (num_shared_rows > 0) unpack(inner, rank, at);
  }
}

void PassPeers::receive_rows(float* rows, int num_rows) {
  transport_.receive(rank() - 1, std::as_writable_bytes(std::span(rows, static_cast<size_t>(num_rows * hidden_dim_))));
}

void PassPeers::send_rows(const float* rows, int num_rows) {
  transport_.send(rank() + 1, std::as_bytes(std::span(rows, static_cast<size_t>(num_rows * hidden_dim_))));
}

}  // namespace foretoken
