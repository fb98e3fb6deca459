#include "mtp/controller.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <vector>

namespace foretoken {
namespace {

// A machine and a text: what passes and drafts cost, in plain passes, and how often a draft is right.
struct World {
  double row_cost;   // what one more row adds to a pass
  double step_cost;  // of a chained draft
  double acceptance;
};

struct Outcome {
  double tokens_per_pass_time = 0;  // 1: as fast as without drafts
  int longest_first_windows = 0;    // most drafts of the first five windows with any
  std::vector<int> windows_by_k = std::vector<int>(9, 0);
};

// Runs `num_tokens` tokens. The drafts that are right are the same in every run.
Outcome run(DraftController& controller, const World& world, int num_tokens) {
  Outcome outcome;
  double time = 0;
  std::mt19937 dice(1);
  int tokens = 0, drafted_windows = 0;
  while (tokens < num_tokens) {
    int k = controller.plan(8);
    std::vector<float> confidences;
    if (k > 0) {
      const double first = 0.5 * world.step_cost;
      do {
        confidences.push_back(0.5f);
        const double cost = confidences.size() == 1 ? first : world.step_cost;
        controller.observe_draft(confidences.size() == 1, cost);
        time += cost;
      } while (controller.worth_another(confidences, 8));
      controller.observe_refresh(0.5 * world.step_cost);
      time += 0.5 * world.step_cost;
      if (++drafted_windows <= 5)
        outcome.longest_first_windows = std::max(outcome.longest_first_windows, static_cast<int>(confidences.size()));
    }
    k = static_cast<int>(confidences.size());
    const double pass = 1 + world.row_cost * k;
    controller.observe_verify(k + 1, pass);
    time += pass;
    int accepted = 0;
    while (accepted < k && static_cast<double>(dice()) * 0x1p-32 < world.acceptance) ++accepted;
    if (k > 0) controller.observe_acceptance(confidences, accepted);
    ++outcome.windows_by_k[static_cast<size_t>(k)];
    tokens += accepted + 1;
  }
  outcome.tokens_per_pass_time = tokens / time;
  return outcome;
}

TEST_CASE("drafts that are never right cost next to nothing") {
  for (double row_cost : {0.1, 0.3, 0.6}) {
    INFO(row_cost);
    DraftController controller(8, false);
    const Outcome outcome = run(controller, {row_cost, 0.08, 0.0}, 128);
    CHECK(outcome.tokens_per_pass_time > 0.97);
  }
}

TEST_CASE("windows grow by one row at a time") {
  DraftController controller(8, false);
  const Outcome outcome = run(controller, {0.05, 0.05, 1.0}, 200);
  CHECK(outcome.longest_first_windows <= 5);
  CHECK(outcome.windows_by_k[8] > 5);  // and get there
  CHECK(outcome.tokens_per_pass_time > 3);
}

TEST_CASE("the length of drafts follows acceptance and cost") {
  // Tokens a pass time of the best fixed length; the controller learns and must come near.
  for (const World& world : {World{0.1, 0.08, 0.85}, World{0.3, 0.08, 0.85}, World{0.2, 0.05, 0.6}}) {
    INFO(world.row_cost << " " << world.acceptance);
    double best = 0;
    for (int k = 0; k <= 8; ++k) {
      DraftController fixed(k, true);
      best = std::max(best, run(fixed, world, 2000).tokens_per_pass_time);
    }
    DraftController controller(8, false);
    CHECK(run(controller, world, 2000).tokens_per_pass_time > 0.93 * best);
  }
}

TEST_CASE("a controller that is switched off always drafts the most") {
  DraftController controller(3, true);
  CHECK(controller.plan(8) == 3);
  CHECK(controller.plan(2) == 2);
  const std::vector<float> unsure = {0.0f, 0.0f};
  CHECK(controller.worth_another(unsure, 8));
}

}  // namespace
}  // namespace foretoken
