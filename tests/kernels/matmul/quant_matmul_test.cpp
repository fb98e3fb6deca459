#include <algorithm>
#include <bit>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/half.h"
#include "kernels/formats/interleave.h"
#include "kernels/formats/quant_formats.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/quant_matmul.h"

namespace foretoken {

// Only those exist whose instruction set this machine lacks.
void emulated_avx2vnni_interleaved_matmul(const QuantMatmul& m);
void emulated_avx512_interleaved_matmul(const QuantMatmul& m);
void emulated_avx512vnni_interleaved_matmul(const QuantMatmul& m);

namespace {

using Kernel = std::function<void(const MatrixView&, int64_t, int64_t, const RowView*, int, float* const*)>;

struct NamedKernel {
  std::string name;
  Kernel run;
};

// Every way to compute a product: the instruction sets of this machine through matmul_rows; for the interleaved layout
// also those it lacks, emulated.
std::vector<NamedKernel> kernels_for(Layout layout) {
  std::vector<NamedKernel> found;
  for (Isa isa : supported_isas()) {
    found.push_back({std::string(isa_name(isa)), [isa](auto&&... arguments) { matmul_rows(isa, arguments...); }});
  }
  [[maybe_unused]] const auto add_emulated = [&](const char* name, void (*kernel)(const QuantMatmul&)) {
    found.push_back(
        {name,
         [kernel](const MatrixView& w, int64_t begin, int64_t end, const RowView* x, int num_rows, float* const* y) {
           const MatrixView part = w.slice_rows(begin, end);
           kernel({w.type, part.data, part.num_rows, w.num_cols / weight_type_info(w.type).block_size, x, num_rows, y});
         }});
  };
  if (layout != Layout::kInterleaved) return found;
#ifdef FORETOKEN_EMULATED_AVX2VNNI
  add_emulated("emulated avx2+vnni", emulated_avx2vnni_interleaved_matmul);
#endif
#ifdef FORETOKEN_EMULATED_AVX512
  add_emulated("emulated avx512", emulated_avx512_interleaved_matmul);
#endif
#ifdef FORETOKEN_EMULATED_AVX512VNNI
  add_emulated("emulated avx512+vnni", emulated_avx512vnni_interleaved_matmul);
#endif
  return found;
}

std::vector<WeightTypeInfo> quantised_types() {
  std::vector<WeightTypeInfo> found;
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (!info.is_float()) found.push_back(info);
  }
  return found;
}

// Bytes of the half scales in a block.
std::vector<int> half_scales(WeightType type) {
  switch (type) {
    case WeightType::kQ4_1:
    case WeightType::kQ5_1:
    case WeightType::kQ4_K:
    case WeightType::kQ5_K:
      return {0, 2};
    case WeightType::kQ2_K:
      return {80, 82};
    case WeightType::kQ3_K:
      return {108};
    case WeightType::kQ6_K:
      return {208};
    case WeightType::kTQ1_0:
      return {52};
    case WeightType::kTQ2_0:
      return {64};
    case WeightType::kMXFP4:
    case WeightType::kNVFP4:
    case WeightType::kIQ1_M:
      return {};
    default:
      return {0};
  }
}

enum class Fill {
  kEncoded,      // normal data, encoded
  kRandomBits,   // every bit pattern, scales of either sign, some denormal halves, some zero
  kOnes,         // all quants and sub-scales 0xff
  kAlternating,  // bytes 0x80 and 0x7f: the extremes of signed parts
  kZeros,
};

struct Matrix {
  std::vector<std::byte> rows;         // layout kRows
  std::vector<std::byte> interleaved;  // empty where the shape does not fit
  MatrixView as_rows;
  MatrixView as_interleaved;
};

Matrix make_matrix(WeightType type, int64_t num_rows, int64_t num_cols, Fill fill, std::mt19937& rng) {
  const WeightTypeInfo& info = weight_type_info(type);
  Matrix matrix;
  MatrixView& view = matrix.as_rows;
  view = {nullptr, num_rows, num_cols, type, Layout::kRows};
  matrix.rows.resize(view.size_bytes());
  view.data = matrix.rows.data();
  if (fill == Fill::kEncoded) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(num_cols));
    for (int64_t r = 0; r < num_rows; ++r) {
      for (float& v : values) v = normal(rng);
      encode_row(type, values.data(), num_cols, matrix.rows.data() + static_cast<size_t>(r) * view.row_bytes());
    }
  } else if (fill != Fill::kZeros) {
    const auto block_bytes = static_cast<size_t>(info.block_bytes);
    for (size_t block = 0; block < matrix.rows.size(); block += block_bytes) {
      std::byte* const p = &matrix.rows[block];
      for (size_t i = 0; i < block_bytes; ++i) {
        p[i] = static_cast<std::byte>(fill == Fill::kOnes         ? 255
                                      : fill == Fill::kRandomBits ? rng() & 255
                                      : i % 2                     ? 0x7f
                                                                  : 0x80);
      }
      for (int place : half_scales(type)) {
        static constexpr uint16_t kSpecial[] = {0x0001, 0x8001, 0x03ff, 0x0000, 0x8000, 0x7bff};
        uint16_t scale = float_to_half(static_cast<float>(rng() % 2000) / 1000 - 1);
        if (fill == Fill::kRandomBits && rng() % 8 == 0) scale = kSpecial[rng() % 6];
        std::memcpy(p + place, &scale, 2);
      }
      if (type == WeightType::kIQ1_M) {  // d in the top four bits of the last bytes, two by two
        const uint16_t d = float_to_half(static_cast<float>(rng() % 2000) / 1000 - 1);
        for (int i = 0; i < 4; ++i) {
          std::byte& byte = p[49 + 2 * i];
          byte = (byte & std::byte{15}) | static_cast<std::byte>((d >> (4 * i) & 15) << 4);
        }
      }
      // Exponents up to 2^40 and, sometimes, the denormal ones.
      if (type == WeightType::kMXFP4) p[0] = static_cast<std::byte>(rng() % 8 == 0 ? rng() % 3 : 88 + rng() % 80);
    }
  }
  view.data = matrix.rows.data();
  if (can_interleave(type, num_rows, num_cols)) {
    matrix.as_interleaved = {nullptr, num_rows, num_cols, type, Layout::kInterleaved};
    matrix.interleaved.resize(matrix.as_interleaved.size_bytes());
    interleave_rows(view, 0, num_rows, matrix.interleaved.data());
    matrix.as_interleaved.data = matrix.interleaved.data();
  }
  return matrix;
}

RowBuffer make_rows(int num_rows, int64_t num_cols, std::mt19937& rng) {
  RowBuffer rows(num_rows, num_cols);
  std::normal_distribution<float> normal;
  for (int r = 0; r < num_rows; ++r) {
    const int kind = r % 5;  // also zeros, all extreme, one-sided
    for (int64_t i = 0; i < num_cols; ++i) {
      const float x = normal(rng);
      rows.row(r)[i] = kind == 1   ? 0.0f
                       : kind == 2 ? 3.0f
                       : kind == 3 ? (x > 0 ? 2.0f : -2.0f)
                       : kind == 4 ? std::fabs(x)
                                   : x;
    }
    rows.quantise(Isa::kScalar, r, 32);
    if (num_cols % 256 == 0) rows.quantise(Isa::kScalar, r, 256);
  }
  return rows;
}

std::vector<RowView> views_of(const RowBuffer& rows) {
  std::vector<RowView> views;
  for (int64_t r = 0; r < rows.max_rows(); ++r) views.push_back(rows.view(r));
  return views;
}

// y with a canary after each row.
std::vector<std::vector<float>> run(const Kernel& kernel, const MatrixView& w, int64_t begin, int64_t end,
                                    const std::vector<RowView>& x, int num_rows) {
  constexpr float kCanary = 12345.0f;
  const auto count = static_cast<size_t>(end - begin);
  std::vector<std::vector<float>> y(static_cast<size_t>(num_rows), std::vector<float>(count + 1, kCanary));
  std::vector<float*> pointers;
  for (auto& row : y) pointers.push_back(row.data());
  kernel(w, begin, end, x.data(), num_rows, pointers.data());
  for (auto& row : y) {
    REQUIRE(row.back() == kCanary);
    row.pop_back();
  }
  return y;
}

const Kernel kScalarKernel = [](auto&&... arguments) { matmul_rows(Isa::kScalar, arguments...); };

// Bits of both, row by row, from output `offset` of the expected ones.
void require_same_bits(const std::vector<std::vector<float>>& found, const std::vector<std::vector<float>>& expected,
                       int64_t offset) {
  for (size_t r = 0; r < found.size(); ++r) {
    for (size_t o = 0; o < found[r].size(); ++o) {
      const float a = found[r][o], b = expected[r][o + static_cast<size_t>(offset)];
      if (std::bit_cast<uint32_t>(a) != std::bit_cast<uint32_t>(b)) {
        FAIL("row " << r << " output " << o << ": " << a << " expected " << b);
      }
    }
  }
}

TEST_CASE("every kernel gives the scalar bits, for every type, layout, number of rows and range") {
  std::mt19937 rng(11);
  for (const WeightTypeInfo& info : quantised_types()) {
    for (const int64_t blocks : {1, 3, 8, 11}) {
      const int64_t num_cols = blocks * info.block_size, num_outputs = 48;
      const RowBuffer rows = make_rows(33, num_cols, rng);
      const std::vector<RowView> x = views_of(rows);
      for (const Fill fill : {Fill::kEncoded, Fill::kRandomBits}) {
        const Matrix w = make_matrix(info.type, num_outputs, num_cols, fill, rng);
        const auto expected = run(kScalarKernel, w.as_rows, 0, num_outputs, x, 33);
        for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
          const bool interleaved = layout == Layout::kInterleaved;
          const MatrixView& view = interleaved ? w.as_interleaved : w.as_rows;
          for (const NamedKernel& kernel : kernels_for(layout)) {
            for (const int num_rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33}) {
              INFO(info.name << " " << blocks << " blocks, " << kernel.name << (interleaved ? " interleaved" : " rows")
                             << ", " << num_rows << " rows, fill " << static_cast<int>(fill));
              require_same_bits(run(kernel.run, view, 0, num_outputs, x, num_rows), expected, 0);
              const int64_t begin = interleaved ? 16 : 5, end = interleaved ? 32 : 18;
              require_same_bits(run(kernel.run, view, begin, end, x, num_rows), expected, begin);
            }
            REQUIRE(run(kernel.run, view, 16, 16, x, 2)[0].empty());
          }
        }
      }
    }
  }
}

TEST_CASE("extreme quants, scales and activations neither saturate nor overflow") {
  std::mt19937 rng(13);
  for (const WeightTypeInfo& info : quantised_types()) {
    const int64_t num_cols = 9 * info.block_size, num_outputs = 16;
    RowBuffer rows(6, num_cols);
    for (int r = 0; r < 6; ++r) {
      for (int64_t i = 0; i < num_cols; ++i) {
        // All +127, all -127, signs that alternate by one, two and four columns, and +127 beside 0.
        const int sign = r == 0 ? 1 : r == 1 ? -1 : r == 5 ? static_cast<int>(i % 2) : (i >> (r - 2)) % 2 ? 1 : -1;
        rows.row(r)[i] = static_cast<float>(sign);
      }
      rows.quantise(Isa::kScalar, r, 32);
      if (info.activation_block == 256) rows.quantise(Isa::kScalar, r, 256);
    }
    const std::vector<RowView> x = views_of(rows);
    for (const Fill fill : {Fill::kOnes, Fill::kAlternating, Fill::kZeros}) {
      const Matrix w = make_matrix(info.type, num_outputs, num_cols, fill, rng);
      // Expected without any integer kernel: block sums in double are exact here.
      std::vector<std::vector<float>> expected(6, std::vector<float>(num_outputs));
      for (size_t r = 0; r < 6; ++r) {
        const QuantisedRow& row = info.activation_block == 32 ? x[r].by32 : x[r].by256;
        for (int64_t o = 0; o < num_outputs; ++o) {
          float partials[kPartialSums] = {};
          for (int64_t b = 0; b < num_cols / info.activation_block; ++b) {
            QuantBlock block;
            const int64_t file_block = b / info.num_parts(), first = b % info.num_parts() * info.activation_block;
            unpack_block(
                info.type,
                w.as_rows.data + static_cast<size_t>(o) * w.as_rows.row_bytes() + file_block * info.block_bytes, block);
            double isum = 0, msum = 0, runs = 0;
            for (int64_t i = first; i < first + info.activation_block; ++i) {
              const double a = row.q[file_block * info.block_size + i];
              isum += double{1} * block.scale[i / 16] * block.q[i] * a;
              msum += double{1} * block.min[i / 16] * a;
              if (info.type == WeightType::kNVFP4) runs += double{block.run_d[i / 16]} * block.q[i] * a;
            }
            float& partial = partials[b % kPartialSums];
            if (info.type == WeightType::kNVFP4) {  // the sum of both runs is exact in double and rounded once
              partial = std::fma(static_cast<float>(runs), row.d[b], partial);
              continue;
            }
            partial = std::fma(static_cast<float>(isum), block.d * row.d[b], partial);
            if (has_mins(info.type)) partial = std::fma(-static_cast<float>(msum), block.dmin * row.d[b], partial);
          }
          for (int half = 4; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) partials[i] += partials[i + half];
          }
          expected[r][o] = partials[0];
        }
      }
      for (const Layout layout : {Layout::kRows, Layout::kInterleaved}) {
        for (const NamedKernel& kernel : kernels_for(layout)) {
          for (const int num_rows : {1, 6}) {
            INFO(info.name << " " << kernel.name << " layout " << static_cast<int>(layout) << " fill "
                           << static_cast<int>(fill) << " rows " << num_rows);
            const MatrixView& view = layout == Layout::kRows ? w.as_rows : w.as_interleaved;
            require_same_bits(run(kernel.run, view, 0, num_outputs, x, num_rows), expected, 0);
          }
        }
      }
    }
  }
}

TEST_CASE("the scalar product is that of the decoded weights and rows") {
  std::mt19937 rng(17);
  for (const WeightTypeInfo& info : quantised_types()) {
    const int64_t num_cols = 2048, num_outputs = 16;
    const Matrix w = make_matrix(info.type, num_outputs, num_cols, Fill::kEncoded, rng);
    const RowBuffer rows = make_rows(5, num_cols, rng);
    const std::vector<RowView> x = views_of(rows);
    const auto y = run(kScalarKernel, w.as_rows, 0, num_outputs, x, 5);
    std::vector<float> decoded(static_cast<size_t>(num_cols));
    for (int64_t o = 0; o < num_outputs; ++o) {
      decode_row(info.type, w.rows.data() + static_cast<size_t>(o) * w.as_rows.row_bytes(), num_cols, decoded.data());
      for (size_t r = 0; r < 5; ++r) {
        // Against the quantised row, the decoded weights in double: only the float steps and decode_row's own rounding
        // differ. Each value of decode_row has two products and a difference, 3 roundings of at most eps/2 = 2^-24 of
        // the larger operand, which for formats with mins is |d*s*q| + |dmin*m|, at most 3 times the largest weight in
        // play; each block then has a scale product and an fma per term and the partials at most num_blocks + 3
        // additions, relative to the sum of magnitudes.
        const QuantisedRow& row = info.activation_block == 32 ? x[r].by32 : x[r].by256;
        double exact = 0, exact_float = 0, magnitude = 0, row_error = 0, largest = 0;
        for (float v : decoded) largest = std::max(largest, std::fabs(double{v}));
        for (int64_t i = 0; i < num_cols; ++i) {
          const double weight = decoded[i];
          const double d = row.d[i / info.activation_block];
          exact += weight * row.q[i] * d;
          exact_float += weight * x[r].values[i];
          magnitude += 3 * largest * std::fabs(row.q[i] * d);
          row_error +=
              std::fabs(weight) * d * 0.51;  // half a step of the row's int8, and the rounding of d and 127/amax
        }
        const double num_blocks = static_cast<double>(num_cols / info.block_size);
        const double tolerance = magnitude * std::ldexp(3 + 4 + num_blocks / kPartialSums + 3, -24);
        const double found = y[r][o];
        INFO(info.name << " row " << r << " output " << o << ": " << found << " exact " << exact << " of the float row "
                       << exact_float);
        REQUIRE(std::fabs(found - exact) <= tolerance);
        REQUIRE(std::fabs(found - exact_float) <= tolerance + row_error);
      }
    }
  }
}

TEST_CASE("a row that holds a NaN or an infinity gives NaN, others are not touched by it") {
  std::mt19937 rng(19);
  const Matrix w = make_matrix(WeightType::kQ4_K, 16, 512, Fill::kEncoded, rng);
  RowBuffer rows = make_rows(3, 512, rng);
  const auto clean = run(kScalarKernel, w.as_rows, 0, 16, views_of(rows), 3);
  rows.row(1)[300] = std::numeric_limits<float>::infinity();
  for (Isa isa : supported_isas()) {
    rows.quantise(isa, 1, 256);
    const Kernel kernel = [isa](auto&&... arguments) { matmul_rows(isa, arguments...); };
    for (const MatrixView& view : {w.as_rows, w.as_interleaved}) {
      const auto y = run(kernel, view, 0, 16, views_of(rows), 3);
      for (size_t o = 0; o < 16; ++o) {
        CHECK(std::isnan(y[1][o]));
        CHECK(y[0][o] == clean[0][o]);
        CHECK(y[2][o] == clean[2][o]);
      }
    }
  }
}

}  // namespace
}  // namespace foretoken
