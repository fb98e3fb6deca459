#include "kernels/select/softmax.h"

#include <catch2/catch.hpp>

#include "tests/kernels/base/float_test.h"

namespace foretoken::test {
namespace {

TEST_CASE("softmax gives the scalar bits on every instruction set") {
  Random random(1);
  for (int64_t n : sweep_sizes()) {
    for (int offset = 0; offset < 4; ++offset) {
      const Floats x = random_floats(random, n, offset, 6.0f);
      Floats want(n);
      softmax(Isa::kScalar, x.data(), n, want.data());
      for (Isa isa : fast_isas()) {
        INFO(isa_name(isa) << ", n " << n << ", offset " << offset);
        Floats got(n, (offset + 1) % 4), in_place = x;
        softmax(isa, x.data(), n, got.data());
        REQUIRE(got == want);
        REQUIRE(got.guard_is_intact());
        softmax(isa, in_place.data(), n, in_place.data());
        REQUIRE(in_place == want);
      }
    }
  }
}

TEST_CASE("scalar softmax matches double arithmetic") {
  Random random(2);
  for (int64_t n : {1, 2, 100, 256, 4096}) {
    const Floats x = random_floats(random, n, 0, 4.0f);
    Floats out(n);
    softmax(Isa::kScalar, x.data(), n, out.data());
    double largest = -HUGE_VAL, sum = 0.0, range = 0.0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, double{x[i]});
    for (int64_t i = 0; i < n; ++i) {
      sum += std::exp(x[i] - largest);
      range = std::max(range, largest - x[i]);
    }
    // Above and below the line: x - max is rounded (u * range in the exponent), exp is within 2.5 u. Then the sum of
    // positive terms and the division.
    const double error = 1.05 * kUnit * (2 * (range + 2.5) + static_cast<double>((n + 31) / 32 + 5) + 1);
    for (int64_t i = 0; i < n; ++i) {
      const double want = std::exp(x[i] - largest) / sum;
      CHECK(std::fabs(out[i] - want) <= error * want);
    }
  }
}

TEST_CASE("argmax takes the lower of equals and never NaN") {
  const float nan = std::nanf(""), infinity = HUGE_VALF;
  for (Isa isa : supported_isas()) {
    INFO(isa_name(isa));
    const auto argmax_of = [&](std::vector<float> x) { return argmax(isa, x.data(), static_cast<int64_t>(x.size())); };
    CHECK(argmax_of({3.0f}) == 0);
    CHECK(argmax_of({1.0f, 5.0f, 5.0f, 2.0f}) == 1);
    CHECK(argmax_of({-0.0f, 0.0f}) == 0);
    CHECK(argmax_of({-1.0f, 0.0f, -0.0f}) == 1);
    CHECK(argmax_of({nan, -3.0f, nan, -2.0f, nan}) == 3);
    CHECK(argmax_of({nan, -infinity, -infinity}) == 1);
    CHECK(argmax_of({nan, nan, nan}) == 0);
    CHECK(argmax_of({-infinity, infinity, infinity}) == 1);
    CHECK(argmax_of(std::vector<float>(5000, -infinity)) == 0);
    CHECK(argmax_of(std::vector<float>(5000, nan)) == 0);
    std::vector<float> late(5000, nan);
    late[4321] = -infinity;
    CHECK(argmax_of(late) == 4321);
  }
}

TEST_CASE("argmax finds every place in every size") {
  Random random(3);
  for (Isa isa : supported_isas()) {
    for (int64_t n : sweep_sizes()) {
      Floats x = random_floats(random, n, static_cast<int>(n % 4));
      for (int64_t place = 0; place < n; place += n < 200 ? 1 : 37) {
        const float before = x[place];
        x[place] = 100.0f;
        const int64_t second = place + (n - place) / 2;
        const float before_second = x[second];
        x[second] = 100.0f;
        INFO(isa_name(isa) << ", n " << n << ", place " << place);
        REQUIRE(argmax(isa, x.data(), n) == place);
        x[second] = before_second;
        x[place] = before;
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::test
