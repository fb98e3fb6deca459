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
      s.inner_rows_[at] = s.shared_inner_.row(r);
      s.outputs_[at] = s.shared_.data<float>() + r * s.shape_.hidden_dim;
    }
  }
  for (const Bucket& bucket : list.buckets) {
    buckets_.push_back({bucket.expert, static_cast<int32_t>(at), bucket.num_slots});
    for (int32_t i = 0; i < bucket.num_slots; ++i, ++at) {
      const int32_t slot = list.slots[static_cast<size_t>(bucket.slots_begin + i)];
      s.inputs_[at] = x_.view(slot / s.routing.top_k);
      s.inners_[at] = s.inner_.view(slot);
      s.inner_rows_[at] = s.inner_.row(slot);
      s.outputs_[at] = s.partials_.data<float>() + slot * s.shape_.hidden_dim;
    }
  }
}

// Cuts every bucket's output rows into items of equal length.
void ExpertPass::plan_items(bool down) {
  MoeScratch& s = scratch_;
  int64_t all_bytes = 0, longest_row = 1;
  s.item_rows_.clear();
  for (const Bucket& bucket : buckets_) {
    const DenseWeights m = matrices(bucket);
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
  for (size_t b = 0; b < buckets_.size(); ++b)
    s.open_items_[b].store(static_cast<int32_t>(s.items_.num_items_of(b)), std::memory_order_relaxed);
}

void ExpertPass::gate_up_item(const RowItem& at, int thread_idx) {
  MoeScratch& s = scratch_;
  const Bucket& bucket = buckets_[at.matrix];
  const DenseWeights m = matrices(bucket);
  const auto first = static_cast<size_t>(bucket.slots_begin);
  const int num_rows = bucket.num_slots;
  const int64_t tile = tile_rows(num_rows);
  float* gate_tile = s.tiles_.data<float>() + static_cast<int64_t>(thread_idx) * 2 * s.max_rows_ * kTileRows;
  float* up_tile = gate_tile + s.max_rows_ * kTileRows;
  // The pointers of one thread's tiles, [max_rows] each.
  thread_local std::vector<float*> gate_rows, up_rows;
  gate_rows.reserve(static_cast<size_t>(s.max_rows_));
  up_rows.reserve(static_cast<size_t>(s.max_rows_));
  gate_rows.resize(static_cast<size_t>(num_rows));
  up_rows.resize(static_cast<size_t>(num_rows));
  for (int i = 0; i < num_rows; ++i) {
    gate_rows[static_cast<size_t>(i)] = gate_tile + i * tile;
    up_rows[static_cast<size_t>(i)] = up_tile + i * tile;
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
      silu_mul(isa_, gate_rows[static_cast<size_t>(i)], up_rows[static_cast<size_t>(i)], end - begin,
               s.inner_rows_[first + static_cast<size_t>(i)] + begin);
    }
  }
  // acq_rel: the last one sees what all others stored.
  if (s.open_items_[at.matrix].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const int block = weight_type_info(m.down.type).activation_block;
  for (int i = 0; i < num_rows; ++i) {
    RowBuffer& rows = bucket.expert == kSharedExpert ? s.shared_inner_ : s.inner_;
    const int64_t r = (s.inner_rows_[first + static_cast<size_t>(i)] - rows.row(0)) / rows.num_cols();
    rows.quantise(isa_, r, block);
  }
}

void ExpertPass::down_item(const RowItem& at) {
  MoeScratch& s = scratch_;
  const Bucket& bucket = buckets_[at.matrix];
  const auto first = static_cast<size_t>(bucket.slots_begin);
  thread_local std::vector<float*> outputs;
  outputs.reserve(static_cast<size_t>(s.max_rows_));
  outputs.resize(static_cast<size_t>(bucket.num_slots));
  for (size_t i = 0; i < outputs.size(); ++i) outputs[i] = s.outputs_[first + i] + at.row_begin;
  if (s.reads != nullptr) s.reads->add(bucket.expert, ExpertReads::kDown, at.row_end - at.row_begin);
  matmul_rows(isa_, matrices(bucket).down, at.row_begin, at.row_end, &s.inners_[first], bucket.num_slots,
              outputs.data());
}

void ExpertPass::run(const BucketList& list, int num_shared_rows) {
  collect(list, num_shared_rows);
  const auto work_of = [this](const RowItem& at) {
    const Work work = buckets_[at.matrix].expert == kSharedExpert ? Work::kSharedExpert : Work::kRoutedExperts;
    return scratch_.is_mtp ? Work::kMtpLayer : work;
  };
  const RowItems& items = scratch_.items_;
  plan_items(/*down=*/false);
  profiled_for(team_, scratch_.profile, items.node_ends(), [&](int64_t item, int thread_idx) {
    const RowItem at = items.find(item);
    gate_up_item(at, thread_idx);
    const DenseWeights m = matrices(buckets_[at.matrix]);
    return WorkDone{work_of(at),
                    (at.row_end - at.row_begin) * static_cast<int64_t>(m.gate.row_bytes() + m.up.row_bytes())};
  });
  plan_items(/*down=*/true);
  profiled_for(team_, scratch_.profile, items.node_ends(), [&](int64_t item, int) {
    const RowItem at = items.find(item);
    down_item(at);
    return WorkDone{work_of(at),
                    (at.row_end - at.row_begin) * static_cast<int64_t>(matrices(buckets_[at.matrix]).down.row_bytes())};
  });
}

}  // namespace foretoken
