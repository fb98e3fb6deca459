#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace foretoken {

/// A JSON object that is handed on while it is written. What has been handed on can always be ended so that it is valid
/// JSON: a name waits for its value's begin, a number or word for its end, a comma for what follows it, an escape for
/// all of its characters. White space between values is left out; in strings, control characters become escapes, and a
/// backslash that begins no escape becomes two.
class JsonStream {
 public:
  enum class State {
    kWaiting,  // no value has begun, so nothing was handed on
    kOpen,
    kWhole,  // the object is closed
    kFailed  // what came is no JSON
  };

  /// Reads on and appends to `out` what has become certain. Returns how many bytes belong to the object: fewer than
  /// there are where it ends or fails within them. REQUIRES: the state is kWaiting or kOpen.
  size_t push(std::string_view text, std::string& out);
  /// Ends what was handed on. REQUIRES: the state is kOpen or kFailed.
  void close(std::string& out);
  [[nodiscard]] State state() const { return state_; }
  /// Bytes of the text up to the last that was handed on.
  [[nodiscard]] size_t num_told() const { return num_told_; }
  /// Something was handed on.
  [[nodiscard]] bool has_begun() const { return has_begun_; }

  static constexpr size_t kMostDepth = 256;

 private:
  enum class Expect {
    kObject,
    kFirstName,
    kName,
    kInName,
    kColon,
    kFirstValue,
    kValue,
    kInString,
    kInNumber,
    kInWord,
    kComma
  };

  bool take(char c, std::string& out);
  bool take_in_string(char c, std::string& to);
  bool begin_value(char c, std::string& out);
  bool end_bracket(char c, std::string& out);
  void hand_on(std::string& out);

  State state_ = State::kWaiting;
  Expect expect_ = Expect::kObject;
  bool has_begun_ = false;
  size_t num_read_ = 0, num_told_ = 0;
  std::string brackets_;  // that are open
  std::string pending_;   // not handed on yet
  std::string escape_;    // of a string, as far as it came
  std::string word_;      // a number or a word
};

/// As a JSON string's inside: quotes, backslashes and control characters escaped.
void append_json_text(std::string_view text, std::string& out);

}  // namespace foretoken
