#include "kernels/rows/rms_norm.h"

#include <catch2/catch.hpp>

#include "kernels/base/math.h"
#include "tests/kernels/base/float_test.h"

namespace foretoken::test {
namespace {

TEST_CASE("norms and float_dot give the scalar bits on every instruction set") {
  Random random(1);
  for (int64_t n : sweep_sizes()) {
    for (int offset = 0; offset < 4; ++offset) {
      const Floats x = random_floats(random, n, offset), z = random_floats(random, n, 1, 4.0f);
      const Floats weight = random_floats(random, n, (offset + 2) % 4);
      Floats want(n), want_gated(n), want_l2(n);
      rms_norm(Isa::kScalar, x.data(), weight.data(), n, 1e-6f, want.data());
      rms_norm_gated(Isa::kScalar, x.data(), weight.data(), z.data(), n, 1e-6f, want_gated.data());
      l2_norm(Isa::kScalar, x.data(), n, 1e-6f, want_l2.data());
      const float want_dot = float_dot(Isa::kScalar, x.data(), z.data(), n);
      for (Isa isa : fast_isas()) {
        INFO(isa_name(isa) << ", n " << n << ", offset " << offset);
        Floats got(n, offset), gated = x, l2 = x, in_place = x;
        rms_norm(isa, x.data(), weight.data(), n, 1e-6f, got.data());
        REQUIRE(got == want);
        REQUIRE(got.guard_is_intact());
        rms_norm(isa, in_place.data(), weight.data(), n, 1e-6f, in_place.data());
        REQUIRE(in_place == want);
        rms_norm_gated(isa, gated.data(), weight.data(), z.data(), n, 1e-6f, gated.data());
        REQUIRE(gated == want_gated);
        l2_norm(isa, l2.data(), n, 1e-6f, l2.data());
        REQUIRE(l2 == want_l2);
        REQUIRE(same_bits(float_dot(isa, x.data(), z.data(), n), want_dot));
      }
    }
  }
}

TEST_CASE("float_dot keeps the lanes that stop early as they are") {
  // Lanes past the end must add nothing at all: not +0 to a lane that has underflowed to -0.
  for (int64_t n = 1; n <= 70; ++n) {
    Floats a(n), b(n);
    for (int64_t i = 0; i < n; ++i) a[i] = -1e-30f, b[i] = 1e-30f;
    const float want = float_dot(Isa::kScalar, a.data(), b.data(), n);
    for (Isa isa : fast_isas()) CHECK(same_bits(float_dot(isa, a.data(), b.data(), n), want));
  }
}

TEST_CASE("float_dot adds in the order of the contract") {
  // Lane l takes l, l+32, ...; then lane i adds lane i + half. Each value is chosen so that another order loses or
  // keeps other bits.
  Floats a(64), one(64);
  for (int64_t i = 0; i < 64; ++i) a[i] = 0.0f, one[i] = 1.0f;
  a[0] = 0x1p24f, a[32] = 1.0f, a[1] = 1.0f, a[16] = -0x1p24f;
  // Lane 0 is 2^24 + 1 = 2^24 (tie to even); the fold 32 -> 16 takes lane 16 from it: 0; lane 1's 1 is left.
  CHECK(float_dot(Isa::kScalar, a.data(), one.data(), 64) == 1.0f);
  a[16] = 0.0f, a[33] = -0x1p24f;
  // Lane 1 is 1 - 2^24; the last fold adds it to lane 0's 2^24.
  CHECK(float_dot(Isa::kScalar, a.data(), one.data(), 64) == 1.0f);
  a[33] = 0.0f, a[31] = -0x1p24f, a[15] = 1.0f;
  // Lane 15 joins lane 31 first: 1 - 2^24 survives to the last fold with lane 1: 2 - 2^24; then 2^24.
  CHECK(float_dot(Isa::kScalar, a.data(), one.data(), 64) == 2.0f);
}

TEST_CASE("norms are the contract's expressions to the bit") {
  Random random(4);
  const int64_t n = 300;
  const Floats x = random_floats(random, n), z = random_floats(random, n, 0, 4.0f), weight = random_floats(random, n);
  Floats norm(n), gated(n), l2(n);
  rms_norm(Isa::kScalar, x.data(), weight.data(), n, 1e-6f, norm.data());
  rms_norm_gated(Isa::kScalar, x.data(), weight.data(), z.data(), n, 1e-6f, gated.data());
  l2_norm(Isa::kScalar, x.data(), n, 1e-6f, l2.data());
  const float sum = float_dot(Isa::kScalar, x.data(), x.data(), n);
  const float inverse = 1.0f / std::sqrt(sum / 300.0f + 1e-6f), l2_inverse = 1.0f / std::sqrt(sum);
  for (int64_t i = 0; i < n; ++i) {
    CHECK(same_bits(norm[i], (x[i] * inverse) * weight[i]));
    CHECK(same_bits(gated[i], ((x[i] * inverse) * weight[i]) * math::silu(z[i])));
    CHECK(same_bits(l2[i], x[i] * l2_inverse));
  }
}

TEST_CASE("scalar norms match double arithmetic") {
  Random random(2);
  for (int64_t n : {1, 31, 128, 2048}) {
    const Floats x = random_floats(random, n, 0, 3.0f), z = random_floats(random, n, 0, 4.0f),
                 weight = random_floats(random, n);
    Floats norm(n), gated(n), l2(n);
    rms_norm(Isa::kScalar, x.data(), weight.data(), n, 1e-6f, norm.data());
    rms_norm_gated(Isa::kScalar, x.data(), weight.data(), z.data(), n, 1e-6f, gated.data());
    l2_norm(Isa::kScalar, x.data(), n, 1e-6f, l2.data());
    double squares = 0.0, dot = 0.0, magnitude = 0.0;
    for (int64_t i = 0; i < n; ++i) {
      squares += double{x[i]} * x[i];
      dot += double{x[i]} * z[i];
      magnitude += std::fabs(double{x[i]} * z[i]);
    }
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + 1e-6f);
    // A sum of positive terms: each term passes at most n/32 roundings in its lane and 5 in the fold.
    const double sum_error = static_cast<double>((n + 31) / 32 + 5) * kUnit;
    // Half of it after the square root; then division by n, + eps, square root, 1/x, two products: 6 roundings, 5% of
    // slack for their squares.
    const double error = 1.05 * (sum_error / 2 + 6 * kUnit);
    for (int64_t i = 0; i < n; ++i) {
      const double want = x[i] * inverse * weight[i];
      CHECK(std::fabs(norm[i] - want) <= error * std::fabs(want));
      const double silu = z[i] / (1.0 + std::exp(-double{z[i]}));
      CHECK(std::fabs(gated[i] - want * silu) <=
            (error + 6.5 * kUnit) * std::fabs(want * silu));  // silu 5, one product
      const double want_l2 = x[i] / std::sqrt(squares);
      CHECK(std::fabs(l2[i] - want_l2) <= error * std::fabs(want_l2));
    }
    CHECK(std::fabs(float_dot(Isa::kScalar, x.data(), z.data(), n) - dot) <= 1.05 * sum_error * magnitude);
  }
}

TEST_CASE("l2_norm divides by at least eps") {
  Floats x(64), out(64);
  for (int64_t i = 0; i < 64; ++i) x[i] = 0.0f;
  x[3] = 1e-9f;
  for (Isa isa : supported_isas()) {
    l2_norm(isa, x.data(), 64, 1e-6f, out.data());
    CHECK(out[3] == 1e-9f * (1.0f / 1e-6f));
    CHECK(out[4] == 0.0f);
  }
}

TEST_CASE("norms return the sum of squares, which tells of rows that make zeros") {
  const int64_t n = 75;
  Floats x(n), ones(n), out(n);
  for (int64_t i = 0; i < n; ++i) x[i] = ones[i] = 1.0f;
  const auto sums = [&](Isa isa) {
    return std::vector<float>{rms_norm(isa, x.data(), ones.data(), n, 1e-6f, out.data()),
                              rms_norm_gated(isa, x.data(), ones.data(), ones.data(), n, 1e-6f, out.data()),
                              l2_norm(isa, x.data(), n, 1e-6f, out.data())};
  };
  for (Isa isa : supported_isas()) {
    x[40] = 2.0f;
    CHECK(sums(isa) == std::vector<float>{78, 78, 78});
    for (const float bad : {3e19f, HUGE_VALF, -HUGE_VALF, std::nanf("")}) {
      x[40] = bad;
      for (float sum : sums(isa)) CHECK_FALSE(std::isfinite(sum));
    }
  }
}

}  // namespace
}  // namespace foretoken::test
