#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/base/error.h"

namespace foretoken::jinja {

/// What a template does wrong, or what is done wrong with it: the cases in which Python's jinja2 raises.
class TemplateError : public InputError {
 public:
  using InputError::InputError;
};

/// What one render may use. A template is input as its messages are: whatever it says, time and memory are bounded.
class Budget {
 public:
  static constexpr int64_t kMostWork = 20'000'000;         // evaluated nodes, and 16 bytes handled count as one
  static constexpr int64_t kMostBytes = int64_t{1} << 28;  // of all strings and containers that are made, together
  static constexpr int kMostDepth = 200;                   // of nested values, calls and blocks

  void work(size_t amount = 1);
  void allocate(size_t bytes);

 private:
  int64_t work_left_ = kMostWork;
  int64_t bytes_left_ = kMostBytes;
};

/// A string of UTF-8 that remembers which of its bytes came from a message rather than from the template.
struct Text {
  std::string bytes;
  std::string origin;      // empty: all from the template; else a byte for each: 1 from a message, 0 from the template
  bool is_markup = false;  // marked as safe: what is joined to it is escaped

  [[nodiscard]] static Text of_user(std::string bytes);
  [[nodiscard]] size_t size() const { return bytes.size(); }
  [[nodiscard]] Text substr(size_t begin, size_t length) const;
  void append(const Text& other) { append(other, 0, other.size()); }
  void append(const Text& other, size_t begin, size_t length);
  void append(std::string_view from_template);
  /// Bytes that are made out of byte `at` of `source`.
  void append_like(std::string_view made, const Text& source, size_t at);
};

class Value;
struct Dict;
class Interpreter;

struct List {
  /// What it is in Python. A generator is used up by going over it.
  enum class Kind { kList, kTuple, kGenerator, kView, kRange };
  Kind kind = Kind::kList;
  std::vector<Value> items;
  std::string name;  // of a view or range: what stands around its items when it is printed
  int depth = 1;
  mutable bool is_used_up = false;
};

struct Namespace;
struct Loop;

/// Arguments of a call, a filter or a test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Function {
  std::string name;
  std::function<Value(Interpreter&, Arguments&)> call;
  int depth = 0;  // of the value that it is a method of
};

struct Undefined {
  std::string what;  // for the message, if it is used
};

/// A value of Python as templates meet them. Lists and dicts never change (the sandbox forbids it), so they may be
/// shared; a namespace lives in its interpreter.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}
  Value(std::shared_ptr<const Text> text) : data_(std::move(text)) {}
  Value(List list);
  Value(Dict dict);
  Value(Namespace* value) : data_(value) {}
  Value(std::shared_ptr<Loop> loop) : data_(std::move(loop)) {}
  Value(std::shared_ptr<const Function> function) : data_(std::move(function)) {}
  Value(const void*) = delete;  // or a string would become a bool

  [[nodiscard]] static Value none() { return Value(None{}); }
  [[nodiscard]] static Value string(std::string text) { return Value(Text{std::move(text), {}, false}); }
  [[nodiscard]] static Value list(std::vector<Value> items, List::Kind kind = List::Kind::kList);

  [[nodiscard]] bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  [[nodiscard]] bool is_none() const { return std::holds_alternative<None>(data_); }
  [[nodiscard]] bool is_bool() const { return std::holds_alternative<bool>(data_); }
  [[nodiscard]] bool is_int() const { return std::holds_alternative<int64_t>(data_); }  // a bool is not
  [[nodiscard]] bool is_float() const { return std::holds_alternative<double>(data_); }
  [[nodiscard]] bool is_integral() const { return is_int() || is_bool(); }
  [[nodiscard]] bool is_number() const { return is_integral() || is_float(); }
  [[nodiscard]] bool is_string() const { return std::holds_alternative<std::shared_ptr<const Text>>(data_); }
  [[nodiscard]] bool is_list() const { return std::holds_alternative<std::shared_ptr<const List>>(data_); }
  [[nodiscard]] bool is_list(List::Kind kind) const { return is_list() && list().kind == kind; }
  /// A list, tuple or range: what has an order and can be indexed.
  [[nodiscard]] bool is_sequence() const;
  [[nodiscard]] bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }
  [[nodiscard]] bool is_namespace() const { return std::holds_alternative<Namespace*>(data_); }
  [[nodiscard]] bool is_function() const { return std::holds_alternative<std::shared_ptr<const Function>>(data_); }
  [[nodiscard]] bool is_loop() const { return std::holds_alternative<std::shared_ptr<Loop>>(data_); }

  // REQUIRES: it is one.
  [[nodiscard]] int64_t as_int() const { return is_bool() ? std::get<bool>(data_) : std::get<int64_t>(data_); }
  [[nodiscard]] double as_float() const { return is_float() ? std::get<double>(data_) : static_cast<double>(as_int()); }
  [[nodiscard]] const Text& text() const { return *std::get<std::shared_ptr<const Text>>(data_); }
  [[nodiscard]] const List& list() const { return *std::get<std::shared_ptr<const List>>(data_); }
  [[nodiscard]] const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  [[nodiscard]] Namespace& name_space() const { return *std::get<Namespace*>(data_); }
  [[nodiscard]] const std::shared_ptr<Loop>& loop() const { return std::get<std::shared_ptr<Loop>>(data_); }
  [[nodiscard]] const Function& function() const { return *std::get<std::shared_ptr<const Function>>(data_); }
  [[nodiscard]] const std::string& undefined_what() const { return std::get<Undefined>(data_).what; }
  [[nodiscard]] bool is_string(std::string_view bytes) const { return is_string() && text().bytes == bytes; }
  [[nodiscard]] const void* identity() const;

  [[nodiscard]] int depth() const;

 private:
  struct None {};
  explicit Value(None none) : data_(none) {}
  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, Namespace*, std::shared_ptr<Loop>, std::shared_ptr<const Function>>
      data_;
};

/// In order of insertion. Small in templates, so it is searched; big ones are indexed by the bytes of string keys.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  int depth = 1;

  [[nodiscard]] const Value* find(std::string_view key) const;
  [[nodiscard]] const Value* find(const Value& key, Budget& budget) const;
  void set(Value key, Value value, Budget& budget);
};

struct Namespace {
  Dict attributes;
};

/// The variable `loop` of a for loop.
struct Loop {
  std::vector<Value> items;
  size_t index = 0;
  int depth = 1;    // of a recursive loop
  int nesting = 1;  // above its items
  bool is_over = false;
  Value last_changed;  // of loop.changed()
  bool has_changed = false;
  std::function<Value(Interpreter&, const Value& items)> recurse;  // of a loop that is marked as recursive
};

// What Python's operators and functions do. All of them throw TemplateError where Python raises.

[[nodiscard]] std::string type_name(const Value& value);
[[nodiscard]] bool truth(const Value& value);
[[nodiscard]] bool equal(const Value& a, const Value& b, Budget& budget);
[[nodiscard]] bool less(const Value& a, const Value& b, Budget& budget, std::string_view op = "<");
[[nodiscard]] bool contains(const Value& container, const Value& item, Budget& budget);
[[nodiscard]] bool is_hashable(const Value& value);
/// str(value).
[[nodiscard]] Text to_text(const Value& value, Budget& budget);
/// repr(value).
void append_repr(const Value& value, Text& out, Budget& budget, int depth = 0);
[[nodiscard]] std::string float_repr(double value);
/// The values of an iterable, each once; a generator is used up.
[[nodiscard]] std::vector<Value> iterate(const Value& value, Budget& budget);
[[nodiscard]] int64_t length(const Value& value);
[[nodiscard]] Value subscript(const Value& container, const Value& key,
                              Budget& budget);  // undefined where there is none
struct SliceBounds {
  Value begin = Value::none(), end = Value::none(), step = Value::none();
};
[[nodiscard]] Value slice(const Value& container, const SliceBounds& bounds, Budget& budget);
[[nodiscard]] Value binary(std::string_view op, const Value& a, const Value& b, Budget& budget);
[[nodiscard]] Value negate(const Value& value);

struct JsonFormat {
  bool ensure_ascii = false, sort_keys = false, has_indent = false;
  std::string indent;  // with has_indent: what one level is indented by
  std::string item_separator = ", ", key_separator = ": ";
};
/// json.dumps(value).
[[nodiscard]] Text to_json(const Value& value, const JsonFormat& format, Budget& budget);

// Characters.

[[nodiscard]] bool is_python_space(char32_t c);
/// Byte offsets of the characters of a text, and its size at the end.
[[nodiscard]] std::vector<size_t> character_offsets(std::string_view text);
[[nodiscard]] int64_t count_characters(std::string_view text);
/// str % arguments.
[[nodiscard]] Text printf_format(const Text& format, const Value& arguments, Budget& budget);
/// "escaped" as markupsafe does it.
[[nodiscard]] Text escape_markup(const Value& value, Budget& budget);

[[noreturn]] void raise(std::string message);
/// The depth of a value around others of that depth. Throws beyond Budget::kMostDepth, so that no chain of values is
/// too long for the machine's stack when it is taken apart.
[[nodiscard]] int depth_above(int deepest_item);

}  // namespace foretoken::jinja
