#include "engine/cuda/hot_experts.h"

#include <catch2/catch.hpp>

using namespace foretoken;

namespace {

std::vector<int32_t> places(const HotExperts& hot, int layer) {
  return {hot.places(layer).begin(), hot.places(layer).end()};
}

}  // namespace

TEST_CASE("Placed experts have their places, the entries are empty", "[hot_experts]") {
  const HotExperts hot({2, 4, 0}, 4, 3);
  CHECK(places(hot, 0) == std::vector<int32_t>{0, 1, -1, -1});
  CHECK(places(hot, 1) == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(places(hot, 2) == std::vector<int32_t>{-1, -1, -1, -1});
  CHECK(hot.capacity(0) == 4);  // only two are left to be hot
  CHECK(hot.capacity(1) == 4);
  CHECK(hot.capacity(2) == 3);
  CHECK(hot.is_split(0));
  CHECK_FALSE(hot.is_split(1));
}

TEST_CASE("A used expert comes into an empty entry, and is there when its weights have arrived", "[hot_experts]") {
  HotExperts hot({1}, 4, 1);
  CHECK(hot.choose(8).empty());  // nobody was used
  hot.count(0, 0);
  CHECK(hot.choose(8).empty());  // it is there already
  hot.count(0, 2);
  CHECK(hot.choose(0).empty());
  const auto fills = hot.choose(8);
  REQUIRE(fills.size() == 1);
  CHECK(fills[0].expert == 2);
  CHECK(fills[0].place == 1);
  CHECK(hot.places(0)[2] == -1);
  CHECK(hot.choose(8).empty());  // the only entry is being filled
  hot.finish(fills[0]);
  CHECK(hot.places(0)[2] == 1);
  hot.count(0, 2);
  CHECK(hot.reads().placed == 1);
  CHECK(hot.reads().host == 1);
  CHECK(hot.reads().hot == 1);
  CHECK(hot.reads().hit_rate() == Approx(0.5));
}

TEST_CASE("An entry goes to another expert once that is clearly more used", "[hot_experts]") {
  HotExperts hot({0}, 4, 1);
  hot.count(0, 1);
  hot.finish(hot.choose(1).at(0));
  for (int i = 0; i < 3; ++i) {
    CHECK(hot.choose(1).empty());
    hot.count(0, 3);
  }
  hot.count(0, 3);  // four uses against one and a margin of two
  const auto fills = hot.choose(1);
  REQUIRE(fills.size() == 1);
  CHECK(fills[0].expert == 3);
  CHECK(places(hot, 0) == std::vector<int32_t>{-1, -1, -1, -1});
  hot.finish(fills[0]);
  CHECK(places(hot, 0) == std::vector<int32_t>{-1, -1, -1, 0});
}

TEST_CASE("Old uses fade: a text that turns to other things gets other experts", "[hot_experts]") {
  HotExperts hot({0}, 2, 1);
  for (int i = 0; i < 1000; ++i) hot.count(0, 0);
  hot.finish(hot.choose(1).at(0));
  int passes = 0;
  while (hot.places(0)[0] >= 0) {
    hot.count(0, 1);
    static_cast<void>(hot.choose(1));
    REQUIRE(++passes < 1000);
  }
  CHECK(passes > 64);
}

TEST_CASE("The most worthwhile fills come first, one a layer and pass", "[hot_experts]") {
  HotExperts hot({0, 0, 0}, 4, 2);
  for (int l = 0; l < 3; ++l) {
    for (int i = 0; i <= l; ++i) hot.count(l, 1);
    hot.count(l, 2);
  }
  const auto fills = hot.choose(2);
  REQUIRE(fills.size() == 2);
  CHECK(fills[0].layer == 2);
  CHECK(fills[1].layer == 1);
}

TEST_CASE("Fetched experts take the entries that rank lowest, and none that the pass uses", "[hot_experts]") {
  HotExperts hot({1}, 8, 2);  // expert 0 has its place, entries are places 1 and 2
  const auto pass = [&](std::vector<int32_t> used, int most) {
    const cuda::FetchCandidates candidates = hot.candidates(0, most);
    for (const int32_t e : used) hot.count(0, e);
    return hot.fetch(0, used, candidates);
  };
  CHECK(pass({0, 3, 5}, 0) == 0);
  CHECK(pass({0, 3, 5}, 1) == 1);
  CHECK(hot.places(0)[3] == 1);
  CHECK(hot.places(0)[5] == -1);
  CHECK(pass({5}, 8) == 1);  // the empty one
  CHECK(hot.places(0)[5] == 2);
  CHECK(pass({3}, 8) == 0);
  CHECK(pass({6}, 8) == 1);  // 5 and 3 were used three times each, 3 later
  CHECK(places(hot, 0) == std::vector<int32_t>{0, -1, -1, 1, -1, -1, 2, -1});
  CHECK(pass({6, 7}, 8) == 1);  // 6 is used: the other entry it is, though it ranks higher
  CHECK(places(hot, 0) == std::vector<int32_t>{0, -1, -1, -1, -1, -1, 2, 1});
  CHECK(pass({1, 2, 4}, 8) == 2);  // there are no more entries
  CHECK(hot.places(0)[4] == -1);
  CHECK(hot.reads().placed == 2);
  CHECK(hot.reads().hot == 2);
  CHECK(hot.reads().fetched == 6);
  CHECK(hot.reads().total() == 14);
  // Weights that grow are brought back, and the ranks stay.
  for (int i = 0; i < 5000; ++i)
    static_cast<void>(pass(i % 3 == 0 ? std::vector<int32_t>{1, 2} : std::vector<int32_t>{1}, 0));
  CHECK(pass({4}, 1) == 1);
  CHECK(hot.places(0)[2] == -1);
  CHECK(hot.places(0)[1] >= 0);
}
