#include "mtp/cost_model.h"

#include <catch2/catch.hpp>
#include <cmath>

namespace foretoken {
namespace {

// Eight layers of a 35B-A3B at Q4_K_M.
const DecodeBytes kLarge = {614.4e6, 121.9e6, 26.3e6, 26e6, 15.2e6, 27.5e6, 8.0 / 256, false};

TEST_CASE("cost model: one plain pass and the prompt give passes of all widths", "[cost_model]") {
  CostModel cost(kLarge);
  CHECK_FALSE(cost.is_known());
  cost.observe_prompt({1, 25}, 12, 255);
  cost.observe_window({1, 1}, 1, 37.5);
  CHECK(cost.is_known());
  CHECK(cost.can_choose(8));
  CHECK(cost.pass_ms({1, 1}) == Approx(37.5).epsilon(0.01));
  // What this machine then measured.
  CHECK(cost.pass_ms({1, 2}) == Approx(43.5).epsilon(0.1));
  CHECK(cost.pass_ms({1, 3}) == Approx(48).epsilon(0.1));
  CHECK(cost.pass_ms({1, 5}) == Approx(57).epsilon(0.2));
  CHECK(cost.pass_ms({1, 8}) == Approx(80).epsilon(0.2));
  // Drafts by their bytes: measured 1.7 + 1.6 for the first, 3.2 for each further one.
  CHECK(cost.another_draft_ms(1, 0) == Approx(3.3).epsilon(0.2));
  CHECK(cost.another_draft_ms(2, 0) == Approx(3.2).epsilon(0.2));
  // A further sequence shares the layer and the head.
  CHECK(cost.another_draft_ms(2, 1) < 0.6 * cost.another_draft_ms(2, 0));
}

TEST_CASE("cost model: rows of other sequences read more experts than rows of the same", "[cost_model]") {
  CostModel cost(kLarge);
  CHECK(cost.distinct_experts({1, 1}) == Approx(1));
  CHECK(cost.distinct_experts({2, 2}) == Approx(1.97).epsilon(0.001));
  CHECK(cost.distinct_experts({5, 5}) == Approx(4.70).epsilon(0.001));
  CHECK(cost.distinct_experts({1, 5}) == Approx(3.1).epsilon(0.02));
  CHECK(cost.distinct_experts({1, 4000}) == Approx(32).epsilon(0.001));
  // What passes show counts more than what was assumed.
  cost.observe_window({1, 1}, 1, 37.5);
  for (int i = 0; i < 40; ++i) cost.observe_window({1, 3}, 1.4, 45);
  CHECK(cost.distinct_experts({1, 3}) == Approx(1.4).epsilon(0.03));
  CHECK(cost.distinct_experts({1, 2}) == Approx(1.2).epsilon(0.03));

  // Eight texts that are alike: seen in one plain pass, and further rows of theirs are alike as well.
  CostModel alike(kLarge);
  alike.observe_window({8, 8}, 2.3, 61);
  CHECK(alike.distinct_experts({8, 8}) == Approx(2.3).epsilon(0.1));
  CHECK(alike.distinct_experts({8, 22}) < 6);
  CHECK(alike.pass_ms({8, 8}) == Approx(61).epsilon(0.05));
  CHECK(alike.pass_ms({1, 1}) == Approx(33).epsilon(0.15));
  // What was measured on the same machine.
  CHECK(alike.pass_ms({8, 22}) == Approx(150).epsilon(0.15));

  CostModel dense({614.4e6, 0, 0, 26e6, 0, 27.5e6, 0, false});
  CHECK(dense.distinct_experts({3, 9}) == 0);
}

TEST_CASE("cost model: rows of prompts do without the head", "[cost_model]") {
  DecodeBytes bytes = kLarge;
  bytes.head = 400e6;
  bytes.head_share = 0.45;
  CostModel cost(bytes);
  cost.observe_window({1, 1}, 1, 37.5);
  // 100 rows of a prompt take as long as 55 that have logits, as far as arithmetic goes.
  CHECK(cost.pass_ms({1, 1000, 1000}) == Approx(cost.pass_ms({1, 550})).epsilon(0.05));
  CHECK(cost.pass_ms({1, 1000}) > 1.5 * cost.pass_ms({1, 1000, 1000}));
  // Ten rows of windows beside them.
  CHECK(cost.pass_ms({11, 1010, 1000}) - cost.pass_ms({1, 1000, 1000}) ==
        Approx((cost.pass_ms({1, 1010}) - cost.pass_ms({1, 1000}))).epsilon(0.1));
}

TEST_CASE("cost model: before anything was measured ratios are known", "[cost_model]") {
  CostModel cost(kLarge);
  CHECK(cost.can_choose(1));
  CHECK_FALSE(cost.can_choose(2));
  // 37.5 43.5 48 were measured.
  CHECK(cost.pass_ms({1, 2}) / cost.pass_ms({1, 1}) == Approx(43.5 / 37.5).epsilon(0.1));
  CHECK(cost.pass_ms({1, 3}) / cost.pass_ms({1, 1}) == Approx(48 / 37.5).epsilon(0.1));
  // The first draft is timed before the first window: what it tells waits for that.
  cost.observe_first_draft(1, 3.4);
  cost.observe_window({1, 2}, 1.55, 43.5);
  CHECK(cost.is_known());
  CHECK(cost.pass_ms({1, 1}) == Approx(37.5).epsilon(0.1));
  CHECK(cost.another_draft_ms(1, 0) > 3.6);
  CHECK(cost.another_draft_ms(1, 0) < 5.2);
}

TEST_CASE("cost model: a width that takes far longer than expected tells nothing of narrower ones", "[cost_model]") {
  CostModel cost(kLarge);
  for (int i = 0; i < 3; ++i) cost.observe_window({1, 3}, 1.94, 48);
  const double narrow = cost.pass_ms({1, 3}), wide = cost.pass_ms({1, 6});
  cost.observe_window({1, 6}, 2.8, 2 * wide);
  CHECK(cost.pass_ms({1, 3}) == Approx(narrow).epsilon(0.02));
  CHECK(cost.pass_ms({1, 6}) > 1.15 * wide);
  // It is believed less and less while nothing confirms it.
  for (int i = 0; i < 40; ++i) cost.observe_window({1, 3}, 1.94, 48);
  CHECK(cost.pass_ms({1, 6}) < 1.1 * wide);
}

TEST_CASE("cost model: every width that ran teaches all others", "[cost_model]") {
  // Arithmetic costs three times what the plain pass lets expect.
  CostModel cost(kLarge);
  const auto truth = [](int rows) { return std::hypot(37.0 + 3.0 * (rows - 1), 20.0 * rows); };
  cost.observe_window({1, 1}, 0, truth(1));
  const double before = cost.pass_ms({1, 8}) / truth(8);
  for (int i = 0; i < 12; ++i) cost.observe_window({1, i % 2 == 0 ? 1 : 3}, 0, truth(i % 2 == 0 ? 1 : 3));
  CHECK(before < 0.6);
  CHECK(cost.pass_ms({1, 3}) == Approx(truth(3)).epsilon(0.05));
  CHECK(cost.pass_ms({1, 8}) == Approx(truth(8)).epsilon(0.15));
}

TEST_CASE("cost model: one long pass counts little, many count", "[cost_model]") {
  CostModel cost(kLarge);
  for (int i = 0; i < 10; ++i) cost.observe_window({1, 1}, 1, 37.5);
  cost.observe_window({1, 1}, 1, 375);
  CHECK(cost.pass_ms({1, 1}) < 1.08 * 37.5);
  for (int i = 0; i < 60; ++i) cost.observe_window({1, 1}, 1, 75);
  CHECK(cost.pass_ms({1, 1}) == Approx(75).epsilon(0.05));
  // Quicker at once: what was believed came from slower times.
  for (int i = 0; i < 6; ++i) cost.observe_window({1, 1}, 1, 37.5);
  CHECK(cost.pass_ms({1, 1}) == Approx(37.5).epsilon(0.1));
}

TEST_CASE("cost model: a width with a cost of its own keeps it", "[cost_model]") {
  CostModel cost(kLarge);
  cost.observe_window({1, 1}, 0, 37.5);
  for (int i = 0; i < 20; ++i) {
    cost.observe_window({1, 3}, 0, 48);
    cost.observe_window({1, 5}, 0, 90);
  }
  CHECK(cost.pass_ms({1, 3}) == Approx(48).epsilon(0.1));
  CHECK(cost.pass_ms({1, 5}) == Approx(90).epsilon(0.15));
  CHECK(cost.pass_ms({1, 6}) > 80);
}

TEST_CASE("cost model: a prompt that waited for its file tells nothing", "[cost_model]") {
  CostModel told(kLarge), waited(kLarge), silent(kLarge);
  told.observe_prompt({1, 25}, 12, 255);
  waited.observe_prompt({1, 25}, 12, 5000);
  for (CostModel* cost : {&told, &waited, &silent}) cost->observe_window({1, 1}, 1, 37.5);
  CHECK(waited.pass_ms({1, 4}) == Approx(silent.pass_ms({1, 4})).epsilon(0.01));
  CHECK(told.pass_ms({1, 4}) == Approx(silent.pass_ms({1, 4})).epsilon(0.1));
}

TEST_CASE("cost model: in cache every row costs, and the first passes are not believed", "[cost_model]") {
  CostModel cost({2.3e6, 0.95e6, 0.45e6, 0.43e6, 0.24e6, 0.215e6, 2.0 / 16, true});
  cost.observe_prompt({1, 25}, 7, 1.1);
  cost.observe_window({1, 1}, 1, 0.3);
  CHECK_FALSE(cost.can_choose(1));
  for (int i = 0; i < 3; ++i) cost.observe_window({1, 1}, 1, 0.084);
  CHECK(cost.can_choose(8));
  CHECK(cost.pass_ms({1, 1}) == Approx(0.084));
  CHECK(cost.pass_ms({1, 2}) == Approx(0.126).epsilon(0.06));
  CHECK(cost.pass_ms({1, 4}) == Approx(0.207).epsilon(0.1));
  CHECK(cost.another_draft_ms(1, 0) == Approx(0.031).epsilon(0.2));
}

}  // namespace
}  // namespace foretoken
