#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

/// Looks for stop strings in a text that arrives in pieces, and holds back what may still become one: what it has let
/// out is never taken back.
class StopMatcher {
 public:
  /// Empty strings are left out.
  explicit StopMatcher(std::vector<std::string> stops);

  /// Adds a piece; returns what may go out now. After a match that is the text before the stop string.
  [[nodiscard]] std::string push(std::string_view piece);
  /// What was held back, once the text is over.
  [[nodiscard]] std::string finish();

  /// The stop string that was found; empty: none yet. Of several that are found with the same piece the one that begins
  /// first, of those the longest.
  [[nodiscard]] const std::string& found() const { return found_; }

 private:
  const std::vector<std::string> stops_;
  std::string held_, found_;
};

}  // namespace foretoken
