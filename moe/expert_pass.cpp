#include "moe/expert_pass.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/matmul/matmul.h"
#include "kernels/rows/elementwise.h"

namespace foretoken {

namespace {

// Weight bytes of one work item: long enough that handing it out (some 50 ns) does not count, short enough that a
// layer's 10 MB of experts make some hundred items and the threads end together.
constexpr int64_t kItemBytes = 128 << 10;
constexpr int kItemsPerThread = 4;

// Output rows of gate and up that are computed before they meet.
constexpr int64_t kTileRows = 64;
// With many rows, the tile of 16 outputs stays in the first-level cache.
constexpr int kWideRows = 9;

int64_t tile_rows(int num_rows) {
  return num_rows <= kWideRows ? kTileRows : kInterleave;
}

}  // namespace

DenseWeights ExpertPass::matrices(const Bucket& bucket) const {
  if (bucket.expert == kSharedExpert) return *shared_;
  return {routed_->gate.expert(bucket.expert), routed_->up.expert(bucket.expert), routed_->down.expert(bucket.expert)};
}

// Gathers what the kernels read and write, bucket after bucket.
void ExpertPass::collect(const BucketList& list, int num_shared_rows) {
  MoeScratch& s = scratch_;
  const ExpertPeers* peers = s.peers;
  const int64_t inner_begin = peers == nullptr || peers->whole_experts ? 0 : peers->inner_begin;
  const int64_t shared_begin = peers == nullptr ? 0 : peers->shared_inner_begin;
  const int64_t shared_out = peers == nullptr ? 0 : peers->hidden_begin;
  const int64_t routed_out = peers == nullptr || peers->whole_experts ? 0 : peers->hidden_begin;
  if (!list.slots.empty()) s.inner_.set_num_cols(routed_->expert_dim());
  if (num_shared_rows > 0) s.shared_inner_.set_num_cols(shared_->dim());
  const size_t num_slots = list.slots.size() + static_cast<size_t>(num_shared_rows);
  s.inputs_.resize(num_slots);
  s.inners_.resize(num_slots);
  s.inner_rows_.resize(num_slots);
  s.outputs_.resize(num_slots);
  buckets_.clear();
  size_t at = 0;
  if (num_shared_rows > 0) {
    buckets_.push_back({kSharedExpert, 0, num_shared_rows});
    for (int r = 0; r < num_shared_rows; ++r, ++at) {
      s.inputs_[at] = x_.view(r);
      s.inners_[at] = s.shared_inner_.view(r);
      s.inner_rows_[at] = s.shared_inner_.row(r) + shared_begin;
      s.outputs_[at] = s.shared_.data<float>() + r * s.shape_.hidden_dim + shared_out;
    }
  }
  for (const Bucket& bucket : list.buckets) {
    const bool is_elsewhere = peers != nullptr && peers->whole_experts &&
                              (bucket.expert < peers->expert_begin || bucket.expert >= peers->expert_end);
    if (is_elsewhere) continue;
    buckets_.push_back({bucket.expert, static_cast<int32_t>(at), bucket.num_slots});
    for (int32_t i = 0; i < bucket.num_slots; ++i, ++at) {
      const int32_t slot = list.slots[bucket.slots_begin + i];
      s.inputs_[at] = x_.view(slot / s.routing.top_k);
      s.inners_[at] = s.inner_.view(slot);
      s.inner_rows_[at] = s.inner_.row(slot) + inner_begin;
      s.outputs_[at] = s.partials_.data<float>() + slot * s.shape_.hidden_dim + routed_out;
    }
  }
}

// Cuts the output rows of these buckets into items of equal length.
void ExpertPass::plan_items(size_t first, size_t end, bool down) {
  MoeScratch& s = scratch_;
  int64_t all_bytes = 0, longest_row = 1;
  first_ = first;
  s.item_rows_.clear();
  for (size_t b = first; b < end; ++b) {
    const DenseWeights m = matrices(buckets_[b]);
    const int64_t row = static_cast<int64_t>(down ? m.down.row_bytes() : m.gate.row_bytes() + m.up.row_bytes());
    s.item_rows_.push_back({down ? m.down.num_rows : m.gate.num_rows, 0});
    all_bytes += row * s.item_rows_.back().num_rows;
    longest_row = std::max(longest_row, row);
  }
  const int64_t item_bytes = std::min(kItemBytes, all_bytes / (kItemsPerThread * team_.num_threads()));
  const int64_t rows_per_item = std::max<int64_t>(1, item_bytes / longest_row / kInterleave) * kInterleave;
  for (RowItems::Matrix& m : s.item_rows_) m.rows_per_item = rows_per_item;
  s.items_.plan(team_.nodes(), s.item_rows_);
  if (down) return;
  for (size_t b = first; b < end; ++b)
    s.open_items_[b].store(static_cast<int32_t>(s.items_.num_items_of(b - first)), std::memory_order_relaxed);
}

void ExpertPass::gate_up_item(const RowItem& at, int thread_idx) {
  MoeScratch& s = scratch_;
  const Bucket& bucket = buckets_[first_ + at.matrix];
  const DenseWeights m = matrices(bucket);
  const auto first = static_cast<size_t>(bucket.slots_begin);
  const int num_rows = bucket.num_slots;
  const int64_t tile = tile_rows(num_rows);
  float* gate_tile = s.tiles_.data<float>() + static_cast<int64_t>(thread_idx) * 2 * s.max_rows_ * kTileRows;
  float* up_tile = gate_tile + s.max_rows_ * kTileRows;
  // The pointers of one thread's tiles, [max_rows] each.
  thread_local std::vector<float*> gate_rows, up_rows;
  gate_rows.reserve(s.max_rows_);
  up_rows.reserve(s.max_rows_);
  gate_rows.resize(num_rows);
  up_rows.resize(num_rows);
  for (int i = 0; i < num_rows; ++i) {
    gate_rows[i] = gate_tile + i * tile;
    up_rows[i] = up_tile + i * tile;
  }
  if (s.reads != nullptr) {
    s.reads->add(bucket.expert, ExpertReads::kGate, at.row_end - at.row_begin);
    s.reads->add(bucket.expert, ExpertReads::kUp, at.row_end - at.row_begin);
  }
  for (int64_t begin = at.row_begin; begin < at.row_end; begin += tile) {
    const int64_t end = std::min(begin + tile, at.row_end);
    matmul_rows(isa_, m.gate, begin, end, &s.inputs_[first], num_rows, gate_rows.data());
    matmul_rows(isa_, m.up, begin, end, &s.inputs_[first], num_rows, up_rows.data());
    for (int i = 0; i < num_rows; ++i) {
      silu_mul(isa_, gate_rows[i], up_rows[i], end - begin, s.inner_rows_[first + static_cast<size_t>(i)] + begin);
    }
  }
  // acq_rel: the last one sees what all others stored.
  if (s.open_items_[first_ + at.matrix].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (s.peers != nullptr && !(s.peers->whole_experts && bucket.expert != kSharedExpert)) return;  // not complete yet
  for (int i = 0; i < num_rows; ++i) quantise_inner(bucket, i);
}

void ExpertPass::quantise_inner(const Bucket& bucket, int i) {
  MoeScratch& s = scratch_;
  RowBuffer& rows = bucket.expert == kSharedExpert ? s.shared_inner_ : s.inner_;
  const float* row = s.inner_rows_[bucket.slots_begin + i];
  rows.quantise(isa_, (row - rows.row(0)) / rows.num_cols(),
                weight_type_info(matrices(bucket).down.type).activation_block);
}

void ExpertPass::quantise_all(size_t first, size_t end) {
  if (first == end) return;
  const Bucket& last = buckets_[end - 1];
  const int32_t begin = buckets_[first].slots_begin;
  profiled_for(team_, scratch_.profile, int64_t{last.slots_begin} + last.num_slots - begin, [&](int64_t item, int) {
    const auto slot = static_cast<int32_t>(begin + item);
    const auto after = std::upper_bound(buckets_.begin() + static_cast<std::ptrdiff_t>(first),
                                        buckets_.begin() + static_cast<std::ptrdiff_t>(end), slot,
                                        [](int32_t at, const Bucket& bucket) { return at < bucket.slots_begin; });
    quantise_inner(after[-1], slot - after[-1].slots_begin);
    return WorkDone{scratch_.is_mtp ? Work::kMtpLayer : Work::kRows, 0};
  });
}

void ExpertPass::down_item(const RowItem& at) {
  MoeScratch& s = scratch_;
  const Bucket& bucket = buckets_[first_ + at.matrix];
  const auto first = static_cast<size_t>(bucket.slots_begin);
  thread_local std::vector<float*> outputs;
  outputs.reserve(s.max_rows_);
  outputs.resize(bucket.num_slots);
  for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = s.outputs_[first + i] + at.row_begin;
  if (s.reads != nullptr) s.reads->add(bucket.expert, ExpertReads::kDown, at.row_end - at.row_begin);
  matmul_rows(isa_, matrices(bucket).down, at.row_begin, at.row_end, &s.inners_[first], bucket.num_slots,
              outputs.data());
}

Work ExpertPass::work_of(const Bucket& bucket) const {
  if (scratch_.is_mtp) return Work::kMtpLayer;
  return bucket.expert == kSharedExpert ? Work::kSharedExpert : Work::kRoutedExperts;
}

void ExpertPass::run_gate_up() {
  plan_items(0, buckets_.size(), /*down=*/false);
  const RowItems& items = scratch_.items_;
  profiled_for(team_, scratch_.profile, items.node_ends(), [&](int64_t item, int thread_idx) {
    const RowItem at = items.find(item);
    gate_up_item(at, thread_idx);
    const Bucket& bucket = buckets_[at.matrix];
    const DenseWeights m = matrices(bucket);
    return WorkDone{work_of(bucket),
                    (at.row_end - at.row_begin) * static_cast<int64_t>(m.gate.row_bytes() + m.up.row_bytes())};
  });
}

void ExpertPass::run_down(size_t first, size_t end) {
  plan_items(first, end, /*down=*/true);
  const RowItems& items = scratch_.items_;
  profiled_for(team_, scratch_.profile, items.node_ends(), [&](int64_t item, int) {
    const RowItem at = items.find(item);
    down_item(at);
    const Bucket& bucket = buckets_[first_ + at.matrix];
    return WorkDone{work_of(bucket),
                    (at.row_end - at.row_begin) * static_cast<int64_t>(matrices(bucket).down.row_bytes())};
  });
}

void ExpertPass::run_with_peers(const BucketList& list, int num_shared_rows) {
  MoeScratch& s = scratch_;
  // The list has all slots of some rows, so they follow each other.
  const int64_t first_slot = list.slots.empty() ? 0 : *std::min_element(list.slots.begin(), list.slots.end());
  const size_t num_shared = num_shared_rows > 0 ? 1 : 0;
  float* shared = num_shared_rows > 0 ? s.shared_inner_.row(0) : nullptr;
  if (!s.peers->whole_experts) {
    s.peers->gather_inner(list.slots.empty() ? nullptr : s.inner_.row(first_slot),
                          static_cast<int64_t>(list.slots.size()), shared, num_shared_rows);
    quantise_all(0, buckets_.size());
    run_down(0, buckets_.size());
    return;
  }
  // Routed experts end here; what they add travels with the shared expert's inner rows.
  run_down(num_shared, buckets_.size());
  const std::span<const int32_t> experts = s.routing.experts;
  s.peers->gather_partials(s.partials_.data<float>() + first_slot * s.shape_.hidden_dim,
                           experts.subspan(first_slot, list.slots.size()), shared, num_shared_rows);
  quantise_all(0, num_shared);
  run_down(0, num_shared);
}

void ExpertPass::run(const BucketList& list, int num_shared_rows) {
  collect(list, num_shared_rows);
  run_gate_up();
  if (scratch_.peers != nullptr) return run_with_peers(list, num_shared_rows);
  run_down(0, buckets_.size());
}

}  // namespace foretoken
