#include "kernels/matmul/float_matmul.h"

#include <catch2/catch.hpp>

#include "kernels/base/half.h"
#include "kernels/float_isa.h"
#include "tests/kernels/base/float_test.h"

namespace foretoken {
#ifdef FORETOKEN_EMULATED_AVX512
void emulated_avx512_float_matmul_rows(WeightType type, const std::byte* weights, int64_t num_outputs, int64_t num_cols,
                                       const RowView* x, int num_rows, float* const* y);
#endif

namespace test {
namespace {

constexpr WeightType kTypes[] = {WeightType::kF32, WeightType::kF16, WeightType::kBF16};

/// A matrix with its values also as doubles; its bytes begin `offset` values after an aligned start.
struct Weights {
  std::vector<std::byte> bytes;
  std::vector<double> values;
  MatrixView view;
};

Weights random_weights(Random& random, WeightType type, int64_t num_rows, int64_t num_cols, int offset) {
  const size_t value_bytes = type == WeightType::kF32 ? 4 : 2;
  const size_t count = static_cast<size_t>(num_rows * num_cols);
  Weights w;
  w.bytes.resize((count + static_cast<size_t>(offset)) * value_bytes);
  std::byte* data = w.bytes.data() + static_cast<size_t>(offset) * value_bytes;
  std::normal_distribution<float> normal(0.0f, 0.05f);
  for (size_t i = 0; i < count; ++i) {
    float value = normal(random);
    if (i % 17 == 3) value *= 1e-5f;  // among the denormal halves
    if (type == WeightType::kF32) {
      std::memcpy(data + i * 4, &value, 4);
    } else {
      const uint16_t half = type == WeightType::kF16 ? float_to_half(value) : float_to_bfloat(value);
      std::memcpy(data + i * 2, &half, 2);
      value = type == WeightType::kF16 ? half_to_float(half) : bfloat_to_float(half);
    }
    w.values.push_back(value);
  }
  w.view = {data, num_rows, num_cols, type, Layout::kRows};
  return w;
}

/// Activation rows and places for results.
struct Rows {
  std::vector<Floats> x, y;
  std::vector<RowView> views;
  std::vector<float*> outputs;
};

Rows random_rows(Random& random, int num_rows, int64_t num_cols, int64_t num_outputs) {
  Rows rows;
  for (int r = 0; r < num_rows; ++r) {
    rows.x.push_back(random_floats(random, num_cols, r % 5));
    rows.y.emplace_back(num_outputs, r % 3);
  }
  rows.views.resize(num_rows);
  for (size_t r = 0; r < rows.x.size(); ++r) {
    rows.views[r].values = rows.x[r].data();
    rows.outputs.push_back(rows.y[r].data());
  }
  return rows;
}

TEST_CASE("float matrix products give the scalar bits, for any number of rows") {
  Random random(1);
  for (WeightType type : kTypes) {
    for (int64_t num_cols : sweep_sizes()) {
      const int offset = static_cast<int>(num_cols % 3);
      const Weights w = random_weights(random, type, 5, num_cols, offset);
      const int most = num_cols > 100 ? 7 : 19;
      Rows want = random_rows(random, most, num_cols, 4);
      float_matmul_rows(Isa::kScalar, w.view, 1, 5, want.views.data(), most, want.outputs.data());
      for (int num_rows = 1; num_rows <= most; ++num_rows) {
        for (Isa isa : fast_isas()) {
          INFO(isa_name(isa) << ", " << weight_type_info(type).name << ", cols " << num_cols << ", rows " << num_rows);
          Rows got = want;
          for (size_t r = 0; r < got.y.size(); ++r) {
            got.y[r] = Floats(4, static_cast<int>(r % 3));
            got.outputs[r] = got.y[r].data();
          }
          float_matmul_rows(isa, w.view, 1, 5, want.views.data(), num_rows, got.outputs.data());
          for (size_t r = 0; r < static_cast<size_t>(num_rows); ++r) {
            REQUIRE(got.y[r] == want.y[r]);
            REQUIRE(got.y[r].guard_is_intact());
          }
        }
#ifdef FORETOKEN_EMULATED_AVX512
        Rows got = random_rows(random, num_rows, num_cols, 4);
        INFO("emulated avx512, " << weight_type_info(type).name << ", cols " << num_cols << ", rows " << num_rows);
        emulated_avx512_float_matmul_rows(type, w.view.slice_rows(1, 5).data, 4, num_cols, want.views.data(), num_rows,
                                          got.outputs.data());
        for (size_t r = 0; r < static_cast<size_t>(num_rows); ++r) {
          REQUIRE(got.y[r] == want.y[r]);
          REQUIRE(got.y[r].guard_is_intact());
        }
#endif
      }
    }
  }
}

TEST_CASE("float matrix products give the scalar bits for any number of outputs") {
  Random random(3);
  for (WeightType type : kTypes) {
    for (int64_t num_outputs = 1; num_outputs <= 40; ++num_outputs) {
      const int64_t num_cols = num_outputs % 2 == 0 ? 544 : 1111;
      const Weights w = random_weights(random, type, num_outputs, num_cols, 1);
      Rows want = random_rows(random, 11, num_cols, num_outputs);
      float_matmul_rows(Isa::kScalar, w.view, 0, num_outputs, want.views.data(), 11, want.outputs.data());
      for (int num_rows : {1, 2, 3, 4, 11}) {
        INFO(weight_type_info(type).name << ", outputs " << num_outputs << ", rows " << num_rows);
        for (Isa isa : fast_isas()) {
          Rows got = random_rows(random, num_rows, num_cols, num_outputs);
          float_matmul_rows(isa, w.view, 0, num_outputs, want.views.data(), num_rows, got.outputs.data());
          for (size_t r = 0; r < got.y.size(); ++r) {
            REQUIRE(got.y[r] == want.y[r]);
            REQUIRE(got.y[r].guard_is_intact());
          }
        }
#ifdef FORETOKEN_EMULATED_AVX512
        Rows got = random_rows(random, num_rows, num_cols, num_outputs);
        emulated_avx512_float_matmul_rows(type, w.view.data, num_outputs, num_cols, want.views.data(), num_rows,
                                          got.outputs.data());
        for (size_t r = 0; r < got.y.size(); ++r) REQUIRE(got.y[r] == want.y[r]);
#endif
      }
    }
  }
}

TEST_CASE("lanes of a float matrix product that stop early stay as they are") {
  // All products underflow to -0: a lane that took part in the tail with +0 would turn the sum of all into +0.
  for (int64_t num_cols = 1; num_cols <= 70; ++num_cols) {
    Floats w(num_cols), x(num_cols);
    for (int64_t i = 0; i < num_cols; ++i) w[i] = -1e-30f, x[i] = 1e-30f;
    const MatrixView view{reinterpret_cast<const std::byte*>(w.data()), 1, num_cols, WeightType::kF32, Layout::kRows};
    RowView row;
    row.values = x.data();
    float want = 1.0f, got = 1.0f;
    float *want_y = &want, *got_y = &got;
    float_matmul_rows(Isa::kScalar, view, 0, 1, &row, 1, &want_y);
    CHECK(same_bits(want, num_cols < 32 ? 0.0f : -0.0f));
    for (Isa isa : fast_isas()) {
      float_matmul_rows(isa, view, 0, 1, &row, 1, &got_y);
      CHECK(same_bits(got, want));
    }
#ifdef FORETOKEN_EMULATED_AVX512
    emulated_avx512_float_matmul_rows(view.type, view.data, 1, num_cols, &row, 1, &got_y);
    CHECK(same_bits(got, want));
#endif
  }
}

TEST_CASE("scalar float matrix products match double arithmetic") {
  Random random(2);
  for (WeightType type : kTypes) {
    for (int64_t num_cols : {1, 33, 100, 2048}) {
      const Weights w = random_weights(random, type, 9, num_cols, 0);
      Rows rows = random_rows(random, 3, num_cols, 9);
      float_matmul_rows(Isa::kScalar, w.view, 0, 9, rows.views.data(), 3, rows.outputs.data());
      for (size_t r = 0; r < 3; ++r) {
        for (int64_t o = 0; o < 9; ++o) {
          double want = 0.0, magnitude = 0.0;
          for (int64_t i = 0; i < num_cols; ++i) {
            const double product = w.values[o * num_cols + i] * rows.x[r][i];
            want += product;
            magnitude += std::fabs(product);
          }
          // Each product passes at most cols/32 roundings in its lane and 5 in the fold.
          CHECK(std::fabs(rows.y[r][o] - want) <=
                1.05 * kUnit * static_cast<double>((num_cols + 31) / 32 + 5) * magnitude);
        }
      }
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace foretoken
