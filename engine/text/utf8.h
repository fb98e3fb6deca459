#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace foretoken {

/// One character at the front of some bytes.
struct Utf8Char {
  char32_t code_point = 0;  // U+FFFD if the bytes are not valid
  size_t length = 0;  // bytes it takes; of invalid bytes: the longest part that begins a valid character, at least 1
  bool valid = false;
  bool unfinished = false;  // not valid only because the bytes end too early
};

/// Decodes the character at the front of `bytes` as Unicode 15, section 3.9 has it: no surrogates, no overlong forms,
/// nothing above U+10FFFF. REQUIRES: !bytes.empty().
[[nodiscard]] Utf8Char decode_utf8(std::string_view bytes);

/// The bytes that may follow a byte that begins a character of several bytes; those behind them are 0x80 to 0xBF.
struct Utf8Range {
  uint8_t first = 0x80, last = 0xbf;
};
/// left: how many bytes follow; 0: no such character begins with this byte.
[[nodiscard]] Utf8Range utf8_after(uint8_t lead, int& left);

/// Appends the UTF-8 of a code point. REQUIRES: it is at most U+10FFFF and no surrogate.
void append_utf8(char32_t code_point, std::string& out);

/// `text` as it may stand in a one-line message: control characters, characters that turn the writing direction and
/// bytes that are not UTF-8 become \xNN, and what is longer than max_bytes ends in "...".
[[nodiscard]] std::string printable(std::string_view text, size_t max_bytes = 100);

}  // namespace foretoken
