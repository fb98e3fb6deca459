#include "engine/text/utf8.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstring>

#include "engine/text/tokenizer.h"

namespace foretoken {

namespace {

constexpr char32_t kReplacement = 0xFFFD;

// Characters that would break a line, move the cursor or reorder the text around them.
bool is_unprintable(char32_t c) {
  return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029 || (c >= 0x202A && c <= 0x202E) ||
         (c >= 0x2066 && c <= 0x2069) || c == 0xFEFF;
}

}  // namespace

Utf8Char decode_utf8(std::string_view bytes) {
  const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte_at(0);
  if (lead < 0x80) return {.code_point = lead, .length = 1, .valid = true};
  const Utf8Char bad_lead = {.code_point = kReplacement, .length = 1};
  if (lead < 0xC2 || lead > 0xF4) return bad_lead;
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range keeps out overlong forms (E0, F0), surrogates (ED) and what lies above U+10FFFF (F4).
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code_point = lead & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {.code_point = kReplacement, .length = i, .unfinished = true};
    const uint8_t next = byte_at(i);
    if (next < low || next > high) return {.code_point = kReplacement, .length = i};
    code_point = code_point << 6 | (next & 0x3F);
    low = 0x80, high = 0xBF;
  }
  return {.code_point = code_point, .length = length, .valid = true};
}

Utf8Range utf8_after(uint8_t lead, int& left) {
  left = lead < 0xc2 || lead > 0xf4 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
  switch (lead) {
    case 0xe0:
      return {0xa0, 0xbf};  // no overlong form
    case 0xed:
      return {0x80, 0x9f};  // no surrogate
    case 0xf0:
      return {0x90, 0xbf};  // no overlong form
    case 0xf4:
      return {0x80, 0x8f};  // nothing above U+10FFFF
    default:
      return {0x80, 0xbf};
  }
}

void append_utf8(char32_t c, std::string& out) {
  const auto continuation = [c](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), continuation(0)};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), continuation(6), continuation(0)};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), continuation(12), continuation(6), continuation(0)};
  }
}

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    std::string next;
    if (c.valid && !is_unprintable(c.code_point)) {
      next = text.substr(0, c.length);
    } else {
      for (char byte : text.substr(0, c.length)) next += fmt::format("\\x{:02X}", static_cast<uint8_t>(byte));
    }
    if (out.size() + next.size() > max_bytes) return out + "...";
    out += next;
    text.remove_prefix(c.length);
  }
  return out;
}

size_t find_invalid_utf8(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    // Eight ASCII bytes at a time: prompts are mostly ASCII.
    uint64_t word = 0;
    if (text.size() - pos >= sizeof word) {
      std::memcpy(&word, text.data() + pos, sizeof word);
      if ((word & 0x8080808080808080u) == 0) {
        pos += sizeof word;
        continue;
      }
    }
    const Utf8Char c = decode_utf8(text.substr(pos));
    if (!c.valid) return pos;
    pos += c.length;
  }
  return std::string_view::npos;
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Char c = decode_utf8(rest);
    if (c.unfinished) break;
    append_utf8(c.code_point, out);
    rest.remove_prefix(c.length);
  }
  held_ = std::string(rest);
  return out;
}

std::string Utf8Stream::finish() {
  std::string out;
  if (!held_.empty()) append_utf8(kReplacement, out);
  held_.clear();
  return out;
}

}  // namespace foretoken
