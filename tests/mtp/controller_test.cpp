#include "mtp/controller.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

namespace foretoken {
namespace {

// A machine with a model: what its passes and drafts cost, in milliseconds. Nothing here is the controller's own model.
struct Machine {
  DecodeBytes bytes;
  std::function<double(int spans, int rows)> pass;
  double first, step, refresh;  // drafts of one sequence
  double prompt_ms;             // 25 rows
  double prompt_experts;
  double catch_up_row;
};

// V of a sequence alone by rows, beyond the table along its last step; further sequences cost what 0.8 of the rows of
// one cost more, since they share no experts.
double from_table(const std::vector<double>& v, double rows) {
  const size_t below = std::min(static_cast<size_t>(rows), v.size() - 1);
  return v[below - 1] + (rows - static_cast<double>(below)) * (v[below] - v[below - 1]);
}

Machine with_table(std::vector<double> v) {
  Machine machine;
  v.push_back(2 * v.back() - v[v.size() - 2]);
  machine.pass = [v](int spans, int rows) { return from_table(v, rows + 0.2 * (spans - 1)); };
  return machine;
}

// Eight layers of a 35B-A3B at Q4_K_M on two cores with AVX-512 VNNI, as measured.
Machine large_machine() {
  Machine machine = with_table({37.5, 43.5, 48, 54, 57, 62, 67, 74, 81});
  machine.bytes = {614.4e6, 121.9e6, 26.3e6, 26e6, 15.2e6, 27.5e6, 8.0 / 256, false};
  machine.first = 1.7;
  machine.step = 3.2;
  machine.refresh = 1.6;
  machine.prompt_ms = 255;
  machine.prompt_experts = 12;
  machine.catch_up_row = 0.2;
  return machine;
}

// The demonstration model, which lies in the cache.
Machine cached_machine() {
  Machine machine = with_table({0.084, 0.126, 0.167, 0.207, 0.25, 0.29});
  machine.bytes = {2.3e6, 0.95e6, 0.45e6, 0.43e6, 0.24e6, 0.215e6, 2.0 / 16, true};
  machine.first = 0.009;
  machine.step = 0.034;
  machine.refresh = 0.022;
  machine.prompt_ms = 1.1;
  machine.prompt_experts = 7;
  machine.catch_up_row = 0.004;
  return machine;
}

// A row costs more arithmetic: AVX2.
Machine slow_arithmetic_machine() {
  Machine machine = large_machine();
  machine.pass = with_table({37.5, 46, 56, 68, 83, 98}).pass;
  machine.prompt_ms = 420;
  return machine;
}

struct Text {
  double acceptance = 0.85;
  float sure = 1.0f;  // confidence of every draft
};

struct Run {
  double tokens_per_ms = 0;
  std::vector<int> drafts;  // of every window, in order, the first sequence's
  double mean_drafts = 0;   // of all windows
};

struct Options {
  int max_drafts = 8;
  bool fixed = false;
  int num_tokens = 96;  // of each sequence
  uint32_t seed = 1;
  bool on_device = false;  // all drafts of a window in one go
  // What a pass takes beside what it should, by its number; -1: the prompt.
  std::function<double(int pass)> disturbance = [](int) { return 1.0; };
};

// Decodes a text for each element of `texts` in one batch. The time that counts is what passes should take: the
// disturbances are what the controller sees.
Run decode(const Machine& machine, const std::vector<Text>& texts, const Options& options) {
  DraftController controller(machine.bytes, options.max_drafts, options.fixed);
  const size_t num_sequences = texts.size();
  std::vector<DraftHistory> histories(num_sequences);
  std::vector<std::mt19937> dice;
  for (size_t s = 0; s < num_sequences; ++s) dice.emplace_back(options.seed * 100 + static_cast<uint32_t>(s));
  std::vector<std::vector<float>> confidences(num_sequences);
  std::vector<DraftingSequence> sequences(num_sequences);
  std::vector<int> planned(num_sequences), extended(num_sequences), tokens(num_sequences, 0),
      waiting(num_sequences, 25);
  const int spans = static_cast<int>(num_sequences);
  CostModel& cost = controller.cost();
  cost.observe_prompt({1, 25}, machine.prompt_experts, machine.prompt_ms * options.disturbance(-1));

  Run run;
  double time = 0;
  int64_t all_tokens = 0, all_drafts = 0, windows = 0;
  for (int pass = 0; *std::min_element(tokens.begin(), tokens.end()) < options.num_tokens; ++pass) {
    const double slow = options.disturbance(pass);
    for (size_t s = 0; s < num_sequences; ++s) {
      confidences[s].clear();
      sequences[s] = {&histories[s], options.max_drafts, {}};
    }
    controller.plan({sequences}, planned);
    int drafting = 0;
    for (size_t s = 0; s < num_sequences; ++s) {
      if (planned[s] == 0) {
        // When so many wait they are taken in, whether drafts come or not.
        if (++waiting[s] > DeviceCycle::kMaxDeferred) waiting[s] = 0;
        sequences[s].limit = 0;
        continue;
      }
      time += waiting[s] * machine.catch_up_row;
      waiting[s] = 0;
      ++drafting;
      confidences[s].push_back(texts[s].sure);
      sequences[s].confidences = confidences[s];
    }
    // A step of several sequences costs a tenth more for each.
    const auto together = [](double ms, int count) { return ms * (1 + 0.1 * (count - 1)); };
    if (drafting > 0) {
      time += together(machine.first + machine.refresh, drafting);
      cost.observe_first_draft(drafting, slow * together(machine.first, drafting));
    }
    for (bool more = drafting > 0; more;) {
      controller.extend({sequences}, extended);
      int drawing = 0;
      for (size_t s = 0; s < num_sequences; ++s) {
        const int wanted = planned[s] == 0 ? 0 : options.on_device ? std::max(extended[s], 1) : extended[s];
        if (wanted <= static_cast<int>(confidences[s].size())) continue;
        ++drawing;
        confidences[s].resize(options.on_device ? static_cast<size_t>(wanted) : confidences[s].size() + 1,
                              texts[s].sure);
        sequences[s].confidences = confidences[s];
      }
      if (drawing > 0 && !options.on_device) {
        time += together(machine.step, drawing);
        cost.observe_step(drawing, slow * together(machine.step, drawing));
      }
      more = drawing > 0 && !options.on_device;
      if (options.on_device && num_sequences == 1 && confidences[0].size() > 1) {
        const double steps = static_cast<double>(confidences[0].size() - 1) * machine.step;
        time += steps;
        for (size_t i = 1; i < confidences[0].size(); ++i) cost.observe_step(1, machine.step);
      }
    }
    int rows = spans;
    for (const auto& c : confidences) rows += static_cast<int>(c.size());
    const double ms = machine.pass(spans, rows);
    time += ms;
    cost.observe_window({spans, rows}, 0, ms * slow);
    for (size_t s = 0; s < num_sequences; ++s) {
      const int k = static_cast<int>(confidences[s].size());
      int accepted = 0;
      while (accepted < k && static_cast<double>(dice[s]()) * 0x1p-32 < texts[s].acceptance) ++accepted;
      controller.observe_acceptance(histories[s], confidences[s], accepted);
      tokens[s] += accepted + 1;
      all_tokens += accepted + 1;
      all_drafts += k;
      ++windows;
    }
    if (drafting > 0) cost.observe_refresh(drafting, slow * together(machine.refresh, drafting));
    run.drafts.push_back(static_cast<int>(confidences[0].size()));
  }
  run.tokens_per_ms = static_cast<double>(all_tokens) / time;
  run.mean_drafts = static_cast<double>(all_drafts) / static_cast<double>(windows);
  return run;
}

// Mean over several texts of tokens a millisecond.
double speed(const Machine& machine, const std::vector<Text>& texts, Options options) {
  double sum = 0;
  constexpr int kSeeds = 20;
  for (int seed = 1; seed <= kSeeds; ++seed) {
    options.seed = static_cast<uint32_t>(seed);
    sum += decode(machine, texts, options).tokens_per_ms / kSeeds;
  }
  return sum;
}

double best_fixed_speed(const Machine& machine, const std::vector<Text>& texts, Options options) {
  options.fixed = true;
  double best = 0;
  const int most = options.max_drafts;
  for (options.max_drafts = 0; options.max_drafts <= most; ++options.max_drafts)
    best = std::max(best, speed(machine, texts, options));
  return best;
}

double plain_speed(const Machine& machine, size_t num_sequences) {
  const int spans = static_cast<int>(num_sequences);
  return spans / machine.pass(spans, spans);
}

TEST_CASE("controller: 96 tokens come near the best fixed number of drafts", "[controller]") {
  const bool on_device = GENERATE(false, true);
  for (const Machine& machine : {large_machine(), slow_arithmetic_machine()}) {
    for (double acceptance : {0.5, 0.7, 0.85, 0.95}) {
      for (int most : {3, 8}) {
        INFO(machine.prompt_ms << " " << acceptance << " " << most << " " << on_device);
        Options options;
        options.max_drafts = most;
        options.on_device = on_device;
        const std::vector<Text> text = {{acceptance, static_cast<float>(acceptance)}};
        const double best = best_fixed_speed(machine, text, options);
        CHECK(speed(machine, text, options) >= 0.955 * best);
      }
    }
  }
}

TEST_CASE("controller: drafts that are never right cost next to nothing, however sure they are", "[controller]") {
  for (const Machine& machine : {large_machine(), slow_arithmetic_machine(), cached_machine()}) {
    for (float sure : {0.3f, 0.8f, 1.0f, std::numeric_limits<float>::quiet_NaN()}) {
      for (int num_tokens : {48, 96, 1000}) {
        INFO(machine.prompt_ms << " " << sure << " " << num_tokens);
        Options options;
        options.num_tokens = num_tokens;
        const double off = plain_speed(machine, 1);
        CHECK(speed(machine, {{0.0, sure}}, options) >= (num_tokens < 96 ? 0.965 : 0.98) * off);
      }
    }
  }
}

TEST_CASE("controller: nothing is tried where the bytes say that it cannot pay", "[controller]") {
  for (double acceptance : {0.5, 0.67, 0.75}) {
    for (int num_tokens : {16, 64, 96}) {
      INFO(acceptance << " " << num_tokens);
      Options options;
      options.num_tokens = num_tokens;
      const Machine machine = cached_machine();
      CHECK(speed(machine, {{acceptance, 0.55f}}, options) >= 0.97 * plain_speed(machine, 1));
      const Run run = decode(machine, {{acceptance, 0.55f}}, options);
      CHECK(std::all_of(run.drafts.begin(), run.drafts.begin() + 16, [](int k) { return k == 0; }));
    }
  }
}

TEST_CASE("controller: drafts that are always right get the longest windows soon", "[controller]") {
  Options options;
  options.num_tokens = 200;
  const Machine machine = large_machine();
  const std::vector<Text> text = {{1.0, 1.0f}};
  const Run run = decode(machine, text, options);
  CHECK(run.drafts[0] == 2);
  CHECK(run.drafts[1] == 4);
  CHECK(std::count(run.drafts.begin() + 6, run.drafts.end(), 8) >= static_cast<int>(run.drafts.size()) - 8);
  CHECK(run.tokens_per_ms >= 0.9 * best_fixed_speed(machine, text, options));
}

TEST_CASE("controller: a short text is no place to learn at a loss", "[controller]") {
  for (double acceptance : {0.0, 0.5, 0.85}) {
    INFO(acceptance);
    Options options;
    options.num_tokens = 16;
    const Machine machine = large_machine();
    const double reached = speed(machine, {{acceptance, 0.85f}}, options);
    CHECK(reached >= 0.88 * plain_speed(machine, 1));
    if (acceptance > 0.8) CHECK(reached >= 0.86 * best_fixed_speed(machine, {{acceptance, 0.85f}}, options));
  }
}

TEST_CASE("controller: a jump of the costs keeps windows below it", "[controller]") {
  // Five rows take another kernel, half as fast.
  Machine machine = large_machine();
  machine.pass = with_table({37.5, 43.5, 48, 54, 100, 106, 112, 118, 124}).pass;
  Options options;
  options.num_tokens = 200;
  const std::vector<Text> text = {{0.95, 0.95f}};
  const Run run = decode(machine, text, options);
  CHECK(std::count_if(run.drafts.begin(), run.drafts.end(), [](int k) { return k >= 4; }) <= 6);
  CHECK(run.tokens_per_ms >= 0.95 * best_fixed_speed(machine, text, options));
}

TEST_CASE("controller: readings of a busy machine do not mislead it", "[controller]") {
  const Machine machine = large_machine();
  const std::vector<Text> text = {{0.85, 0.9f}};
  Options options;
  const double best = best_fixed_speed(machine, text, options);
  SECTION("one pass in ten takes two and a half times as long") {
    options.disturbance = [](int pass) { return pass % 10 == 3 ? 2.5 : 1.0; };
    CHECK(speed(machine, text, options) >= 0.925 * best);
  }
  SECTION("the first plain pass takes twice as long") {
    options.disturbance = [](int pass) { return pass == 0 ? 2.0 : 1.0; };
    CHECK(speed(machine, text, options) >= 0.925 * best);
  }
  SECTION("the prompt waits for its file") {
    options.disturbance = [](int pass) { return pass == -1 ? GENERATE(2.0, 10.0, 1000.0) : 1.0; };
    CHECK(speed(machine, text, options) >= 0.92 * best);
  }
  SECTION("the first window with drafts takes three times as long") {
    options.disturbance = [](int pass) { return pass == 1 ? 3.0 : 1.0; };
    CHECK(speed(machine, text, options) >= 0.925 * best);
  }
  SECTION("everything takes twice as long from the tenth pass on") {
    options.disturbance = [](int pass) { return pass >= 10 ? 2.0 : 1.0; };
    CHECK(speed(machine, text, options) >= 0.92 * best);
  }
  SECTION("times scatter by a quarter") {
    options.disturbance = [](int pass) {
      std::mt19937 dice(static_cast<uint32_t>(pass + 7));
      return 1.0 + 0.25 * static_cast<double>(dice()) * 0x1p-32;
    };
    CHECK(speed(machine, text, options) >= 0.925 * best);
  }
}

TEST_CASE("controller: batches come near their best fixed number of drafts", "[controller]") {
  const Machine machine = large_machine();
  double last_mean = 9;
  for (size_t num_sequences : {1, 2, 4, 8}) {
    INFO(num_sequences);
    const std::vector<Text> texts(num_sequences, Text{0.85, 0.85f});
    Options options;
    const double best = best_fixed_speed(machine, texts, options);
    CHECK(speed(machine, texts, options) >= 0.93 * best);
    // The more sequences, the shorter the drafts.
    const double mean = decode(machine, texts, options).mean_drafts;
    CHECK(mean <= last_mean + 0.3);
    last_mean = mean;
  }
}

TEST_CASE("controller: useless drafts cost a batch next to nothing", "[controller]") {
  for (size_t num_sequences : {2, 4, 8}) {
    INFO(num_sequences);
    const std::vector<Text> texts(num_sequences, Text{0.0, 1.0f});
    CHECK(speed(large_machine(), texts, {}) >= 0.97 * plain_speed(large_machine(), num_sequences));
  }
}

TEST_CASE("controller: eight texts that share experts and pay for every row's arithmetic do not draft",
          "[controller]") {
  // Measured on two cores with AVX2: 61 ms for 8 rows, 150 for 22.
  DraftController controller(large_machine().bytes, 8, false);
  std::vector<DraftHistory> histories(8);
  std::vector<DraftingSequence> batch;
  for (DraftHistory& history : histories) batch.push_back({&history, 8, {}});
  std::vector<int> drafts(8);
  controller.plan({batch}, drafts);
  CHECK(drafts == std::vector<int>(8, 0));
  controller.cost().observe_window({8, 8}, 2.3, 61);
  controller.plan({batch}, drafts);
  CHECK(drafts == std::vector<int>(8, 0));
  // Neither do they where drafts were made and that is what it took.
  for (int i = 0; i < 3; ++i) controller.cost().observe_window({8, 22}, 5, 150);
  for (DraftHistory& history : histories) controller.observe_acceptance(history, std::vector<float>{0.85f, 0.85f}, 2);
  controller.plan({batch}, drafts);
  CHECK(drafts == std::vector<int>(8, 0));
}

TEST_CASE("controller: each sequence of a batch gets what its own drafts are worth", "[controller]") {
  DraftController controller(large_machine().bytes, 8, false);
  CostModel& cost = controller.cost();
  cost.observe_window({1, 1}, 0, 37.5);
  cost.observe_window({1, 3}, 0, 48);
  cost.observe_window({1, 5}, 0, 57);
  std::vector<DraftHistory> histories(2);
  const std::vector<float> sure = {0.9f, 0.9f};
  for (int i = 0; i < 40; ++i) {
    controller.observe_acceptance(histories[0], sure, 2);
    controller.observe_acceptance(histories[1], sure, 0);
  }
  std::vector<DraftingSequence> batch = {{&histories[0], 8, {}}, {&histories[1], 8, {}}};
  std::vector<int> drafts(2);
  controller.plan({batch}, drafts);
  CHECK(drafts[0] >= 2);
  CHECK(drafts[1] == 0);
  SECTION("no more than the limit") {
    batch[0].limit = 1;
    controller.plan({batch}, drafts);
    CHECK(drafts == std::vector<int>{1, 0});
    batch[0].limit = -1;
    controller.plan({batch}, drafts);
    CHECK(drafts == std::vector<int>{0, 0});
  }
  SECTION("an unsure draft is not followed by another") {
    const std::vector<float> first = {0.05f};
    batch[0].confidences = first;
    batch[1].limit = 0;
    controller.extend({batch}, drafts);
    CHECK(drafts == std::vector<int>{1, 0});
  }
}

TEST_CASE("controller: a prompt chunk beside the window leaves its drafts worth making", "[controller]") {
  DraftController controller(large_machine().bytes, 8, false);
  controller.cost().observe_prompt({1, 25}, 12, 255);
  controller.cost().observe_window({1, 1}, 0, 37.5);
  controller.cost().observe_window({1, 5}, 0, 57);
  DraftHistory history;
  const std::vector<DraftingSequence> batch = {{&history, 8, {}}};
  std::vector<int> alone(1), beside(1);
  controller.plan({batch}, alone);
  controller.plan({batch, 1, 64}, beside);
  CHECK(alone[0] >= 2);
  CHECK(beside[0] >= 1);
}

TEST_CASE("controller: beside prompts tokens come at the price of their rows", "[controller]") {
  DraftController controller(large_machine().bytes, 8, false);
  controller.cost().observe_prompt({1, 25, 25}, 12, 255);
  controller.cost().observe_window({1, 1}, 0, 37.5);
  controller.cost().observe_window({1, 5}, 0, 57);
  DraftHistory history;
  std::vector<DraftingSequence> batch = {{&history, 8, {}}};
  batch[0].tokens_left = 20;
  std::vector<int> drafts(1);
  const auto planned = [&](int64_t prompt_tokens_left) {
    controller.plan({batch, 1, 64, prompt_tokens_left}, drafts);
    return drafts[0];
  };
  // In twenty passes and more the whole text is made without a draft, each token for its row.
  CHECK(planned(20 * 64) == 0);
  CHECK(planned(100 * 64) == 0);
  CHECK(planned(64) >= 1);
  // Most of a long text comes when the prompt has been read.
  batch[0].tokens_left = 1000;
  CHECK(planned(20 * 64) >= 1);
  batch[0].tokens_left = INT64_MAX;
  CHECK(planned(20 * 64) >= 1);
}

TEST_CASE("controller: nobody begins to draft who has too little left to say", "[controller]") {
  // 200 tokens take about 50 ms; a token is some 10 to 20 ms cheaper with drafts.
  for (const auto& [tokens_left, waiting, begins] :
       {std::tuple{2, 200, false}, {100, 200, true}, {2, 0, true}, {100, 0, true}}) {
    INFO(tokens_left << " " << waiting);
    DraftController controller(large_machine().bytes, 8, false);
    controller.cost().observe_prompt({1, 25, 25}, 12, 255);
    controller.cost().observe_window({1, 1}, 0, 37.5);
    DraftHistory history;
    std::vector<DraftingSequence> batch = {{&history, 8, {}}};
    batch[0].tokens_left = tokens_left;
    batch[0].waiting = waiting;
    std::vector<int> drafts(1);
    controller.plan({batch}, drafts);
    CHECK((drafts[0] > 0) == begins);
  }
}

TEST_CASE("controller: the drafts of a batch begin as few", "[controller]") {
  DraftController controller(large_machine().bytes, 8, false);
  std::vector<DraftHistory> histories(4);
  std::vector<DraftingSequence> batch;
  for (DraftHistory& history : histories) batch.push_back({&history, 8, {}});
  std::vector<int> drafts(4);
  controller.cost().observe_window({4, 4}, 3, 55);
  const auto planned = [&] {
    controller.plan({batch}, drafts);
    return std::accumulate(drafts.begin(), drafts.end(), 0);
  };
  CHECK(planned() == 2);
  controller.cost().observe_window({4, 6}, 4, 60);
  CHECK(planned() == 4);
  // Confidences that are known do not go beyond either.
  const std::vector<float> sure = {0.98f};
  for (size_t s = 0; s < batch.size(); ++s) {
    batch[s].limit = drafts[s] > 0 ? 8 : 0;
    if (drafts[s] > 0) batch[s].confidences = sure;
  }
  controller.extend({batch}, drafts);
  CHECK(std::accumulate(drafts.begin(), drafts.end(), 0) <= 4);
}

TEST_CASE("controller: drafting rests and begins again when the text changes", "[controller]") {
  DraftController controller(large_machine().bytes, 4, false);
  controller.observe_verify(1, 1, 37.5);
  const auto cycle = [&](double acceptance, std::mt19937& dice) {
    const int k = controller.plan(4);
    controller.observe_verify(k + 1, 0, 37.5 + 5 * k);
    int accepted = 0;
    while (accepted < k && static_cast<double>(dice()) * 0x1p-32 < acceptance) ++accepted;
    controller.observe_acceptance(std::vector<float>(static_cast<size_t>(k), 0.9f), accepted);
    return k;
  };
  std::mt19937 dice(3);
  int drafts = 0;
  for (int i = 0; i < 100; ++i) drafts += cycle(0.9, dice);
  CHECK(drafts > 200);
  for (int i = 0; i < 300; ++i) (void)cycle(0.0, dice);
  drafts = 0;
  for (int i = 0; i < 100; ++i) drafts += cycle(0.0, dice);
  CHECK(drafts <= 4);
  for (int i = 0; i < 400; ++i) (void)cycle(0.9, dice);
  drafts = 0;
  for (int i = 0; i < 100; ++i) drafts += cycle(0.9, dice);
  CHECK(drafts > 200);
}

TEST_CASE("controller: switched off it always drafts the most", "[controller]") {
  DraftController controller(large_machine().bytes, 3, true);
  CHECK(controller.plan(8) == 3);
  CHECK(controller.plan(2) == 2);
  CHECK(controller.plan(-1) == 0);
  const std::vector<float> unsure = {0.0f, 0.0f};
  CHECK(controller.worth_another(unsure, 8));
  CHECK_FALSE(controller.worth_another(unsure, 2));
}

TEST_CASE("controller: times and confidences that are no numbers change nothing", "[controller]") {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  DraftController controller(large_machine().bytes, 8, false);
  CostModel& cost = controller.cost();
  for (double ms : {kNan, 0.0, -1.0}) {
    cost.observe_prompt({1, 25}, 12, ms);
    cost.observe_window({1, 1}, 1, ms);
    cost.observe_step(1, kNan);
  }
  CHECK_FALSE(cost.is_known());
  cost.observe_window({1, 1}, kNan, 37.5);
  cost.observe_window({1, 3}, kNan, kNan);
  CHECK(cost.pass_ms({1, 1}) == Approx(37.5));
  CHECK(cost.pass_ms({1, 3}) > 37.5);
  const std::vector<float> broken = {std::numeric_limits<float>::quiet_NaN(), -1.0f, 2.0f,
                                     std::numeric_limits<float>::infinity()};
  controller.observe_acceptance(broken, 2);
  CHECK(controller.plan(8) >= 0);
  const bool another = controller.worth_another(broken, 8);
  CHECK((another || !another));
  CHECK(std::isfinite(cost.pass_ms({1, 3})));
  const AcceptanceCounts fresh;
  CHECK(fresh.rate(broken[0]) == fresh.rate(0.0f));
  CHECK(fresh.rate(broken[3]) == fresh.rate(1.0f));
}

}  // namespace
}  // namespace foretoken
