#include "kernels/formats/interleave.h"

#include <catch2/catch.hpp>
#include <cstring>
#include <random>
#include <vector>

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
      std::vector<std::byte> interleaved(rows.size() + 64, std::byte{0x5a});
      interleave_rows(from, 0, 16, interleaved.data());  // in two parts, as the loader's threads do
      interleave_rows(from, 16, kRows, interleaved.data());
      INFO(info.name << ", " << blocks << " blocks");
      for (size_t i = rows.size(); i < interleaved.size(); ++i) CHECK(interleaved[i] == std::byte{0x5a});

      MatrixView back = shape;
      back.data = interleaved.data();
      back.layout = Layout::kInterleaved;
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
