#include "tools/cluster_plan.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "engine/cluster/cluster.h"
#include "engine/model/model_file.h"
#include "engine/session.h"
#include "tests/engine/cluster/thread_transport.h"
#include "tests/engine/model/random_model.h"
#include "tests/tools/subprocess.h"

namespace foretoken {
namespace {

using test::RandomModel;
using test::TempFolder;
using test::ThreadCluster;

TEST_CASE("what a cluster is said to cost is what a token exchanges there", "[cluster]") {
  RandomModel spec = test::matrix_model(GENERATE("qwen35moe", "qwen3moe", "llama"));
  spec.mtp = false;
  spec.num_layers = 4;
  const TempFolder folder;
  spec.write(folder.file("model.gguf"));
  const ModelFile opened = open_model(folder.file("model.gguf"), "");
  const ModelOutline outline = Model::outline(opened.file);
  for (const ClusterMode mode : kClusterModes) {
    INFO(spec.architecture << ", " << cluster_mode_name(mode));
    const ClusterCosts costs = cluster_costs(outline, mode, 2);
    ThreadCluster threads(2);
    const Model model = threads.cluster().load(folder.file("model.gguf"), {}, {mode, {1, 1}});
    const auto matrix_bytes = static_cast<double>(model.weights().matrix_bytes);
    if (mode == ClusterMode::kLayers) {
      CHECK(matrix_bytes <= costs.memory_bytes);
    } else {
      CHECK(matrix_bytes == costs.memory_bytes);
    }
    SessionOptions options;
    options.ctx_size = 64;
    options.max_window = 4;
    options.cluster = &threads.cluster();
    Session session(model, options);
    const std::vector<TokenId> one = {1}, three = {2, 3, 4};
    const auto traffic_of = [&](const std::vector<TokenId>& ids) {
      const ClusterTraffic before = threads.cluster().traffic();
      session.forward(ids);
      session.compute_logits(0, static_cast<int>(ids.size()));
      (void)session.engine().choose(0, {}, session.length() + 1);
      session.commit(static_cast<int>(ids.size()));
      const ClusterTraffic after = threads.cluster().traffic();
      CHECK(after.num_passes == before.num_passes + 1);
      return TransportTotals{after.totals.num_messages - before.totals.num_messages,
                             after.totals.bytes_received - before.totals.bytes_received, 0};
    };
    const TransportTotals first = traffic_of(one), second = traffic_of(three);
    CHECK(first.num_messages == costs.num_messages);
    CHECK(second.num_messages == costs.num_messages);
    // Beside what the rows of a layer are, each row has its largest logits; by layers the last rank receives the rows.
    if (mode == ClusterMode::kLayers) {
      CHECK(first.bytes_received < 256);
    } else if (mode == ClusterMode::kRows) {
      const auto added = static_cast<double>(second.bytes_received - first.bytes_received);
      CHECK(added >= 2 * costs.message_bytes);
      CHECK(added <= 2 * costs.message_bytes + 64);
    }
  }
}

TEST_CASE("inspect --cluster shows all ways, and the time of a token is bytes, messages and their latency",
          "[cluster]") {
  const TempFolder folder;
  test::matrix_model("qwen35moe").write(folder.file("model.gguf"));
  const test::Outcome outcome = test::run({"inspect", folder.file("model.gguf"), "--cluster", "3", "--cluster-latency",
                                           "0.25", "--cluster-gbit", "0.5", "--json", "-"});
  REQUIRE(outcome.exit_code == 0);
  const auto object = nlohmann::json::parse(outcome.out);
  const double bandwidth = object.at("bandwidth_gb_per_s").get<double>() * 1e9;
  const auto& cluster = object.at("cluster");
  CHECK(cluster.at("processes") == 3);
  for (const std::string mode : {"rows", "experts", "layers"}) {
    INFO(mode);
    const auto value = [&](const char* key) { return cluster.at(mode).at(key).get<double>(); };
    // By layers the machines read one after the other.
    const double read = mode == "layers" ? value("read_bytes_of_all_per_token") : value("read_bytes_per_token");
    CHECK(1 / value("tokens_per_second") == Approx(read / bandwidth + value("messages_per_pass") * 0.25e-3 +
                                                   value("message_bytes_per_row") / (0.5e9 / 8)));
  }
  const test::Outcome text = test::run({"inspect", folder.file("model.gguf"), "--cluster", "3"});
  REQUIRE(text.exit_code == 0);
  CHECK(text.out.find("over 3 machines like this one, a message 0.05 ms and 10 Gbit/s") != std::string::npos);
}

}  // namespace
}  // namespace foretoken
