#include "kernels/delta_net/delta_net.h"

#include <catch2/catch.hpp>
#include <functional>

#include "kernels/base/aligned_buffer.h"
#include "kernels/base/math.h"
#include "tests/kernels/base/float_test.h"

namespace foretoken {
#ifdef FORETOKEN_EMULATED_AVX512
void emulated_avx512_delta_net(float* state, int state_size, const DeltaRow* rows, int num_rows, int num_committed,
                               int column_begin, int column_end, float* scratch);
#endif

namespace test {
namespace {

using DeltaFunction = std::function<void(float* state, int state_size, const DeltaRow* rows, int num_rows,
                                         int num_committed, int column_begin, int column_end, float* scratch)>;

struct Variant {
  std::string name;
  DeltaFunction run;
};

Variant variant_of(Isa isa) {
  return {std::string(isa_name(isa)), [isa](float* state, int state_size, const DeltaRow* rows, int num_rows,
                                            int num_committed, int column_begin, int column_end, float* scratch) {
            delta_net(isa, state, state_size, rows, num_rows, num_committed, column_begin, column_end, scratch);
          }};
}

std::vector<Variant> fast_variants() {
  std::vector<Variant> variants;
  for (Isa isa : fast_isas()) variants.push_back(variant_of(isa));
#ifdef FORETOKEN_EMULATED_AVX512
  variants.push_back({"emulated avx512", emulated_avx512_delta_net});
#endif
  return variants;
}

/// Rows of a window with their inputs and outputs.
struct Window {
  std::vector<Floats> q, k, v, out;
  std::vector<DeltaRow> rows;

  Window(Random& random, int state_size, int num_rows) {
    std::uniform_real_distribution<float> uniform(0.05f, 0.99f);
    for (int r = 0; r < num_rows; ++r) {
      const float deviation = 1.0f / std::sqrt(static_cast<float>(state_size));
      q.push_back(random_floats(random, state_size, r % 3, deviation));
      k.push_back(random_floats(random, state_size, (r + 1) % 3, deviation));
      v.push_back(random_floats(random, state_size, (r + 2) % 3));
      out.emplace_back(state_size, r % 5);
      rows.push_back({nullptr, nullptr, nullptr, uniform(random), uniform(random), nullptr});
    }
    point();
  }
  Window(const Window& other) : q(other.q), k(other.k), v(other.v), out(other.out), rows(other.rows) { point(); }
  void point() {
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].q = q[r].data(), rows[r].k = k[r].data(), rows[r].v = v[r].data(), rows[r].out = out[r].data();
    }
  }
  void require_same(const Window& want) const {
    for (size_t r = 0; r < rows.size(); ++r) {
      INFO("row " << r);
      REQUIRE(out[r] == want.out[r]);
      REQUIRE(out[r].guard_is_intact());
    }
  }
};

Floats run(const Variant& variant, const Floats& state, int state_size, Window& window, int num_committed,
           int column_step = 1 << 20) {
  Floats after = state;
  AlignedBuffer scratch(static_cast<size_t>(state_size) * static_cast<size_t>(state_size) * sizeof(float));
  for (int column = 0; column < state_size; column += column_step) {
    variant.run(after.data(), state_size, window.rows.data(), static_cast<int>(window.rows.size()), num_committed,
                column, std::min(column + column_step, state_size), scratch.data<float>());
  }
  return after;
}

TEST_CASE("the delta net gives the scalar bits for every window, commit and range of columns") {
  Random random(1);
  const Variant scalar = variant_of(Isa::kScalar);
  for (int state_size : {16, 48, 64, 80, 128, 144}) {
    const Floats state = random_floats(random, state_size * state_size, state_size % 3, 0.3f);
    for (int num_rows : {0, 1, 2, 5}) {
      const Window inputs(random, state_size, num_rows);
      for (int num_committed = 0; num_committed <= num_rows; ++num_committed) {
        Window want = inputs;
        const Floats want_state = run(scalar, state, state_size, want, num_committed);
        Window split = inputs;
        CHECK(run(scalar, state, state_size, split, num_committed, 16) == want_state);
        split.require_same(want);
        for (const Variant& variant : fast_variants()) {
          for (int column_step : {16, 32, 48, 64, 112, 1 << 20}) {
            INFO(variant.name << ", state_size " << state_size << ", rows " << num_rows << ", committed "
                              << num_committed << ", columns by " << column_step);
            Window got = inputs;
            const Floats after = run(variant, state, state_size, got, num_committed, column_step);
            got.require_same(want);
            REQUIRE(after == want_state);
            REQUIRE(after.guard_is_intact());
          }
        }
      }
    }
  }
}

TEST_CASE("a window of the delta net is the same as its rows one by one") {
  Random random(2);
  const int state_size = 64;
  std::vector<Variant> variants = fast_variants();
  variants.push_back(variant_of(Isa::kScalar));
  const Floats state = random_floats(random, state_size * state_size, 0, 0.3f);
  const Window inputs(random, state_size, 9);
  for (const Variant& variant : variants) {
    // Stepwise: every row committed in a call of its own.
    Window steps = inputs;
    std::vector<Floats> states = {state};  // states[r]: after r rows
    AlignedBuffer scratch(static_cast<size_t>(state_size * state_size) * sizeof(float));
    for (size_t r = 0; r < steps.rows.size(); ++r) {
      Floats next = states.back();
      variant.run(next.data(), state_size, &steps.rows[r], 1, 1, 0, state_size, scratch.data<float>());
      states.push_back(next);
    }
    for (int num_committed = 0; num_committed <= 9; ++num_committed) {
      INFO(variant.name << ", committed " << num_committed);
      Window window = inputs;
      const Floats after = run(variant, state, state_size, window, num_committed);
      window.require_same(steps);               // rows that may be taken back see those before them
      REQUIRE(after == states[num_committed]);  // and the state has the committed ones alone
    }
  }
}

TEST_CASE("rows without an output only advance the delta net's state") {
  Random random(3);
  const int state_size = 128;
  const Floats state = random_floats(random, state_size * state_size, 0, 0.3f);
  const Window inputs(random, state_size, 6);
  std::vector<Variant> variants = fast_variants();
  variants.push_back(variant_of(Isa::kScalar));
  for (const Variant& variant : variants) {
    INFO(variant.name);
    Window with = inputs, without = inputs;
    for (size_t r = 0; r < 4; ++r) without.rows[r].out = nullptr, without.rows[r].q = nullptr;
    CHECK(run(variant, state, state_size, with, 4) == run(variant, state, state_size, without, 4));
    CHECK(with.out[4] == without.out[4]);
    CHECK(with.out[5] == without.out[5]);
  }
}

TEST_CASE("scalar delta net matches double arithmetic") {
  Random random(4);
  const int size = 128;
  const Floats state = random_floats(random, size * size, 0, 0.3f);
  Window window(random, size, 1);
  const DeltaRow& row = window.rows[0];
  const Floats after = run(variant_of(Isa::kScalar), state, size, window, 1);
  for (int c = 0; c < size; ++c) {
    double m = 0.0, m_magnitude = 0.0;
    for (int i = 0; i < size; ++i) {
      const double product = double{state[i * size + c]} * row.decay * row.k[i];
      m += product;
      m_magnitude += std::fabs(product);
    }
    // m: one rounding of the decayed state, `size` of the sum. d: the difference and the product.
    const double m_error = (size + 1) * kUnit * m_magnitude;
    const double d = row.beta * (row.v[c] - m);
    const double d_error = row.beta * m_error + 2 * kUnit * (std::fabs(d) + row.beta * m_error);
    double out = 0.0, out_error = 0.0;
    for (int i = 0; i < size; ++i) {
      const double decayed = double{state[i * size + c]} * row.decay;
      const double want = decayed + row.k[i] * d;
      const double error = kUnit * std::fabs(decayed) + std::fabs(row.k[i]) * d_error + kUnit * std::fabs(want);
      CHECK(std::fabs(after[i * size + c] - want) <= 1.05 * error);
      out += want * row.q[i];
      out_error += std::fabs(row.q[i]) * (error + size * kUnit * std::fabs(want));
    }
    const double scale = 1.0 / std::sqrt(double{size});
    // 1/sqrt(size) has two roundings, the product with it one.
    CHECK(std::fabs(window.out[0][c] - out * scale) <= 1.05 * scale * (out_error + 3 * kUnit * std::fabs(out)));
  }
}

TEST_CASE("causal_conv gives the scalar bits and matches double arithmetic") {
  Random random(5);
  for (int taps : {1, 2, 3, 4, 5}) {
    for (int64_t n : sweep_sizes()) {
      const Floats weight = random_floats(random, n * taps, static_cast<int>(n % 4));
      std::vector<Floats> u;
      std::vector<const float*> pointers;
      for (int j = 0; j < taps; ++j) u.push_back(random_floats(random, n, (j + static_cast<int>(n)) % 4));
      for (const Floats& row : u) pointers.push_back(row.data());
      Floats want(n);
      causal_conv(Isa::kScalar, weight.data(), taps, pointers.data(), 0, n, want.data());
      for (int64_t c = 0; c < n; ++c) {
        double y = 0.0, magnitude = 0.0;
        for (int j = 0; j < taps; ++j) {
          const double product = double{weight[c * taps + j]} * u[j][c];
          y += product;
          magnitude += std::fabs(product);
        }
        const double silu = y / (1.0 + std::exp(-y));
        float exact = 0.0f;
        for (int j = 0; j < taps; ++j) exact = std::fma(weight[c * taps + j], u[j][c], exact);
        REQUIRE(same_bits(want[c], math::silu(exact)));
        // `taps` roundings through silu, whose slope is at most 1.1, and silu's own 5 units.
        REQUIRE(std::fabs(want[c] - silu) <= 1.05 * kUnit * (1.1 * taps * magnitude + 5 * std::fabs(silu)));
      }
      for (Isa isa : fast_isas()) {
        INFO(isa_name(isa) << ", taps " << taps << ", channels " << n);
        Floats got(n, 1);
        const int64_t middle = n / 3;
        causal_conv(isa, weight.data(), taps, pointers.data(), 0, middle, got.data());
        causal_conv(isa, weight.data(), taps, pointers.data(), middle, n, got.data());
        REQUIRE(got == want);
        REQUIRE(got.guard_is_intact());
      }
    }
  }
}

TEST_CASE("delta_gates matches double arithmetic") {
  Random random(6);
  const int heads = 300;
  const Floats b = random_floats(random, heads, 0, 4.0f), alpha = random_floats(random, heads, 0, 9.0f);
  const Floats dt = random_floats(random, heads, 0, 3.0f);
  Floats a = random_floats(random, heads), beta(heads), decay(heads);
  for (int h = 0; h < heads; ++h) a[h] = -std::fabs(a[h]);
  delta_gates(b.data(), alpha.data(), a.data(), dt.data(), heads, beta.data(), decay.data());
  for (int h = 0; h < heads; ++h) {
    CHECK(same_bits(beta[h], math::sigmoid(b[h])));
    CHECK(same_bits(decay[h], math::exp(a[h] * math::softplus(alpha[h] + dt[h]))));
    const double sigmoid = 1.0 / (1.0 + std::exp(-double{b[h]}));
    CHECK(std::fabs(beta[h] - sigmoid) <= 4.01 * kUnit * sigmoid);
    const double x = double{alpha[h]} + dt[h], softplus = std::log1p(std::exp(x));
    // The sum is rounded (softplus has slope at most 1), softplus is within 4.75 ulp of 2u at most, one product; then
    // exp.
    const double g_error =
        std::fabs(a[h]) * (kUnit * std::fabs(x) + 9.5 * kUnit * softplus) + kUnit * std::fabs(a[h]) * softplus;
    const double want = std::exp(a[h] * softplus);
    CHECK(std::fabs(decay[h] - want) <= 1.05 * (g_error + 2.5 * kUnit) * want + 0x1p-149);
  }
}

}  // namespace
}  // namespace test
}  // namespace foretoken
