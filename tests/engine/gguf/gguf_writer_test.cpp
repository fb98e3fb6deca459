#include "engine/gguf/gguf_writer.h"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <mutex>

#include "engine/gguf/gguf.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_bytes.h"
#include "tests/engine/gguf/temp_files.h"

namespace foretoken {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST_CASE("GgufWriter writes the bytes that the format asks for", "[gguf]") {
  const TempFolder folder;
  GgufWriter writer;
  writer.add_string("general.architecture", "x");
  writer.add_uint32("a", 7);
  writer.add_int32("b", -7);
  writer.add_float32("c", 0.5f);
  writer.add_bool("d", true);
  writer.add_strings("e", std::vector<std::string>{"p", "", "qq"});
  writer.add_int32s("f", std::vector<int32_t>{1, -1});
  writer.add_float32s("g", std::vector<float>{1.5f});
  const auto fill_from = [](size_t data_begin, size_t row_bytes) {
    return [=](int64_t begin, int64_t end, std::byte* out) {
      for (size_t i = begin * row_bytes; i < end * row_bytes; ++i)
        *out++ = static_cast<std::byte>((data_begin + i) * 31);
    };
  };
  // GgufBytes fills byte i of the data with i * 31 but pads with such bytes too, so both tensors here end at the
  // alignment.
  writer.add_tensor("t", WeightType::kQ8_0, {32 * 16, 1, 2}, fill_from(0, 34 * 16));
  writer.add_tensor("u", WeightType::kF32, {8, 3}, fill_from(34 * 32, 32));
  CHECK(writer.data_bytes() == 34 * 32 + 96);
  writer.write(folder.path("w.gguf"));

  GgufBytes expected;
  expected.key("general.architecture", "x")
      .key("a", uint32_t{7})
      .key("b", 5, GgufBytes::number(int32_t{-7}))
      .key("c", 6, GgufBytes::number(0.5f))
      .key("d", 7, GgufBytes::number(uint8_t{1}))
      .key("e", 9, GgufBytes::array({"p", "", "qq"}))
      .key("f", 9, GgufBytes::array<int32_t>(5, {1, -1}))
      .key("g", 9, GgufBytes::array<float>(6, {1.5f}))
      .tensor("t", {32 * 16, 1, 2}, 8, 34 * 32)
      .tensor("u", {8, 3}, 0, 96);
  CHECK(read_file(folder.path("w.gguf")) == expected.bytes());
}

TEST_CASE("GgufWriter asks for every row, for few of them twice, and reports its progress", "[gguf]") {
  const TempFolder folder;
  constexpr int64_t kRows = 3000;
  constexpr int64_t kDim = 1024;  // 12 MB: three pieces
  GgufWriter writer;
  std::vector<std::atomic<int>> times_filled(kRows);
  writer.add_tensor("odd", WeightType::kF32, {3}, [](int64_t, int64_t, std::byte* out) { std::memset(out, 1, 12); });
  writer.add_tensor("t", WeightType::kF32, {kDim, kRows / 2, 2}, [&](int64_t begin, int64_t end, std::byte* out) {
    for (int64_t row = begin; row < end; ++row) {
      ++times_filled[row];
      for (int64_t i = 0; i < kDim; ++i, out += 4) {
        const float value = static_cast<float>(row * kDim + i);
        std::memcpy(out, &value, sizeof value);
      }
    }
  });
  size_t last_done = 0;
  int calls = 0;
  writer.write(folder.path("w.gguf"), [&](size_t done, size_t all) {
    CHECK(done > last_done);
    CHECK(all == writer.data_bytes());
    last_done = done;
    ++calls;
  });
  CHECK(calls == 3);
  CHECK(last_done == writer.data_bytes());
  // A row that two parts of the file share is made for both.
  CHECK(std::all_of(times_filled.begin(), times_filled.end(), [](int times) { return times == 1 || times == 2; }));
  CHECK(std::count(times_filled.begin(), times_filled.end(), 2) <= 2);
  const GgufFile file = GgufFile::open(folder.path("w.gguf"));
  CHECK(file.tensors()[1].file_offset % 32 == 0);
  for (int64_t i : {int64_t{0}, kDim * 1023 + 5, kDim * 1024, kDim * kRows - 1}) {
    float value;
    std::memcpy(&value, file.find_tensor("t")->data + i * 4, sizeof value);
    CHECK(value == static_cast<float>(i));
  }
}

TEST_CASE("GgufWriter leaves nothing behind when it cannot finish", "[gguf]") {
  const TempFolder folder;
  GgufWriter writer;
  writer.add_tensor("t", WeightType::kF32, {8}, [](int64_t, int64_t, std::byte*) { throw InputError("no more rows"); });
  CHECK_THROWS_WITH(writer.write(folder.path("w.gguf")), "no more rows");
  CHECK(std::filesystem::is_empty(folder.path("")));

  GgufWriter good;
  good.add_tensor("t", WeightType::kF32, {8}, [](int64_t, int64_t, std::byte* out) { std::memset(out, 0, 32); });
  const std::string nowhere = folder.path("missing/w.gguf");
  CHECK_THROWS_AS(good.write(nowhere), InputError);
  CHECK_THROWS_WITH(good.write(nowhere), Catch::StartsWith(nowhere + ": cannot write: No such file"));
  std::filesystem::create_directory(folder.path("taken"));
  CHECK_THROWS_WITH(good.write(folder.path("taken")), Catch::Contains("cannot write: Is a directory"));
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path("")), std::filesystem::directory_iterator()) ==
        1);
}

TEST_CASE("GgufWriter says when the disk is full", "[gguf]") {
  if (!std::filesystem::exists("/dev/full")) return;
  // A file beyond what the file system can address: refused without writing anything.
  const TempFolder folder;
  GgufWriter writer;
  writer.add_tensor("t", WeightType::kF32, {int64_t{1} << 40, 1 << 20}, [](int64_t, int64_t, std::byte*) {});
  CHECK_THROWS_WITH(writer.write(folder.path("w.gguf")), Catch::Contains("cannot make it 4611686018427388"));
  CHECK(std::filesystem::is_empty(folder.path("")));
}

}  // namespace
}  // namespace foretoken
