#include "kernels/base/math.h"

#include <catch2/catch.hpp>

#include "tests/kernels/base/float_test.h"

namespace foretoken::test {
namespace {

/// The largest error in ulp of `f` against `want` over the floats of [low, high], every `step`-th bit pattern.
template <class F, class Want>
double worst_error(float low, float high, uint32_t step, F f, Want want) {
  double worst = 0.0;
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += step) {
    const float x = math::float_from_bits(static_cast<uint32_t>(bits));
    if (!(x >= low && x <= high)) continue;
    const double error = ulps(f(x), want(static_cast<double>(x)));
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

constexpr uint32_t kStep = 997;  // prime: every mantissa pattern meets every exponent
constexpr float kLargest = 0x1.fffffep+127f;
constexpr float kInfinity = HUGE_VALF;

// Bounds in ulp of the result, u = 2^-24. One rounding costs 1/2 ulp; a relative error of u costs at most 1 ulp.
// exp: last step 1/2; 1 + r p1 takes p1's error of 1.4 u (p1 < 1.2, two roundings) times |r| <= 0.35 and r's own 2^-26,
// over a result of at
//   least 0.7 with ulp u: 0.49 + 0.18; the polynomial 0.04. Denormal results add 1/2 of a larger ulp but halve the
//   rest. 1.25.
// log: last step 1/2, f + tail 1/2, tail (at most a fifth of the result, 1.5 u) 0.3, polynomial 0.02. 1.5. log1p: f is
// rounded, 0.75 more. sigmoid: e/(1+e) <= 1 times exp's 2.5 u, the sum u, the division 1/2 ulp. 4. silu one rounding
// more. 5. softplus: exp's 2.5 u pass through log1p with a factor of at most 1. 4.75.

TEST_CASE("exp is close to the double result over all its range") {
  const auto f = [](float x) { return math::exp(x); };
  CHECK(worst_error(-200.0f, 200.0f, kStep, f, [](double x) { return std::exp(x); }) < 1.25);
}

TEST_CASE("log and log1p are close to the double result") {
  const auto log = [](float x) { return math::log(x); };
  CHECK(worst_error(0x1p-126f, kLargest, kStep, log, [](double x) { return std::log(x); }) < 1.5);
  const auto log1p = [](float x) { return math::log1p(x); };
  CHECK(worst_error(0.0f, 0x1p100f, kStep, log1p, [](double x) { return std::log1p(x); }) < 2.25);
  CHECK(math::log(1.0f) == 0.0f);
  CHECK(math::log1p(0.0f) == 0.0f);
  CHECK(math::log1p(0x1p-149f) == 0x1p-149f);
}

TEST_CASE("sigmoid, silu and softplus are close to the double result") {
  const auto sigmoid = [](float x) { return math::sigmoid(x); };
  CHECK(worst_error(-88.7f, kLargest, kStep, sigmoid, [](double x) { return 1.0 / (1.0 + std::exp(-x)); }) < 4.0);
  const auto silu = [](float x) { return math::silu(x); };
  CHECK(worst_error(-87.0f, kLargest, kStep, silu, [](double x) { return x / (1.0 + std::exp(-x)); }) < 5.0);
  const auto softplus = [](float x) { return math::softplus(x); };
  CHECK(worst_error(-200.0f, 700.0f, kStep, softplus, [](double x) { return std::log1p(std::exp(x)); }) < 4.75);
}

TEST_CASE("exp has its exact cases") {
  CHECK(math::exp(0.0f) == 1.0f);
  CHECK(math::exp(-0.0f) == 1.0f);
  CHECK(same_bits(math::exp(-kInfinity), 0.0f));
  CHECK(same_bits(math::exp(-kLargest), 0.0f));
  CHECK(math::exp(kInfinity) == kInfinity);
  CHECK(math::exp(kLargest) == kInfinity);
  CHECK(math::exp(0x1.62e42ep+6f) < kInfinity);   // the last float below 128 ln 2 ...
  CHECK(math::exp(0x1.62e430p+6f) == kInfinity);  // ... and the next
  CHECK(math::exp(-103.2789f) == 0x1p-149f);
  CHECK(math::exp(-103.98f) == 0.0f);  // below half of the smallest denormal
  CHECK(math::exp(0x1p-149f) == 1.0f);
}

TEST_CASE("sigmoid, silu and softplus have their exact cases") {
  CHECK(math::sigmoid(0.0f) == 0.5f);
  CHECK(math::sigmoid(kInfinity) == 1.0f);
  CHECK(math::sigmoid(-kInfinity) == 0.0f);
  CHECK(math::sigmoid(-100.0f) == 0.0f);  // e^100 is infinite
  CHECK(math::silu(0.0f) == 0.0f);
  CHECK(math::softplus(-kInfinity) == 0.0f);
  CHECK(math::softplus(kInfinity) == kInfinity);
  CHECK(math::softplus(20.5f) == 20.5f);
  CHECK(math::softplus(0x1.400002p+4f) == 0x1.400002p+4f);
}

/// FNV-1a over the bits of f(x) for the floats of [low, high], every `kStep`-th bit pattern.
template <class F>
uint64_t hash_of_bits(float low, float high, F f) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += kStep) {
    const float x = math::float_from_bits(static_cast<uint32_t>(bits));
    if (!(x >= low && x <= high)) continue;
    hash = (hash ^ math::bits_of(f(x))) * 0x100000001b3u;
  }
  return hash;
}

TEST_CASE("the functions keep their bits") {
  // Not only the accuracy: another sequence of operations is another model output. Whoever changes one changes these
  // numbers knowingly.
  CHECK(hash_of_bits(-200.0f, 200.0f, [](float x) { return math::exp(x); }) == 0x8458528179f4c925u);
  CHECK(hash_of_bits(0x1p-126f, kLargest, [](float x) { return math::log(x); }) == 0x829ebfe0e72416bau);
  CHECK(hash_of_bits(-200.0f, 200.0f, [](float x) { return math::sigmoid(x); }) == 0xf4c3dcca70c6a846u);
  CHECK(hash_of_bits(-200.0f, 200.0f, [](float x) { return math::silu(x); }) == 0xdbd7aa49978ab891u);
  CHECK(hash_of_bits(-200.0f, 200.0f, [](float x) { return math::softplus(x); }) == 0x22c6c5ceec284876u);
}

TEST_CASE("NaN stays NaN") {
  for (uint32_t bits : {0x7fc00000u, 0x7fffffffu, 0xffc00000u, 0x7fc12345u, 0x7f800001u}) {
    const float nan = math::float_from_bits(bits);
    CHECK(std::isnan(math::exp(nan)));
    CHECK(std::isnan(math::sigmoid(nan)));
    CHECK(std::isnan(math::silu(nan)));
    CHECK(std::isnan(math::softplus(nan)));
    CHECK(std::isnan(math::log1p(nan)));
  }
}

}  // namespace
}  // namespace foretoken::test
