#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "engine/cluster/cluster.h"
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

constexpr ClusterMode kModes[] = {ClusterMode::kRows, ClusterMode::kExperts, ClusterMode::kLayers};

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
  ThreadCluster threads(num_ranks);
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
  for (const ClusterMode mode : kModes) {
    for (const int num_ranks : {1, 2, 3, 4}) {
      INFO(architecture << ", " << cluster_mode_name(mode) << " over " << num_ranks);
      // Other settings for each, so that all of them come up.
      std::vector<test::Setting> turn(settings.begin() + first++ % kStride, settings.end());
      check_cluster(matrix, num_ranks, mode, equal_shares(num_ranks), turn, kStride);
    }
  }
  matrix.finish(architecture);
}

}  // namespace
}  // namespace foretoken
