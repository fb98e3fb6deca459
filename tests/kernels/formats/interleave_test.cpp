#include "kernels/formats/interleave.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "kernels/formats/grid_levels.h"
#include "kernels/formats/weight_codec.h"

using namespace foretoken;

TEST_CASE("Interleaving moves every byte of every type to its place and back", "[interleave]") {
  std::mt19937 random(1);
  for (const WeightTypeInfo& info : all_weight_types()) {
    const WeightType type = info.type;
    if (info.is_float()) continue;
    for (const int64_t blocks : {1, 2, 5}) {
      constexpr int64_t kRows = 48;
      const MatrixView shape = {nullptr, kRows, blocks * info.block_size, type, Layout::kRows};
      const size_t row_bytes = shape.row_bytes();
      std::vector<std::byte> rows(kRows * row_bytes);
      for (std::byte& byte : rows) byte = static_cast<std::byte>(random());
      MatrixView from = shape;
      from.data = rows.data();
      MatrixView back = shape;
      back.layout = Layout::kInterleaved;
      std::vector<std::byte> interleaved(back.size_bytes() + 64, std::byte{0x5a});
      interleave_rows(from, 0, 16, interleaved.data());  // in two parts, as the loader's threads do
      interleave_rows(from, 16, kRows, interleaved.data());
      INFO(info.name << ", " << blocks << " blocks");
      for (size_t i = back.size_bytes(); i < interleaved.size(); ++i) CHECK(interleaved[i] == std::byte{0x5a});

      back.data = interleaved.data();
      std::vector<std::byte> row(row_bytes);
      for (int64_t r = 0; r < kRows; ++r) {
        extract_row(back, r, row.data());
        CHECK(std::memcmp(row.data(), rows.data() + static_cast<size_t>(r) * row_bytes, row_bytes) == 0);
      }

      // The first four-byte word of a block stands lane by lane behind the bytes that are no words (the scale).
      if (type != WeightType::kQ8_0) continue;
      for (int r = 0; r < kInterleave; ++r) {
        CHECK(std::memcmp(interleaved.data() + 2 * r, rows.data() + static_cast<size_t>(r) * row_bytes, 2) == 0);
        CHECK(std::memcmp(interleaved.data() + 2 * kInterleave + 4 * r,
                          rows.data() + static_cast<size_t>(r) * row_bytes + 2, 4) == 0);
      }
    }
  }
}

TEST_CASE("Interleaved blocks have the bytes of the file's, or of their levels", "[interleave]") {
  const std::map<WeightType, int> levels = {
      {WeightType::kIQ3_S, 134},   {WeightType::kIQ3_XXS, 134}, {WeightType::kIQ2_S, 106}, {WeightType::kIQ2_XS, 106},
      {WeightType::kIQ2_XXS, 102}, {WeightType::kIQ1_S, 70},    {WeightType::kIQ1_M, 78}};
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (info.is_float()) continue;
    INFO(info.name);
    CHECK(has_levels(info.type) == levels.contains(info.type));
    CHECK(interleaved_block_bytes(info.type) == (has_levels(info.type) ? levels.at(info.type) : info.block_bytes));
    const MatrixView rows = {nullptr, 16, 3 * info.block_size, info.type, Layout::kRows};
    const MatrixView interleaved = {nullptr, 16, 3 * info.block_size, info.type, Layout::kInterleaved};
    CHECK(rows.size_bytes() == 48 * static_cast<size_t>(info.block_bytes));
    CHECK(interleaved.size_bytes() == 48 * static_cast<size_t>(interleaved_block_bytes(info.type)));
  }
}

TEST_CASE("Scales that are not finite are found in interleaved rows as in a file's", "[interleave]") {
  std::mt19937 random(2);
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (info.is_float()) continue;
    constexpr int64_t kRows = 32, kBlocks = 3;
    const MatrixView shape = {nullptr, kRows, kBlocks * info.block_size, info.type, Layout::kRows};
    const size_t row_bytes = shape.row_bytes();
    std::vector<float> values(static_cast<size_t>(shape.num_cols));
    MatrixView to = shape;
    to.layout = Layout::kInterleaved;
    std::vector<std::byte> good(kRows * row_bytes), moved(to.size_bytes());
    for (int64_t r = 0; r < kRows; ++r) {
      for (float& value : values) value = static_cast<float>(random() % 2001) - 1000.0f;
      encode_row(info.type, values.data(), shape.num_cols, good.data() + static_cast<size_t>(r) * row_bytes);
    }
    // IQ1_M's exponent is spread over two bytes: all but those three bits that 0x7c sets.
    if (info.type == WeightType::kIQ1_M) {
      for (size_t block = 0; block < good.size(); block += 56) good[block + 53] |= std::byte{0xc0};
    }
    // Every byte of a block of one row, set to what makes a half infinite, an exponent NaN: where a scale is hit, both
    // forms say so, and where it is not, neither does.
    int hits = 0;
    const auto block_bytes = static_cast<size_t>(info.block_bytes);
    for (size_t at = 0; at < block_bytes; ++at) {
      std::vector<std::byte> rows = good;
      const int64_t row = static_cast<int64_t>(at * 7) % kRows;
      const size_t block = at % kBlocks;
      rows[static_cast<size_t>(row) * row_bytes + block * block_bytes + at] =
          info.type == WeightType::kMXFP4 ? std::byte{255} : std::byte{0x7c};
      MatrixView from = shape;
      from.data = rows.data();
      interleave_rows(from, 0, kRows, moved.data());
      to.data = moved.data();
      bool finite = true;
      for (int64_t r = 0; r < kRows; ++r)
        finite &= row_is_finite(info.type, rows.data() + static_cast<size_t>(r) * row_bytes, shape.num_cols);
      hits += finite ? 0 : 1;
      INFO(info.name << ", byte " << at);
      CHECK(interleaved_rows_are_finite(to, 0, kRows) == finite);
      const int64_t group = row / kInterleave * kInterleave;
      CHECK(interleaved_rows_are_finite(to, group, group + kInterleave) == finite);
      CHECK(interleaved_rows_are_finite(to, kInterleave - group, 2 * kInterleave - group));
    }
    CHECK((hits > 0) == (info.type != WeightType::kNVFP4));  // all of its scales are numbers
  }
}
