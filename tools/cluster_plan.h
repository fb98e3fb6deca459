#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/model/rank_plan.h"

namespace foretoken {

/// What a model would cost over several equal machines, from its file's headers alone.
struct ClusterCosts {
  ClusterMode mode = ClusterMode::kRows;
  double memory_bytes = 0;    // of weights, on the rank that has the most
  double read_bytes = 0;      // of weights for one token, on the rank that reads the most
  double all_read_bytes = 0;  // on all ranks together: with `layers` they read one after the other
  int num_messages = 0;       // one after the other in a pass
  double message_bytes = 0;   // that a rank receives in a pass, for each row of it
};

/// What a network takes and a machine's memory gives.
struct ClusterSpeed {
  double latency_s = 0;
  double network_bytes_per_s = 0;
  double memory_bytes_per_s = 0;
};

[[nodiscard]] ClusterCosts cluster_costs(const ModelOutline& outline, ClusterMode mode, int num_ranks);
/// Seconds of a pass of num_rows rows whose weights are read once: reading and messages, one after the other.
[[nodiscard]] double pass_seconds(const ClusterCosts& costs, const ClusterSpeed& speed, int num_rows);

[[nodiscard]] std::string describe_cluster_costs(const ModelOutline& outline, int num_ranks, const ClusterSpeed& speed);
[[nodiscard]] nlohmann::ordered_json cluster_costs_json(const ModelOutline& outline, int num_ranks,
                                                        const ClusterSpeed& speed);

}  // namespace foretoken
