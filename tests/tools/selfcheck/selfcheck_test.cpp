#include <catch2/catch.hpp>
#include <set>
#include <tuple>

#include "tools/selfcheck/selfcheck_plan.h"

using namespace foretoken;

namespace {

template <class T>
std::set<T> values(const std::vector<CheckCase>& plan, T CheckCase::*field) {
  std::set<T> found;
  for (const CheckCase& check : plan) found.insert(check.*field);
  return found;
}

int distance(const CheckCase& a, const CheckCase& b) {
  return (a.mtp != b.mtp) + (a.moe_verify != b.moe_verify) + (a.threads != b.threads) + (a.isa != b.isa) +
         (a.prompt_chunk != b.prompt_chunk) + (a.repack != b.repack) + !(a.place == b.place) +
         (a.neighbours != b.neighbours);
}

}  // namespace

TEST_CASE("The covering plan holds every value of every axis alone and mixed", "[selfcheck]") {
  const CheckAxes axes = check_axes(8, 6, {Isa::kScalar, Isa::kAvx2, Isa::kAvx512});
  const std::vector<CheckCase> plan = covering_plan(axes);
  const CheckCase reference = plan[0];
  std::vector<CheckCase> alone, mixed;
  for (const CheckCase& check : plan) (distance(check, reference) <= 1 ? alone : mixed).push_back(check);

  for (const auto& part : {alone, mixed}) {
    CHECK(values(part, &CheckCase::mtp).size() >= 8);  // 0 is the reference's: alone in any case, mixed below
    CHECK(values(part, &CheckCase::moe_verify).size() == 2);
    CHECK(values(part, &CheckCase::threads) == std::set<int>{1, 2, 3, 6});
    CHECK(values(part, &CheckCase::isa).size() == 3);
    CHECK(values(part, &CheckCase::prompt_chunk) == std::set<int>{0, 1, 7, 64});
    CHECK(values(part, &CheckCase::repack).size() == 2);
    CHECK(values(part, &CheckCase::neighbours) == std::set<int>{0, 2, 7});
    CHECK(values(part, &CheckCase::sampled).size() == 2);
    CHECK(values(part, &CheckCase::controller).size() == 2);
  }
  CHECK(values(mixed, &CheckCase::mtp).count(0) == 1);
  CHECK(plan.size() < 40);
  CHECK(plan == covering_plan(axes));
}

TEST_CASE("Places with a GPU are cases like the others", "[selfcheck]") {
  const std::vector<CheckPlace> places = gpu_places(256);
  CHECK(places ==
        std::vector<CheckPlace>{
            {Device::kCuda, 0, 0}, {Device::kSplit, 0, 0}, {Device::kSplit, 128, 2}, {Device::kSplit, 256, 0}});
  CHECK(gpu_places(8, 7)[2] == CheckPlace{Device::kSplit, 7, 1});
  CHECK(gpu_places(0).size() == 2);
  CHECK(describe(places[0]) == "cuda");
  CHECK(describe(places[2]) == "split 128+2");
  CHECK(describe(places[3]) == "split 256");

  const CheckAxes axes = check_axes(8, 2, {Isa::kScalar, Isa::kAvx2}, places);
  const std::vector<CheckCase> plan = covering_plan(axes);
  CHECK(plan[0].place == CheckPlace());  // the reference is the CPU
  for (const CheckPlace& place : places) {
    int alone = 0, mixed = 0;
    for (const CheckCase& check : plan) {
      if (check.place == place) ++(distance(check, plan[0]) <= 1 ? alone : mixed);
    }
    INFO(describe(place));
    CHECK(alone >= 1);
    CHECK(mixed >= 1);
  }
  CHECK(full_plan(axes).size() == 9 * 2 * 3 * 2 * 4 * 2 * 2 * (5 + 2));  // others beside it on the CPU alone
}

TEST_CASE("A model without MTP layer has plans of k = 0 alone", "[selfcheck]") {
  const CheckAxes axes = check_axes(0, 2, {Isa::kScalar});
  for (const auto& plan : {covering_plan(axes), full_plan(axes)}) {
    CHECK(values(plan, &CheckCase::mtp) == std::set<int>{0});
    CHECK(values(plan, &CheckCase::controller) == std::set<bool>{false});
  }
}

TEST_CASE("Neighbours have other lengths, some come later, and all are part of the prompt", "[selfcheck]") {
  for (const int neighbours : {0, 2, 7}) {
    for (const CheckSize size : {CheckSize{9, 2}, CheckSize{353, 32}}) {
      CheckCase check;
      check.neighbours = neighbours;
      check.size = size;
      const std::vector<CheckNeighbour> others = check_neighbours(check);
      CHECK(static_cast<int>(others.size()) >= neighbours);
      std::set<int> prompts, lengths;
      int num_first = 0;
      for (const CheckNeighbour& other : others) {
        CHECK(other.prompt_tokens > 0);
        CHECK(other.new_tokens > 0);
        CHECK(other.first_token + other.prompt_tokens <= size.prompt_tokens);
        prompts.insert(other.prompt_tokens);
        lengths.insert(other.new_tokens);
        num_first += other.is_first ? 1 : 0;
      }
      CHECK(num_first == neighbours);
      if (neighbours > 0)
        CHECK((prompts.size() > 1 && lengths.size() > 1 && num_first < static_cast<int>(others.size())));
    }
  }
  CHECK(describe(CheckCase()).find(" alone ") != std::string::npos);
}

TEST_CASE("The full plan is the product, each case once, and loads a model at most twice", "[selfcheck]") {
  const CheckAxes axes = check_axes(8, 2, {Isa::kScalar, Isa::kAvx2});
  const std::vector<CheckCase> plan = full_plan(axes);
  CHECK(plan.size() == 9 * 2 * 3 * 2 * 4 * 2 * 2 * 3);
  for (const auto& p : {plan, covering_plan(axes)}) {
    int loads = 1;
    for (size_t i = 1; i < p.size(); ++i) {
      loads += p[i].repack != p[i - 1].repack;
      CHECK(std::find(p.begin(), p.begin() + static_cast<ptrdiff_t>(i), p[i]) == p.begin() + static_cast<ptrdiff_t>(i));
    }
    CHECK(loads == 2);
  }
}

TEST_CASE("A case is compared with the first of its own text", "[selfcheck]") {
  CheckCase greedy, sampled;
  sampled.sampled = true;
  std::vector<CheckResult> results = {{greedy, "a", "x", 0, false},
                                      {sampled, "b", "y", 0, false},
                                      {sampled, "b", "y", 0, false},
                                      {greedy, "a", "x", 0, false}};
  CHECK(compare_with_references(results));
  results[3].logits_sha256 = "c";
  CHECK_FALSE(compare_with_references(results));
  CHECK(results[0].equal);
  CHECK(results[2].equal);
  CHECK_FALSE(results[3].equal);
  results[3].logits_sha256 = "a";
  results[2].ids_sha256 = "z";
  CHECK_FALSE(compare_with_references(results));
  CHECK_FALSE(results[2].equal);
}

TEST_CASE("A slow instruction set decodes less text, and is compared with the fastest one on that text",
          "[selfcheck]") {
  const CheckAxes axes = check_axes(8, 2, {Isa::kScalar, Isa::kAvx2});
  std::vector<CheckCase> plan = covering_plan(axes);
  const size_t num_cases = plan.size();
  const CheckSize whole = {353, 32};
  const std::vector<CheckSize> sizes = check_sizes(whole, /*prompt_given=*/false, /*new_tokens_given=*/false);
  CHECK(sizes.front() == whole);
  CHECK(choose_size(plan, Isa::kScalar, sizes, 1e-4, 2, 240) == whole);
  CHECK(choose_size(plan, Isa::kScalar, sizes, 1e4, 2, 240) == sizes.back());
  const CheckSize fast = choose_size(plan, Isa::kAvx2, sizes, 0.03, 2, 240);
  const CheckSize slow = choose_size(plan, Isa::kScalar, sizes, 1.5, 2, 240);
  CHECK(fast.prompt_tokens > 64);
  CHECK(slow.prompt_tokens > 7);
  CHECK(slow.prompt_tokens < fast.prompt_tokens);
  for (const auto& [isa, size, row_seconds] : {std::tuple(Isa::kAvx2, fast, 0.03), std::tuple(Isa::kScalar, slow, 1.5)})
    CHECK(estimate_seconds(plan, isa, size, row_seconds, 2) <= 240);

  set_size(plan, Isa::kAvx2, fast);
  set_size(plan, Isa::kScalar, slow);
  CHECK(plan.size() == num_cases + 2);
  int loads = 1;
  for (size_t i = 0; i < plan.size(); ++i) {
    loads += i > 0 && plan[i].repack != plan[i - 1].repack;
    const auto reference = std::find_if(plan.begin(), plan.end(), [&](const CheckCase& other) {
      return other.sampled == plan[i].sampled && other.size == plan[i].size;
    });
    CHECK(reference->isa == Isa::kAvx2);
    CHECK(plan[i].size == (plan[i].isa == Isa::kScalar || (i > 0 && i < 3) ? slow : fast));
  }
  CHECK(loads == 2);

  std::vector<CheckCase> same = covering_plan(axes);
  for (Isa isa : axes.isas) set_size(same, isa, whole);
  CHECK(same.size() == num_cases);
}

TEST_CASE("What the user says about the text of a check stands", "[selfcheck]") {
  CHECK(check_sizes({353, 32}, true, true) == std::vector<CheckSize>{{353, 32}});
  for (const CheckSize size : check_sizes({500, 32}, true, false)) CHECK(size.prompt_tokens == 500);
  for (const CheckSize size : check_sizes({353, 100}, false, true)) CHECK(size.new_tokens == 100);
  // A prompt shorter than every step is left whole.
  CHECK(check_sizes({4, 2}, false, false) == std::vector<CheckSize>{{4, 2}});
}
