#include "tools/bench/resampling.h"

#include <catch2/catch.hpp>
#include <vector>

using namespace foretoken;

TEST_CASE("The median of odd and even counts", "[resampling]") {
  CHECK(median(std::vector<double>{3}) == 3);
  CHECK(median(std::vector<double>{9, 1, 5}) == 5);
  CHECK(median(std::vector<double>{4, 1, 3, 2}) == 2.5);
}

TEST_CASE("The bootstrap interval holds the median and stays within the samples", "[resampling]") {
  const std::vector<double> samples = {10, 12, 11, 13, 9, 30, 11.5};
  const Interval interval = bootstrap_median(samples);
  CHECK(interval.low <= median(samples));
  CHECK(interval.high >= median(samples));
  CHECK(interval.low >= 9);
  CHECK(interval.high <= 30);
  CHECK(interval.low < interval.high);
}

TEST_CASE("Three samples: every resample's median is one of them, the extremes with probability 7/27", "[resampling]") {
  // P(median = smallest) = P(at least two of three draws are the smallest) = 3 (1/3)^2 (2/3) + (1/3)^3 = 7/27 > 2.5%.
  const Interval interval = bootstrap_median(std::vector<double>{1, 2, 4});
  CHECK(interval.low == 1);
  CHECK(interval.high == 4);
}

TEST_CASE("The interval narrows with the number of samples and is the same every time", "[resampling]") {
  std::vector<double> few, many;
  for (int i = 0; i < 200; ++i) {
    const double value = (i * 37) % 101;
    if (i < 9) few.push_back(value);
    many.push_back(value);
  }
  const Interval wide = bootstrap_median(few), narrow = bootstrap_median(many), again = bootstrap_median(many);
  CHECK(narrow.high - narrow.low < wide.high - wide.low);
  CHECK(narrow.low == again.low);
  CHECK(narrow.high == again.high);
}

TEST_CASE("Equal samples give an interval of one point", "[resampling]") {
  const Interval interval = bootstrap_median(std::vector<double>{7, 7, 7, 7});
  CHECK(interval.low == 7);
  CHECK(interval.high == 7);
}
