#include "kernels/attention/rope.h"

#include <catch2/catch.hpp>
#include <vector>

#include "tests/kernels/base/float_test.h"

namespace foretoken::test {
namespace {

TEST_CASE("rope gives the scalar bits on every instruction set and leaves the rest of the head alone") {
  Random random(1);
  for (int rope_dim = 2; rope_dim <= 130; rope_dim += 2) {
    const RopePairs pairs = rope_dim % 4 == 0 ? RopePairs::kAdjacent : RopePairs::kHalves;
    std::vector<double> frequencies;
    for (int i = 0; i < rope_dim / 2; ++i) frequencies.push_back(std::pow(1e7, -2.0 * i / rope_dim));
    const RopeTable table(frequencies, 1.5, pairs, 40);
    for (int64_t position : {0, 1, 7, 39}) {
      const Floats x = random_floats(random, rope_dim + 13, rope_dim % 4);
      Floats want = x;
      rope(Isa::kScalar, table, position, want.data());
      for (int64_t i = rope_dim; i < x.size(); ++i) CHECK(same_bits(want[i], x[i]));
      for (Isa isa : fast_isas()) {
        INFO(isa_name(isa) << ", rope_dim " << rope_dim << ", position " << position);
        Floats got = x;
        rope(isa, table, position, got.data());
        REQUIRE(got == want);
        REQUIRE(got.guard_is_intact());
      }
    }
  }
}

TEST_CASE("rope of adjacent values is that of halves with the values in another order") {
  const int rope_dim = 32;
  std::vector<double> frequencies;
  for (int i = 0; i < rope_dim / 2; ++i) frequencies.push_back(1.0 / (i + 2));
  const RopeTable halves(frequencies, 1.25, RopePairs::kHalves, 50),
      adjacent(frequencies, 1.25, RopePairs::kAdjacent, 50);
  Random random(3);
  const Floats x = random_floats(random, rope_dim);
  Floats together = x, apart = x;
  for (int i = 0; i < rope_dim / 2; ++i) {
    apart[i] = x[2 * i];
    apart[i + rope_dim / 2] = x[2 * i + 1];
  }
  rope(Isa::kScalar, adjacent, 49, together.data());
  rope(Isa::kScalar, halves, 49, apart.data());
  for (int i = 0; i < rope_dim / 2; ++i) {
    CHECK(same_bits(together[2 * i], apart[i]));
    CHECK(same_bits(together[2 * i + 1], apart[i + rope_dim / 2]));
  }
  CHECK(same_bits(adjacent.cos(49)[3], static_cast<float>(std::cos(49 * frequencies[3]) * 1.25)));
  CHECK(same_bits(adjacent.sin(49)[3], static_cast<float>(std::sin(49 * frequencies[3]) * 1.25)));
}

TEST_CASE("rope rotates pairs half a dimension apart by position times frequency") {
  const int rope_dim = 64;
  const RopeTable table(rope_dim, 1e7, 5000);
  Random random(2);
  for (int64_t position : {0, 1, 100, 4999}) {
    const Floats x = random_floats(random, rope_dim);
    Floats out = x;
    rope(Isa::kScalar, table, position, out.data());
    for (int i = 0; i < rope_dim / 2; ++i) {
      const double angle = static_cast<double>(position) * std::pow(1e7, -2.0 * i / rope_dim);
      const double a = x[i], b = x[i + rope_dim / 2];
      const float c = table.cos(position)[i], s = table.sin(position)[i];
      CHECK(same_bits(c, static_cast<float>(std::cos(angle))));
      CHECK(same_bits(s, static_cast<float>(std::sin(angle))));
      CHECK(same_bits(out[i], std::fma(x[i], c, -(x[i + rope_dim / 2] * s))));
      CHECK(same_bits(out[i + rope_dim / 2], std::fma(x[i], s, x[i + rope_dim / 2] * c)));
      // cos and sin are rounded once (u each), one product and the fma: at most 3 u of each of the two terms.
      const double tolerance = 3.01 * kUnit * (std::fabs(a * std::cos(angle)) + std::fabs(b * std::sin(angle)));
      const double other = 3.01 * kUnit * (std::fabs(a * std::sin(angle)) + std::fabs(b * std::cos(angle)));
      CHECK(std::fabs(out[i] - (a * std::cos(angle) - b * std::sin(angle))) <= tolerance);
      CHECK(std::fabs(out[i + rope_dim / 2] - (a * std::sin(angle) + b * std::cos(angle))) <= other);
    }
  }
}

}  // namespace
}  // namespace foretoken::test
