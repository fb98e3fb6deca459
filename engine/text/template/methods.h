#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/template/interpreter.h"
#include "engine/text/template/value.h"

namespace foretoken::jinja {

/// What Python's getattr(object, name) finds: methods of strings, lists and dicts, attributes of a loop or a namespace.
/// Undefined where there is none, and for methods that would change a value: the sandbox has none of them.
[[nodiscard]] Value own_attribute(Interpreter& interpreter, const Value& object, const std::string& name);

/// Arguments of a call, taken by position or name.
class ArgumentReader {
 public:
  ArgumentReader(std::string_view function, const Arguments& arguments) : function_(function), arguments_(arguments) {}

  /// The next parameter; `fallback` where it was not given.
  [[nodiscard]] Value take(std::string_view name, Value fallback);
  [[nodiscard]] Value need(std::string_view name);  // throws where it was not given
  [[nodiscard]] int64_t take_int(std::string_view name, int64_t fallback);
  [[nodiscard]] bool take_bool(std::string_view name, bool fallback) { return truth(take(name, fallback)); }
  [[nodiscard]] Text need_text(std::string_view name);  // throws where it is no string
  /// Throws if an argument is left.
  void finish() const;

 private:
  [[nodiscard]] const Value* find(std::string_view name);

  std::string_view function_;
  const Arguments& arguments_;
  size_t position_ = 0;
  size_t num_named_ = 0;
};

// Methods of strings that filters use too. `chars` none: white space.
[[nodiscard]] Text strip(const Text& text, const Value& chars, bool left, bool right);
[[nodiscard]] Text to_upper(const Text& text);
[[nodiscard]] Text to_lower(const Text& text);
[[nodiscard]] Text capitalize(const Text& text);
[[nodiscard]] Text replace(const Text& text, const Text& from, const Text& to, int64_t most, Budget& budget);
[[nodiscard]] std::vector<Text> split_lines(const Text& text, bool keep_ends);
[[nodiscard]] std::vector<Text> split(const Text& text, const Value& separator, int64_t most, bool from_right,
                                      Budget& budget);
[[nodiscard]] Text join(const Text& separator, const std::vector<Text>& parts, Budget& budget);
/// Spaces on both sides up to `width` characters.
[[nodiscard]] Text center(const Text& text, int64_t width, std::string_view fill, Budget& budget);

}  // namespace foretoken::jinja
