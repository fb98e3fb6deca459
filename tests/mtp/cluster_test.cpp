#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "engine/cluster/cluster.h"
#include "engine/session.h"
#include "tests/engine/cluster/thread_transport.h"
#include "tests/mtp/invariance_matrix.h"

// The invariance axis of a cluster: ranks x what is shared out, on threads of this process. mpirun's processes are
// tested as programs.

namespace foretoken {
namespace {

using test::Axes;
using test::covering_settings;
using test::kWhole;
using test::Matrix;
using test::matrix_model;
using test::RandomModel;
using test::ThreadCluster;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
constexpr int kStride = 29;
#else
constexpr int kStride = 4;
#endif

Axes axes_of_ranks(bool has_mtp) {
  Axes axes;
  if (has_mtp) axes.k = {0, 1, 3, 8};
  axes.threads = {1, 2};
  axes.prompt_chunks = {1, 7, kWhole};
  return axes;
}

std::vector<double> equal_shares(int num_ranks) {
  return std::vector<double>(static_cast<size_t>(num_ranks), 1.0);
}

void check_cluster(Matrix& matrix, int num_ranks, ClusterMode mode, const std::vector<double>& shares,
                   const std::vector<test::Setting>& settings, int stride) {
  // Whether they share memory decides who computes a router.
  ThreadCluster threads(num_ranks, {"test", best_isa(), 1, {}}, {}, /*shares_memory=*/num_ranks % 2 == 0);
  const Model model = threads.cluster().load(matrix.path(), {}, {mode, shares});
  SessionOptions session;
  session.cluster = &threads.cluster();
  matrix.run_on(&model, session);
  matrix.check_all(settings, stride);
  matrix.run_on(nullptr, {});
}

TEST_CASE("invariance over ranks of a cluster: rows, experts and layers") {
  const std::string architecture = GENERATE("qwen35moe", "qwen35", "qwen3next", "qwen3moe", "llama");
  Matrix matrix(matrix_model(architecture), /*prompt_tokens=*/34, /*new_tokens=*/16);
  const auto settings = covering_settings(axes_of_ranks(matrix.has_mtp()));
  int first = 0;
  for (const ClusterMode mode : kClusterModes) {
    for (const int num_ranks : {1, 2, 3, 4}) {
      INFO(architecture << ", " << cluster_mode_name(mode) << " over " << num_ranks);
      // Other settings for each, so that all of them come up.
      std::vector<test::Setting> turn(settings.begin() + first++ % kStride, settings.end());
      check_cluster(matrix, num_ranks, mode, equal_shares(num_ranks), turn, kStride);
    }
  }
  matrix.finish(architecture);
}

TEST_CASE("invariance over unequal shares, fused and odd tensors, scales, and files that are not interleaved") {
  RandomModel spec = matrix_model(GENERATE("qwen35moe", "qwen3next", "llama"));
  LoadOptions load;
  SECTION("as it is") {}
  SECTION("not repacked") {
    load.repack = false;
  }
  SECTION("odd shapes") {
    spec.take_odd_shapes();
  }
  SECTION("fused, biased, scaled") {
    spec.fused_gate_up = spec.architecture != "llama";
    spec.fused_inputs = spec.architecture == "qwen3next";
    spec.fused_qkv = spec.attention_bias = true;
    spec.scales = true;
  }
  SECTION("types that need scales") {
    spec.hidden_dim = 256;
    spec.types = {WeightType::kNVFP4, WeightType::kQ2_0, WeightType::kTQ1_0, WeightType::kQ1_0, WeightType::kTQ2_0};
    spec.scales = true;
  }
  SECTION("tied") {
    spec.tied_head = true;
  }
  Matrix matrix(spec, /*prompt_tokens=*/20, /*new_tokens=*/10);
  Axes axes = axes_of_ranks(matrix.has_mtp());
  axes.neighbours = {test::Neighbours::kAlone, test::Neighbours::kSaved};
  axes.isas = {best_isa()};
  const auto settings = covering_settings(axes);
  int first = 0;
  for (const ClusterMode mode : kClusterModes) {
    for (const std::vector<double>& shares : {std::vector<double>{3, 1}, {1, 0.1, 4}, {1, 1, 5, 2}}) {
      INFO(cluster_mode_name(mode) << " over " << shares.size());
      ThreadCluster threads(static_cast<int>(shares.size()), {"test", best_isa(), 1, {}}, {},
                            /*shares_memory=*/shares.size() == 3);
      const Model model = threads.cluster().load(matrix.path(), load, {mode, shares});
      SessionOptions session;
      session.cluster = &threads.cluster();
      matrix.run_on(&model, session);
      matrix.check_all({settings.begin() + first++ % 8, settings.end()}, 2 * kStride);
    }
  }
  matrix.run_on(nullptr, {});
  matrix.finish("shares", /*by_the_clock=*/true);
}

TEST_CASE("a sequence's saved bytes are the same on any number of ranks, and go on from any to any") {
  const RandomModel spec = matrix_model(GENERATE("qwen35moe", "qwen3next", "qwen3moe"));
  const test::TempFolder folder;
  spec.write(folder.file("model.gguf"));
  const std::vector<TokenId> ids = test::random_ids(60, spec.vocab_size, 5);
  const Model alone = Model::load(folder.file("model.gguf"), {});
  SessionOptions options;
  options.ctx_size = 300;
  options.max_window = 4;
  options.with_mtp = alone.has_mtp();
  // Takes `from` up, reads 20 tokens as a chunk and 3 as a window, of which it keeps 2.
  const auto go_on = [&](const Model& model, Cluster* cluster, const std::vector<std::byte>& from) {
    SessionOptions own = options;
    own.cluster = cluster;
    Session session(model, own);
    if (!from.empty()) session.sequence().restore(from);
    REQUIRE(session.sequence().reserve(options.ctx_size));
    const auto at = static_cast<size_t>(session.length());
    session.forward(std::span(ids).subspan(at, 20));
    session.commit(20);
    session.forward(std::span(ids).subspan(at + 20, 3));
    session.commit(2);
    return session.sequence().save();
  };
  // What a window left behind where it was taken back differs in nobody: the same rows were computed.
  const std::vector<std::byte> first = go_on(alone, nullptr, {}), second = go_on(alone, nullptr, first);
  for (const ClusterMode mode : kClusterModes) {
    for (const int num_ranks : {2, 3}) {
      INFO(cluster_mode_name(mode) << " over " << num_ranks);
      ThreadCluster threads(num_ranks);
      const Model model = threads.cluster().load(folder.file("model.gguf"), {}, {mode, equal_shares(num_ranks)});
      CHECK(go_on(model, &threads.cluster(), {}) == first);
      CHECK(go_on(model, &threads.cluster(), first) == second);
    }
  }
  // From hand to hand, each going on from what the one before it has saved; nothing of one process is in between.
  struct Stop {
    int num_ranks;  // 1: no cluster
    ClusterMode mode;
    std::vector<double> shares;
  };
  const std::vector<std::vector<Stop>> ways = {
      {{2, ClusterMode::kRows, {1, 1}}, {3, ClusterMode::kRows, {1, 1, 1}}},
      {{3, ClusterMode::kRows, {1, 2, 3}}, {1, ClusterMode::kRows, {}}},
      {{2, ClusterMode::kRows, {3, 1}}, {2, ClusterMode::kLayers, {1, 1}}},
      {{3, ClusterMode::kLayers, {1, 1, 1}}, {2, ClusterMode::kExperts, {1, 3}}},
      {{4, ClusterMode::kExperts, {1, 1, 1, 1}}, {2, ClusterMode::kRows, {1, 1}}},
  };
  for (const std::vector<Stop>& way : ways) {
    std::vector<std::byte> saved;
    for (const Stop& stop : way) {
      INFO(cluster_mode_name(stop.mode) << " over " << stop.num_ranks << (saved.empty() ? ", first" : ", then"));
      std::vector<std::byte> next;
      if (stop.num_ranks == 1) {
        next = go_on(alone, nullptr, saved);
      } else {
        ThreadCluster threads(stop.num_ranks);
        const Model model = threads.cluster().load(folder.file("model.gguf"), {}, {stop.mode, stop.shares});
        next = go_on(model, &threads.cluster(), saved);
      }
      CHECK(next == (saved.empty() ? first : second));
      saved = std::move(next);
    }
  }
}

TEST_CASE("a rank reads its share of the weights, and gathers at most four times a layer") {
  const RandomModel spec = matrix_model("qwen35moe");
  const test::TempFolder folder;
  spec.write(folder.file("model.gguf"));
  const size_t whole = Model::load(folder.file("model.gguf"), {}).weights().bytes_to_load;
  const bool shares_memory = GENERATE(false, true);  // one more then, of the router
  for (const ClusterMode mode : kClusterModes) {
    INFO(cluster_mode_name(mode));
    ThreadCluster threads(2, {"test", best_isa(), 1, {}}, {}, shares_memory);
    const Model model = threads.cluster().load(folder.file("model.gguf"), {}, {mode, equal_shares(2)});
    // Routers are on every rank.
    CHECK(model.weights().bytes_to_load < (mode == ClusterMode::kLayers ? whole : whole * 6 / 10));
    SessionOptions options;
    options.ctx_size = 64;
    options.cluster = &threads.cluster();
    Session session(model, options);
    const std::vector<TokenId> ids = {1, 2, 3};
    const int64_t before = threads.transport().num_gathers;
    session.forward(ids);
    const int64_t gathers = threads.transport().num_gathers - before;
    CHECK(gathers <= (mode == ClusterMode::kLayers ? 1 : (shares_memory ? 5 : 4) * spec.num_layers + 1));
  }
}

TEST_CASE(
    "another version or instruction set is refused on all ranks, by the host's name, and the next try may go on") {
  const test::TempFolder folder;
  matrix_model("llama").write(folder.file("model.gguf"));
  const auto message_of = [&](ThreadCluster& threads, const std::string& path) -> std::string {
    try {
      (void)threads.cluster().load(path, {}, {ClusterMode::kRows, equal_shares(2)});
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  {
    ThreadCluster threads(2, {"test", Isa::kScalar, 1, {}}, [](int rank, ClusterMember& member) {
      if (rank == 1) member.version = "another";
    });
    CHECK(message_of(threads, folder.file("model.gguf")).find("(rank 1 of the cluster): runs another") !=
          std::string::npos);
  }
  ThreadCluster threads(2);
  CHECK(message_of(threads, folder.file("none.gguf")).find("none.gguf") != std::string::npos);
  LoadOptions refuses;
  refuses.on_header = [](const Model&) { throw InputError("not this one"); };
  CHECK_THROWS_WITH(
      (void)threads.cluster().load(folder.file("model.gguf"), refuses, {ClusterMode::kRows, equal_shares(2)}),
      "not this one");
  CHECK(message_of(threads, folder.file("model.gguf")).empty());
}

}  // namespace
}  // namespace foretoken
