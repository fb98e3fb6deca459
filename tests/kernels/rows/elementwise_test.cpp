#include "kernels/rows/elementwise.h"

#include <catch2/catch.hpp>
#include <functional>

#include "kernels/base/math.h"
#include "tests/kernels/base/float_test.h"

namespace foretoken::test {
namespace {

struct Operation {
  const char* name;
  std::function<void(Isa, const float* a, const float* b, int64_t n, float* out)>
      run;  // out holds a copy of b at first
};

const std::vector<Operation>& operations() {
  static const std::vector<Operation> all = {
      {"silu_mul", [](Isa isa, const float* a, const float* b, int64_t n, float* out) { silu_mul(isa, a, b, n, out); }},
      {"silu_mul in place of up",
       [](Isa isa, const float* a, const float*, int64_t n, float* out) { silu_mul(isa, a, out, n, out); }},
      {"silu_mul in place of gate",
       [](Isa isa, const float* a, const float*, int64_t n, float* out) { silu_mul(isa, out, a, n, out); }},
      {"sigmoid_gate",
       [](Isa isa, const float* a, const float*, int64_t n, float* out) { sigmoid_gate(isa, a, n, out); }},
      {"add", [](Isa isa, const float* a, const float*, int64_t n, float* out) { add(isa, a, n, out); }},
      {"add_scaled",
       [](Isa isa, const float* a, const float*, int64_t n, float* out) { add_scaled(isa, 0.37f, a, n, out); }},
      {"scale_row",
       [](Isa isa, const float* a, const float*, int64_t n, float* out) { scale_row(isa, -1.7f, a, n, out); }},
      {"scale_row in place",
       [](Isa isa, const float*, const float*, int64_t n, float* out) { scale_row(isa, -1.7f, out, n, out); }},
  };
  return all;
}

TEST_CASE("elementwise operations give the scalar bits on every instruction set") {
  Random random(1);
  for (const Operation& operation : operations()) {
    for (int64_t n : sweep_sizes()) {
      for (int offset = 0; offset < 4; ++offset) {
        const Floats a = random_floats(random, n, offset, 10.0f), b = random_floats(random, n, (offset + 1) % 4);
        Floats want(n, offset);
        std::memcpy(want.data(), b.data(), static_cast<size_t>(n) * sizeof(float));
        operation.run(Isa::kScalar, a.data(), b.data(), n, want.data());
        for (Isa isa : fast_isas()) {
          Floats got(n, (offset + 3) % 8);
          std::memcpy(got.data(), b.data(), static_cast<size_t>(n) * sizeof(float));
          operation.run(isa, a.data(), b.data(), n, got.data());
          INFO(operation.name << " on " << isa_name(isa) << ", n " << n << ", offset " << offset);
          REQUIRE(got == want);
          REQUIRE(got.guard_is_intact());
        }
      }
    }
  }
}

TEST_CASE("vectorised functions give the scalar bits from the smallest to the largest float") {
  // Bit patterns of all exponents, both signs, infinities and NaN (for which only NaN-ness counts: its payload is
  // nobody's contract).
  constexpr uint32_t kStep = 9973;
  const int64_t n = 0xffffffffu / kStep;
  Floats x(n), one(n), want(n), got(n);
  for (int64_t i = 0; i < n; ++i) {
    x[i] = math::float_from_bits(static_cast<uint32_t>(i) * kStep);
    one[i] = 1.0f;
  }
  silu_mul(Isa::kScalar, x.data(), one.data(), n, want.data());
  for (Isa isa : fast_isas()) {
    silu_mul(isa, x.data(), one.data(), n, got.data());
    int64_t different = 0;
    for (int64_t i = 0; i < n; ++i)
      different += !(same_bits(got[i], want[i]) || (got[i] != got[i] && want[i] != want[i]));
    INFO(isa_name(isa));
    CHECK(different == 0);
  }
}

TEST_CASE("elementwise operations are the contract's expressions to the bit") {
  Random random(4);
  const int64_t n = 500;
  const Floats a = random_floats(random, n, 0, 5.0f), b = random_floats(random, n);
  Floats silu_product(n), gated = b, sum = b, scaled_sum = b, scaled(n);
  silu_mul(Isa::kScalar, a.data(), b.data(), n, silu_product.data());
  sigmoid_gate(Isa::kScalar, a.data(), n, gated.data());
  add(Isa::kScalar, a.data(), n, sum.data());
  add_scaled(Isa::kScalar, 0.37f, a.data(), n, scaled_sum.data());
  scale_row(Isa::kScalar, 0.37f, a.data(), n, scaled.data());
  for (int64_t i = 0; i < n; ++i) {
    CHECK(same_bits(silu_product[i], math::silu(a[i]) * b[i]));
    CHECK(same_bits(gated[i], b[i] * math::sigmoid(a[i])));
    CHECK(same_bits(sum[i], b[i] + a[i]));
    CHECK(same_bits(scaled_sum[i], std::fma(0.37f, a[i], b[i])));
    CHECK(same_bits(scaled[i], 0.37f * a[i]));
  }
}

TEST_CASE("scalar elementwise operations match double arithmetic") {
  Random random(2);
  const int64_t n = 1000;
  const Floats a = random_floats(random, n, 0, 5.0f), b = random_floats(random, n);
  Floats silu_product(n), gated = b, sum = b, scaled_sum = b, scaled(n);
  silu_mul(Isa::kScalar, a.data(), b.data(), n, silu_product.data());
  sigmoid_gate(Isa::kScalar, a.data(), n, gated.data());
  add(Isa::kScalar, a.data(), n, sum.data());
  add_scaled(Isa::kScalar, 0.37f, a.data(), n, scaled_sum.data());
  scale_row(Isa::kScalar, 0.37f, a.data(), n, scaled.data());
  for (int64_t i = 0; i < n; ++i) {
    const double x = a[i], y = b[i], sigmoid = 1.0 / (1.0 + std::exp(-x));
    // math_test: sigmoid is within 4 units and silu 5, then one product.
    CHECK(std::fabs(silu_product[i] - x * sigmoid * y) <= 6.01 * kUnit * std::fabs(x * sigmoid * y));
    CHECK(std::fabs(gated[i] - sigmoid * y) <= 5.01 * kUnit * std::fabs(sigmoid * y));
    CHECK(sum[i] == static_cast<float>(x + y));
    CHECK(std::fabs(scaled_sum[i] - (double{0.37f} * x + y)) <= kUnit * std::fabs(double{0.37f} * x + y));
    CHECK(scaled[i] == static_cast<float>(double{0.37f} * x));
  }
}

TEST_CASE("the largest magnitude counts infinity above all numbers and NaN above infinity, wherever they stand") {
  Random random(6);
  for (Isa isa : supported_isas()) {
    INFO(isa_name(isa));
    CHECK(same_bits(largest_magnitude(isa, nullptr, 0), 0.0f));
    for (int64_t n : sweep_sizes()) {
      if (n == 0) continue;
      for (const int64_t at : {int64_t{0}, n / 2, n - 1}) {
        Floats x = random_floats(random, n, 1);
        x[at] = -1e30f;
        CHECK(largest_magnitude(isa, x.data(), n) == 1e30f);
        x[at] = -HUGE_VALF;
        CHECK(largest_magnitude(isa, x.data(), n) == HUGE_VALF);
        x[n / 3] = std::nanf("");
        CHECK(std::isnan(largest_magnitude(isa, x.data(), n)));
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::test
