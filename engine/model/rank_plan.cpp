#include "engine/model/rank_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/model/weight_loader.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Ends of the ranks' shares of `count` things.
std::vector<int64_t> ends_of(int64_t count, const std::vector<double>& shares) {
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int64_t> ends;
  double sum = 0;
  for (const double share : shares) {
    sum += share;
    ends.push_back(std::llround(static_cast<double>(count) * sum / all));
  }
  ends.back() = count;
  return ends;
}

/// Groups of heads over ranks: rank r has groups [first, first + count), and of each of them members [begin, end).
struct GroupShare {
  int first = 0, count = 0;
  int begin = 0, end = 0;
};

// Whole groups where there are enough of them; else several ranks share the members of one.
std::vector<GroupShare> share_groups(int num_groups, int group_size, const std::vector<double>& shares) {
  const auto num_ranks = static_cast<int>(shares.size());
  std::vector<GroupShare> result;
  if (num_groups >= num_ranks) {
    int64_t begin = 0;
    for (const int64_t end : ends_of(num_groups, shares)) {
      result.push_back({static_cast<int>(begin), static_cast<int>(end - begin), 0, group_size});
      begin = end;
    }
    return result;
  }
  for (int group = 0; group < num_groups; ++group) {
    const auto of_group = [&](int rank) { return rank * num_groups / num_ranks == group; };
    std::vector<double> own;
    for (int rank = 0; rank < num_ranks; ++rank) {
      if (of_group(rank)) own.push_back(shares[rank]);
    }
    int64_t begin = 0;
    for (const int64_t end : ends_of(group_size, own)) {
      result.push_back({group, end > begin ? 1 : 0, static_cast<int>(begin), static_cast<int>(end)});
      begin = end;
    }
  }
  return result;
}

void plan_attention(RankPlan& plan, RankPlan::Layer& layer) {
  const AttentionShape& shape = layer.attention;
  const int group = shape.num_heads / shape.num_kv_heads;
  std::vector<std::vector<RowRange>> columns;
  for (const GroupShare& share : share_groups(shape.num_kv_heads, group, plan.shares)) {
    RankPlan::Heads heads;
    heads.first_kv_head = share.first;
    heads.num_kv_heads = share.count;
    heads.first_head = share.first * group + share.begin;
    heads.num_heads = share.count * (share.end - share.begin);
    layer.heads.push_back(heads);
    std::vector<RowRange>& own = columns.emplace_back();
    append_rows(own, {int64_t{heads.first_head} * shape.head_dim,
                      (int64_t{heads.first_head} + heads.num_heads) * shape.head_dim});
  }
  layer.mixer = RowOwners(std::move(columns));
}

void plan_delta_net(RankPlan& plan, RankPlan::Layer& layer) {
  const DeltaNetShape& shape = layer.delta_net;
  const int group = shape.num_value_heads / shape.num_key_heads;
  std::vector<std::vector<RowRange>> columns;
  for (const GroupShare& share : share_groups(shape.num_key_heads, group, plan.shares)) {
    RankPlan::DeltaHeads heads;
    heads.first_key_head = share.first;
    heads.num_key_heads = share.count;
    for (int key = share.first; key < share.first + share.count; ++key) {
      for (int i = share.begin; i < share.end; ++i)
        heads.value_heads.push_back(shape.grouped_heads ? key * group + i : i * shape.num_key_heads + key);
    }
    std::sort(heads.value_heads.begin(), heads.value_heads.end());
    std::vector<RowRange>& own = columns.emplace_back();
    for (const int64_t head : heads.value_heads)
      append_rows(own, {head * shape.state_size, (head + 1) * shape.state_size});
    layer.delta_heads.push_back(std::move(heads));
  }
  layer.mixer = RowOwners(std::move(columns));
}

// Bytes that decoding reads of a layer for one token.
double read_bytes(const LayerWeights& layer) {
  double bytes = 0;
  const double top_k_share =
      layer.is_dense() ? 1 : static_cast<double>(layer.moe().top_k) / std::max(1, layer.moe().num_experts);
  LayerWeights::for_each(
      WeightVisit{[&](WeightRole, const MatrixView& m) { bytes += static_cast<double>(m.size_bytes()); },
                  [&](WeightRole, const ExpertMatrices& m) {
                    bytes += static_cast<double>(m.num_rows) * static_cast<double>(layer.moe().num_experts) *
                             static_cast<double>(m.all.row_bytes()) * top_k_share;
                  },
                  [](WeightRole, const VectorView&) {}},
      layer);
  return bytes;
}

// A layer goes to the rank in whose share of all bytes its middle lies; the last rank has the head and the MTP layer
// beside its layers.
std::vector<int> plan_layers(const ModelConfig& config, const ModelWeights& weights,
                             const std::vector<double>& shares) {
  std::vector<double> bytes;
  for (const LayerWeights& layer : weights.layers) bytes.push_back(read_bytes(layer));
  double all = std::accumulate(bytes.begin(), bytes.end(), 0.0) + static_cast<double>(weights.head.size_bytes());
  if (config.num_mtp_layers > 0) all += read_bytes(weights.mtp.layer);
  const double all_shares = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<int> ends;
  double share = 0, before = 0;
  int layer = 0;
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    share += shares[rank];
    while (layer < config.num_layers &&
           (rank + 1 == shares.size() || before + bytes[layer] / 2 <= all * share / all_shares)) {
      before += bytes[layer++];
    }
    ends.push_back(layer);
  }
  return ends;
}

}  // namespace

std::string_view cluster_mode_name(ClusterMode mode) {
  switch (mode) {
    case ClusterMode::kRows:
      return "rows";
    case ClusterMode::kExperts:
      return "experts";
    case ClusterMode::kLayers:
      return "layers";
  }
  FT_CHECK(false);
  return {};
}

RowOwners::RowOwners(std::vector<std::vector<RowRange>> ranges) : ranges_(std::move(ranges)) {
  for (const std::vector<RowRange>& own : ranges_) {
    counts_.push_back(count_rows(own));
    num_rows_ += counts_.back();
  }
}

RowOwners RowOwners::split(int64_t num_rows, int64_t unit_rows, const std::vector<double>& shares) {
  std::vector<std::vector<RowRange>> ranges;
  int64_t begin = 0;
  for (const int64_t units : ends_of((num_rows + unit_rows - 1) / unit_rows, shares)) {
    const int64_t end = std::min(units * unit_rows, num_rows);
    append_rows(ranges.emplace_back(), {begin, end});
    begin = end;
  }
  return RowOwners(std::move(ranges));
}

int64_t RowOwners::global_of(int rank, int64_t local) const {
  for (const RowRange& range : of(rank)) {
    if (local < range.end - range.begin) return range.begin + local;
    local -= range.end - range.begin;
  }
  FT_CHECK(false);
  return -1;
}

int64_t RowOwners::local_of(int rank, int64_t row) const {
  int64_t before = 0;
  for (const RowRange& range : of(rank)) {
    if (row >= range.begin && row < range.end) return before + row - range.begin;
    before += range.end - range.begin;
  }
  FT_CHECK(false);
  return -1;
}

bool RowOwners::owns(int rank, int64_t row) const {
  return std::any_of(of(rank).begin(), of(rank).end(),
                     [row](const RowRange& range) { return row >= range.begin && row < range.end; });
}

bool RankPlan::holds(int rank, int layer) const {
  if (mode != ClusterMode::kLayers) return true;
  if (layer == num_trunk_layers) return rank + 1 == num_ranks();  // the MTP layer
  return layer >= first_layer(rank) && layer < layer_ends[rank];
}

RankPlan RankPlan::of(const ModelConfig& config, const ModelWeights& weights, ClusterMode mode,
                      std::vector<double> shares) {
  FT_CHECK(!shares.empty());
  RankPlan plan;
  plan.mode = mode;
  plan.shares = std::move(shares);
  plan.num_trunk_layers = config.num_layers;
  plan.hidden = RowOwners::split(config.hidden_dim, kInterleave, plan.shares);
  // Every rank has its part of the low ids, which drafts read.
  std::vector<std::vector<RowRange>> vocab(plan.shares.size());
  for (int64_t begin = 0; begin < config.vocab_size; begin += kHeadUnitRows) {
    const auto unit = RowOwners::split(std::min(kHeadUnitRows, config.vocab_size - begin), kInterleave, plan.shares);
    for (int rank = 0; rank < plan.num_ranks(); ++rank) {
      for (const RowRange& range : unit.of(rank)) append_rows(vocab[rank], {begin + range.begin, begin + range.end});
    }
  }
  plan.vocab = RowOwners(std::move(vocab));
  const auto add = [&](const LayerWeights& from) {
    Layer& layer = plan.layers.emplace_back();
    layer.is_recurrent = from.is_recurrent();
    if (layer.is_recurrent) {
      layer.delta_net = from.delta_net().shape;
      plan_delta_net(plan, layer);
    } else {
      layer.attention = from.attention().shape;
      plan_attention(plan, layer);
    }
    if (from.is_dense()) {
      layer.shared_inner = RowOwners::split(from.dense().dim(), kInterleave, plan.shares);
      return;
    }
    layer.inner = RowOwners::split(from.moe().expert_dim(), kInterleave, plan.shares);
    layer.shared_inner = RowOwners::split(from.moe().shared.dim(), kInterleave, plan.shares);
    layer.experts = RowOwners::split(from.moe().num_experts, 1, plan.shares);
    layer.router = RowOwners::split(from.moe().num_experts, kInterleave, plan.shares);
  };
  for (const LayerWeights& layer : weights.layers) add(layer);
  if (config.num_mtp_layers > 0) add(weights.mtp.layer);
  if (mode == ClusterMode::kLayers) plan.layer_ends = plan_layers(config, weights, plan.shares);
  return plan;
}

namespace {

std::vector<RowRange> scaled(int64_t begin, int64_t end, int64_t by) {
  std::vector<RowRange> rows;
  append_rows(rows, {begin * by, end * by});
  return rows;
}

void hold_attention(const AttentionShape& whole, const RankPlan::Heads& heads, WeightLoader& load,
                    const RowOwners& hidden, int rank, AttentionWeights& w) {
  const int64_t dim = whole.head_dim, q_dim = whole.gated ? 2 * dim : dim;
  const auto q = scaled(heads.first_head, heads.first_head + heads.num_heads, q_dim);
  const auto kv = scaled(heads.first_kv_head, heads.first_kv_head + heads.num_kv_heads, dim);
  load.keep_rows(w.q, q);
  load.keep_rows(w.k, kv);
  load.keep_rows(w.v, kv);
  load.keep_rows(w.output, hidden.of(rank));
  if (w.q_bias.count > 0) load.keep_values(w.q_bias, q);
  if (w.k_bias.count > 0) load.keep_values(w.k_bias, kv);
  if (w.v_bias.count > 0) load.keep_values(w.v_bias, kv);
  w.shape.num_heads = heads.num_heads;
  w.shape.num_kv_heads = heads.num_kv_heads;
}

void hold_delta_net(const DeltaNetShape& whole, const RankPlan::DeltaHeads& heads, WeightLoader& load,
                    const RowOwners& hidden, int rank, DeltaNetWeights& w) {
  const int64_t size = whole.state_size, key_dim = whole.key_dim();
  std::vector<RowRange> channels, values, single;
  for (const int64_t base : {int64_t{0}, key_dim}) {
    append_rows(channels, {base + heads.first_key_head * size,
                           base + (int64_t{heads.first_key_head} + heads.num_key_heads) * size});
  }
  for (const int64_t head : heads.value_heads) {
    append_rows(channels, {2 * key_dim + head * size, 2 * key_dim + (head + 1) * size});
    append_rows(values, {head * size, (head + 1) * size});
    append_rows(single, {head, head + 1});
  }
  load.keep_rows(w.qkv, channels);
  load.keep_rows(w.gate, values);
  load.keep_rows(w.beta, single);
  load.keep_rows(w.alpha, single);
  load.keep_rows(w.out, hidden.of(rank));
  std::vector<RowRange> taps;
  for (const RowRange& range : channels)
    append_rows(taps, {range.begin * whole.conv_taps, range.end * whole.conv_taps});
  load.keep_values(w.conv, taps);
  load.keep_values(w.dt, single);
  load.keep_values(w.a, single);
  w.shape.num_key_heads = heads.num_key_heads;
  w.shape.num_value_heads = static_cast<int>(heads.value_heads.size());
}

void hold_dense(const RowOwners& inner, WeightLoader& load, const RowOwners& hidden, int rank, DenseWeights& w) {
  load.keep_rows(w.gate, inner.of(rank));
  load.keep_rows(w.up, inner.of(rank));
  load.keep_rows(w.down, hidden.of(rank));
}

void hold_layer(const RankPlan& plan, const RankPlan::Layer& layer, int rank, WeightLoader& load, LayerWeights& w) {
  const auto index = static_cast<size_t>(rank);
  if (layer.is_recurrent) {
    hold_delta_net(layer.delta_net, layer.delta_heads[index], load, plan.hidden, rank, w.delta_net());
  } else {
    hold_attention(layer.attention, layer.heads[index], load, plan.hidden, rank, w.attention());
  }
  if (w.is_dense()) return hold_dense(layer.shared_inner, load, plan.hidden, rank, w.dense());
  MoeWeights& moe = w.moe();
  if (plan.mode == ClusterMode::kExperts) {
    const RowRange experts{layer.experts.begin(rank), layer.experts.end(rank)};
    for (ExpertMatrices* matrices : {&moe.gate, &moe.up, &moe.down}) {
      load.keep_rows(*matrices, experts, scaled(0, 1, matrices->num_rows));
      matrices->first_row = -experts.begin * matrices->stride_rows;  // expert(e) counts from the model's first
    }
  } else {
    const RowRange all{0, moe.num_experts};
    load.keep_rows(moe.gate, all, layer.inner.of(rank));
    load.keep_rows(moe.up, all, layer.inner.of(rank));
    load.keep_rows(moe.down, all, plan.hidden.of(rank));
  }
  if (moe.has_shared()) hold_dense(layer.shared_inner, load, plan.hidden, rank, moe.shared);
}

void drop_layer(WeightLoader& load, LayerWeights& w) {
  LayerWeights::for_each(WeightVisit{[&](WeightRole, MatrixView& m) { load.drop(m); },
                                     [&](WeightRole, ExpertMatrices& m) { load.drop(m.all); },
                                     [&](WeightRole, VectorView& v) { load.drop(v); }},
                         w);
  w.is_elsewhere = true;
}

void hold_layers(const ModelShare& share, WeightLoader& load, ModelWeights& w) {
  const RankPlan& plan = share.plan;
  int num_recurrent = 0, num_attention = 0;
  for (LayerWeights& layer : w.layers) {
    if (!plan.holds(share.rank, layer.layer_idx)) {
      drop_layer(load, layer);
      continue;
    }
    layer.mixer_idx = layer.is_recurrent() ? num_recurrent++ : num_attention++;
  }
  const bool has_mtp = plan.layers.size() > w.layers.size();
  if (share.rank + 1 == plan.num_ranks()) {
    w.mtp.layer.mixer_idx = num_attention;
    return;
  }
  load.drop(w.head);
  if (!has_mtp) return;
  drop_layer(load, w.mtp.layer);
  load.drop(w.mtp.join);
  load.drop(w.mtp.head);
}

}  // namespace

void hold_share(const ModelShare& share, WeightLoader& load, ModelWeights& w) {
  const RankPlan& plan = share.plan;
  const int rank = share.rank;
  const bool has_mtp = plan.layers.size() > w.layers.size();
  // Any rank may have to look up any embedding; each checks a part of them.
  const RowOwners looked_at = RowOwners::split(w.embed.num_rows, 1, plan.shares);
  load.check_rows(w.embed, {looked_at.begin(rank), looked_at.end(rank)});
  if (has_mtp && w.mtp.own_embed) load.check_rows(w.mtp.embed, {looked_at.begin(rank), looked_at.end(rank)});
  if (plan.mode == ClusterMode::kLayers) return hold_layers(share, load, w);
  for (size_t i = 0; i < w.layers.size(); ++i) hold_layer(plan, plan.layers[i], rank, load, w.layers[i]);
  load.keep_rows(w.head, plan.vocab.of(rank));
  if (!has_mtp) return;
  hold_layer(plan, plan.layers.back(), rank, load, w.mtp.layer);
  load.keep_rows(w.mtp.join, plan.hidden.of(rank));
  if (w.mtp.own_head) load.keep_rows(w.mtp.head, plan.vocab.of(rank));
}

}  // namespace foretoken
