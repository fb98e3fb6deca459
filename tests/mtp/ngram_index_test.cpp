#include "mtp/ngram_index.h"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <random>
#include <vector>

namespace foretoken {
namespace {

using Tokens = std::vector<TokenId>;

// The plain search: of the latest ends of the longest n-gram that occurred before, the one that agrees for longest.
NgramIndex::Match search(const Tokens& text) {
  const auto size = static_cast<int64_t>(text.size());
  const auto agreement = [&](int64_t end) {
    int length = 0;
    while (length < NgramIndex::kMaxMatch && length < end && text[end - 1 - length] == text[size - 1 - length])
      ++length;
    return length;
  };
  for (int n : NgramIndex::kLengths) {
    NgramIndex::Match best;
    int seen = 0;
    for (int64_t end = size - 1; end > 0 && seen < NgramIndex::kMaxCandidates; --end) {
      const int length = agreement(end);
      if (length < n) continue;
      ++seen;
      if (length > best.length) best = {end, length};
    }
    if (best.length > 0) return best;
  }
  return {};
}

void check_equal(const NgramIndex& index, const Tokens& text) {
  REQUIRE(index.size() == static_cast<int64_t>(text.size()));
  const NgramIndex::Match got = index.find(), expected = search(text);
  CHECK(got.end == expected.end);
  CHECK(got.length == expected.length);
}

Tokens random_text(std::mt19937& dice, size_t size, uint32_t vocab_size) {
  Tokens text;
  while (text.size() < size) {
    // Passages that stood before, and new tokens.
    if (text.size() > 20 && dice() % 4 == 0) {
      const size_t begin = dice() % (text.size() - 10), count = 3 + dice() % 20;
      for (size_t i = 0; i < count && text.size() < size; ++i) text.push_back(text[begin + i % 10]);
    } else {
      text.push_back(static_cast<TokenId>(dice() % vocab_size));
    }
  }
  return text;
}

TEST_CASE("n-gram index: finds what a plain search finds", "[ngram]") {
  std::mt19937 dice(1);
  for (uint32_t vocab_size : {2u, 5u, 50u, 100000u}) {
    INFO(vocab_size);
    const Tokens all = random_text(dice, 400, vocab_size);
    NgramIndex index(400);
    Tokens text;
    for (TokenId id : all) {
      index.append(std::span(&id, 1));
      text.push_back(id);
      check_equal(index, text);
    }
  }
}

TEST_CASE("n-gram index: taken back it is what it was", "[ngram]") {
  std::mt19937 dice(2);
  NgramIndex index(500);
  Tokens text;
  for (int round = 0; round < 300; ++round) {
    if (dice() % 3 == 0) {
      const size_t keep = dice() % 5 == 0 ? dice() % (text.size() + 1) : text.size() - std::min<size_t>(text.size(), 8);
      index.rewind(static_cast<int64_t>(keep));
      text.resize(keep);
    } else {
      const size_t count = std::min<size_t>(1 + dice() % 9, 500 - text.size());
      Tokens more;
      for (size_t i = 0; i < count; ++i) more.push_back(static_cast<TokenId>(dice() % 4));
      index.append(more);
      text.insert(text.end(), more.begin(), more.end());
    }
    check_equal(index, text);
    CHECK(std::equal(text.begin(), text.end(), index.tokens().begin(), index.tokens().end()));
  }
  index.rewind(0);
  CHECK(index.find().length == 0);
}

TEST_CASE("n-gram index: drafts go on as the text did, and round again where it repeats itself", "[ngram]") {
  NgramIndex index(100);
  std::array<TokenId, 5> drafts{};
  std::array<float, 5> confidences{};
  CHECK(index.propose(drafts, confidences) == 0);
  index.append(Tokens{1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3});
  CHECK(index.find().end == 3);
  CHECK(index.find().length == 3);
  REQUIRE(index.propose(drafts, confidences) == 5);
  CHECK(drafts == std::array<TokenId, 5>{4, 5, 6, 7, 8});
  CHECK(confidences[0] == NgramIndex::confidence_of(3));
  CHECK(std::is_sorted(confidences.begin(), confidences.end()));

  index.rewind(0);
  index.append(Tokens{7, 8, 7, 8});
  REQUIRE(index.propose(drafts, confidences) == 5);
  CHECK(drafts == std::array<TokenId, 5>{7, 8, 7, 8, 7});

  // One token alone is no match, the longer agreement wins, of equal ones the later.
  index.rewind(0);
  index.append(Tokens{1, 2, 9, 3, 2});
  CHECK(index.find().length == 0);
  index.rewind(0);
  index.append(Tokens{5, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2});
  CHECK(index.find().end == 3);
  index.rewind(0);
  index.append(Tokens{6, 1, 2, 3, 8, 1, 2, 4, 5, 1, 2});
  CHECK(index.find().end == 7);
}

TEST_CASE("n-gram index: of no size, and full", "[ngram]") {
  NgramIndex empty(0);
  CHECK(empty.find().length == 0);
  NgramIndex index(8);
  index.append(Tokens{1, 2, 3, 1, 2, 3, 1, 2});
  CHECK(index.size() == 8);
  CHECK(index.find().length == 5);
}

TEST_CASE("n-gram index: a look-up at 100,000 tokens", "[ngram][.measure]") {
  using Clock = std::chrono::steady_clock;
  std::mt19937 dice(3);
  constexpr size_t kSize = 100000;
  // Few different tokens give long chains: the slowest case.
  for (uint32_t vocab_size : {2u, 300u, 150000u}) {
    const Tokens text = random_text(dice, kSize, vocab_size);
    NgramIndex index(kSize + 10000);
    const auto begin = Clock::now();
    index.append(text);
    const double append_us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / kSize;
    std::array<TokenId, 8> drafts{};
    std::array<float, 8> confidences{};
    double slowest = 0, sum = 0;
    constexpr int kLookUps = 5000;
    for (int i = 0; i < kLookUps; ++i) {
      const TokenId id = text[dice() % kSize];
      const auto from = Clock::now();
      index.append(std::span(&id, 1));
      (void)index.propose(drafts, confidences);
      const double us = std::chrono::duration<double, std::micro>(Clock::now() - from).count();
      slowest = std::max(slowest, us);
      sum += us;
    }
    WARN(vocab_size << " tokens: append " << append_us << " us a token; a token and its look-up " << sum / kLookUps
                    << " us, slowest " << slowest << " us; " << static_cast<double>(NgramIndex::size_bytes(kSize)) / 1e6
                    << " MB");
  }
}

}  // namespace
}  // namespace foretoken
