#include "kernels/formats/weight_quantiser.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/formats/pack_block.h"
#include "kernels/formats/weight_codec.h"

namespace foretoken {
namespace {

// Values that a script in any language makes alike: four 16-bit pieces of a splitmix64 number, added. Of every four
// rows one has outliers, one no negative values, one small values.
constexpr int kRows = 32, kCols = 512;

std::vector<float> test_values() {
  std::vector<float> values;
  for (int row = 0; row < kRows; ++row) {
    for (int col = 0; col < kCols; ++col) {
      uint64_t z = static_cast<uint64_t>(row * kCols + col + 1) * 0x9E3779B97F4A7C15u;
      z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
      z = (z ^ z >> 27) * 0x94D049BB133111EBu;
      z ^= z >> 31;
      int sum = 0;
      for (int piece = 0; piece < 4; ++piece) sum += static_cast<int>(z >> (16 * piece) & 0xffff);
      float value = static_cast<float>(sum - 131070) / 32768.0f;
      if (row % 4 == 1 && col % 37 == 0) value *= 8;
      if (row % 4 == 2) value = std::fabs(value);
      if (row % 4 == 3) value = std::ldexp(value, -9);
      values.push_back(value);
    }
  }
  return values;
}

std::vector<float> quantised(WeightType type, const std::vector<float>& values) {
  const WeightTypeInfo& info = weight_type_info(type);
  std::vector<std::byte> blocks(values.size() / static_cast<size_t>(info.block_size) *
                                static_cast<size_t>(info.block_bytes));
  quantise_weights(type, values.data(), static_cast<int64_t>(values.size()), blocks.data());
  REQUIRE(row_is_finite(type, blocks.data(), static_cast<int64_t>(values.size())));
  std::vector<float> out(values.size());
  decode_row(type, blocks.data(), static_cast<int64_t>(values.size()), out.data());
  return out;
}

/// Root of the mean over rows of error^2 / row^2.
double relative_error(const std::vector<float>& values, const std::vector<float>& found) {
  double sum = 0;
  for (size_t row = 0; row < values.size(); row += kCols) {
    double error = 0, norm = 0;
    for (size_t i = row; i < row + kCols; ++i) {
      error += (double{found[i]} - values[i]) * (double{found[i]} - values[i]);
      norm += double{values[i]} * values[i];
    }
    sum += error / norm;
  }
  return std::sqrt(sum / (static_cast<double>(values.size()) / kCols));
}

TEST_CASE("weights are quantised at least as closely as by ggml's own quantisers", "[formats]") {
  // Errors on test_values() of the quantisers of ggml without an importance matrix: Python packages libgguf and, for
  // MXFP4, gguf. For Q8_0 both take the largest value; there the scale's rounding may fall either way.
  struct Reference {
    WeightType type;
    double error;
  };
  const Reference references[] = {
      {WeightType::kQ4_0, 0.109018},  {WeightType::kQ4_1, 0.077553},   {WeightType::kQ5_0, 0.053920},
      {WeightType::kQ5_1, 0.037451},  {WeightType::kQ8_0, 0.006865},   {WeightType::kQ2_K, 0.279404},
      {WeightType::kQ3_K, 0.167067},  {WeightType::kQ4_K, 0.071978},   {WeightType::kQ5_K, 0.036315},
      {WeightType::kQ6_K, 0.021161},  {WeightType::kIQ4_NL, 0.089378}, {WeightType::kIQ4_XS, 0.090097},
      {WeightType::kMXFP4, 0.125258},
  };
  const std::vector<float> values = test_values();
  for (const Reference& reference : references) {
    const double error = relative_error(values, quantised(reference.type, values));
    CAPTURE(weight_type_info(reference.type).name, error, reference.error);
    CHECK(error <= reference.error);
    CHECK(error > reference.error / 2);  // no type has bits for less
  }
  size_t covered = 0;
  for (const WeightTypeInfo& info : all_weight_types()) covered += can_quantise(info.type) && !info.is_float() ? 1 : 0;
  CHECK(covered == std::size(references));
}

TEST_CASE("float types are rounded to nearest even, and what they hold comes back", "[formats]") {
  const std::vector<float> values = test_values();
  CHECK(quantised(WeightType::kF32, values) == values);
  for (WeightType type : {WeightType::kF16, WeightType::kBF16}) {
    const std::vector<float> once = quantised(type, values);
    // Half an ulp of 11 and of 8 bits.
    for (size_t i = 0; i < values.size(); ++i)
      REQUIRE(std::fabs(once[i] - values[i]) <= std::ldexp(std::fabs(values[i]), type == WeightType::kF16 ? -11 : -8));
    CHECK(quantised(type, once) == once);
  }
}

TEST_CASE("blocks of zeros, of one value, and of the extremes of float16 are quantised", "[formats]") {
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (!can_quantise(info.type)) continue;
    CAPTURE(info.name);
    CHECK(quantised(info.type, std::vector<float>(256, 0.0f)) == std::vector<float>(256, 0.0f));
    // Scales are halves or of four bits and more; MXFP4's levels are powers of two and their halfway points.
    const float share = info.type == WeightType::kMXFP4 ? 0.12f : 0.02f;
    for (float value : {1.0f, -1.0f, 60000.0f, -60000.0f, 0.0625f}) {
      for (float found : quantised(info.type, std::vector<float>(256, value)))
        CHECK(std::fabs(found - value) <= std::fabs(value) * share);
      std::vector<float> alone(256, 0.0f);
      alone[77] = value;
      const std::vector<float> found = quantised(info.type, alone);
      CHECK(std::fabs(found[77] - value) <= std::fabs(value) * share);
    }
    // What no scale reaches becomes as large as a block can hold. No infinity; float16 has nothing but that.
    for (float value : {1e15f, -1e15f, 1e30f, -1e30f}) {
      if (info.type == WeightType::kF16) continue;
      CAPTURE(value);
      const std::vector<float> found = quantised(info.type, std::vector<float>(256, value));
      CHECK(std::all_of(found.begin(), found.end(), [&](float x) { return x * std::copysign(1.0f, value) >= 60000; }));
    }
    (void)quantised(info.type, std::vector<float>(256, 1e-41f));  // denormal
  }
}

TEST_CASE("packing a block undoes unpacking it", "[formats]") {
  std::mt19937 random(5);
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (!can_pack(info.type)) continue;
    CAPTURE(info.name);
    std::vector<std::byte> bytes(static_cast<size_t>(info.block_bytes)), again(bytes.size());
    int tried = 0;
    for (int round = 0; round < 500; ++round) {
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
      if (!row_is_finite(info.type, bytes.data(), info.block_size)) continue;
      ++tried;
      QuantBlock block = {};
      unpack_block(info.type, bytes.data(), block);
      pack_block(info.type, block, again.data());
      if (info.type == WeightType::kMXFP4) {  // two of its nibbles are 0
        QuantBlock second = {};
        unpack_block(info.type, again.data(), second);
        CHECK(std::memcmp(&block, &second, sizeof block) == 0);
      } else {
        CHECK(again == bytes);
      }
    }
    CHECK(tried > 100);
  }
}

}  // namespace
}  // namespace foretoken
