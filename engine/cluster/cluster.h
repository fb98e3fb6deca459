#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/backend.h"
#include "engine/cluster/message.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "engine/transport.h"

namespace foretoken {

/// What every process of a cluster brings, whatever its rank.
struct ClusterMember {
  std::string version;  // of the program, with its commit: all have to be the same
  Isa isa = best_isa();
  int threads = 0;  // 0: available_cores()
  NumaNodes nodes = NumaNodes::of_machine();
};

/// How rank 0 wants a model shared out.
struct ClusterOptions {
  ClusterMode mode = ClusterMode::kRows;
  std::vector<double> shares;  // [ranks]; empty: by the memory bandwidth that each measures
};

/// What rank 0 has exchanged since a model was loaded, over all of its engines.
struct ClusterTraffic {
  int64_t num_passes = 0;  // of the trunk; what comes before and behind one counts with it
  TransportTotals totals;
};

/// A model over several processes, as rank 0 sees it: prompt, tokenizer, sampler, scheduler and server live here, and an
/// Engine with SessionOptions::cluster asks the others for their part of every pass. The others are in follow(), and do
/// what they are told by a table of spans: where each sequence of a pass has its rows, positions, pages and states.
///
/// One thread at a time; engines and models of it go before it does. Between two calls of an Engine nobody waits for
/// anybody but the followers for rank 0.
class Cluster {
 public:
  /// `transport` stays. REQUIRES: its rank is 0 and the other ranks are in follow().
  Cluster(Transport& transport, ClusterMember member);
  /// Ends the followers.
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  /// Model::load() of this rank's share, while every other rank loads its own from its own file of this name. Throws
  /// InputError, on rank 0, with one line that names the host where another version, instruction set or file is found,
  /// or where loading failed. No model is left then.
  [[nodiscard]] Model load(const std::string& path, LoadOptions options, const ClusterOptions& how);

  [[nodiscard]] Transport& transport() { return transport_; }
  [[nodiscard]] int num_ranks() const { return transport_.num_ranks(); }
  /// Of the last load(): each rank's host, and its memory bandwidth in bytes a second (0: not measured).
  [[nodiscard]] const std::vector<std::string>& hosts() const { return hosts_; }
  [[nodiscard]] const std::vector<double>& bandwidths() const { return bandwidths_; }
  [[nodiscard]] ClusterTraffic traffic() const;

  /// For an Engine; see Backend. REQUIRES: the model is of load().
  [[nodiscard]] std::unique_ptr<Backend> make_backend(const Model& model, const SessionOptions& options);

 private:
  Transport& transport_;
  const ClusterMember member_;
  std::vector<std::string> hosts_;
  std::vector<double> bandwidths_;
  int num_backends_ = 0;
  int64_t num_passes_ = 0;
  TransportTotals at_load_;
};

/// What a rank other than 0 does until rank 0's Cluster is gone. `progress`: called now and then while it works or
/// loads; may be empty.
void follow(Transport& transport, const ClusterMember& member, const std::function<void()>& progress = {});

}  // namespace foretoken
