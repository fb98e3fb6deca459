#include "tools/cluster_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "tools/cli/terminal.h"

namespace foretoken {

namespace {

struct Bytes {
  double memory = 0, read = 0;

  void add(const MatrixView& matrix, int64_t rows, double copies = 1, double read_copies = 1) {
    const double bytes = static_cast<double>(rows) * static_cast<double>(matrix.row_bytes());
    memory += bytes * copies;
    read += bytes * read_copies;
  }
};

void add_dense(const DenseWeights& w, int64_t inner, int64_t hidden, Bytes& to) {
  to.add(w.gate, inner);
  to.add(w.up, inner);
  to.add(w.down, hidden);
}

// What `rank` has of a layer, by rows.
void add_layer(const RankPlan& plan, const RankPlan::Layer& layer, const LayerWeights& w, int rank, Bytes& to) {
  const auto index = static_cast<size_t>(rank);
  const int64_t hidden = plan.hidden.count(rank), shared = layer.shared_inner.count(rank);
  if (layer.is_recurrent) {
    const RankPlan::DeltaHeads& heads = layer.delta_heads[index];
    const auto values = static_cast<int64_t>(heads.value_heads.size());
    const DeltaNetWeights& m = w.delta_net();
    to.add(m.qkv, (2 * heads.num_key_heads + values) * layer.delta_net.state_size);
    to.add(m.gate, values * layer.delta_net.state_size);
    to.add(m.beta, values);
    to.add(m.alpha, values);
    to.add(m.out, hidden);
  } else {
    const RankPlan::Heads& heads = layer.heads[index];
    const AttentionWeights& m = w.attention();
    to.add(m.q, int64_t{heads.num_heads} * layer.attention.head_dim * (layer.attention.gated ? 2 : 1));
    to.add(m.k, int64_t{heads.num_kv_heads} * layer.attention.head_dim);
    to.add(m.v, int64_t{heads.num_kv_heads} * layer.attention.head_dim);
    to.add(m.output, hidden);
  }
  if (w.is_dense()) return add_dense(w.dense(), shared, hidden, to);
  const MoeWeights& moe = w.moe();
  to.add(moe.router, moe.num_experts);
  const double experts = moe.num_experts, used = moe.top_k;
  if (plan.mode == ClusterMode::kExperts) {
    const auto own = static_cast<double>(layer.experts.count(rank));
    for (const ExpertMatrices* m : {&moe.gate, &moe.up, &moe.down})
      to.add(m->all, m->num_rows, own, used * own / experts);
  } else {
    to.add(moe.gate.all, layer.inner.count(rank), experts, used);
    to.add(moe.up.all, layer.inner.count(rank), experts, used);
    to.add(moe.down.all, hidden, experts, used);
  }
  if (moe.has_shared()) add_dense(moe.shared, shared, hidden, to);
}

// All of a layer.
void add_whole(const LayerWeights& w, Bytes& to) {
  const double used = w.is_dense() ? 1 : static_cast<double>(w.moe().top_k);
  LayerWeights::for_each(
      WeightVisit{[&](WeightRole, const MatrixView& m) { to.add(m, m.num_rows); },
                  [&](WeightRole, const ExpertMatrices& m) { to.add(m.all, m.num_rows, w.moe().num_experts, used); },
                  [](WeightRole, const VectorView&) {}},
      w);
}

// Messages of a layer, and values that a rank receives of each row, from the others.
void add_messages(const RankPlan& plan, const RankPlan::Layer& layer, const LayerWeights& w, double hidden_dim,
                  ClusterCosts& to) {
  const double others = 1 - 1.0 / plan.num_ranks();
  const bool has_routed = !w.is_dense();
  const bool whole = plan.mode == ClusterMode::kExperts && has_routed;
  double values = static_cast<double>(layer.mixer.num_rows() + layer.shared_inner.num_rows()) + hidden_dim;
  to.num_messages += 3;
  if (has_routed) values += w.moe().top_k * (whole ? hidden_dim : static_cast<double>(layer.inner.num_rows()));
  if (!whole || w.moe().has_shared()) {
    ++to.num_messages;
    values += hidden_dim;
  }
  to.message_bytes += others * values * static_cast<double>(sizeof(float));
}

}  // namespace

ClusterCosts cluster_costs(const ModelOutline& outline, ClusterMode mode, int num_ranks) {
  const ModelWeights& w = outline.weights;
  const RankPlan plan = RankPlan::of(outline.config, w, mode, std::vector<double>(static_cast<size_t>(num_ranks), 1.0));
  ClusterCosts costs;
  costs.mode = mode;
  const auto hidden_dim = static_cast<double>(outline.config.hidden_dim);
  for (int rank = 0; rank < num_ranks; ++rank) {
    Bytes bytes;
    const bool is_last = rank + 1 == num_ranks;
    for (size_t i = 0; i < w.layers.size(); ++i) {
      if (!plan.holds(rank, static_cast<int>(i))) continue;
      if (mode == ClusterMode::kLayers) {
        add_whole(w.layers[i], bytes);
      } else {
        add_layer(plan, plan.layers[i], w.layers[i], rank, bytes);
      }
    }
    if (mode != ClusterMode::kLayers) {
      bytes.add(w.head, plan.vocab.count(rank));
    } else if (is_last) {
      bytes.add(w.head, w.head.num_rows);
    }
    costs.memory_bytes = std::max(costs.memory_bytes, bytes.memory);
    costs.read_bytes = std::max(costs.read_bytes, bytes.read);
    costs.all_read_bytes += bytes.read;
  }
  // The table of spans, the faults that were found, the largest logits.
  costs.num_messages = 4;
  if (mode == ClusterMode::kLayers) {
    costs.num_messages += num_ranks - 1;
    costs.message_bytes = (num_ranks - 1) * hidden_dim * static_cast<double>(sizeof(float));
    return costs;
  }
  for (size_t i = 0; i < w.layers.size(); ++i) add_messages(plan, plan.layers[i], w.layers[i], hidden_dim, costs);
  return costs;
}

double pass_seconds(const ClusterCosts& costs, const ClusterSpeed& speed, int num_rows) {
  const double bytes = costs.mode == ClusterMode::kLayers ? costs.all_read_bytes : costs.read_bytes;
  return bytes / speed.memory_bytes_per_s + costs.num_messages * speed.latency_s +
         num_rows * costs.message_bytes / speed.network_bytes_per_s;
}

std::string describe_cluster_costs(const ModelOutline& outline, int num_ranks, const ClusterSpeed& speed) {
  std::string text = fmt::format(
      "\nover {} machines like this one, a message {:.3g} ms and {:.3g} Gbit/s (equal shares, no drafts):\n"
      "  {:<8} {:>14} {:>14} {:>10} {:>13} {:>13} {:>7}\n",
      num_ranks, speed.latency_s * 1e3, speed.network_bytes_per_s * 8e-9, "", "weights each", "read a token",
      "messages", "sent a token", "of it network", "tok/s");
  for (const ClusterMode mode : kClusterModes) {
    const ClusterCosts costs = cluster_costs(outline, mode, num_ranks);
    const double pass = pass_seconds(costs, speed, 1);
    const double network = costs.num_messages * speed.latency_s + costs.message_bytes / speed.network_bytes_per_s;
    text += fmt::format("  {:<8} {:>14} {:>14} {:>10} {:>13} {:>10.2f} ms {:>7.1f}\n", cluster_mode_name(mode),
                        format_bytes(costs.memory_bytes), format_bytes(costs.read_bytes), costs.num_messages,
                        format_bytes(costs.message_bytes), network * 1e3, 1 / pass);
  }
  return text;
}

nlohmann::ordered_json cluster_costs_json(const ModelOutline& outline, int num_ranks, const ClusterSpeed& speed) {
  nlohmann::ordered_json object;
  object["processes"] = num_ranks;
  object["latency_ms"] = speed.latency_s * 1e3;
  object["network_gbit_per_s"] = speed.network_bytes_per_s * 8e-9;
  for (const ClusterMode mode : kClusterModes) {
    const ClusterCosts costs = cluster_costs(outline, mode, num_ranks);
    nlohmann::ordered_json& to = object[std::string(cluster_mode_name(mode))];
    to["weight_bytes"] = costs.memory_bytes;
    to["read_bytes_per_token"] = costs.read_bytes;
    to["read_bytes_of_all_per_token"] = costs.all_read_bytes;
    to["messages_per_pass"] = costs.num_messages;
    to["message_bytes_per_row"] = costs.message_bytes;
    to["tokens_per_second"] = 1 / pass_seconds(costs, speed, 1);
  }
  return object;
}

}  // namespace foretoken
