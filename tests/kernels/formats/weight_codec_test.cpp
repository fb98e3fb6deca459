#include "kernels/formats/weight_codec.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/half.h"
#include "kernels/formats/quant_formats.h"

namespace foretoken {
namespace {

struct Vectors {
  uint32_t rows, row_bytes, cols;
  std::vector<std::byte> blocks;  // [rows, row_bytes]
  std::vector<float> values;      // [rows, cols]
};

void read_vectors(const std::string& path, std::map<std::string, Vectors>& found) {
  std::ifstream in(path, std::ios::binary);
  char magic[4];
  uint32_t num_types = 0;
  in.read(magic, 4).read(reinterpret_cast<char*>(&num_types), 4);
  REQUIRE(std::memcmp(magic, "QVEC", 4) == 0);
  for (uint32_t t = 0; t < num_types; ++t) {
    char name[9] = {};
    Vectors v;
    in.read(name, 8).read(reinterpret_cast<char*>(&v.rows), 12);
    v.blocks.resize(size_t{v.rows} * v.row_bytes);
    v.values.resize(size_t{v.rows} * v.cols);
    in.read(reinterpret_cast<char*>(v.blocks.data()), static_cast<std::streamsize>(v.blocks.size()));
    in.read(reinterpret_cast<char*>(v.values.data()), static_cast<std::streamsize>(v.values.size() * 4));
    found.emplace(name, std::move(v));
  }
  REQUIRE(in);
}

std::map<std::string, Vectors> read_vectors() {
  std::map<std::string, Vectors> found;
  read_vectors(FORETOKEN_TEST_DATA "/quant_vectors.bin", found);
  read_vectors(FORETOKEN_TEST_DATA "/quant_vectors_iq.bin", found);
  return found;
}

TEST_CASE("decoding gives the values of the format, bit for bit") {
  const auto all = read_vectors();
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (info.type == WeightType::kF32) continue;
    INFO(info.name);
    const Vectors& v = all.at(std::string(info.name));
    REQUIRE(v.row_bytes == v.cols / static_cast<uint32_t>(info.block_size) * static_cast<uint32_t>(info.block_bytes));
    std::vector<float> ours(v.cols);
    for (uint32_t r = 0; r < v.rows; ++r) {
      decode_row(info.type, &v.blocks[size_t{r} * v.row_bytes], v.cols, ours.data());
      for (uint32_t i = 0; i < v.cols; ++i) {
        const float expected = v.values[size_t{r} * v.cols + i];
        // Where a scale is zero the sign of the zero is not defined by the format: 0 - 0 and 0 * -4 differ between
        // readers.
        if (expected == 0 && ours[i] == 0) continue;
        INFO("row " << r << " value " << i << ": " << ours[i] << " expected " << expected);
        REQUIRE(std::bit_cast<uint32_t>(ours[i]) == std::bit_cast<uint32_t>(expected));
      }
      CHECK(row_is_finite(info.type, &v.blocks[size_t{r} * v.row_bytes], v.cols));
    }
  }
}

// Relative rms errors of a rounding quantiser on normal data. Per type: a uniform quantiser with step D has rms error
// D/sqrt(12); a run of n normal values spans about 2*sqrt(2 ln n) sigma (3.5 at n = 16, 4.1 at 32), so levels L give
// error near span/(L-1)/sqrt(12): Q2_K 3.5/3/3.46 = 0.34, Q3_K 3.5/6/3.46 = 0.17, Q4 4.1/15/3.46 = 0.08, Q5 0.04, Q6_K
// 0.017, Q8_0 4.1/254/3.46 = 0.005. Coarse scales, and ranges that must reach from the extreme value to its negative,
// add up to a quarter. The limits are those figures times 1.4 (Q8_0 1.6); the four-bit floats of MXFP4 have steps of 2
// at the top. Formats with a grid: no code of R bits a weight errs less than 2^-R on normal data, and R (points and
// signs) is 3.25, 2.875, 2.25, 2, 1.875, 1.41 and 1.5 from IQ3_S to IQ1_M; their limits are 1.6 times that. A slip in
// the order of the bits gives an error near 1.
const std::map<WeightType, double> kErrorLimits = {
    {WeightType::kF32, 0.0},
    {WeightType::kF16, 5e-4},
    {WeightType::kBF16, 4e-3},
    {WeightType::kQ4_0, 0.12},
    {WeightType::kQ4_1, 0.12},
    {WeightType::kQ5_0, 0.06},
    {WeightType::kQ5_1, 0.06},
    {WeightType::kQ8_0, 0.008},
    {WeightType::kQ2_K, 0.47},
    {WeightType::kQ3_K, 0.24},
    {WeightType::kQ4_K, 0.12},
    {WeightType::kQ5_K, 0.06},
    {WeightType::kQ6_K, 0.025},
    {WeightType::kIQ4_NL, 0.12},
    {WeightType::kIQ4_XS, 0.12},
    {WeightType::kMXFP4, 0.17},
    // Three levels leave 0.436 of a normal value at best, two 0.603 (1 - 2/pi of its square); NVFP4's sixteen values
    // have a scale of three bits behind the point and reach to the largest one.
    {WeightType::kTQ1_0, 0.46},
    {WeightType::kTQ2_0, 0.46},
    {WeightType::kQ1_0, 0.63},
    {WeightType::kQ2_0, 0.47},
    {WeightType::kNVFP4, 0.13},
    {WeightType::kIQ3_S, 0.168},
    {WeightType::kIQ3_XXS, 0.218},
    {WeightType::kIQ2_S, 0.336},
    {WeightType::kIQ2_XS, 0.40},
    {WeightType::kIQ2_XXS, 0.437},
    {WeightType::kIQ1_S, 0.60},
    {WeightType::kIQ1_M, 0.566},
};

TEST_CASE("encoding and decoding again loses no more than the format must") {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (const WeightTypeInfo& info : all_weight_types()) {
    const int n = 4096;
    std::vector<float> values(n), decoded(n);
    for (float& v : values) v = normal(rng);
    std::vector<std::byte> blocks(static_cast<size_t>(n / info.block_size * info.block_bytes));
    encode_row(info.type, values.data(), n, blocks.data());
    REQUIRE(row_is_finite(info.type, blocks.data(), n));
    decode_row(info.type, blocks.data(), n, decoded.data());
    double error = 0, norm = 0;
    for (int i = 0; i < n; ++i) {
      error += std::pow(double{decoded[i]} - values[i], 2);
      norm += std::pow(double{values[i]}, 2);
    }
    INFO(info.name << " relative rms error " << std::sqrt(error / norm));
    CHECK(std::sqrt(error / norm) <= kErrorLimits.at(info.type));
  }
}

TEST_CASE("encoding keeps zeros, tiny, huge and one-sided data finite") {
  for (const WeightTypeInfo& info : all_weight_types()) {
    for (const float scale : {0.0f, 1e-30f, 1e-7f, 1.0f, -5.0f, 1e4f, 1e30f, -1e38f}) {
      INFO(info.name << " scale " << scale);
      if (info.type == WeightType::kF16 && std::fabs(scale) > 6e4f) continue;  // an infinity, as it should be
      std::vector<float> values(512), decoded(512);
      for (int i = 0; i < 512; ++i) values[i] = scale * (static_cast<float>(i % 37) / 37);
      std::vector<std::byte> blocks(static_cast<size_t>(512 / info.block_size * info.block_bytes));
      encode_row(info.type, values.data(), 512, blocks.data());
      CHECK(row_is_finite(info.type, blocks.data(), 512));
      decode_row(info.type, blocks.data(), 512, decoded.data());
      for (float v : decoded) REQUIRE((scale == 0 ? v == 0 : std::isfinite(v)));
    }
  }
}

TEST_CASE("a scale that is not a number or infinite is found wherever it stands") {
  // Bytes of each scale in its block.
  const std::map<WeightType, std::vector<int>> scales = {
      {WeightType::kF16, {0}},       {WeightType::kQ4_0, {0}},    {WeightType::kQ4_1, {0, 2}},
      {WeightType::kQ5_0, {0}},      {WeightType::kQ5_1, {0, 2}}, {WeightType::kQ8_0, {0}},
      {WeightType::kQ2_K, {80, 82}}, {WeightType::kQ3_K, {108}},  {WeightType::kQ4_K, {0, 2}},
      {WeightType::kQ5_K, {0, 2}},   {WeightType::kQ6_K, {208}},  {WeightType::kIQ4_NL, {0}},
      {WeightType::kIQ4_XS, {0}},    {WeightType::kTQ1_0, {52}},  {WeightType::kTQ2_0, {64}},
      {WeightType::kQ1_0, {0}},      {WeightType::kQ2_0, {0}},    {WeightType::kIQ3_S, {0}},
      {WeightType::kIQ3_XXS, {0}},   {WeightType::kIQ2_S, {0}},   {WeightType::kIQ2_XS, {0}},
      {WeightType::kIQ2_XXS, {0}},   {WeightType::kIQ1_S, {0}},
  };
  for (const auto& [type, places] : scales) {
    const WeightTypeInfo& info = weight_type_info(type);
    const int num_blocks = 3;
    for (int place : places) {
      for (uint16_t bad : {0x7c00, 0xfc00, 0x7e00, 0xfc01}) {
        for (int b = 0; b < num_blocks; ++b) {
          INFO(info.name << " block " << b << " byte " << place << " bits " << bad);
          std::vector<std::byte> blocks(static_cast<size_t>(num_blocks * info.block_bytes));
          REQUIRE(row_is_finite(type, blocks.data(), num_blocks * info.block_size));
          std::memcpy(&blocks[b * info.block_bytes + place], &bad, 2);
          CHECK_FALSE(row_is_finite(type, blocks.data(), num_blocks * info.block_size));
        }
      }
    }
  }
  // IQ1_M's half lies in the top four bits of its last eight bytes, two by two.
  for (const uint32_t bad : {0x7c00u, 0xfc00u, 0x7e00u, 0xfc01u}) {
    std::vector<std::byte> blocks(2 * 56);
    CHECK(row_is_finite(WeightType::kIQ1_M, blocks.data(), 512));
    for (size_t i = 0; i < 4; ++i) blocks[56 + 49 + 2 * i] = static_cast<std::byte>((bad >> (4 * i) & 15u) << 4 | 5u);
    CHECK_FALSE(row_is_finite(WeightType::kIQ1_M, blocks.data(), 512));
    blocks[56 + 53] &= std::byte{0x7f};  // an exponent of less than all ones
    CHECK(row_is_finite(WeightType::kIQ1_M, blocks.data(), 512));
  }
  std::vector<std::byte> mxfp4(2 * 17);
  CHECK(row_is_finite(WeightType::kMXFP4, mxfp4.data(), 64));
  mxfp4[17] = std::byte{255};
  CHECK_FALSE(row_is_finite(WeightType::kMXFP4, mxfp4.data(), 64));
  float values[3] = {1, 2, 3};
  CHECK(row_is_finite(WeightType::kF32, reinterpret_cast<const std::byte*>(values), 3));
  values[2] = std::numeric_limits<float>::infinity();
  CHECK_FALSE(row_is_finite(WeightType::kF32, reinterpret_cast<const std::byte*>(values), 3));
  const uint16_t brains[2] = {0x3f80, 0x7fc0};
  CHECK_FALSE(row_is_finite(WeightType::kBF16, reinterpret_cast<const std::byte*>(brains), 2));
  CHECK(row_is_finite(WeightType::kBF16, reinterpret_cast<const std::byte*>(brains), 1));
}

TEST_CASE("all bit patterns of a block stay within the integers that quant_formats.h promises") {
  struct Bounds {
    int q_low, q_high, scale_low, scale_high, min_high;
  };
  const std::map<WeightType, Bounds> bounds = {
      {WeightType::kQ4_0, {-8, 7, 1, 1, 0}},          {WeightType::kQ4_1, {0, 15, 1, 1, 1}},
      {WeightType::kQ5_0, {-16, 15, 1, 1, 0}},        {WeightType::kQ5_1, {0, 31, 1, 1, 1}},
      {WeightType::kQ8_0, {-128, 127, 1, 1, 0}},      {WeightType::kIQ4_NL, {-127, 113, 1, 1, 0}},
      {WeightType::kMXFP4, {-12, 12, 1, 1, 0}},       {WeightType::kQ2_K, {0, 3, 0, 15, 15}},
      {WeightType::kQ3_K, {-4, 3, -32, 31, 0}},       {WeightType::kQ4_K, {0, 15, 0, 63, 63}},
      {WeightType::kQ5_K, {0, 31, 0, 63, 63}},        {WeightType::kQ6_K, {-32, 31, -128, 127, 0}},
      {WeightType::kIQ4_XS, {-127, 113, -32, 31, 0}}, {WeightType::kTQ1_0, {-1, 1, 1, 1, 0}},
      {WeightType::kTQ2_0, {-1, 2, 1, 1, 0}},         {WeightType::kQ1_0, {-1, 1, 1, 1, 0}},
      {WeightType::kQ2_0, {-1, 2, 1, 1, 0}},          {WeightType::kNVFP4, {-12, 12, 1, 1, 0}},
      {WeightType::kIQ3_S, {-15, 15, 1, 31, 0}},      {WeightType::kIQ3_XXS, {-31, 31, 1, 31, 0}},
      {WeightType::kIQ2_S, {-43, 43, 1, 31, 0}},      {WeightType::kIQ2_XS, {-43, 43, 1, 31, 0}},
      {WeightType::kIQ2_XXS, {-43, 43, 1, 31, 0}},    {WeightType::kIQ1_S, {-9, 9, 1, 15, 0}},
      {WeightType::kIQ1_M, {-9, 9, 1, 15, 0}},
  };
  std::mt19937 rng(5);
  for (const auto& [type, bound] : bounds) {
    const WeightTypeInfo& info = weight_type_info(type);
    int q_low = 1000, q_high = -1000, scale_low = 1000, scale_high = -1000, min_high = 0;
    for (int trial = 0; trial < 2000; ++trial) {
      std::vector<std::byte> block(static_cast<size_t>(info.block_bytes));
      for (std::byte& byte : block) byte = static_cast<std::byte>(trial == 0 ? 0 : trial == 1 ? 255 : rng() & 255);
      QuantBlock unpacked;
      unpack_block(type, block.data(), unpacked);
      for (int i = 0; i < info.block_size; ++i) {
        q_low = std::min<int>(q_low, unpacked.q[i]);
        q_high = std::max<int>(q_high, unpacked.q[i]);
        scale_low = std::min<int>(scale_low, unpacked.scale[i / 16]);
        scale_high = std::max<int>(scale_high, unpacked.scale[i / 16]);
        min_high = std::max<int>(min_high, unpacked.min[i / 16]);
        REQUIRE(unpacked.min[i / 16] >= 0);
      }
      if (!has_mins(type)) REQUIRE(unpacked.dmin == 0);
    }
    INFO(info.name);
    CHECK(q_low == bound.q_low);
    CHECK(q_high == bound.q_high);
    CHECK(scale_low == bound.scale_low);
    CHECK(scale_high == bound.scale_high);
    CHECK(min_high == bound.min_high);
  }
}

TEST_CASE("type names and ids") {
  CHECK(weight_type_info(WeightType::kQ4_K).name == "Q4_K");
  CHECK(weight_type_from_id(12) == WeightType::kQ4_K);
  CHECK(weight_type_from_id(4) == std::nullopt);
  CHECK(weight_type_from_id(4000000000u) == std::nullopt);
  CHECK(gguf_type_name(16) == "IQ2_XXS");
  CHECK(gguf_type_name(39) == "MXFP4");
  CHECK(gguf_type_name(34) == "TQ1_0");
  CHECK(gguf_type_name(40) == "NVFP4");
  CHECK(gguf_type_name(42) == "Q2_0");
  CHECK(gguf_type_name(99) == "type 99");
  CHECK(gguf_type_name(137) == "IQ2_K of ik_llama.cpp");
  CHECK(gguf_type_name(200) == "type 200");
  CHECK(gguf_type_name(399) == "Q8_K_R8 of ik_llama.cpp");
  CHECK(gguf_type_name(99).data() == gguf_type_name(99).data());
  CHECK(weight_type_from_name("q4_k") == WeightType::kQ4_K);
  CHECK(weight_type_from_name("mxfp4") == WeightType::kMXFP4);
  CHECK(weight_type_from_name("q4") == std::nullopt);
  for (const WeightTypeInfo& info : all_weight_types()) {
    CHECK(gguf_type_name(static_cast<uint32_t>(info.type)) == info.name);
    CHECK(weight_type_from_id(static_cast<uint32_t>(info.type)) == info.type);
    CHECK(weight_type_from_name(info.name) == info.type);
    CHECK(info.is_float() == (info.block_size == 1));
  }
}

}  // namespace
}  // namespace foretoken
