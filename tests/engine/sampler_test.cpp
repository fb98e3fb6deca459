#include "engine/sampler.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/isa.h"

using namespace foretoken;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TokenId choose(const std::vector<float>& logits, const SamplingOptions& options, int64_t position,
               Isa isa = best_isa()) {
  return choose_token(isa, logits.data(), static_cast<int64_t>(logits.size()), options, position);
}

// Ids that the filters keep, by the words of the contract: sort everything, in double.
std::vector<TokenId> kept_ids(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<TokenId> order;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -kInf) order.push_back(static_cast<TokenId>(i));
  }
  std::stable_sort(order.begin(), order.end(), [&](TokenId a, TokenId b) { return logits[a] > logits[b]; });
  if (options.top_k > 0 && order.size() > static_cast<size_t>(options.top_k)) order.resize(options.top_k);
  const auto weight = [&](TokenId id) {
    return std::exp((static_cast<double>(logits[id]) - logits[order[0]]) / options.temperature);
  };
  if (options.top_p < 1) {
    double total = 0, reached = 0;
    for (TokenId id : order) total += weight(id);
    for (size_t i = 0; i < order.size(); ++i) {
      reached += weight(order[i]);
      if (reached >= options.top_p * total) {
        order.resize(i + 1);
        break;
      }
    }
  }
  std::erase_if(order, [&](TokenId id) { return weight(id) < options.min_p; });
  std::sort(order.begin(), order.end());
  return order;
}

// The choice without any short cut: noise for every kept id.
TokenId plain_choice(const std::vector<float>& logits, const SamplingOptions& options, int64_t position) {
  float largest = -kInf;
  for (float l : logits) largest = l > largest ? l : largest;
  TokenId best = -1;
  float best_score = -kInf;
  for (TokenId id : kept_ids(logits, options)) {
    const float x = (logits[id] - largest) / options.temperature;
    const float score = x + gumbel_noise(options.seed, position, id);
    if (best < 0 || score > best_score) best = id, best_score = score;
  }
  return best;
}

// Pearson's statistic in standard deviations of its distribution (mean = degrees, variance = 2 degrees). Cells that
// expect less than 5 are pooled.
double chi_square_deviations(const std::map<TokenId, int>& counts, const std::vector<double>& p, int draws) {
  double statistic = 0, pooled_expected = 0, pooled_count = 0;
  int cells = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const auto found = counts.find(static_cast<TokenId>(i));
    const double count = found == counts.end() ? 0 : found->second, expected = p[i] * draws;
    if (expected == 0) {
      CHECK(count == 0);
    } else if (expected < 5) {
      pooled_expected += expected, pooled_count += count;
    } else {
      statistic += (count - expected) * (count - expected) / expected;
      ++cells;
    }
  }
  if (pooled_expected >= 5) {
    statistic += (pooled_count - pooled_expected) * (pooled_count - pooled_expected) / pooled_expected;
    ++cells;
  }
  REQUIRE(cells >= 2);
  const double degrees = cells - 1;
  return (statistic - degrees) / std::sqrt(2 * degrees);
}

std::vector<double> filtered_softmax(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<double> p(logits.size(), 0.0);
  double sum = 0;
  for (TokenId id : kept_ids(logits, options)) {
    p[id] = std::exp(static_cast<double>(logits[id]) / options.temperature);
    sum += p[id];
  }
  for (double& v : p) v /= sum;
  return p;
}

std::vector<float> normal_logits(int64_t n, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<size_t>(n));
  for (float& l : logits) l = normal(random);
  return logits;
}

}  // namespace

TEST_CASE("Greedy takes the largest logit, the lower id of equals", "[sampler]") {
  CHECK(choose({1, 3, 3, 2}, {}, 0) == 1);
  CHECK(choose({1, kNan, 0, 1}, {}, 0) == 0);
  CHECK(choose({kNan, kNan}, {}, 0) == 0);
}

TEST_CASE("Filters keep what they should", "[sampler]") {
  // p = 0.4 0.3 0.2 0.1 at temperature 1.
  const std::vector<float> logits = {std::log(0.2f), std::log(0.4f), std::log(0.1f), std::log(0.3f)};
  struct Case {
    SamplingOptions options;
    std::set<TokenId> kept;
  };
  const std::vector<Case> cases = {
      {{.temperature = 1}, {0, 1, 2, 3}},
      {{.temperature = 1, .top_k = 1}, {1}},
      {{.temperature = 1, .top_k = 2}, {1, 3}},
      {{.temperature = 1, .top_k = 9}, {0, 1, 2, 3}},
      {{.temperature = 1, .top_p = 0.39f}, {1}},
      {{.temperature = 1, .top_p = 0.41f}, {1, 3}},
      {{.temperature = 1, .top_p = 0.69f}, {1, 3}},
      {{.temperature = 1, .top_p = 0.71f}, {0, 1, 3}},
      {{.temperature = 1, .top_p = 0.999f}, {0, 1, 2, 3}},
      {{.temperature = 1, .min_p = 0.76f}, {1}},
      {{.temperature = 1, .min_p = 0.74f}, {1, 3}},
      {{.temperature = 1, .min_p = 0.49f}, {0, 1, 3}},
      {{.temperature = 1, .min_p = 1}, {1}},
      // top-p takes its share of what top-k left: 0.4 / 0.7 = 0.57.
      {{.temperature = 1, .top_k = 2, .top_p = 0.56f}, {1}},
      {{.temperature = 1, .top_k = 2, .top_p = 0.58f}, {1, 3}},
      // The filters see the tempered probabilities: at 0.5 they are 0.16 0.09 0.04 0.01, over 0.3.
      {{.temperature = 0.5f, .top_p = 0.52f}, {1}},
      {{.temperature = 0.5f, .min_p = 0.5f}, {1, 3}},
      {{.temperature = 1, .top_k = 3, .top_p = 0.99f, .min_p = 0.6f}, {1, 3}},
  };
  for (const Case& c : cases) {
    std::set<TokenId> seen;
    for (int64_t position = 0; position < 3000; ++position) seen.insert(choose(logits, c.options, position));
    CAPTURE(c.options.temperature, c.options.top_k, c.options.top_p, c.options.min_p);
    CHECK(seen == c.kept);
  }
}

TEST_CASE("Of equal logits the filters keep the lower ids", "[sampler]") {
  const std::vector<float> logits(300, 1.5f);
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 0.7f, .top_k = 3}, SamplingOptions{.temperature = 0.7f, .top_p = 2.5f / 300}}) {
    std::set<TokenId> seen;
    for (int64_t position = 0; position < 300; ++position) seen.insert(choose(logits, options, position));
    CHECK(seen == std::set<TokenId>{0, 1, 2});
  }
}

TEST_CASE("Samples follow the filtered softmax", "[sampler]") {
  // 40000 draws. |deviation| is the number of standard deviations from the mean of chi-square; a sampler that is right
  // exceeds 4.5 in less than one of 10^4 sets of draws (the right tail of chi-square is a little fatter than the normal
  // one), and these draws never change.
  const std::vector<float> logits = normal_logits(40, 2.0f, 1);
  constexpr int kDraws = 40000;
  for (SamplingOptions options :
       {SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 0.6f, .top_k = 10},
        SamplingOptions{.temperature = 1.5f, .top_p = 0.8f}, SamplingOptions{.temperature = 1.2f, .min_p = 0.05f},
        SamplingOptions{.temperature = 2, .top_k = 30, .top_p = 0.95f, .min_p = 0.02f}}) {
    const std::vector<double> p = filtered_softmax(logits, options);
    std::map<TokenId, int> by_position, by_seed;
    for (int i = 0; i < kDraws; ++i) {
      options.seed = 42;
      ++by_position[choose(logits, options, i)];
      options.seed = static_cast<uint64_t>(i);
      ++by_seed[choose(logits, options, 17)];
    }
    CAPTURE(options.temperature, options.top_k, options.top_p, options.min_p);
    CHECK(std::abs(chi_square_deviations(by_position, p, kDraws)) < 4.5);
    CHECK(std::abs(chi_square_deviations(by_seed, p, kDraws)) < 4.5);
  }
}

TEST_CASE("Neighbouring positions and seeds draw independently", "[sampler]") {
  // Pairs of draws over 6 equal tokens fill 36 cells evenly.
  const std::vector<float> logits(6, 0.0f);
  std::map<TokenId, int> next_position, next_seed;
  constexpr int kDraws = 30000;
  for (int i = 0; i < kDraws; ++i) {
    const SamplingOptions options{.temperature = 1, .seed = static_cast<uint64_t>(i)};
    const SamplingOptions neighbour{.temperature = 1, .seed = static_cast<uint64_t>(i) + 1};
    ++next_position[choose(logits, options, 5) * 6 + choose(logits, options, 6)];
    ++next_seed[choose(logits, options, 5) * 6 + choose(logits, neighbour, 5)];
  }
  const std::vector<double> even(36, 1.0 / 36);
  CHECK(std::abs(chi_square_deviations(next_position, even, kDraws)) < 4.5);
  CHECK(std::abs(chi_square_deviations(next_seed, even, kDraws)) < 4.5);
}

TEST_CASE("The short cuts choose what a search of everything chooses", "[sampler]") {
  std::mt19937 random(3);
  for (int round = 0; round < 400; ++round) {
    const int64_t n = std::uniform_int_distribution<int64_t>(1, 3000)(random);
    const float spread = std::uniform_real_distribution<float>(0.01f, 8.0f)(random);
    std::vector<float> logits = normal_logits(n, spread, random());
    if (round % 3 == 0) {
      for (float& l : logits) l = std::round(l);  // many equals
    }
    if (round % 5 == 0) {
      for (size_t i = 0; i < logits.size(); i += 3) logits[i] = -kInf;  // as a draft vocabulary leaves out
      logits.push_back(0.25f);
    }
    SamplingOptions options{.temperature = std::uniform_real_distribution<float>(0.05f, 3.0f)(random),
                            .seed = random()};
    if (round % 2 == 0) options.top_k = std::uniform_int_distribution<int>(0, 200)(random);
    if (round % 4 < 2) options.top_p = std::uniform_real_distribution<float>(0.01f, 1.0f)(random);
    if (round % 7 == 0) options.min_p = std::uniform_real_distribution<float>(0.0f, 0.5f)(random);
    CAPTURE(round, n, spread, options.temperature, options.top_k, options.top_p, options.min_p);
    for (int64_t position : {int64_t{0}, int64_t{1}, int64_t{123456}}) {
      REQUIRE(choose(logits, options, position) == plain_choice(logits, options, position));
    }
  }
}

TEST_CASE("A sample is the same on every instruction set", "[sampler]") {
  const std::vector<float> logits = normal_logits(5000, 3.0f, 9);
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 1, .seed = 1}, SamplingOptions{.temperature = 2, .top_p = 0.9f},
        SamplingOptions{.temperature = 1.3f, .top_k = 50, .top_p = 0.9f, .min_p = 0.01f}}) {
    for (int64_t position = 0; position < 50; ++position) {
      const TokenId expected = choose(logits, options, position, Isa::kScalar);
      for (Isa isa : supported_isas()) CHECK(choose(logits, options, position, isa) == expected);
    }
  }
}

TEST_CASE("The noise never changes and stays finite", "[sampler]") {
  // A seeded sample is the same text in every release: these values are part of the format.
  CHECK(gumbel_noise(0, 0, 0) == 0x1.354b76p-2f);
  CHECK(gumbel_noise(42, 1000, 151935) == 0x1.3e5398p+1f);
  CHECK(gumbel_noise(~uint64_t{0}, int64_t{1} << 40, 7) == 0x1.07c046p-1f);
  double sum = 0, square = 0;
  constexpr int kDraws = 1000000;
  float least = kInf, most = -kInf;
  for (int i = 0; i < kDraws; ++i) {
    const float g = gumbel_noise(7, i / 1000, i % 1000);
    sum += g, square += static_cast<double>(g) * g;
    least = std::min(least, g), most = std::max(most, g);
  }
  const double mean = sum / kDraws, variance = square / kDraws - mean * mean;
  // Euler's constant and pi^2 / 6; five standard errors: 5 x 1.28 / 1000, and 5 x sqrt(kurtosis - 1 = 4.4) x 1.645 /
  // 1000.
  CHECK(std::abs(mean - 0.5772157) < 0.0065);
  CHECK(std::abs(variance - 1.644934) < 0.0173);
  CHECK(least >= -2.9f);
  CHECK(most <= 28.5f);
}

TEST_CASE("Logits that are no numbers do no harm", "[sampler]") {
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 1}, SamplingOptions{.temperature = 1, .top_p = 0.9f},
        SamplingOptions{.temperature = 1, .top_k = 2}, SamplingOptions{.temperature = 1, .min_p = 0.1f}}) {
    CHECK(choose({kNan, 2, kNan, -kInf}, options, 3) == 1);
    CHECK(choose({kNan, kNan}, options, 3) == 0);
    CHECK(choose({-kInf, -kInf}, options, 3) == 0);
    CHECK(choose({1, kInf, kInf}, options, 3) == 1);
    CHECK(choose({5}, options, 3) == 0);
  }
  // A temperature so low that everything but the largest underflows is greedy.
  CHECK(choose({1, 1.0001f, 0.5f}, {.temperature = 1e-38f}, 3) == 1);
}

TEST_CASE("Sampling options outside their range are refused", "[sampler]") {
  SamplingOptions{}.check();
  SamplingOptions{.temperature = 2, .top_k = 5, .top_p = 0.1f, .min_p = 1}.check();
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = -1}, SamplingOptions{.temperature = kNan}, SamplingOptions{.temperature = kInf},
        SamplingOptions{.top_k = -1}, SamplingOptions{.top_p = 0}, SamplingOptions{.top_p = 1.01f},
        SamplingOptions{.top_p = kNan}, SamplingOptions{.min_p = -0.1f}, SamplingOptions{.min_p = 1.1f}}) {
    CHECK_THROWS_AS(options.check(), UsageError);
  }
  CHECK_THROWS_WITH((SamplingOptions{.top_k = -3}.check()),
                    "--top-k -3: out of range; it takes 0 (all tokens) or more");
}

TEST_CASE("Time of one choice over a real vocabulary", "[sampler][.speed]") {
  constexpr int64_t kVocab = 248320;
  for (float spread : {0.5f, 2.0f, 4.0f}) {
    std::vector<float> logits = normal_logits(kVocab, spread, 5);
    for (const SamplingOptions& options :
         {SamplingOptions{}, SamplingOptions{.temperature = 0.8f}, SamplingOptions{.temperature = 0.8f, .top_k = 40},
          SamplingOptions{.temperature = 0.8f, .top_p = 0.95f}, SamplingOptions{.temperature = 0.8f, .min_p = 0.05f},
          SamplingOptions{.temperature = 0.8f, .top_k = 20, .top_p = 0.95f}}) {
      std::vector<double> ms;
      for (int round = 0; round < 30; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        volatile TokenId sink = choose(logits, options, round);
        (void)sink;
        ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
      }
      std::sort(ms.begin(), ms.end());
      WARN("spread " << spread << " temp " << options.temperature << " top-k " << options.top_k << " top-p "
                     << options.top_p << " min-p " << options.min_p << ": " << ms[15] << " ms");
    }
  }
}
