#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// Finds tokens that stand for themselves in a text, such as <|im_end|>: the leftmost, and of those that begin there
/// the longest.
class SpecialTokens {
 public:
  struct Named {
    std::string_view name;
    TokenId id = -1;
  };
  struct Match {
    size_t begin = std::string_view::npos;  // npos: none
    size_t length = 0;
    TokenId id = -1;
  };

  SpecialTokens() = default;
  /// The names' bytes must outlive this. REQUIRES: none is empty or there twice.
  explicit SpecialTokens(std::vector<Named> tokens);

  /// The first match that begins at `from` or later.
  [[nodiscard]] Match find(std::string_view text, size_t from) const;

 private:
  [[nodiscard]] Match longest_at(std::string_view text, size_t begin) const;

  std::vector<Named> tokens_;  // by name
  struct Range {
    size_t begin = 0;
    size_t end = 0;
  };
  std::array<Range, 256> by_first_byte_{};  // of tokens_
};

}  // namespace foretoken
