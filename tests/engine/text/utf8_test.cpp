#include "engine/text/utf8.h"

#include <catch2/catch.hpp>

#include "engine/text/tokenizer.h"

namespace foretoken {
namespace {

TEST_CASE("UTF-8 that the standard forbids is found where it begins", "[utf8]") {
  const size_t none = std::string_view::npos;
  CHECK(find_invalid_utf8("") == none);
  CHECK(find_invalid_utf8("plain ASCII, longer than eight bytes") == none);
  CHECK(find_invalid_utf8(
            "\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF") ==
        none);
  for (const std::string bad : {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xE1\x80",
                                "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF", "\xF0\x90\x80", "\xF4\x90\x80\x80",
                                "\xF5\x80\x80\x80", "\xFF", "\xE2\x82\x41"}) {
    for (const std::string before : {"", "a", "1234567", "12345678", "123456789", "\xE2\x82\xAC", "0123456\xC3\xA9"}) {
      CAPTURE(printable(before + bad));
      CHECK(find_invalid_utf8(before + bad) == before.size());
      CHECK(find_invalid_utf8(before + bad + "12345678") == before.size());
    }
  }
}

TEST_CASE("Every character survives encoding and decoding", "[utf8]") {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    append_utf8(c, text);
    const Utf8Char back = decode_utf8(text);
    if (!back.valid || back.code_point != c || back.length != text.size() ||
        find_invalid_utf8(text) != std::string_view::npos) {
      FAIL("U+" << std::hex << static_cast<uint32_t>(c));
    }
  }
}

TEST_CASE("Text in messages has no control characters and nothing but UTF-8", "[utf8]") {
  CHECK(printable("na\xC3\xAFve \xE6\x97\xA5 'quoted' \\") == "na\xC3\xAFve \xE6\x97\xA5 'quoted' \\");
  CHECK(printable(std::string("\0\n\r\t\x1B\x7F", 6)) == "\\x00\\x0A\\x0D\\x09\\x1B\\x7F");
  CHECK(printable("\xC2\x9B|\xE2\x80\xAE|\xE2\x81\xA6|\xE2\x80\xA8") ==
        "\\xC2\\x9B|\\xE2\\x80\\xAE|\\xE2\\x81\\xA6|\\xE2\\x80\\xA8");
  CHECK(printable("a\xFFz\xE6\x97") == "a\\xFFz\\xE6\\x97");
  CHECK(printable("abcdef", 6) == "abcdef");
  CHECK(printable("abcdefg", 6) == "abcdef...");
  CHECK(printable("abcd\xE6\x97\xA5", 6) == "abcd...");  // never half a character
}

std::string stream_in_pieces(std::string_view text, size_t piece_bytes) {
  Utf8Stream stream;
  std::string out;
  for (size_t pos = 0; pos < text.size(); pos += piece_bytes) {
    const std::string part = stream.push(text.substr(pos, piece_bytes));
    if (find_invalid_utf8(part) != std::string_view::npos) FAIL("half a character: " << printable(part));
    out += part;
  }
  return out + stream.finish();
}

TEST_CASE("A stream gives whole characters, however the bytes arrive", "[utf8]") {
  const std::string text = "a\xC3\xA9\xE6\x97\xA5\xF0\x9F\x99\x82\xF4\x8F\xBF\xBFz";
  for (size_t piece_bytes = 1; piece_bytes <= text.size(); ++piece_bytes)
    CHECK(stream_in_pieces(text, piece_bytes) == text);
  Utf8Stream stream;
  CHECK(stream.push("ab\xE6") == "ab");
  CHECK(stream.push("\x97").empty());
  CHECK(stream.push("\xA5"
                    "c\xF0") ==
        "\xE6\x97\xA5"
        "c");
  CHECK(stream.finish() == "\xEF\xBF\xBD");
  CHECK(stream.finish().empty());
  CHECK(stream.push("next") == "next");
}

TEST_CASE("A stream replaces what can never become valid, one mark for each longest false start", "[utf8]") {
  const std::string mark = "\xEF\xBF\xBD";
  // Unicode 15, table 3-8 and its neighbours.
  const std::pair<std::string, std::string> cases[] = {
      {"a\xFFz", "a" + mark + "z"},
      {"\xC3(", mark + "("},
      {"\xE6\x97z", mark + "z"},
      {"\xF0\x9F\x99z", mark + "z"},
      {"\xED\xA0\x80", mark + mark + mark},
      {"\xC0\xAF", mark + mark},
      {"\xF4\x90\x80\x80", mark + mark + mark + mark},
      {"\xF1\x80\x80\xE1\x80\xC2z", mark + mark + mark + "z"},
      {"\xE6\x97", mark},
  };
  for (const auto& [bytes, expected] : cases) {
    CAPTURE(printable(bytes));
    for (size_t piece_bytes = 1; piece_bytes <= bytes.size(); ++piece_bytes)
      CHECK(stream_in_pieces(bytes, piece_bytes) == expected);
  }
}

}  // namespace
}  // namespace foretoken
