#include "engine/text/special_tokens.h"

#include <algorithm>
#include <cstdint>

#include "kernels/base/error.h"

namespace foretoken {

SpecialTokens::SpecialTokens(std::vector<Named> tokens) : tokens_(std::move(tokens)) {
  // string_view compares bytes as unsigned, which longest_at() relies on.
  std::sort(tokens_.begin(), tokens_.end(), [](const Named& a, const Named& b) { return a.name < b.name; });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    FT_CHECK(!tokens_[i].name.empty() && (i == 0 || tokens_[i - 1].name != tokens_[i].name));
    Range& range = by_first_byte_[static_cast<uint8_t>(tokens_[i].name[0])];
    if (range.end == 0) range.begin = i;
    range.end = i + 1;
  }
}

SpecialTokens::Match SpecialTokens::longest_at(std::string_view text, size_t begin) const {
  const Range& range = by_first_byte_[static_cast<uint8_t>(text[begin])];
  auto first = tokens_.begin() + static_cast<ptrdiff_t>(range.begin);
  auto last = tokens_.begin() + static_cast<ptrdiff_t>(range.end);
  Match best;
  // Invariant: [first, last) are the tokens that begin with the `length` bytes at `begin`; one that ends there stands
  // first.
  for (size_t length = 1; first != last; ++length) {
    if (first->name.size() == length) {
      best = {begin, length, first->id};
      ++first;
    }
    if (begin + length == text.size()) break;
    const auto next = static_cast<uint8_t>(text[begin + length]);
    const auto byte_of = [length](const Named& token) { return static_cast<uint8_t>(token.name[length]); };
    first = std::partition_point(first, last, [&](const Named& token) { return byte_of(token) < next; });
    last = std::partition_point(first, last, [&](const Named& token) { return byte_of(token) == next; });
  }
  return best;
}

SpecialTokens::Match SpecialTokens::find(std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (by_first_byte_[static_cast<uint8_t>(text[begin])].end == 0) continue;
    const Match match = longest_at(text, begin);
    if (match.id >= 0) return match;
  }
  return {};
}

}  // namespace foretoken
