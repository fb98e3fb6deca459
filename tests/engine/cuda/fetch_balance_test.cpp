#include "engine/cuda/fetch_balance.h"

#include <catch2/catch.hpp>

using namespace foretoken;

TEST_CASE("The device fetches as many experts as leave both sides the same time", "[fetch_balance]") {
  FetchBalance balance(/*seconds_to_fetch=*/60e-6, /*most=*/8);
  CHECK(balance.fetched(false) == 1);  // nothing is known
  // Nine are missing, the CPU takes 30 microseconds for one: 3 x 60 = 6 x 30.
  balance.learn(false, 9, 8, 8 * 30e-6);
  CHECK(balance.fetched(false) == 3);
  CHECK(balance.fetched(true) == 1);  // chunks have their own numbers
  balance.learn(true, 100, 90, 90 * 240e-6);
  CHECK(balance.fetched(true) == 8);
  CHECK(balance.fetched(false) == 3);
  // A CPU that computes none tells nothing of its speed, but of what is missing.
  for (int i = 0; i < 1000; ++i) balance.learn(false, 0, 0, 0);
  CHECK(balance.fetched(false) == 1);
  for (int i = 0; i < 1000; ++i) balance.learn(false, 9, 6, 6 * 120e-6);
  CHECK(balance.fetched(false) == 6);  // 6 x 60 = 3 x 120
}
