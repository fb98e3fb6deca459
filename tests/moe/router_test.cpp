#include "moe/router.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "tests/engine/model/random_model.h"

namespace foretoken {
namespace {

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Choice route(Isa isa, std::vector<float> logits, int top_k) {
  // Row 1 of 3: its neighbours must stay as they are.
  Routing routing;
  routing.resize(3, top_k);
  std::fill(routing.experts.begin(), routing.experts.end(), -7);
  route_row(isa, logits.data(), static_cast<int>(logits.size()), 1, routing);
  for (int i = 0; i < top_k; ++i) {
    CHECK(routing.experts[i] == -7);
    CHECK(routing.experts[2 * top_k + i] == -7);
  }
  const auto begin = static_cast<std::ptrdiff_t>(top_k);
  return {{routing.experts.begin() + begin, routing.experts.begin() + 2 * begin},
          {routing.weights.begin() + begin, routing.weights.begin() + 2 * begin}};
}

TEST_CASE("the router takes the most probable experts, by falling probability, the lower index of equals") {
  const std::vector<std::pair<std::vector<float>, std::vector<int32_t>>> table = {
      {{1, 2, 3, 4}, {3, 2}},
      {{4, 3, 2, 1}, {0, 1}},
      {{2, 2, 2, 2}, {0, 1}},
      {{1, 2, 2, 1}, {1, 2}},
      {{2, 1, 3, 3}, {2, 3}},
      {{3, 1, 2, 2}, {0, 2}},
      {{-1, -2, -3, -1}, {0, 3}},
      {{0, -0.0f, 0, -0.0f}, {0, 1}},
      // The last one has probability 0 in float, and is still better than nobody.
      {{200, 0, 1, 2}, {0, 1}},
  };
  for (Isa isa : supported_isas()) {
    for (const auto& [logits, experts] : table) {
      INFO(isa_name(isa) << " " << Catch::Detail::stringify(logits));
      CHECK(route(isa, logits, 2).experts == experts);
    }
    CHECK(route(isa, {5}, 1).experts == std::vector<int32_t>{0});
    CHECK(route(isa, {1, 3, 2}, 3).experts == std::vector<int32_t>{1, 2, 0});
  }
}

TEST_CASE("router weights are the softmax over the chosen experts, the same bits on every instruction set") {
  for (const int num_experts : {1, 2, 13, 31, 32, 33, 128, 256, 300}) {
    for (const int top_k : {1, 2, 8, 13}) {
      if (top_k > num_experts) continue;
      std::vector<float> logits;
      for (TokenId id : test::random_ids(num_experts, 100000, static_cast<uint64_t>(num_experts))) {
        logits.push_back(static_cast<float>(id) * 1e-4f - 5.0f);
      }
      const Choice plain = route(Isa::kScalar, logits, top_k);
      double sum = 0;
      for (int32_t e : plain.experts) sum += std::exp(double{logits[e]});
      for (size_t rank = 0; rank < plain.experts.size(); ++rank) {
        INFO(num_experts << " experts, top " << top_k << ", rank " << rank);
        const double want = std::exp(double{logits[plain.experts[rank]]}) / sum;
        // exp, two divisions and a sum of at most 13: less than 20 roundings of 2^-24 each.
        CHECK(std::abs(double{plain.weights[rank]} - want) <= 20 * 0x1p-24 * want);
        if (rank > 0) CHECK(plain.weights[rank] <= plain.weights[rank - 1]);
      }
      for (Isa isa : supported_isas()) {
        const Choice got = route(isa, logits, top_k);
        CHECK(got.experts == plain.experts);
        CHECK(got.weights == plain.weights);
      }
    }
  }
}

TEST_CASE("the router says which rows had a logit that was not finite") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (Isa isa : supported_isas()) {
    for (const auto& [bad, finite] :
         std::vector<std::pair<float, int>>{{1.0f, 1}, {3e38f, 1}, {infinity, 0}, {-infinity, 0}, {std::nanf(""), 0}}) {
      INFO(isa_name(isa) << " " << bad);
      Routing routing;
      routing.resize(1, 2);
      std::vector<float> logits = {1, bad, 2, 3};
      route_row(isa, logits.data(), 4, 0, routing);
      CHECK(routing.finite[0] == finite);
    }
  }
}

}  // namespace
}  // namespace foretoken
