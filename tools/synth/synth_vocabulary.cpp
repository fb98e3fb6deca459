#include "tools/synth/synth_vocabulary.h"

#include <fmt/format.h>

#include <array>

#include "kernels/base/error.h"

namespace foretoken::synth {

namespace {

constexpr std::array<const char*, 3> kControl = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

// How byte-level BPE spells a byte: printable ones as themselves, the other 68 as the characters from U+0100 on, in
// their order. All are below U+0800.
std::string byte_spelling(int byte) {
  const auto stands_for_itself = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  int code_point = byte;
  if (!stands_for_itself(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) code_point += !stands_for_itself(b);
  }
  if (code_point < 0x80) return {static_cast<char>(code_point)};
  return {static_cast<char>(0xc0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3f))};
}

}  // namespace

Vocabulary Vocabulary::make(int64_t size) {
  FT_CHECK(size >= kSmallest);
  Vocabulary v;
  for (int byte = 0; byte < 256; ++byte) v.tokens.push_back(byte_spelling(byte));
  const std::string space = byte_spelling(' ');
  const std::array<std::pair<std::string, std::string>, 24> pairs = {{
      {"t", "h"}, {"th", "e"}, {space, "the"}, {"i", "n"}, {"in", "g"},  {"a", "n"},   {"an", "d"},  {space, "and"},
      {"r", "e"}, {"e", "r"},  {"o", "n"},     {"o", "r"}, {"a", "t"},   {"e", "s"},   {"e", "n"},   {"i", "s"},
      {"o", "u"}, {"s", "t"},  {"a", "r"},     {"e", "d"}, {space, "t"}, {space, "a"}, {space, "s"}, {"l", "l"},
  }};
  for (const auto& [left, right] : pairs) {
    v.merges.push_back(left + ' ' + right);
    v.tokens.push_back(left + right);
  }
  for (int64_t word = 0; static_cast<int64_t>(v.tokens.size() + kControl.size()) < size; ++word) {
    v.tokens.push_back(fmt::format("{}w{}", space, word));
  }
  v.types.assign(v.tokens.size(), 1);
  v.end_of_text = static_cast<TokenId>(v.tokens.size());
  for (const char* control : kControl) {
    v.tokens.emplace_back(control);
    v.types.push_back(3);
  }
  v.end_of_turn = static_cast<TokenId>(v.tokens.size()) - 1;
  return v;
}

bool is_printable(TokenId id, int64_t vocab_size) {
  if (id < 256) return id > 32 && id < 127;
  return id < vocab_size - static_cast<int64_t>(kControl.size());
}

}  // namespace foretoken::synth
