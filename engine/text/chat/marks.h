#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

namespace foretoken {

/// White space between the parts of an answer, and of JSON.
inline constexpr std::string_view kSpace = " \t\r\n";
inline constexpr std::string_view kCallBegin = "<tool_call>", kCallEnd = "</tool_call>";

inline std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

/// Where `mark` may begin at the very end of the text; the text's size if it does not.
inline size_t partial_mark(std::string_view text, std::string_view mark) {
  for (size_t length = std::min(text.size(), mark.size() - 1); length > 0; --length) {
    if (text.ends_with(mark.substr(0, length))) return text.size() - length;
  }
  return text.size();
}

/// The mark stands at the text's begin: all of it, or as much as the text has.
inline bool may_begin(std::string_view text, std::string_view mark) {
  return text.size() < mark.size() ? mark.starts_with(text) : text.starts_with(mark);
}

}  // namespace foretoken
