#include <algorithm>
#include <cmath>

#include "engine/cpu/forward_pass.h"
#include "kernels/rows/elementwise.h"
#include "kernels/rows/rms_norm.h"

namespace foretoken {

namespace {

// Rows of a prompt chunk whose queries share one read of the cache: with 8 heads a group, 64 queries of 256 values stay
// in the second-level cache beside a split of keys.
constexpr int kRowsPerBlock = 8;

// Queries and keys below it have finite scores: 2^58 x 2^58 x 1024 values.
constexpr float kLargestScored = 0x1p58f;
// What a half rounds to infinity, from here on.
constexpr float kHalfOverflow = 65520.0f;

}  // namespace

void ForwardPass::attention(const AttentionWeights& weights, int kv_layer) {
  project(Work::kAttentionProjections, buffers_.normed,
          {{weights.q, buffers_.q}, {weights.k, buffers_.k}, {weights.v, buffers_.v}});
  for_rows(
      [&](int64_t r, int) {
        store_row(weights, kv_layer, r);
        rotate_queries(weights, r);
      },
      Work::kAttention);
  attend_and_output(weights, kv_layer);
}

void ForwardPass::store_keys_and_values(const AttentionWeights& weights, int kv_layer) {
  project(Work::kAttentionProjections, buffers_.normed, {{weights.k, buffers_.k}, {weights.v, buffers_.v}});
  for_rows([&](int64_t r, int) { store_row(weights, kv_layer, r); }, Work::kAttention);
}

void ForwardPass::attend_stored(const AttentionWeights& weights, int kv_layer) {
  project(Work::kAttentionProjections, buffers_.normed, {{weights.q, buffers_.q}});
  for_rows([&](int64_t r, int) { rotate_queries(weights, r); }, Work::kAttention);
  attend_and_output(weights, kv_layer);
}

void ForwardPass::store_row(const AttentionWeights& weights, int kv_layer, int64_t r) {
  const AttentionShape& shape = weights.shape;
  const int64_t dim = shape.head_dim, position = position_of(r);
  const int32_t page = span_of(r).sequence->pages[position / kPagePositions];
  const auto offset = static_cast<int>(position % kPagePositions);
  if (weights.k_bias.count > 0) add(isa_, weights.k_bias, shape.kv_dim(), buffers_.k.row(r));
  if (weights.v_bias.count > 0) add(isa_, weights.v_bias, shape.kv_dim(), buffers_.v.row(r));
  const float largest_value = largest_magnitude(isa_, buffers_.v.row(r), shape.kv_dim());
  for (int h = 0; h < shape.num_kv_heads; ++h) {
    float* key = buffers_.k.row(r) + h * dim;
    if (weights.k_norm.count > 0 && !std::isfinite(rms_norm(isa_, key, weights.k_norm, dim, config_.norm_eps, key))) {
      note(r, FaultKind::kKeys);
    }
    rope(isa_, ropes_.of(shape.rope), position, key);
    kv_.store(isa_, page, offset, kv_layer, h, key, buffers_.v.row(r) + h * dim);
  }
  const float largest_key = largest_magnitude(isa_, buffers_.k.row(r), shape.kv_dim());
  if (!(largest_key < kLargestScored)) note(r, FaultKind::kKeys);
  if (!std::isfinite(largest_value)) note(r, FaultKind::kValues);
  if (kv_type_ != KvType::kF16) return;
  if (!(largest_key < kHalfOverflow)) note(r, FaultKind::kKeyRange);
  if (!(largest_value < kHalfOverflow)) note(r, FaultKind::kValueRange);
}

void ForwardPass::rotate_queries(const AttentionWeights& weights, int64_t r) {
  const AttentionShape& shape = weights.shape;
  const int64_t dim = shape.head_dim, stride = shape.gated ? 2 * dim : dim;
  if (weights.q_bias.count > 0) add(isa_, weights.q_bias, shape.q_rows(), buffers_.q.row(r));
  for (int64_t h = 0; h < shape.num_heads; ++h) {
    float* query = buffers_.queries.row(r) + h * dim;
    const float* projected = buffers_.q.row(r) + h * stride;
    if (weights.q_norm.count == 0) {
      std::copy_n(projected, dim, query);
    } else if (!std::isfinite(rms_norm(isa_, projected, weights.q_norm, dim, config_.norm_eps, query))) {
      note(r, FaultKind::kQueries);
    }
    rope(isa_, ropes_.of(shape.rope), position_of(r), query);
  }
  // With their gates, of which a sigmoid would make 0 or 1.
  if (!std::isfinite(largest_magnitude(isa_, buffers_.q.row(r), shape.q_rows())) ||
      !(largest_magnitude(isa_, buffers_.queries.row(r), shape.query_dim()) < kLargestScored)) {
    note(r, FaultKind::kQueries);
  }
}

void ForwardPass::attend_and_output(const AttentionWeights& weights, int kv_layer) {
  const AttentionShape& shape = weights.shape;
  buffers_.attended.set_num_cols(weights.output.num_cols);
  first_attended_ = shape.num_heads == 0 ? 0 : mixer_column(0);
  attend(shape, kv_layer);
  const unsigned blocks = block_bits({&weights.output});
  for_rows(
      [&](int64_t r, int) {
        const int64_t dim = shape.head_dim;
        float* attended = buffers_.attended.row(r) + first_attended_;
        for (int64_t h = 0; shape.gated && h < shape.num_heads; ++h)
          sigmoid_gate(isa_, buffers_.q.row(r) + (2 * h + 1) * dim, dim, attended + h * dim);
        if (peers_ == nullptr) quantise_forms(isa_, buffers_.attended, r, blocks);
      },
      Work::kAttention);
  if (peers_ != nullptr) {
    peers_->gather_mixer(layer_, buffers_.attended.row(0), buffers_.attended.num_cols(), num_rows_);
    for_rows([&](int64_t r, int) { quantise_forms(isa_, buffers_.attended, r, blocks); }, Work::kAttention);
  }
  project_to_hidden(Work::kAttentionProjections, buffers_.attended, weights.output);
  added(FaultKind::kAttention);
}

void ForwardPass::reserve_attention(const SessionOptions& options) {
  const int64_t heads = buffers_.num_heads, most_rows = buffers_.residual.max_rows();
  // An item of one split has a partial result or more.
  const auto most_of_splits = static_cast<int64_t>(buffers_.partial_queries.size());
  const int64_t most_blocks = most_rows / kRowsPerBlock + options.parallel;
  attend_items_.reserve(most_of_splits + most_blocks * heads);
  merge_items_.reserve(int64_t{options.parallel} * options.max_window * heads);
}

void ForwardPass::plan_attention(const AttentionShape& shape) {
  if (shape == planned_) return;
  planned_ = shape;
  attend_items_.clear();
  merge_items_.clear();
  const auto room = static_cast<int64_t>(buffers_.partial_queries.size());
  int64_t used = 0;
  for (size_t s = 0; s < spans_.size(); ++s) {
    const Span& span = spans_[s];
    const int64_t num_splits = pages_of(span.position + span.num_rows);
    const int64_t partials = num_splits * span.num_rows * shape.num_heads;
    // The few rows of a window over a long context are shared out by splits; otherwise there is more to share out in
    // rows and heads. Where many long sequences meet, the room for partial results goes to the first of them.
    if (span.num_rows <= max_window_ && num_splits > 1 && used + partials <= room) {
      plan_splits(static_cast<int>(s), num_splits, used);
      used += partials;
    } else {
      plan_rows(static_cast<int>(s));
    }
  }
}

void ForwardPass::plan_rows(int span_idx) {
  const Span& span = spans_[span_idx];
  const int num_blocks = (span.num_rows + kRowsPerBlock - 1) / kRowsPerBlock;
  // The last blocks attend to the most positions: they come first.
  for (int block = num_blocks - 1; block >= 0; --block) {
    const int begin = span.first_row + block * kRowsPerBlock, end = std::min(begin + kRowsPerBlock, span.end_row());
    for (int h = 0; h < planned_.num_kv_heads; ++h) attend_items_.push_back({span_idx, h, begin, end, -1, 0});
  }
}

// Each key and value is read once for all rows of the window, and a thread that takes the next item reads on where it
// stopped. A split computed from an empty result is exactly that split's max, sum and values; merging them in rising
// order is the sum that a walk over all splits makes.
void ForwardPass::plan_splits(int span_idx, int64_t num_splits, int64_t first_partial) {
  const Span& span = spans_[span_idx];
  const int64_t num_queries = int64_t{span.num_rows} * planned_.num_heads;
  for (int h = 0; h < planned_.num_kv_heads; ++h) {
    for (int64_t split = 0; split < num_splits; ++split) {
      attend_items_.push_back(
          {span_idx, h, span.first_row, span.end_row(), split, first_partial + split * num_queries});
    }
  }
  for (int r = 0; r < span.num_rows; ++r) {
    for (int h = 0; h < planned_.num_heads; ++h) {
      merge_items_.push_back(
          {span.first_row + r, h, num_splits, first_partial + int64_t{r} * planned_.num_heads + h, num_queries});
    }
  }
}

void ForwardPass::attend(const AttentionShape& shape, int kv_layer) {
  plan_attention(shape);
  for_items(static_cast<int64_t>(attend_items_.size()),
            [&](int64_t item, int thread_idx) { return attend_item(attend_items_[item], kv_layer, thread_idx); });
  if (merge_items_.empty()) return;
  for_items(static_cast<int64_t>(merge_items_.size()), [&](int64_t item, int) {
    merge_splits(merge_items_[item]);
    return WorkDone{Work::kAttention, 0};
  });
}

WorkDone ForwardPass::attend_item(const AttendItem& item, int kv_layer, int thread_idx) {
  const Span& span = spans_[item.span];
  const std::vector<int32_t>& pages = span.sequence->pages;
  const int num_heads = planned_.num_heads, group = num_heads / planned_.num_kv_heads, dim = planned_.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const bool one_split = item.split >= 0;
  thread_local std::vector<AttentionQuery> queries;
  queries.reserve(std::max(kRowsPerBlock, max_window_) * group);
  queries.clear();
  for (int r = item.row_begin; r < item.row_end; ++r) {
    for (int h = item.kv_head * group; h < (item.kv_head + 1) * group; ++h) {
      float* out = one_split ? buffers_.partials.row(item.first_partial + int64_t{r - span.first_row} * num_heads + h)
                             : buffers_.attended.row(r) + first_attended_ + int64_t{h} * dim;
      AttentionQuery query{buffers_.queries.row(r) + int64_t{h} * dim, position_of(r) + 1, 0, 0, out};
      attention_reset(query, dim);
      queries.push_back(query);
    }
  }
  const int64_t positions = position_of(item.row_end - 1) + 1;  // that the last row attends to
  const int64_t num_splits = pages_of(positions);
  const int64_t begin = one_split ? item.split : 0, end = one_split ? item.split + 1 : num_splits;
  float* scratch = attention_scratch_[thread_idx].data();
  for (int64_t split = begin; split < end; ++split) {
    const int32_t next_page = split + 1 < num_splits ? pages[static_cast<size_t>(split) + 1] : -1;
    attention_split(isa_, kv_.split(pages[split], next_page, kv_layer, item.kv_head), dim, scale, split, queries.data(),
                    static_cast<int>(queries.size()), scratch);
  }
  if (one_split) {
    for (size_t i = 0; i < queries.size(); ++i) {
      const int64_t r = static_cast<int64_t>(i) / group, h = item.kv_head * group + static_cast<int64_t>(i) % group;
      buffers_.partial_queries[item.first_partial + r * num_heads + h] = queries[i];
    }
  } else {
    for (AttentionQuery& query : queries) attention_finish(isa_, query, dim);
  }
  return {Work::kAttention, (one_split ? kPagePositions : positions) * 2 * kv_.shape().layer(kv_layer).row_bytes};
}

void ForwardPass::merge_splits(const MergeItem& item) {
  const int dim = planned_.head_dim;
  const AttentionQuery* part = &buffers_.partial_queries[item.first_partial];
  AttentionQuery whole = *part;
  whole.out = buffers_.attended.row(item.row) + first_attended_ + int64_t{item.head} * dim;
  attention_reset(whole, dim);
  for (int64_t split = 0; split < item.num_splits; ++split, part += item.partials_per_split) {
    if (split * kAttentionSplit < part->kv_len) attention_merge(isa_, *part, dim, whole);
  }
  attention_finish(isa_, whole, dim);
}

}  // namespace foretoken
