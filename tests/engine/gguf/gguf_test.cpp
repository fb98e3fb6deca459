#include "engine/gguf/gguf.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <ctime>
#include <limits>
#include <new>
#include <random>

#include "engine/gguf/gguf_part.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_bytes.h"
#include "tests/engine/gguf/temp_files.h"

namespace {

// The largest allocation of this thread, so that a test can see what a count in a file made the reader ask for.
// Sanitizers have an operator new of their own; under them this stays 0.
thread_local size_t largest_allocation = 0;

}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Not inlined: GCC would see free() meet memory from operator new, and warn.
[[gnu::noinline]] void* operator new(size_t size) {
  largest_allocation = std::max(largest_allocation, size);
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](size_t size) {
  return operator new(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete[](void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete[](void* memory, size_t) noexcept {
  std::free(memory);
}
#endif

namespace foretoken {
namespace {

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ8_0 = 8;
constexpr uint32_t kQ4_K = 12;
constexpr uint32_t kIQ2_K = 137;  // not supported

constexpr uint32_t kUint64 = 10;
constexpr uint32_t kArray = 9;

// A small valid file with every kind of thing in it.
GgufBytes small_file() {
  GgufBytes file;
  const auto number = [](auto value) { return GgufBytes::number(value); };
  file.key("general.architecture", "qwen35moe")
      .key("k.u8", 0, number(uint8_t{200}))
      .key("k.i8", 1, number(int8_t{-100}))
      .key("k.u16", 2, number(uint16_t{60000}))
      .key("k.i16", 3, number(int16_t{-30000}))
      .key("k.u32", 4, number(uint32_t{4000000000}))
      .key("k.i32", 5, number(int32_t{-2000000000}))
      .key("k.f32", 6, number(1.5f))
      .key("k.bool", 7, number(uint8_t{1}))
      .key("k.u64", 10, number(uint64_t{1} << 63))
      .key("k.i64", 11, number(std::numeric_limits<int64_t>::min()))
      .key("k.f64", 12, number(-2.25))
      .key("k.strings", kArray, GgufBytes::array({"a", "", "ccc"}))
      .key("k.ints", kArray, GgufBytes::array<int32_t>(5, {1, -2, 3}))
      .key("k.bytes", kArray, GgufBytes::array<uint8_t>(0, {1, 255}))
      .key("k.bools", kArray, GgufBytes::array<uint8_t>(7, {0, 1, 1}))
      .key("k.floats", kArray, GgufBytes::array<float>(6, {0.5f, 2.0f}))
      .key("k.empty", kArray, GgufBytes::array<float>(6, {}))
      .key("k.nested", kArray,
           number(kArray) + number(uint64_t{2}) + GgufBytes::array<uint16_t>(2, {7}) + GgufBytes::array({"x", "y"}));
  file.tensor("token_embd.weight", {64, 3}, kQ8_0, 64 / 32 * 34 * 3)
      .tensor("output_norm.weight", {5}, kF32, 20)
      .tensor("blk.0.ffn_up_exps.weight", {256, 2, 2}, kQ4_K, 144 * 4)
      .tensor("odd", {32, 1, 1, 2}, kF32, 256);
  return file;
}

std::string message_of(const std::string& path) {
  try {
    (void)GgufFile::open(path);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

// Opening must fail with one line that names the file and has `part` in it.
void check_refused(const std::string& path, const std::string& part) {
  const std::string message = message_of(path);
  INFO(message);
  CHECK(message.starts_with(path + ": "));
  CHECK(message.find(part) != std::string::npos);
  CHECK(message.find('\n') == std::string::npos);
}

void check_refused(const GgufBytes& file, const std::string& part) {
  const TempFolder folder;
  check_refused(folder.write("bad.gguf", file.bytes()), part);
}

void touch_everything(const GgufFile& file) {
  unsigned sum = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    CHECK(file.find_tensor(tensor.name) == &tensor);
    for (size_t i = 0; i < tensor.size_bytes; ++i) sum += std::to_integer<unsigned>(tensor.data[i]);
  }
  for (const auto& [key, value] : file.metadata()) {
    if (const auto* text = std::get_if<std::string_view>(&value)) {
      for (char c : *text) sum += static_cast<unsigned char>(c);
    }
  }
  volatile unsigned keep = sum;
  (void)keep;
}

TEST_CASE("GGUF values of every type are read", "[gguf]") {
  const TempFolder folder;
  for (uint32_t version : {2u, 3u}) {
    GgufBytes bytes = small_file();
    bytes.version = version;
    const std::string path = folder.write("small.gguf", bytes.bytes());
    const GgufFile file = GgufFile::open(path);
    CHECK(file.path() == path);
    CHECK(file.size_bytes() == bytes.bytes().size());
    CHECK(file.metadata().size() == 19);
    CHECK(file.metadata()[1].first == "k.u8");
    constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
    constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
    CHECK(file.get_string("general.architecture") == "qwen35moe");
    CHECK(file.get_int("k.u8", kMin, kMax) == 200);
    CHECK(file.get_int("k.i8", kMin, kMax) == -100);
    CHECK(file.get_int("k.u16", kMin, kMax) == 60000);
    CHECK(file.get_int("k.i16", kMin, kMax) == -30000);
    CHECK(file.get_int("k.u32", kMin, kMax) == 4000000000);
    CHECK(file.get_int("k.i32", kMin, kMax) == -2000000000);
    CHECK(file.get_int("k.i64", kMin, kMax) == kMin);
    CHECK_THROWS_AS(file.get_int("k.u64", kMin, kMax), InputError);
    CHECK(file.get_float("k.f32") == 1.5);
    CHECK(file.get_float("k.f64") == -2.25);
    CHECK(file.get_bool("k.bool", false));
    CHECK(file.get_string_array("k.strings") == std::vector<std::string_view>{"a", "", "ccc"});
    CHECK(file.find_int_array("k.ints") == std::vector<int64_t>{1, -2, 3});
    CHECK(file.find_int_array("k.bytes") == std::vector<int64_t>{1, 255});
    CHECK(file.find_int_array("k.bools") == std::vector<int64_t>{0, 1, 1});
    CHECK(file.find_int_array("k.u16") == std::vector<int64_t>{60000});
    CHECK(file.find_int_array("k.bool") == std::vector<int64_t>{1});
    const auto& nested = std::get<std::shared_ptr<const GgufArray>>(*file.find("k.nested"));
    REQUIRE(nested->size() == 2);
    const auto& inner = std::get<std::vector<std::shared_ptr<const GgufArray>>>(nested->elements);
    CHECK(std::get<std::vector<uint64_t>>(inner[0]->elements) == std::vector<uint64_t>{7});
    CHECK(std::get<std::vector<std::string_view>>(inner[1]->elements) == std::vector<std::string_view>{"x", "y"});

    REQUIRE(file.tensors().size() == 4);
    const GgufTensor* experts = file.find_tensor("blk.0.ffn_up_exps.weight");
    REQUIRE(experts == &file.tensors()[2]);
    CHECK(experts->type() == WeightType::kQ4_K);
    CHECK(experts->shape == std::vector<int64_t>{256, 2, 2});
    CHECK(experts->num_values() == 1024);
    CHECK(experts->size_bytes == 576);
    const size_t data_offset = (204 + 31) / 32 * 32 + 32;  // behind 204 bytes of Q8_0 and one padded norm
    CHECK(std::to_integer<uint8_t>(experts->data[0]) == static_cast<uint8_t>(data_offset * 31));
    CHECK(bytes.bytes()[experts->file_offset] == std::to_integer<char>(experts->data[0]));
    CHECK(file.find_tensor("blk.0") == nullptr);
    CHECK(file.find_tensor("zzz") == nullptr);
    touch_everything(file);
  }
}

TEST_CASE("GGUF typed access names file, key, value and limit", "[gguf]") {
  const TempFolder folder;
  GgufBytes bytes = small_file();
  bytes.key("k.nan", 6, GgufBytes::number(std::numeric_limits<float>::quiet_NaN()))
      .key("k.inf", 12, GgufBytes::number(std::numeric_limits<double>::infinity()))
      .key("k.bad_text", "\x1b[31m\xff\n")
      .key("k.big", kArray, GgufBytes::array<uint64_t>(kUint64, {1, UINT64_MAX}));
  const std::string path = folder.write("small.gguf", bytes.bytes());
  const GgufFile file = GgufFile::open(path);
  const auto message = [&](const auto& call) -> std::string {
    try {
      call();
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  const std::string key = path + ": metadata key ";
  CHECK(message([&] { (void)file.get_int("k.i8", 0, 5); }) ==
        key + "k.i8: the integer -100; an integer from 0 to 5 is needed");
  CHECK(message([&] { (void)file.get_int("k.u8", 0, 199); }) ==
        key + "k.u8: the integer 200; an integer from 0 to 199 is needed");
  CHECK(message([&] { (void)file.get_int("k.f32", 0, 5); }) ==
        key + "k.f32: the float 1.5; an integer from 0 to 5 is needed");
  CHECK(message([&] { (void)file.get_int("k.ints", 0, 5); }) ==
        key + "k.ints: an array of 3 integers; an integer from 0 to 5 is needed");
  CHECK(message([&] { (void)file.get_int("none", 0, 5); }).starts_with(key + "none: missing"));
  CHECK(message([&] { (void)file.get_float("none"); }).starts_with(key + "none: missing"));
  CHECK(message([&] { (void)file.get_float("k.nan"); }) == key + "k.nan: the float nan; a finite number is needed");
  CHECK(message([&] { (void)file.get_float("k.nan", 1.0); }) ==
        key + "k.nan: the float nan; a finite number is needed");
  CHECK(message([&] { (void)file.get_float("k.inf"); }) == key + "k.inf: the float inf; a finite number is needed");
  CHECK(message([&] { (void)file.get_float("k.bool"); }) == key + "k.bool: the bool true; a finite number is needed");
  CHECK(message([&] { (void)file.get_bool("k.u8", true); }) == key + "k.u8: the integer 200; a bool is needed");
  CHECK(message([&] { (void)file.get_string("k.u8"); }) == key + "k.u8: the integer 200; a string is needed");
  CHECK(message([&] { (void)file.get_string("none"); }).starts_with(key + "none: missing"));
  CHECK(message([&] { (void)file.get_string_array("k.ints"); }) ==
        key + "k.ints: an array of 3 integers; an array of strings is needed");
  CHECK(message([&] { (void)file.get_string_array("none"); }).starts_with(key + "none: missing"));
  CHECK(message([&] { (void)file.find_int_array("k.floats"); }) ==
        key + "k.floats: an array of 2 floats; an array of integers is needed");
  CHECK(message([&] {
          (void)file.find_int_array("k.big");
        }).starts_with(key + "k.big: 18446744073709551615 in the array"));
  CHECK(message([&] { (void)file.get_int("k.bad_text", 0, 1); }) ==
        key + "k.bad_text: the string \"\\x1B[31m\\xFF\\x0A\"; an integer from 0 to 1 is needed");
  CHECK(message([&] { (void)file.get_int("no\nne", 0, 1); }).starts_with(key + "no\\x0Ane: missing"));
  CHECK(file.get_int("none", 0, 5, 3) == 3);
  CHECK(file.get_float("none", 0.5) == 0.5);
  CHECK(file.get_float("k.u8") == 200.0);
  CHECK(file.get_bool("none", true));
  CHECK(file.get_string("none", "x") == "x");
  CHECK(file.find_int_array("none") == std::nullopt);
  CHECK(file.find("none") == nullptr);
}

// Parses a copy on the heap that ends where the bytes end, so that a sanitizer sees a step beyond, and reads all that
// the result shows. Returns the error's message, or nothing. Neither way may allocate much more than the file has.
// Its checks are plain comparisons: in 400,000 calls Catch's macros would take most of the time.
std::string message_of_bytes(std::string_view bytes) {
  const std::vector<char> copy(bytes.begin(), bytes.end());
  std::string message;
  largest_allocation = 0;
  try {
    const GgufPart part = parse_gguf_part(std::as_bytes(std::span(copy)), "memory.gguf");
    unsigned sum = 0;
    for (const GgufTensor& tensor : part.tensors) {
      for (size_t i = 0; i < tensor.size_bytes; ++i) sum += std::to_integer<unsigned>(tensor.data[i]);
    }
    for (const auto& [key, value] : part.metadata) {
      if (const auto* text = std::get_if<std::string_view>(&value)) {
        for (char c : *text) sum += static_cast<unsigned char>(c);
      }
    }
    volatile unsigned keep = sum;
    (void)keep;
  } catch (const InputError& error) {
    message = error.what();
    if (!message.starts_with("memory.gguf: ")) FAIL("no file in the message: " << message);
  }
  if (largest_allocation > 64 * bytes.size() + 4096) FAIL(largest_allocation << " bytes allocated: " << message);
  return message;
}

TEST_CASE("A GGUF file cut short anywhere is refused", "[gguf][bad-file]") {
  const TempFolder folder;
  const std::string whole = small_file().bytes();
  for (size_t length = 0; length < whole.size(); ++length) {
    if (message_of_bytes(std::string_view(whole).substr(0, length)).empty())
      FAIL("accepted when cut to " << length << " bytes");
    if (length % 97 == 0) REQUIRE(!message_of(folder.write("cut.gguf", whole.substr(0, length))).empty());
  }
  CHECK(message_of_bytes(whole).empty());
  CHECK(message_of_bytes(whole + "more").empty());
}

TEST_CASE("A GGUF file with any byte spoilt is refused or read within its bounds", "[gguf][bad-file]") {
  const std::string whole = small_file().bytes();
  const size_t head_bytes = small_file().head().size();
  int refused = 0;
  for (size_t at = 0; at < head_bytes; ++at) {
    for (int spoilt = 0; spoilt < 256; ++spoilt) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(spoilt);
      if (!message_of_bytes(bytes).empty()) ++refused;
    }
  }
  // Most bytes of a header are lengths, counts and types; a byte within a name or a value may change without harm.
  CHECK(refused > static_cast<int>(head_bytes * 256 / 2));
}

TEST_CASE("A GGUF file of random pieces of a good one never leads outside its bounds", "[gguf][bad-file]") {
  const std::string whole = small_file().bytes();
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = whole;
    const int num_edits = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < num_edits && !bytes.empty(); ++i) {
      const size_t at = random() % bytes.size();
      const size_t length = std::min<size_t>(1 + random() % 16, bytes.size() - at);
      switch (random() % 3) {
        case 0:
          bytes.erase(at, length);
          break;
        case 1:
          bytes.insert(at, bytes.substr(random() % bytes.size(), length));
          break;
        default:
          for (size_t k = at; k < at + length; ++k) bytes[k] = static_cast<char>(random());
      }
    }
    (void)message_of_bytes(bytes);
  }
}

TEST_CASE("GGUF headers that are wrong say what is wrong", "[gguf][bad-file]") {
  const auto with = [](const auto& change) {
    GgufBytes file = small_file();
    change(file);
    return file;
  };
  check_refused(with([](GgufBytes& f) { f.magic = "GGML"; }), "begins with \"GGML\" instead of \"GGUF\"");
  check_refused(with([](GgufBytes& f) { f.magic = std::string("\0\xff\n\x1b", 4); }), "\"\\x00\\xFF\\x0A\\x1B\"");
  check_refused(with([](GgufBytes& f) { f.magic = "version https://git-lfs.github.com/spec/v1\n"; }), "git lfs pull");
  check_refused(with([](GgufBytes& f) { f.version = 1; }), "version 1; versions 2 and 3");
  check_refused(with([](GgufBytes& f) { f.version = 0; }), "version 0; versions 2 and 3");
  check_refused(with([](GgufBytes& f) { f.version = 4; }), "version 4; versions 2 and 3");
  check_refused(with([](GgufBytes& f) { f.version = 0x03000000; }), "big-endian GGUF v3");
  check_refused(with([](GgufBytes& f) { f.extra_tensors = int64_t{1} << 60; }),
                "number of tensors is 1152921504606846980");
  check_refused(with([](GgufBytes& f) { f.extra_tensors = -5; }), "number of tensors is 18446744073709551615");
  check_refused(with([](GgufBytes& f) { f.extra_keys = int64_t{1} << 60; }),
                "number of metadata keys is 1152921504606846995");
  check_refused(with([](GgufBytes& f) { f.extra_keys = 30; }), "metadata key 21 of 49: its name has length");
  check_refused(with([](GgufBytes& f) { f.extra_tensors = 1; }), "tensor 5 of 5");
}

TEST_CASE("GGUF metadata that is wrong says what is wrong", "[gguf][bad-file]") {
  const auto with_key = [](std::string_view name, uint32_t type, const std::string& value) {
    GgufBytes file = small_file();
    file.key(name, type, value);
    return file;
  };
  const auto number = [](auto value) { return GgufBytes::number(value); };
  check_refused(with_key("", 4, number(1)), "its name is empty");
  check_refused(with_key("k\n", 4, number(1)), "not printable UTF-8: \"k\\x0A\"");
  check_refused(with_key("k\xc3", 4, number(1)), "not printable UTF-8: \"k\\xC3\"");
  check_refused(with_key(std::string(65536, 'k'), 4, number(1)), "its name has length 65536; the limit is 65535");
  check_refused(with_key("k", 13, number(1)), "key k: value type 13 is unknown");
  check_refused(with_key("k", UINT32_MAX, number(1)), "value type 4294967295 is unknown");
  check_refused(with_key("k", 7, number(uint8_t{2})), "key k: a bool has the value 2");
  check_refused(with_key("k", 8, number(uint64_t{1} << 63)), "key k: its value has length 9223372036854775808");
  check_refused(with_key("k", 8, number(UINT64_MAX)), "its value has length 18446744073709551615");
  check_refused(with_key("k", kArray, number(uint32_t{13}) + number(uint64_t{1})), "value type 13 is unknown");
  check_refused(with_key("k", kArray, number(uint32_t{0}) + number(uint64_t{1} << 60)),
                "number of its elements is 1152921504606846976");
  check_refused(with_key("k", kArray, number(kUint64) + number((uint64_t{1} << 61) + 1)),
                "number of its elements is 2305843009213693953");
  check_refused(with_key("k", kArray, number(uint32_t{8}) + number(uint64_t{1} << 61)),
                "number of its elements is 2305843009213693952");
  check_refused(with_key("k", kArray, number(kArray) + number(UINT64_MAX)),
                "number of its elements is 18446744073709551615");
  check_refused(with_key("k", kArray, number(uint32_t{7}) + number(uint64_t{2}) + number(uint16_t{0x0300})),
                "a bool has the value 3");
  check_refused(with_key("k.u8", 4, number(1)), "metadata: key k.u8 is there twice");
  std::string nested = GgufBytes::array<uint8_t>(0, {1});
  for (int depth = 2; depth <= 5; ++depth) {
    nested = number(kArray) + number(uint64_t{1}) + nested;
    const GgufBytes file = with_key("k", kArray, nested);
    if (depth <= 4) {
      const TempFolder folder;
      CHECK(message_of(folder.write("nested.gguf", file.bytes())).empty());
    } else {
      check_refused(file, "nested deeper than 4 levels");
    }
  }
}

TEST_CASE("GGUF alignments other than powers of two from 8 on are refused", "[gguf][bad-file]") {
  const TempFolder folder;
  for (uint32_t alignment : {8u, 16u, 32u, 64u, 4096u, 65536u}) {
    GgufBytes file;
    file.alignment = alignment;
    file.key("general.alignment", alignment).tensor("a", {5}, kF32, 20).tensor("b", {5}, kF32, 20);
    const GgufFile read = GgufFile::open(folder.write("aligned.gguf", file.bytes()));
    CHECK(read.tensors()[1].file_offset % alignment == 0);
    CHECK(std::to_integer<uint8_t>(read.tensors()[1].data[0]) ==
          static_cast<uint8_t>((20 + alignment - 1) / alignment * alignment * 31));
  }
  for (uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 0x80000000u, UINT32_MAX}) {
    GgufBytes file;
    file.key("general.alignment", alignment).tensor("a", {5}, kF32, 20);
    check_refused(file, fmt::format("key general.alignment: is {}; a power of two from 8", alignment));
  }
  GgufBytes text;
  text.key("general.alignment", "32").tensor("a", {5}, kF32, 20);
  check_refused(text, "key general.alignment: is not an unsigned integer");
}

TEST_CASE("GGUF tensors that are wrong say what is wrong", "[gguf][bad-file]") {
  const auto with = [](std::string_view name, const std::vector<uint64_t>& shape, uint32_t type, uint64_t size_bytes) {
    GgufBytes file = small_file();
    file.tensor(name, shape, type, size_bytes);
    return file;
  };
  const auto at = [](uint64_t offset) {
    GgufBytes file = small_file();
    file.tensor_at("t", {8}, kF32, offset, 0);
    return file;
  };
  const TempFolder folder;
  CHECK(message_of(folder.write("long.gguf", with(std::string(127, 't'), {1}, kF32, 4).bytes())).empty());
  check_refused(with(std::string(128, 't'), {1}, kF32, 4), "its name has length 128; the limit is 127");
  check_refused(with("", {1}, kF32, 4), "its name is empty");
  check_refused(with("t\x7f", {1}, kF32, 4), "not printable UTF-8: \"t\\x7F\"");
  check_refused(with("odd", {1}, kF32, 4), "tensor directory: tensor odd is there twice");
  check_refused(with("t", {}, kF32, 4), "tensor t: has 0 dimensions; 1 to 4 allowed");
  check_refused(with("t", {1, 1, 1, 1, 1}, kF32, 4), "tensor t: has 5 dimensions; 1 to 4 allowed");
  check_refused(with("t", {4, 0}, kF32, 4), "tensor t: dimension 1 is 0");
  check_refused(with("t", {uint64_t{1} << 63}, kF32, 4), "tensor t: dimension 0 is 9223372036854775808");
  check_refused(with("t", {uint64_t{1} << 32, uint64_t{1} << 31}, kF32, 4), "number of values overflows 64 bits");
  check_refused(with("t", {uint64_t{1} << 62}, kF32, 4),
                "shape 4611686018427387904 of F32: its size overflows 64 bits");
  check_refused(with("t", {uint64_t{1} << 61}, kF32, 4), "tensor t: its 9223372036854775808 bytes");
  check_refused(with("t", {33}, kQ8_0, 34),
                "tensor t: a row has 33 values, not a multiple of the 32 values of one Q8_0 block");
  check_refused(with("t", {128, 2}, kQ4_K, 144),
                "a row has 128 values, not a multiple of the 256 values of one Q4_K block");
  check_refused(with("t", {8}, kF32, 31), "tensor t: its 32 bytes at offset ");
  check_refused(at(UINT64_MAX - 31), "tensor t: its 32 bytes at offset 18446744073709551584");
  check_refused(at(uint64_t{1} << 40), "tensor t: its 32 bytes at offset 1099511627776");
  check_refused(at(33), "tensor t: its offset 33 is not a multiple of the alignment 32");
  check_refused(at(32), "tensor t: its data at byte");
  check_refused(at(32), "overlaps tensor token_embd.weight");
}

TEST_CASE("GGUF tensors of unsupported types are kept without data", "[gguf]") {
  const TempFolder folder;
  GgufBytes bytes = small_file();
  bytes.tensor("iq", {256, 4}, kIQ2_K, 76 * 4).tensor("new", {3}, 99, 64);
  const GgufFile file = GgufFile::open(folder.write("types.gguf", bytes.bytes()));
  for (const char* name : {"iq", "new"}) {
    const GgufTensor* tensor = file.find_tensor(name);
    REQUIRE(tensor != nullptr);
    CHECK(tensor->type() == std::nullopt);
    CHECK(tensor->data == nullptr);
    CHECK(tensor->size_bytes == 0);
    file.release(*tensor);
  }
  CHECK(file.find_tensor("new")->type_id == 99);
  GgufBytes outside = small_file();
  outside.tensor_at("iq", {256, 4}, kIQ2_K, uint64_t{1} << 40, 0);
  check_refused(outside, "tensor iq: its 0 bytes at offset 1099511627776");
}

TEST_CASE("A GGUF file without tensors needs no data", "[gguf]") {
  const TempFolder folder;
  GgufBytes bytes;
  bytes.key("general.architecture", "x");
  const GgufFile file = GgufFile::open(folder.write("vocabulary.gguf", bytes.bytes()));
  CHECK(file.tensors().empty());
  CHECK(file.get_string("general.architecture") == "x");
  CHECK(file.fingerprint().size() == 64);
}

TEST_CASE("What is no file is refused by what it is", "[gguf][bad-file]") {
  const TempFolder folder;
  check_refused(folder.path("missing.gguf"), "No such file or directory");
  check_refused(folder.path(""), "is a directory");
  check_refused(folder.write("empty.gguf", ""), "is empty (0 bytes)");
  check_refused(folder.write("short.gguf", "GG"), "begins with \"GG\"");
  check_refused("/dev/null", "is not a regular file");
  REQUIRE(::mkfifo(folder.path("pipe.gguf").c_str(), 0600) == 0);
  check_refused(folder.path("pipe.gguf"), "is not a regular file");
  const std::string locked = folder.write("locked.gguf", small_file().bytes());
  REQUIRE(::chmod(locked.c_str(), 0) == 0);
  if (::geteuid() != 0) check_refused(locked, "Permission denied");
  const std::string message = message_of(folder.path("a\nb.gguf"));
  CHECK(message.find("a\\x0Ab.gguf: cannot open") != std::string::npos);
  CHECK(message_of(std::string("a\0b", 3)).find("zero byte") != std::string::npos);
}

// One part of a split model whose tensors are named t0, t1 ... from first_tensor on.
GgufBytes split_part(uint16_t no, uint16_t count, int32_t num_tensors, int first_tensor, int own_tensors) {
  GgufBytes part;
  if (no == 0) part.key("general.architecture", "split");
  part.key("split.no", 2, GgufBytes::number(no))
      .key("split.count", 2, GgufBytes::number(count))
      .key("split.tensors.count", 5, GgufBytes::number(num_tensors));
  for (int i = 0; i < own_tensors; ++i) part.tensor(fmt::format("t{}", first_tensor + i), {8}, kF32, 32);
  return part;
}

TEST_CASE("A split GGUF model is opened whole from any of its parts", "[gguf][split]") {
  const TempFolder folder;
  const std::string paths[] = {folder.write("m-00001-of-00003.gguf", split_part(0, 3, 3, 0, 1).bytes()),
                               folder.write("m-00002-of-00003.gguf", split_part(1, 3, 3, 1, 2).bytes()),
                               folder.write("m-00003-of-00003.gguf", split_part(2, 3, 3, 3, 0).bytes())};
  for (const std::string& path : paths) {
    const GgufFile file = GgufFile::open(path);
    CHECK(file.path() == paths[0]);
    CHECK(file.get_string("general.architecture") == "split");
    REQUIRE(file.tensors().size() == 3);
    CHECK(file.find_tensor("t0")->file_idx == 0);
    CHECK(file.find_tensor("t2")->file_idx == 1);
    CHECK(file.size_bytes() == std::filesystem::file_size(paths[0]) + std::filesystem::file_size(paths[1]) +
                                   std::filesystem::file_size(paths[2]));
    touch_everything(file);
  }
  CHECK(GgufFile::open(paths[0]).fingerprint() == GgufFile::open(paths[2]).fingerprint());
  // One part that holds everything.
  const GgufFile single = GgufFile::open(folder.write("m-00001-of-00001.gguf", split_part(0, 1, 2, 0, 2).bytes()));
  CHECK(single.tensors().size() == 2);
}

TEST_CASE("A split GGUF model whose parts do not fit is refused", "[gguf][split][bad-file]") {
  const TempFolder folder;
  const auto first = [&](const GgufBytes& part) { return folder.write("m-00001-of-00002.gguf", part.bytes()); };
  const auto second = [&](const GgufBytes& part) { return folder.write("m-00002-of-00002.gguf", part.bytes()); };
  const std::string path1 = first(split_part(0, 2, 2, 0, 1));
  const std::string path2 = folder.path("m-00002-of-00002.gguf");
  {
    const std::string message = message_of(path1);
    CHECK(message == path2 + ": cannot open: No such file or directory; check the path (part 2 of 2 of a split model)");
  }
  second(split_part(1, 2, 2, 1, 1));
  CHECK(message_of(path1).empty());

  // Each error names the part that is wrong.
  const auto refused = [](const std::string& opened, const std::string& named, const std::string& what) {
    const std::string message = message_of(opened);
    INFO(message);
    CHECK(message.starts_with(named + ": "));
    CHECK(message.find(what) != std::string::npos);
  };
  second(split_part(0, 2, 2, 1, 1));
  refused(path1, path2, "split.no: 0 (counted from 0), but its name says part 2");
  second(split_part(1, 3, 2, 1, 1));
  refused(path1, path2, "split.count: 3, but its name says 2 parts");
  second(split_part(1, 2, 2, 0, 1));
  refused(path1, path2, "tensor t0 is also in " + path1);
  second(split_part(1, 2, 5, 1, 1));
  refused(path1, path2, "split.tensors.count: the integer 5, but the integer 2 in");
  {
    GgufBytes other = split_part(1, 2, 2, 1, 1);
    other.key("general.architecture", "another");
    second(other);
    refused(path1, path2, "general.architecture: the string \"another\", but the string \"split\" in");
  }
  second(split_part(1, 2, 2, 1, 2));
  refused(path1, path1, "split.tensors.count: 2, but the 2 parts have 3 tensors");
  GgufBytes no_keys;
  no_keys.tensor("t1", {8}, kF32, 32);
  second(no_keys);
  refused(path1, path2, "split.count: missing");
  refused(path2, path2, "split.count: missing");
  GgufBytes negative;
  negative.key("split.count", 5, GgufBytes::number(int32_t{-1}));
  second(negative);
  refused(path2, path2, "split.count: the integer -1; a number not below 0 is needed");
  second(split_part(1, 2, 2, 1, 1));

  const std::string renamed = folder.write("renamed.gguf", split_part(0, 2, 2, 0, 1).bytes());
  refused(renamed, renamed, "is one of 2 parts of a split model, but its name does not end in -00001-of-00002.gguf");
  const std::string beyond = folder.write("m-00003-of-00002.gguf", split_part(2, 2, 2, 0, 1).bytes());
  refused(beyond, beyond, "its name says part 3 of 2");
  const std::string zero = folder.write("m-00000-of-00002.gguf", split_part(0, 2, 2, 0, 1).bytes());
  refused(zero, zero, "its name says part 0 of 2");
}

TEST_CASE("A GGUF array that would need much memory is refused before any is taken", "[gguf][bad-file]") {
  // A sparse file: 256 Mi one-byte elements would become 2 GiB of 64-bit ones.
  const TempFolder folder;
  GgufBytes bytes;
  bytes.key("k", kArray, GgufBytes::number(uint32_t{0}) + GgufBytes::number(uint64_t{1} << 28));
  const std::string path = folder.write("array.gguf", bytes.bytes());
  REQUIRE(::truncate(path.c_str(), off_t{1} << 29) == 0);
  largest_allocation = 0;
  check_refused(path, "key k: the array needs 2048 MiB of memory, above the limit of 512 MiB");
  CHECK(largest_allocation < 1 << 20);
}

TEST_CASE("A GGUF file of 20 GB with a large vocabulary opens in well under a second", "[gguf]") {
  const TempFolder folder;
  GgufBytes bytes;
  std::vector<std::string> tokens;
  for (int i = 0; i < 248320; ++i) tokens.push_back(fmt::format("token{}", i));
  bytes.key("tokenizer.ggml.tokens", kArray, GgufBytes::array(tokens))
      .key("tokenizer.ggml.merges", kArray, GgufBytes::array(tokens))
      .key("tokenizer.ggml.token_type", kArray, GgufBytes::array(5, std::vector<int32_t>(tokens.size(), 1)));
  constexpr uint64_t kTensorBytes = uint64_t{20} << 30;
  bytes.tensor("small", {8}, kF32, 32);
  bytes.tensor_at("large", {uint64_t{1} << 20, kTensorBytes >> 22}, kF32, 32, 0);
  const std::string path = folder.write("large.gguf", bytes.bytes());
  if (::truncate(path.c_str(), static_cast<off_t>(kTensorBytes + bytes.bytes().size())) != 0) {
    WARN("no room for a sparse file of 20 GB in " << path << ": not measured");
    return;
  }
  const std::clock_t begin = std::clock();  // processor time: other programs must not make this fail
  const GgufFile file = GgufFile::open(path);
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  CHECK(file.find_tensor("large")->size_bytes == kTensorBytes);
  CHECK(file.fingerprint().size() == 64);
  CHECK(seconds < 1.0);  // 0.02 s measured; ten times that under sanitizers
}

TEST_CASE("A GGUF fingerprint changes with header, size and data, and releasing pages changes nothing", "[gguf]") {
  const TempFolder folder;
  const std::string whole = small_file().bytes();
  const auto fingerprint = [&](const std::string& bytes) {
    return GgufFile::open(folder.write("f.gguf", bytes)).fingerprint();
  };
  const std::string original = fingerprint(whole);
  CHECK(fingerprint(whole) == original);
  CHECK(fingerprint(whole + '\0') != original);
  std::string changed = whole;
  changed.back() ^= 1;
  CHECK(fingerprint(changed) != original);
  changed = whole;
  changed[changed.find("qwen35moe")] = 'Q';
  CHECK(fingerprint(changed) != original);

  GgufBytes big;
  big.tensor("t", {1 << 20}, kF32, 4 << 20);
  const std::string path = folder.write("big.gguf", big.bytes());
  const GgufFile file = GgufFile::open(path);
  const std::string big_fingerprint = file.fingerprint();
  const GgufTensor& tensor = file.tensors()[0];
  std::vector<std::byte> before(tensor.data, tensor.data + tensor.size_bytes);
  file.release(tensor);
  file.release(tensor.data + 100, 5);
  file.release(tensor.data + 5000, 100000);
  CHECK(std::memcmp(before.data(), tensor.data, tensor.size_bytes) == 0);
  CHECK(file.fingerprint() == big_fingerprint);
  std::string bytes = big.bytes();
  bytes.back() ^= 1;  // the last sample touches the end
  CHECK(fingerprint(bytes) != big_fingerprint);
}

}  // namespace
}  // namespace foretoken
