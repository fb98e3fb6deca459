#pragma once

#include <optional>
#include <string>

namespace foretoken {

/// Reads what a person types: with editing and a history of its own at a terminal, line by line otherwise.
class LineReader {
 public:
  LineReader();
  /// A message: lines that end in a backslash go on with the next one. Nothing at the end of the input; an empty one
  /// after Ctrl-C.
  [[nodiscard]] std::optional<std::string> read(const char* prompt);

 private:
  [[nodiscard]] std::optional<std::string> read_line(const char* prompt, bool& is_dropped) const;
  const bool edits_;
};

}  // namespace foretoken
