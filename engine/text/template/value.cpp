#include "engine/text/template/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "engine/text/utf8.h"

namespace foretoken::jinja {

void raise(std::string message) {
  throw TemplateError(std::move(message));
}

void Budget::work(size_t amount) {
  work_left_ -= static_cast<int64_t>(std::min<size_t>(amount, kMostWork + 1));
  if (work_left_ < 0) raise("the template takes too many steps");
}

void Budget::allocate(size_t bytes) {
  work(bytes / 16);
  bytes_left_ -= static_cast<int64_t>(std::min<size_t>(bytes, kMostBytes + 1));
  if (bytes_left_ < 0) raise("the template makes too much text");
}

// ---- Text ----

Text Text::of_user(std::string bytes) {
  Text text;
  text.origin.assign(bytes.size(), 1);
  text.bytes = std::move(bytes);
  return text;
}

Text Text::substr(size_t begin, size_t length) const {
  Text part{bytes.substr(begin, length), origin.empty() ? "" : origin.substr(begin, length), is_markup};
  return part;
}

void Text::append(const Text& other, size_t begin, size_t length) {
  if (!other.origin.empty()) {
    origin.resize(bytes.size(), 0);
    origin.append(other.origin, begin, length);
  } else if (!origin.empty()) {
    origin.append(length, 0);
  }
  bytes.append(other.bytes, begin, length);
}

void Text::append(std::string_view from_template) {
  bytes += from_template;
  if (!origin.empty()) origin.resize(bytes.size(), 0);
}

void Text::append_like(std::string_view made, const Text& source, size_t at) {
  const char from = source.origin.empty() ? 0 : source.origin[at];
  if (from != 0) origin.resize(bytes.size(), 0);
  bytes += made;
  if (from != 0 || !origin.empty()) origin.resize(bytes.size(), from);
}

// ---- Value ----

int depth_above(int deepest_item) {
  if (deepest_item >= Budget::kMostDepth) raise("values are nested too deeply");
  return deepest_item + 1;
}

Value::Value(List list) {
  int deepest = 0;
  for (const Value& item : list.items) deepest = std::max(deepest, item.depth());
  list.depth = depth_above(deepest);
  data_ = std::make_shared<const List>(std::move(list));
}

Value::Value(Dict dict) {
  int deepest = 0;
  for (const auto& [key, value] : dict.items) deepest = std::max({deepest, key.depth(), value.depth()});
  dict.depth = depth_above(deepest);
  data_ = std::make_shared<const Dict>(std::move(dict));
}

Value Value::list(std::vector<Value> items, List::Kind kind) {
  List list;
  list.kind = kind;
  list.items = std::move(items);
  return Value(std::move(list));
}

int Value::depth() const {
  if (is_list()) return list().depth;
  if (is_dict()) return dict().depth;
  if (is_loop()) return loop()->nesting;
  if (is_function()) return function().depth;
  return 0;
}

bool Value::is_sequence() const {
  return is_list(List::Kind::kList) || is_list(List::Kind::kTuple) || is_list(List::Kind::kRange);
}

const void* Value::identity() const {
  if (is_string()) return &text();
  if (is_list()) return &list();
  if (is_dict()) return &dict();
  if (is_namespace()) return std::get<Namespace*>(data_);
  if (is_function()) return &function();
  if (is_loop()) return loop().get();
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [k, value] : items) {
    if (k.is_string(key)) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  budget.work(items.size() / 8);
  if (key.is_string()) return find(key.text().bytes);
  for (const auto& [k, value] : items) {
    if (!k.is_string() && equal(k, key, budget)) return &value;
  }
  return nullptr;
}

void Dict::set(Value key, Value value, Budget& budget) {
  if (!is_hashable(key)) raise(fmt::format("unhashable type: '{}'", type_name(key)));
  if (const Value* found = find(key, budget)) {
    *const_cast<Value*>(found) = std::move(value);
    return;
  }
  budget.allocate(2 * sizeof(Value));
  items.emplace_back(std::move(key), std::move(value));
}

bool is_hashable(const Value& value) {
  if (value.is_dict()) return false;
  if (!value.is_list()) return true;
  if (value.is_list(List::Kind::kList)) return false;
  if (!value.is_list(List::Kind::kTuple)) return true;
  return std::all_of(value.list().items.begin(), value.list().items.end(), is_hashable);
}

std::string type_name(const Value& value) {
  if (value.is_undefined()) return "Undefined";
  if (value.is_none()) return "NoneType";
  if (value.is_bool()) return "bool";
  if (value.is_int()) return "int";
  if (value.is_float()) return "float";
  if (value.is_string()) return value.text().is_markup ? "Markup" : "str";
  if (value.is_dict()) return "dict";
  if (value.is_namespace()) return "Namespace";
  if (value.is_loop()) return "LoopContext";
  if (value.is_function()) return "function";
  switch (value.list().kind) {
    case List::Kind::kList:
      return "list";
    case List::Kind::kTuple:
      return "tuple";
    case List::Kind::kGenerator:
      return "generator";
    case List::Kind::kView:
      return value.list().name;
    case List::Kind::kRange:
      return "range";
  }
  return "";
}

namespace {

[[noreturn]] void raise_undefined(const Value& value) {
  raise(value.undefined_what().empty() ? "a value is undefined" : value.undefined_what() + " is undefined");
}

void refuse_undefined(const Value& value) {
  if (value.is_undefined()) raise_undefined(value);
}

}  // namespace

bool truth(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_integral()) return value.as_int() != 0;
  if (value.is_float()) return value.as_float() != 0;
  if (value.is_string()) return value.text().size() != 0;
  if (value.is_list()) return value.list().kind == List::Kind::kGenerator || !value.list().items.empty();
  if (value.is_dict()) return !value.dict().items.empty();
  if (value.is_loop()) return !value.loop()->items.empty();
  return true;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.work();
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.as_float() == b.as_float() : a.as_int() == b.as_int();
  }
  if (a.is_string() && b.is_string()) {
    budget.work(std::min(a.text().size(), b.text().size()) / 16);
    return a.text().bytes == b.text().bytes;
  }
  if (a.is_list() && b.is_list()) {
    const List &x = a.list(), &y = b.list();
    if (x.kind != y.kind) return false;
    if (x.kind == List::Kind::kGenerator) return &x == &y;
    return std::equal(x.items.begin(), x.items.end(), y.items.begin(), y.items.end(),
                      [&](const Value& u, const Value& v) { return equal(u, v, budget); });
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.dict().items.size() != b.dict().items.size()) return false;
    return std::all_of(a.dict().items.begin(), a.dict().items.end(), [&](const auto& item) {
      const Value* other = b.dict().find(item.first, budget);
      return other != nullptr && equal(item.second, *other, budget);
    });
  }
  if (a.is_undefined()) return b.is_undefined();
  if (a.is_none()) return b.is_none();
  return a.identity() != nullptr && a.identity() == b.identity();
}

bool less(const Value& a, const Value& b, Budget& budget, std::string_view op) {
  budget.work();
  refuse_undefined(a);
  refuse_undefined(b);
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? a.as_float() < b.as_float() : a.as_int() < b.as_int();
  }
  if (a.is_string() && b.is_string()) {
    budget.work(std::min(a.text().size(), b.text().size()) / 16);
    return a.text().bytes < b.text().bytes;  // the order of UTF-8's bytes is that of code points
  }
  if (a.is_list() && b.is_list() && a.list().kind == b.list().kind &&
      (a.list().kind == List::Kind::kList || a.list().kind == List::Kind::kTuple)) {
    const auto &x = a.list().items, &y = b.list().items;
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equal(x[i], y[i], budget)) return less(x[i], y[i], budget, op);
    }
    return x.size() < y.size();
  }
  raise(fmt::format("'{}' not supported between instances of '{}' and '{}'", op, type_name(a), type_name(b)));
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is_string()) {
    if (!item.is_string()) raise(fmt::format("'in <string>' requires string as left operand, not {}", type_name(item)));
    const std::string &text = container.text().bytes, &part = item.text().bytes;
    budget.work(text.size() / 16);
    return memmem(text.data(), text.size(), part.data(), part.size()) != nullptr;
  }
  if (container.is_dict()) {
    if (!is_hashable(item)) raise(fmt::format("unhashable type: '{}'", type_name(item)));
    return container.dict().find(item, budget) != nullptr;
  }
  if (container.is_number() || container.is_none() || container.is_namespace() || container.is_function())
    raise(fmt::format("argument of type '{}' is not iterable", type_name(container)));
  const std::vector<Value> items = iterate(container, budget);
  return std::any_of(items.begin(), items.end(), [&](const Value& value) { return equal(value, item, budget); });
}

std::vector<Value> iterate(const Value& value, Budget& budget) {
  if (value.is_undefined()) return {};
  std::vector<Value> items;
  if (value.is_list()) {
    const List& list = value.list();
    if (list.kind == List::Kind::kGenerator && std::exchange(list.is_used_up, true)) return {};
    budget.allocate(list.items.size() * sizeof(Value));
    return list.items;
  }
  if (value.is_dict()) {
    budget.allocate(value.dict().items.size() * sizeof(Value));
    for (const auto& [key, item] : value.dict().items) items.push_back(key);
    return items;
  }
  if (value.is_string()) {
    const Text& text = value.text();
    budget.allocate(text.size() * (sizeof(Value) + sizeof(Text)));
    const std::vector<size_t> offsets = character_offsets(text.bytes);
    for (size_t i = 0; i + 1 < offsets.size(); ++i)
      items.emplace_back(text.substr(offsets[i], offsets[i + 1] - offsets[i]));
    return items;
  }
  if (value.is_loop()) {
    Loop& loop = *value.loop();
    for (; loop.index < loop.items.size(); ++loop.index) items.push_back(loop.items[loop.index]);
    return items;
  }
  raise(fmt::format("'{}' object is not iterable", type_name(value)));
}

int64_t length(const Value& value) {
  if (value.is_undefined()) return 0;
  if (value.is_string()) return count_characters(value.text().bytes);
  if (value.is_list() && value.list().kind != List::Kind::kGenerator)
    return static_cast<int64_t>(value.list().items.size());
  if (value.is_dict()) return static_cast<int64_t>(value.dict().items.size());
  if (value.is_loop()) return static_cast<int64_t>(value.loop()->items.size());
  raise(fmt::format("object of type '{}' has no len()", type_name(value)));
}

Value subscript(const Value& container, const Value& key, Budget& budget) {
  if (container.is_dict()) {
    if (is_hashable(key)) {
      if (const Value* found = container.dict().find(key, budget)) return *found;
    }
  } else if (key.is_integral() && (container.is_string() || container.is_sequence())) {
    const int64_t size = length(container);
    const int64_t index = key.as_int() < 0 ? key.as_int() + size : key.as_int();
    if (index >= 0 && index < size) {
      if (container.is_sequence()) return container.list().items[index];
      const Text& text = container.text();
      budget.work(text.size() / 16);
      const std::vector<size_t> offsets = character_offsets(text.bytes);
      const auto i = static_cast<size_t>(index);
      return text.substr(offsets[i], offsets[i + 1] - offsets[i]);
    }
  } else if (container.is_namespace()) {
    if (const Value* found = container.name_space().attributes.find(key, budget)) return *found;
  }
  std::string shown;
  if (key.is_string()) {
    shown = fmt::format("'{} object' has no attribute '{}'", type_name(container), printable(key.text().bytes));
  } else {
    shown = fmt::format("an element of a {}", type_name(container));
  }
  return Undefined{std::move(shown)};
}

Value slice(const Value& container, const SliceBounds& bounds, Budget& budget) {
  refuse_undefined(container);
  if (!container.is_string() && !container.is_sequence())
    raise(fmt::format("'{}' object cannot be cut by a slice", type_name(container)));
  const auto bound = [](const Value& value) {
    if (!value.is_integral()) raise("slice indices must be integers or None");
    return value.as_int();
  };
  const int64_t step = bounds.step.is_none() ? 1 : bound(bounds.step);
  if (step == 0) raise("slice step cannot be zero");
  const int64_t size = length(container);
  const auto place = [&](const Value& value, int64_t if_none) {
    if (value.is_none()) return if_none;
    int64_t at = bound(value);
    if (at < 0) at = at < -size ? -1 : at + size;
    return std::clamp<int64_t>(at, step < 0 ? -1 : 0, step < 0 ? size - 1 : size);
  };
  const int64_t begin = place(bounds.begin, step < 0 ? size - 1 : 0);
  int64_t end = place(bounds.end, step < 0 ? -1 : size);
  std::vector<int64_t> picked;
  if (step == 1 && container.is_string()) {
    const Text& text = container.text();
    budget.allocate(text.size());
    const std::vector<size_t> offsets = character_offsets(text.bytes);
    end = std::max(begin, end);
    const size_t from = offsets[begin];
    return text.substr(from, offsets[end] - from);
  }
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    picked.push_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  budget.allocate(picked.size() * sizeof(Value));
  if (container.is_string()) {
    const Text& text = container.text();
    const std::vector<size_t> offsets = character_offsets(text.bytes);
    Text out;
    out.is_markup = text.is_markup;
    for (const int64_t i : picked) {
      const size_t from = offsets[i];
      out.append(text, from, offsets[static_cast<size_t>(i) + 1] - from);
    }
    return out;
  }
  std::vector<Value> items;
  for (const int64_t i : picked) items.push_back(container.list().items[i]);
  return Value::list(std::move(items), container.list().kind);
}

// ---- arithmetic ----

namespace {

[[noreturn]] void raise_operands(std::string_view op, const Value& a, const Value& b) {
  raise(fmt::format("unsupported operand type(s) for {}: '{}' and '{}'", op, type_name(a), type_name(b)));
}

Value int_arithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (op == "+" || op == "-" || op == "*") {
    const bool overflows = op == "+"   ? __builtin_add_overflow(a, b, &out)
                           : op == "-" ? __builtin_sub_overflow(a, b, &out)
                                       : __builtin_mul_overflow(a, b, &out);
    if (overflows) raise("a number is too large");
    return out;
  }
  if (op == "**") {
    if (b < 0) {
      if (a == 0) raise("0.0 cannot be raised to a negative power");
      return std::pow(static_cast<double>(a), static_cast<double>(b));
    }
    out = 1;
    for (int64_t i = 0; i < b; ++i) {
      if (a == 0 || a == 1 || a == -1) return a == -1 && b % 2 == 0 ? int64_t{1} : (a == 0 ? int64_t{0} : a);
      if (__builtin_mul_overflow(out, a, &out)) raise("a number is too large");
    }
    return out;
  }
  if (b == 0) raise("division by zero");
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  if (b == -1) return op == "%" ? Value(int64_t{0}) : int_arithmetic("-", 0, a);
  const int64_t rest = a % b;
  const bool below = rest != 0 && (rest < 0) != (b < 0);  // towards minus infinity
  return op == "%" ? (below ? rest + b : rest) : a / b - (below ? 1 : 0);
}

Value float_arithmetic(std::string_view op, double a, double b) {
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "**") {
    if (a == 0 && b < 0) raise("0.0 cannot be raised to a negative power");
    if (a < 0 && b != std::floor(b)) raise("complex numbers are not supported");
    const double power = std::pow(a, b);
    if (std::isinf(power) && std::isfinite(a) && std::isfinite(b)) raise("Result too large");
    return power;
  }
  if (b == 0) raise("float division by zero");
  if (op == "/") return a / b;
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (rest == 0) rest = std::copysign(0.0, b);
  if (op == "%") return rest;
  const double quotient = (a - rest) / b;
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

Value repeat(const Value& value, int64_t times, Budget& budget) {
  const auto n = static_cast<size_t>(std::max<int64_t>(times, 0));
  const size_t size = value.is_string() ? value.text().size() : value.list().items.size() * sizeof(Value);
  if (size > 0 && n > static_cast<size_t>(Budget::kMostBytes) / size) raise("the template makes too much text");
  budget.allocate(size * n);
  if (value.is_string()) {
    Text out;
    out.is_markup = value.text().is_markup;
    for (size_t i = 0; size > 0 && i < n; ++i) out.append(value.text());
    return out;
  }
  std::vector<Value> items;
  const std::vector<Value>& from = value.list().items;
  for (size_t i = 0; size > 0 && i < n; ++i) items.insert(items.end(), from.begin(), from.end());
  return Value::list(std::move(items), value.list().kind);
}

}  // namespace

Value binary(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  refuse_undefined(a);
  if (op == "%" && a.is_string()) return printf_format(a.text(), b, budget);
  refuse_undefined(b);
  if (a.is_number() && b.is_number()) {
    return a.is_float() || b.is_float() ? float_arithmetic(op, a.as_float(), b.as_float())
                                        : int_arithmetic(op, a.as_int(), b.as_int());
  }
  const auto is_repeatable = [](const Value& v) {
    return v.is_string() || v.is_list(List::Kind::kList) || v.is_list(List::Kind::kTuple);
  };
  if (op == "+" && a.is_string() && b.is_string()) {
    budget.allocate(a.text().size() + b.text().size());
    if (a.text().is_markup || b.text().is_markup) {
      Text joined = escape_markup(a, budget);
      joined.append(escape_markup(b, budget));
      return joined;
    }
    Text joined = a.text();
    joined.append(b.text());
    return joined;
  }
  if (op == "+" && is_repeatable(a) && is_repeatable(b) && a.is_list() && b.is_list() &&
      a.list().kind == b.list().kind) {
    budget.allocate((a.list().items.size() + b.list().items.size()) * sizeof(Value));
    std::vector<Value> items = a.list().items;
    items.insert(items.end(), b.list().items.begin(), b.list().items.end());
    return Value::list(std::move(items), a.list().kind);
  }
  if (op == "*" && is_repeatable(a) && b.is_integral()) return repeat(a, b.as_int(), budget);
  if (op == "*" && is_repeatable(b) && a.is_integral()) return repeat(b, a.as_int(), budget);
  raise_operands(op, a, b);
}

Value negate(const Value& value) {
  refuse_undefined(value);
  if (value.is_float()) return -value.as_float();
  if (value.is_integral()) return int_arithmetic("-", 0, value.as_int());
  raise(fmt::format("bad operand type for unary -: '{}'", type_name(value)));
}

// ---- text of values ----

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific).ptr;
  std::string_view text(digits, static_cast<size_t>(end - digits));  // -d.ddde+XX, the shortest that reads back
  const size_t e = text.find('e');
  int exponent = 0;
  const size_t number = text[e + 1] == '+' ? e + 2 : e + 1;
  std::from_chars(text.data() + number, text.data() + text.size(), exponent);
  std::string mantissa(text.substr(0, e));
  if (exponent < -4 || exponent >= 16)
    return fmt::format("{}e{}{:02}", mantissa, exponent < 0 ? '-' : '+', std::abs(exponent));
  const bool negative = mantissa[0] == '-';
  if (negative) mantissa.erase(0, 1);
  std::erase(mantissa, '.');
  if (exponent < 0) {
    mantissa = "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + mantissa;
  } else {
    const auto point = static_cast<size_t>(exponent) + 1;
    if (mantissa.size() <= point)
      mantissa.append(point - mantissa.size(), '0').append(".0");
    else
      mantissa.insert(point, ".");
  }
  return negative ? "-" + mantissa : mantissa;
}

namespace {

// repr of a string: the quotes that need no escape, what cannot be printed as an escape.
void append_string_repr(const Text& text, Text& out) {
  const bool has_single = text.bytes.find('\'') != std::string::npos;
  const char quote = has_single && text.bytes.find('"') == std::string::npos ? '"' : '\'';
  if (text.is_markup) out.append("Markup(");
  out.append(std::string_view(&quote, 1));
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(std::string_view(text.bytes).substr(at));
    const char32_t code = c.code_point;
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      const char escaped[2] = {'\\', static_cast<char>(code)};
      out.append_like({escaped, 2}, text, at);
    } else if (code == '\n' || code == '\r' || code == '\t') {
      out.append_like(code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t", text, at);
    } else if (code < 0x20 || (code >= 0x7f && code < 0xa1) || code == 0xad) {
      out.append_like(fmt::format("\\x{:02x}", static_cast<uint32_t>(code)), text, at);
    } else if (is_python_space(code) ? code != ' '
                                     : (code >= 0x200b && code <= 0x200f) || (code >= 0x202a && code <= 0x202e) ||
                                           (code >= 0x2060 && code <= 0x206f) || (code >= 0xd800 && code <= 0xf8ff) ||
                                           code == 0xfeff || (code >= 0xfff0 && code < 0xfffc)) {
      out.append_like(fmt::format("\\u{:04x}", static_cast<uint32_t>(code)), text, at);
    } else {
      out.append(text, at, c.length);
    }
    at += c.length;
  }
  out.append(std::string_view(&quote, 1));
  if (text.is_markup) out.append(")");
}

void append_dict_repr(const Dict& dict, Text& out, Budget& budget, int depth) {
  out.append("{");
  for (size_t i = 0; i < dict.items.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(dict.items[i].first, out, budget, depth + 1);
    out.append(": ");
    append_repr(dict.items[i].second, out, budget, depth + 1);
  }
  out.append("}");
}

void append_items_repr(const List& list, Text& out, Budget& budget, int depth) {
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out.append(", ");
    append_repr(list.items[i], out, budget, depth + 1);
  }
}

}  // namespace

void append_repr(const Value& value, Text& out, Budget& budget, int depth) {
  if (depth > Budget::kMostDepth) raise("values are nested too deeply");
  const size_t before = out.size();
  if (value.is_string()) {
    append_string_repr(value.text(), out);
  } else if (value.is_undefined()) {
    out.append("Undefined");
  } else if (value.is_none()) {
    out.append("None");
  } else if (value.is_bool()) {
    out.append(value.as_int() != 0 ? "True" : "False");
  } else if (value.is_int()) {
    out.append(std::to_string(value.as_int()));
  } else if (value.is_float()) {
    out.append(float_repr(value.as_float()));
  } else if (value.is_dict()) {
    append_dict_repr(value.dict(), out, budget, depth);
  } else if (value.is_namespace()) {
    out.append("<Namespace ");
    append_dict_repr(value.name_space().attributes, out, budget, depth);
    out.append(">");
  } else if (value.is_function()) {
    out.append("<" + value.function().name + ">");
  } else if (value.is_loop()) {
    out.append(fmt::format("<LoopContext {}/{}>", value.loop()->index + 1, value.loop()->items.size()));
  } else {
    const List& list = value.list();
    switch (list.kind) {
      case List::Kind::kList:
        out.append("[");
        append_items_repr(list, out, budget, depth);
        out.append("]");
        break;
      case List::Kind::kTuple:
        out.append("(");
        append_items_repr(list, out, budget, depth);
        out.append(list.items.size() == 1 ? ",)" : ")");
        break;
      case List::Kind::kGenerator:
        out.append("<generator>");
        break;
      case List::Kind::kView:
        out.append(list.name + "([");
        append_items_repr(list, out, budget, depth);
        out.append("])");
        break;
      case List::Kind::kRange:
        out.append(list.name);
        break;
    }
  }
  budget.allocate(out.size() - std::min(before, out.size()));
}

Text to_text(const Value& value, Budget& budget) {
  if (value.is_string()) {
    budget.allocate(value.text().size());
    return value.text();
  }
  Text out;
  if (!value.is_undefined()) append_repr(value, out, budget);
  return out;
}

namespace {

void append_json_string(const Text& text, bool ensure_ascii, Text& out) {
  out.append("\"");
  size_t plain = 0;  // begin of what needs no escape
  const auto escape = [&](size_t at, size_t length, std::string_view escaped) {
    out.append(text, plain, at - plain);
    out.append_like(escaped, text, at);
    plain = at + length;
  };
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text.bytes[at]);
    if (byte == '"' || byte == '\\') {
      escape(at, 1, byte == '"' ? "\\\"" : "\\\\");
    } else if (byte < 0x20 || (byte == 0x7f && ensure_ascii)) {
      constexpr std::string_view kShort = "\n\r\t\b\f", kLetters = "nrtbf";
      const size_t known = kShort.find(static_cast<char>(byte));
      escape(at, 1,
             known != std::string_view::npos ? fmt::format("\\{}", kLetters[known]) : fmt::format("\\u{:04x}", byte));
    } else if (byte >= 0x80 && ensure_ascii) {
      const Utf8Char c = decode_utf8(std::string_view(text.bytes).substr(at));
      auto code = static_cast<uint32_t>(c.code_point);
      if (code < 0x10000) {
        escape(at, c.length, fmt::format("\\u{:04x}", code));
      } else {
        code -= 0x10000;
        escape(at, c.length, fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (code >> 10), 0xdc00 + (code & 0x3ff)));
      }
      at += c.length;
      continue;
    }
    ++at;
  }
  out.append(text, plain, text.size() - plain);
  out.append("\"");
}

class JsonWriter {
 public:
  JsonWriter(const JsonFormat& format, Budget& budget) : format_(format), budget_(budget) {}

  void write(const Value& value, int depth) {
    if (depth > Budget::kMostDepth) raise("values are nested too deeply");
    const size_t before = out_.size();
    if (value.is_string()) {
      append_json_string(value.text(), format_.ensure_ascii, out_);
    } else if (value.is_none()) {
      out_.append("null");
    } else if (value.is_number()) {
      out_.append(number(value));
    } else if (value.is_dict()) {
      write_dict(value.dict(), depth);
    } else if (value.is_list(List::Kind::kList) || value.is_list(List::Kind::kTuple)) {
      const std::vector<Value>& items = value.list().items;
      out_.append("[");
      for (size_t i = 0; i < items.size(); ++i) {
        begin_item(i, depth);
        write(items[i], depth + 1);
      }
      end_items(items.size(), depth);
      out_.append("]");
    } else {
      raise(fmt::format("Object of type {} is not JSON serializable", type_name(value)));
    }
    budget_.allocate(out_.size() - before);
  }

  Text take() { return std::move(out_); }

 private:
  static std::string number(const Value& value) {
    if (value.is_bool()) return value.as_int() != 0 ? "true" : "false";
    if (value.is_int()) return std::to_string(value.as_int());
    const double x = value.as_float();
    if (std::isnan(x)) return "NaN";
    if (std::isinf(x)) return x < 0 ? "-Infinity" : "Infinity";
    return float_repr(x);
  }

  void begin_item(size_t index, int depth) {
    if (index > 0) out_.append(format_.item_separator);
    if (format_.has_indent) new_line(depth + 1);
  }
  void end_items(size_t count, int depth) {
    if (format_.has_indent && count > 0) new_line(depth);
  }
  void new_line(int depth) {
    out_.append("\n");
    for (int i = 0; i < depth; ++i) out_.append(format_.indent);
  }

  void write_dict(const Dict& dict, int depth) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (format_.sort_keys) {
      std::stable_sort(items.begin(), items.end(),
                       [&](const auto* a, const auto* b) { return less(a->first, b->first, budget_); });
    }
    out_.append("{");
    for (size_t i = 0; i < items.size(); ++i) {
      begin_item(i, depth);
      const Value& key = items[i]->first;
      if (key.is_string()) {
        append_json_string(key.text(), format_.ensure_ascii, out_);
      } else if (key.is_number() || key.is_none()) {
        out_.append("\"" + (key.is_none() ? "null" : number(key)) + "\"");
      } else {
        raise(fmt::format("keys must be str, int, float, bool or None, not {}", type_name(key)));
      }
      out_.append(format_.key_separator);
      write(items[i]->second, depth + 1);
    }
    end_items(items.size(), depth);
    out_.append("}");
  }

  const JsonFormat& format_;
  Budget& budget_;
  Text out_;
};

}  // namespace

Text to_json(const Value& value, const JsonFormat& format, Budget& budget) {
  JsonWriter writer(format, budget);
  writer.write(value, 0);
  return writer.take();
}

// ---- characters ----

bool is_python_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::vector<size_t> character_offsets(std::string_view text) {
  std::vector<size_t> offsets;
  offsets.reserve(text.size() + 1);
  for (size_t at = 0; at < text.size(); ++at) {
    if ((static_cast<unsigned char>(text[at]) & 0xc0) != 0x80) offsets.push_back(at);
  }
  offsets.push_back(text.size());
  return offsets;
}

int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

Text escape_markup(const Value& value, Budget& budget) {
  Text text = to_text(value, budget);
  if (text.is_markup) return text;
  Text out;
  for (size_t at = 0; at < text.size(); ++at) {
    switch (text.bytes[at]) {
      case '&':
        out.append_like("&amp;", text, at);
        break;
      case '<':
        out.append_like("&lt;", text, at);
        break;
      case '>':
        out.append_like("&gt;", text, at);
        break;
      case '\'':
        out.append_like("&#39;", text, at);
        break;
      case '"':
        out.append_like("&#34;", text, at);
        break;
      default:
        out.append(text, at, 1);
    }
  }
  budget.allocate(out.size());
  out.is_markup = true;
  return out;
}

Text printf_format(const Text& format, const Value& arguments, Budget& budget) {
  const bool is_tuple = arguments.is_list(List::Kind::kTuple);
  size_t next = 0;
  Text out;
  out.is_markup = format.is_markup;
  const auto take = [&]() -> Value {
    if (is_tuple) {
      if (next >= arguments.list().items.size()) raise("not enough arguments for format string");
      return arguments.list().items[next++];
    }
    if (next++ > 0) raise("not enough arguments for format string");
    return arguments;
  };
  bool by_name = false;
  for (size_t at = 0; at < format.size(); ++at) {
    if (format.bytes[at] != '%') {
      out.append(format, at, 1);
      continue;
    }
    const size_t begin = at++;
    Value value;
    bool has_value = false;
    if (at < format.size() && format.bytes[at] == '(') {
      const size_t end = format.bytes.find(')', at);
      if (end == std::string::npos) raise("incomplete format key");
      if (!arguments.is_dict()) raise("format requires a mapping");
      const Value* found = arguments.dict().find(std::string_view(format.bytes).substr(at + 1, end - at - 1));
      if (found == nullptr) raise("a key of the format is missing");
      value = *found;
      has_value = by_name = true;
      at = end + 1;
    }
    std::string flags, precision;
    while (at < format.size() && std::strchr("#0- +", format.bytes[at]) != nullptr) flags += format.bytes[at++];
    const auto digits = [&] {
      std::string text;
      while (at < format.size() && format.bytes[at] >= '0' && format.bytes[at] <= '9') text += format.bytes[at++];
      if (text.size() > 4) raise("a format is too wide");
      return text;
    };
    const std::string width = digits();
    bool has_precision = false;
    if (at < format.size() && format.bytes[at] == '.') {
      ++at;
      has_precision = true;
      precision = digits();
    }
    if (at >= format.size()) raise("incomplete format");
    const char conversion = format.bytes[at];
    if (conversion == '%') {
      out.append("%");
      continue;
    }
    if (std::strchr("srdifFeEgGxXoc", conversion) == nullptr)
      raise(fmt::format("unsupported format character \"{}\"", printable(format.bytes.substr(begin, at - begin + 1))));
    if (!has_value) value = take();
    Text made;
    if (conversion == 's' || conversion == 'r') {
      if (conversion == 's') {
        made = format.is_markup ? escape_markup(value, budget) : to_text(value, budget);
      } else {
        append_repr(value, made, budget);
      }
      if (has_precision) {
        const auto offsets = character_offsets(made.bytes);
        const size_t most = precision.empty() ? 0 : std::stoul(precision);
        if (most + 1 < offsets.size()) made = made.substr(0, offsets[most]);
      }
    } else if (conversion == 'c') {
      raise("the format %c is not supported");
    } else {
      if (!value.is_number()) raise(fmt::format("a number is required, not {}", type_name(value)));
      const bool is_integer = std::strchr("dixXo", conversion) != nullptr;
      if (is_integer && value.is_float() && (conversion == 'x' || conversion == 'X' || conversion == 'o'))
        raise("an integer is required, not float");
      if (is_integer && value.is_float() && !(std::abs(value.as_float()) < 9e18)) raise("a number is too large");
      std::string spec = "%" + flags + (has_precision ? "." + (precision.empty() ? "0" : precision) : "");
      char buffer[12000];
      int written = 0;
      spec.insert(1 + flags.size(), width);
      if (is_integer) {
        const int64_t number = value.is_float() ? static_cast<int64_t>(value.as_float()) : value.as_int();
        const bool negative = number < 0 && std::strchr("xXo", conversion) != nullptr;
        if (negative) raise("negative numbers in this format are not supported");
        spec += std::string("l") + (conversion == 'i' ? 'd' : conversion);
        written = std::snprintf(buffer, sizeof buffer, spec.c_str(), static_cast<long>(number));
      } else {
        spec += conversion;
        written = std::snprintf(buffer, sizeof buffer, spec.c_str(), value.as_float());
      }
      if (written < 0 || written >= static_cast<int>(sizeof buffer)) raise("a format is too wide");
      made.append(std::string_view(buffer, static_cast<size_t>(written)));
    }
    const int64_t missing = width.empty() ? 0 : std::stol(width) - count_characters(made.bytes);
    const std::string padding(static_cast<size_t>(std::max<int64_t>(missing, 0)), ' ');
    const bool left = flags.find('-') != std::string::npos;
    if (!left) out.append(padding);
    out.append(made);
    if (left) out.append(padding);
    budget.allocate(made.size() + padding.size());
  }
  if (is_tuple ? next < arguments.list().items.size()
               : (next == 0 && !by_name && !arguments.is_dict() && !arguments.is_list()))
    raise("not all arguments converted during string formatting");
  return out;
}

}  // namespace foretoken::jinja
