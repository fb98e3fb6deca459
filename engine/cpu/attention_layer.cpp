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

}  // namespace

void ForwardPass::attention(const AttentionWeights& weights, KvCache& cache, int cache_layer) {
  project(Work::kAttentionProjections, buffers_.normed,
          {{weights.q, buffers_.q}, {weights.k, buffers_.k}, {weights.v, buffers_.v}});
  for_rows(
      [&](int64_t r, int) {
        store_row(weights, cache, cache_layer, r);
        rotate_queries(weights, r);
      },
      Work::kAttention);
  attend_and_output(weights, cache, cache_layer);
}

void ForwardPass::store_keys_and_values(const AttentionWeights& weights, KvCache& cache, int cache_layer) {
  project(Work::kAttentionProjections, buffers_.normed, {{weights.k, buffers_.k}, {weights.v, buffers_.v}});
  for_rows([&](int64_t r, int) { store_row(weights, cache, cache_layer, r); }, Work::kAttention);
}

void ForwardPass::attend_stored(const AttentionWeights& weights, const KvCache& cache, int cache_layer) {
  project(Work::kAttentionProjections, buffers_.normed, {{weights.q, buffers_.q}});
  for_rows([&](int64_t r, int) { rotate_queries(weights, r); }, Work::kAttention);
  attend_and_output(weights, cache, cache_layer);
}

void ForwardPass::store_row(const AttentionWeights& weights, KvCache& cache, int cache_layer, int64_t r) {
  const int64_t dim = config_.head_dim, position = position_ + r;
  for (int h = 0; h < config_.num_kv_heads; ++h) {
    float* key = buffers_.k.row(r) + h * dim;
    rms_norm(isa_, key, weights.k_norm, dim, config_.norm_eps, key);
    rope(isa_, rope_, position, key);
    cache.store(isa_, cache_layer, h, position, key, buffers_.v.row(r) + h * dim);
  }
}

void ForwardPass::rotate_queries(const AttentionWeights& weights, int64_t r) {
  const int64_t dim = config_.head_dim, stride = config_.gated_attention ? 2 * dim : dim;
  for (int64_t h = 0; h < config_.num_heads; ++h) {
    float* query = buffers_.queries.row(r) + h * dim;
    rms_norm(isa_, buffers_.q.row(r) + h * stride, weights.q_norm, dim, config_.norm_eps, query);
    rope(isa_, rope_, position_ + r, query);
  }
}

void ForwardPass::attend_and_output(const AttentionWeights& weights, const KvCache& cache, int cache_layer) {
  attend(cache, cache_layer);
  const unsigned blocks = block_bits({&weights.output});
  for_rows(
      [&](int64_t r, int) {
        const int64_t dim = config_.head_dim;
        for (int64_t h = 0; config_.gated_attention && h < config_.num_heads; ++h) {
          sigmoid_gate(isa_, buffers_.q.row(r) + (2 * h + 1) * dim, dim, buffers_.attended.row(r) + h * dim);
        }
        quantise_forms(isa_, buffers_.attended, r, blocks);
      },
      Work::kAttention);
  project(Work::kAttentionProjections, buffers_.attended, {{weights.output, buffers_.mixed}});
}

void ForwardPass::attend(const KvCache& cache, int cache_layer) {
  const int64_t num_splits = (position_ + num_rows_ + kAttentionSplit - 1) / kAttentionSplit;
  // A long context is shared out by splits; otherwise there is more to share out in rows and heads.
  if (num_rows_ <= max_window_ && num_splits > 1) {
    attend_by_splits(cache, cache_layer, num_splits);
  } else {
    attend_by_rows(cache, cache_layer);
  }
}

// Items are (block of rows) x (key-value head); each walks its splits in rising order.
void ForwardPass::attend_by_rows(const KvCache& cache, int cache_layer) {
  const int group = config_.num_heads / config_.num_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const int64_t num_blocks = (num_rows_ + kRowsPerBlock - 1) / kRowsPerBlock;
  for_items(num_blocks * config_.num_kv_heads, [&](int64_t item, int thread_idx) {
    // The last blocks attend to the most positions: they come first.
    const int64_t block = num_blocks - 1 - item / config_.num_kv_heads;
    const int kv_head = static_cast<int>(item % config_.num_kv_heads);
    const int64_t row_begin = block * kRowsPerBlock, row_end = std::min<int64_t>(row_begin + kRowsPerBlock, num_rows_);
    thread_local std::vector<AttentionQuery> queries;
    queries.clear();
    for (int64_t r = row_begin; r < row_end; ++r) {
      for (int64_t h = int64_t{kv_head} * group; h < int64_t{kv_head + 1} * group; ++h) {
        AttentionQuery query{buffers_.queries.row(r) + h * config_.head_dim, position_ + r + 1, 0, 0,
                             buffers_.attended.row(r) + h * config_.head_dim};
        attention_reset(query, config_.head_dim);
        queries.push_back(query);
      }
    }
    float* scratch = attention_scratch_[static_cast<size_t>(thread_idx)].data();
    const int64_t num_splits = (position_ + row_end + kAttentionSplit - 1) / kAttentionSplit;
    for (int64_t split = 0; split < num_splits; ++split) {
      attention_split(isa_, cache.head(cache_layer, kv_head), config_.head_dim, scale, split, queries.data(),
                      static_cast<int>(queries.size()), scratch);
    }
    for (AttentionQuery& query : queries) attention_finish(isa_, query, config_.head_dim);
    return WorkDone{Work::kAttention, (position_ + row_end) * cache.position_bytes()};
  });
}

// Items are (key-value head) x (split), for all rows of the window: each key and value is read once, and a thread that
// takes the next item reads on where it stopped. A split computed
// from an empty result is exactly that split's max, sum and values; merging them in rising order is the sum that
// attend_by_rows walks.
void ForwardPass::attend_by_splits(const KvCache& cache, int cache_layer, int64_t num_splits) {
  const int group = config_.num_heads / config_.num_kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
  const int64_t num_queries = int64_t{num_rows_} * config_.num_heads;
  thread_local std::vector<AttentionQuery> partials;  // [num_splits, rows, heads]
  partials.resize(static_cast<size_t>(num_splits * num_queries));
  std::vector<AttentionQuery>& parts = partials;
  for_items(num_splits * config_.num_kv_heads, [&](int64_t item, int thread_idx) {
    const int64_t split = item % num_splits;
    const int kv_head = static_cast<int>(item / num_splits);
    thread_local std::vector<AttentionQuery> queries;
    queries.clear();
    for (int64_t r = 0; r < num_rows_; ++r) {
      for (int64_t h = int64_t{kv_head} * group; h < int64_t{kv_head + 1} * group; ++h) {
        AttentionQuery query{buffers_.queries.row(r) + h * config_.head_dim, position_ + r + 1, 0, 0,
                             buffers_.partials.row(split * num_queries + r * config_.num_heads + h)};
        attention_reset(query, config_.head_dim);
        queries.push_back(query);
      }
    }
    attention_split(isa_, cache.head(cache_layer, kv_head), config_.head_dim, scale, split, queries.data(),
                    static_cast<int>(queries.size()), attention_scratch_[static_cast<size_t>(thread_idx)].data());
    for (size_t i = 0; i < queries.size(); ++i) {
      const int64_t r = static_cast<int64_t>(i) / group, h = int64_t{kv_head} * group + static_cast<int64_t>(i) % group;
      parts[static_cast<size_t>(split * num_queries + r * config_.num_heads + h)] = queries[i];
    }
    return WorkDone{Work::kAttention, kAttentionSplit * cache.position_bytes()};
  });
  for_items(num_queries, [&](int64_t query_idx, int) {
    const int64_t r = query_idx / config_.num_heads, h = query_idx % config_.num_heads;
    AttentionQuery whole = parts[static_cast<size_t>(query_idx)];
    whole.out = buffers_.attended.row(r) + h * config_.head_dim;
    attention_reset(whole, config_.head_dim);
    for (int64_t split = 0; split < num_splits; ++split) {
      const AttentionQuery& part = parts[static_cast<size_t>(split * num_queries + query_idx)];
      if (split * kAttentionSplit < part.kv_len) attention_merge(isa_, part, config_.head_dim, whole);
    }
    attention_finish(isa_, whole, config_.head_dim);
    return WorkDone{Work::kAttention, 0};
  });
}

}  // namespace foretoken
