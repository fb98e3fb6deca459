#include "engine/text/template/filters.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "engine/text/template/methods.h"
#include "engine/text/utf8.h"

namespace foretoken::jinja {

bool compare(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  const auto is_nan = [](const Value& v) { return v.is_float() && std::isnan(v.as_float()); };
  if (op == "<") return less(a, b, budget, op);
  if (op == ">") return less(b, a, budget, op);
  const bool is_below = op == "<=" ? less(b, a, budget, op) : less(a, b, budget, op);
  return !is_below && !is_nan(a) && !is_nan(b);
}

namespace {

using Filter = Value (*)(Interpreter&, const Value&, ArgumentReader&);
using Getter = std::function<Value(const Value&)>;

Value make_list(std::vector<Value> items) {
  return Value::list(std::move(items));
}
Value make_generator(std::vector<Value> items) {
  return Value::list(std::move(items), List::Kind::kGenerator);
}

Value ignore_case(const Value& value) {
  return value.is_string() ? Value(to_lower(value.text())) : value;
}

// "a.b", "0.c" or a number: what of an item is meant; none: the item itself.
Getter attribute_getter(Interpreter& interpreter, const Value& attribute, Value fallback = Value::none()) {
  if (attribute.is_none()) return [](const Value& item) { return item; };
  std::vector<Value> path;
  if (attribute.is_string()) {
    const std::string& text = attribute.text().bytes;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find('.', begin), text.size());
      const std::string part = text.substr(begin, end - begin);
      const bool is_number =
          !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string::npos;
      path.push_back(is_number ? Value(static_cast<int64_t>(std::stoll(part))) : Value::string(part));
      begin = end + 1;
    }
  } else {
    path.push_back(attribute);
  }
  return [&interpreter, path = std::move(path), fallback = std::move(fallback)](const Value& item) {
    Value value = item;
    for (const Value& part : path) {
      interpreter.budget().work();
      value = interpreter.item(value, part);
      if (value.is_undefined() && !fallback.is_none()) value = fallback;
    }
    return value;
  };
}

std::vector<Value> sorted(Interpreter& interpreter, std::vector<Value> items, const std::vector<Getter>& keys,
                          bool case_sensitive, bool reverse) {
  struct Entry {
    std::vector<Value> keys;
    size_t index;
  };
  Budget& budget = interpreter.budget();
  std::vector<Entry> entries;
  for (size_t i = 0; i < items.size(); ++i) {
    Entry entry{{}, i};
    for (const Getter& key : keys) entry.keys.push_back(case_sensitive ? key(items[i]) : ignore_case(key(items[i])));
    entries.push_back(std::move(entry));
  }
  std::stable_sort(entries.begin(), entries.end(), [&](const Entry& x, const Entry& y) {
    const Entry &a = reverse ? y : x, &b = reverse ? x : y;
    for (size_t k = 0; k < a.keys.size(); ++k) {
      if (k + 1 == a.keys.size() || !equal(a.keys[k], b.keys[k], budget)) return less(a.keys[k], b.keys[k], budget);
    }
    return false;
  });
  std::vector<Value> out;
  for (const Entry& entry : entries) out.push_back(std::move(items[entry.index]));
  return out;
}

// ---- text ----

Text soft_text(Interpreter& interpreter, const Value& value) {
  return to_text(value, interpreter.budget());
}

template <Text (*kMap)(const Text&)>
Value map_text(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  return kMap(soft_text(interpreter, value));
}

Value filter_trim(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return strip(soft_text(interpreter, value), arguments.take("chars", Value::none()), true, true);
}

// Words begin behind any of -, white space and opening brackets.
Text title_words(const Text& text) {
  Text out;
  size_t begin = 0;
  const auto add = [&](size_t end) {
    if (end > begin) out.append(capitalize(text.substr(begin, end - begin)));
  };
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(std::string_view(text.bytes).substr(at));
    const char32_t code = c.code_point;
    if (is_python_space(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<') {
      add(at);
      out.append(text, at, c.length);
      begin = at + c.length;
    }
    at += c.length;
  }
  add(text.size());
  out.is_markup = text.is_markup;
  return out;
}

Value filter_replace(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  Budget& budget = interpreter.budget();
  Text text = to_text(value, budget);
  text.is_markup = false;
  const Text from = to_text(arguments.need("old"), budget), to = to_text(arguments.need("new"), budget);
  const Value most = arguments.take("count", Value::none());
  if (!most.is_none() && !most.is_integral()) raise("replace: the count must be an integer");
  return replace(text, from, to, most.is_none() ? -1 : most.as_int(), budget);
}

Value filter_join(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  Budget& budget = interpreter.budget();
  Text separator = to_text(arguments.take("d", Value::string("")), budget);
  separator.is_markup = false;
  const Getter get = attribute_getter(interpreter, arguments.take("attribute", Value::none()));
  std::vector<Text> parts;
  for (const Value& item : iterate(value, budget)) {
    parts.push_back(to_text(get(item), budget));
    parts.back().is_markup = false;
  }
  return join(separator, parts, budget);
}

Value filter_indent(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  Budget& budget = interpreter.budget();
  if (!value.is_string()) raise(fmt::format("indent: a string is needed, not {}", type_name(value)));
  const Value width = arguments.take("width", int64_t{4});
  const bool first = arguments.take_bool("first", false), blank = arguments.take_bool("blank", false);
  Text indention;
  if (width.is_string()) {
    indention = width.text();
  } else if (width.is_integral()) {
    if (width.as_int() > 100000) raise("indent: the width is too large");
    indention.append(std::string(static_cast<size_t>(std::max<int64_t>(width.as_int(), 0)), ' '));
  } else {
    raise("indent: the width must be an integer or a string");
  }
  Text text = value.text();
  text.append("\n");  // as splitlines would drop an empty last line
  Text out;
  out.is_markup = text.is_markup;
  if (first) out.append(indention);
  bool is_first = true;
  for (const Text& line : split_lines(text, false)) {
    budget.allocate(line.size() + indention.size() + 1);
    if (!std::exchange(is_first, false)) {
      out.append("\n");
      if (blank || line.size() > 0) out.append(indention);
    }
    out.append(line);
  }
  return out;
}

Value filter_truncate(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  if (!value.is_string()) raise("truncate: a string is needed");
  const int64_t most = arguments.take_int("length", 255);
  const bool kill_words = arguments.take_bool("killwords", false);
  const Value end = arguments.take("end", Value::string("..."));
  const Value leeway = arguments.take("leeway", Value::none());
  if (!end.is_string()) raise("truncate: the end must be a string");
  const int64_t spare = leeway.is_none() ? 5 : leeway.is_integral() ? leeway.as_int() : -1;
  const int64_t end_length = count_characters(end.text().bytes);
  if (most < end_length || spare < 0) raise("truncate: the length or the leeway is too small");
  const std::vector<size_t> offsets = character_offsets(value.text().bytes);
  const auto size = static_cast<int64_t>(offsets.size()) - 1;
  if (size <= most + std::min<int64_t>(spare, INT32_MAX)) return value;
  Text text = value.text().substr(0, offsets[most - end_length]);
  if (!kill_words) {
    const size_t space = text.bytes.rfind(' ');
    if (space != std::string::npos) text = text.substr(0, space);
  }
  text.append(end.text());
  interpreter.budget().allocate(text.size());
  return text;
}

Value filter_center(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const int64_t width = arguments.take_int("width", 80);
  return center(soft_text(interpreter, value), width, " ", interpreter.budget());
}

Value filter_wordcount(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  const Text text = soft_text(interpreter, value);
  int64_t words = 0;
  bool in_word = false;
  for (const char c : text.bytes) {
    const bool is_word =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (c & 0x80) != 0;
    words += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return words;
}

// For a query (for_query): spaces become + and slashes do not stay.
Text url_quoted(const Text& text, bool for_query) {
  Text out;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text.bytes[at];
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                          (c != '\0' && std::strchr("_.-~", c) != nullptr) || (c == '/' && !for_query);
    if (is_plain) {
      out.append(text, at, 1);
    } else if (c == ' ' && for_query) {
      out.append_like("+", text, at);
    } else {
      out.append_like(fmt::format("%{:02X}", static_cast<unsigned char>(c)), text, at);
    }
  }
  return out;
}

Value filter_urlencode(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  Budget& budget = interpreter.budget();
  budget.allocate(value.is_string() ? 3 * value.text().size() : 0);
  if (!value.is_dict() && !value.is_list()) return url_quoted(to_text(value, budget), false);
  Text out;
  std::vector<Value> pairs;
  if (value.is_dict()) {
    for (const auto& [key, item] : value.dict().items) pairs.push_back(Value::list({key, item}, List::Kind::kTuple));
  } else {
    pairs = iterate(value, budget);
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    const std::vector<Value> pair = iterate(pairs[i], budget);
    if (pair.size() != 2) raise("urlencode: pairs are needed");
    if (i > 0) out.append("&");
    out.append(url_quoted(to_text(pair[0], budget), true));
    out.append("=");
    out.append(url_quoted(to_text(pair[1], budget), true));
  }
  return out;
}

Value filter_escape(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  return escape_markup(value, interpreter.budget());
}
Value filter_force_escape(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  Text text = soft_text(interpreter, value);
  text.is_markup = false;
  return escape_markup(text, interpreter.budget());
}
Value filter_safe(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  Text text = soft_text(interpreter, value);
  text.is_markup = true;
  return text;
}
Value filter_string(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  return soft_text(interpreter, value);
}

Value filter_tojson(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  JsonFormat format;
  format.ensure_ascii = arguments.take_bool("ensure_ascii", false);
  const Value indent = arguments.take("indent", Value::none());
  const Value separators = arguments.take("separators", Value::none());
  format.sort_keys = arguments.take_bool("sort_keys", false);
  if (!indent.is_none()) {
    format.has_indent = true;
    format.item_separator = ",";
    if (indent.is_string()) {
      format.indent = indent.text().bytes;
    } else if (indent.is_integral()) {
      if (indent.as_int() > 1000) raise("tojson: the indent is too large");
      format.indent.assign(std::max<int64_t>(indent.as_int(), 0), ' ');
    } else {
      raise("tojson: the indent must be an integer or a string");
    }
  }
  if (!separators.is_none()) {
    const std::vector<Value> pair = iterate(separators, interpreter.budget());
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) raise("tojson: two separators are needed");
    format.item_separator = pair[0].text().bytes;
    format.key_separator = pair[1].text().bytes;
  }
  return to_json(value, format, interpreter.budget());
}

// ---- numbers ----

// int(text) or float(text) of Python: white space around, underscores between digits.
std::string number_text(const Text& text) {
  std::string out = strip(text, Value::none(), true, true).bytes;
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] != '_') continue;
    const auto is_digit = [&](size_t k) {
      return k < out.size() && std::isalnum(static_cast<unsigned char>(out[k])) != 0;
    };
    if (i == 0 || !is_digit(i - 1) || !is_digit(i + 1)) return "";
  }
  std::erase(out, '_');
  if (out.starts_with('+')) out.erase(0, 1);
  return out;
}

std::optional<double> parse_float(const Text& source) {
  const std::string text = number_text(source);
  if (text.starts_with('+') || text.empty()) return std::nullopt;
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ptr != text.data() + text.size()) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) return std::strtod(text.c_str(), nullptr);
  if (result.ec != std::errc() || text.find('(') != std::string::npos) return std::nullopt;
  return value;
}

std::optional<int64_t> parse_int(const Text& source, int64_t base) {
  if (base != 0 && (base < 2 || base > 36)) raise("int() base must be >= 2 and <= 36, or 0");
  std::string text = number_text(source);
  const bool negative = text.starts_with('-');
  if (negative) text.erase(0, 1);
  const char mark = text.size() > 2 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : '\0';
  const int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  if (marked != 0 && (base == 0 || base == marked)) {
    text.erase(0, 2);
    base = marked;
  } else if (base == 0) {
    if (text.size() > 1 && text[0] == '0' && text.find_first_not_of('0') != std::string::npos) return std::nullopt;
    base = 10;
  }
  if (text.empty() || text[0] == '-') return std::nullopt;
  if (negative) text.insert(0, "-");
  int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value, static_cast<int>(base));
  if (result.ptr != text.data() + text.size()) return std::nullopt;
  if (result.ec == std::errc::result_out_of_range) raise("a number is too large");
  if (result.ec != std::errc()) return std::nullopt;
  return value;
}

Value filter_int(Interpreter&, const Value& value, ArgumentReader& arguments) {
  Value fallback = arguments.take("default", int64_t{0});
  const int64_t base = arguments.take_int("base", 10);
  if (value.is_undefined()) raise("an undefined value has no number");
  std::optional<double> number;
  if (value.is_integral()) return value.as_int();
  if (value.is_string()) {
    if (const auto whole = parse_int(value.text(), base)) return *whole;
    number = parse_float(value.text());
  } else if (value.is_float()) {
    number = value.as_float();
  }
  if (!number || !std::isfinite(*number)) return fallback;
  if (!(std::abs(*number) < 9.2e18)) raise("a number is too large");
  return static_cast<int64_t>(*number);
}

Value filter_float(Interpreter&, const Value& value, ArgumentReader& arguments) {
  Value fallback = arguments.take("default", 0.0);
  if (value.is_undefined()) raise("an undefined value has no number");
  if (value.is_number()) return value.as_float();
  if (!value.is_string()) return fallback;
  const auto number = parse_float(value.text());
  return number ? Value(*number) : fallback;
}

Value filter_abs(Interpreter&, const Value& value, ArgumentReader&) {
  if (value.is_float()) return std::abs(value.as_float());
  if (!value.is_integral()) raise(fmt::format("bad operand type for abs(): '{}'", type_name(value)));
  return value.as_int() < 0 ? negate(value) : Value(value.as_int());
}

Value filter_round(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const int64_t precision = arguments.take_int("precision", 0);
  const Value method = arguments.take("method", Value::string("common"));
  if (!method.is_string("common") && !method.is_string("ceil") && !method.is_string("floor"))
    raise("method must be common, ceil or floor");
  if (!value.is_number()) raise(fmt::format("type {} doesn't define __round__ method", type_name(value)));
  if (precision > 300 || precision < -300) raise("round: the precision is too large");
  if (!method.is_string("common")) {
    const Value scale = binary("**", int64_t{10}, precision, interpreter.budget());
    const Value scaled = binary("*", value, scale, interpreter.budget());
    const double whole = method.is_string("ceil") ? std::ceil(scaled.as_float()) : std::floor(scaled.as_float());
    if (!std::isfinite(whole)) raise("cannot convert float to integer");
    return whole / scale.as_float();
  }
  if (value.is_integral()) {
    if (precision >= 0) return value.as_int();
    int64_t unit = 1;
    for (int64_t i = 0; i < -precision; ++i) {
      if (unit > INT64_MAX / 10) return int64_t{0};
      unit *= 10;
    }
    const int64_t x = value.as_int();
    int64_t whole = x / unit, rest = x % unit;
    if (rest < 0) rest += unit, --whole;
    const bool up = rest > unit - rest || (rest == unit - rest && whole % 2 != 0);
    return (whole + (up ? 1 : 0)) * unit;
  }
  const double x = value.as_float();
  if (!std::isfinite(x)) return x;
  if (precision >= 0) return std::strtod(fmt::format("{:.{}f}", x, precision).c_str(), nullptr);
  const double unit = std::pow(10.0, static_cast<double>(-precision));
  return std::nearbyint(x / unit) * unit;
}

Value filter_sum(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const Getter get = attribute_getter(interpreter, arguments.take("attribute", Value::none()));
  Value sum = arguments.take("start", int64_t{0});
  if (sum.is_string()) raise("sum() can't sum strings");
  for (const Value& item : iterate(value, interpreter.budget()))
    sum = binary("+", sum, get(item), interpreter.budget());
  return sum;
}

// ---- sequences ----

Value filter_length(Interpreter&, const Value& value, ArgumentReader&) {
  return length(value);
}
Value filter_list(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  return make_list(iterate(value, interpreter.budget()));
}
Value filter_first(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  if (value.is_string() && value.text().size() > 0) return subscript(value, int64_t{0}, interpreter.budget());
  const std::vector<Value> items = iterate(value, interpreter.budget());
  return items.empty() ? Value(Undefined{"the first item of an empty sequence"}) : items.front();
}
Value filter_last(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  if (value.is_list(List::Kind::kGenerator)) raise("'generator' object is not reversible");
  if (value.is_string() && value.text().size() > 0) return subscript(value, int64_t{-1}, interpreter.budget());
  const std::vector<Value> items = iterate(value, interpreter.budget());
  return items.empty() ? Value(Undefined{"the last item of an empty sequence"}) : items.back();
}
Value filter_reverse(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  std::vector<Value> items = iterate(value, interpreter.budget());
  std::reverse(items.begin(), items.end());
  if (value.is_string()) {
    Text out;
    for (const Value& item : items) out.append(item.text());
    out.is_markup = value.text().is_markup;
    return out;
  }
  return value.is_list(List::Kind::kGenerator) ? make_list(std::move(items)) : make_generator(std::move(items));
}

Value filter_items(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  if (value.is_undefined()) return make_generator({});
  if (!value.is_dict()) raise("Can only get item pairs from a mapping.");
  interpreter.budget().allocate(value.dict().items.size() * (sizeof(List) + 3 * sizeof(Value)));
  std::vector<Value> pairs;
  for (const auto& [key, item] : value.dict().items) pairs.push_back(Value::list({key, item}, List::Kind::kTuple));
  return make_generator(std::move(pairs));
}

Value filter_dictsort(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const bool case_sensitive = arguments.take_bool("case_sensitive", false);
  const Value by = arguments.take("by", Value::string("key"));
  const bool reverse = arguments.take_bool("reverse", false);
  if (!by.is_string("key") && !by.is_string("value")) raise("You can only sort by either \"key\" or \"value\"");
  if (!value.is_dict()) raise(fmt::format("dictsort: a dict is needed, not {}", type_name(value)));
  interpreter.budget().allocate(value.dict().items.size() * (sizeof(List) + 3 * sizeof(Value)));
  std::vector<Value> pairs;
  for (const auto& [key, item] : value.dict().items) pairs.push_back(Value::list({key, item}, List::Kind::kTuple));
  const size_t position = by.is_string("key") ? 0 : 1;
  const Getter key = [position](const Value& pair) { return pair.list().items[position]; };
  return make_list(sorted(interpreter, std::move(pairs), {key}, case_sensitive, reverse));
}

Value filter_sort(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const bool reverse = arguments.take_bool("reverse", false);
  const bool case_sensitive = arguments.take_bool("case_sensitive", false);
  const Value attribute = arguments.take("attribute", Value::none());
  std::vector<Getter> keys;
  if (attribute.is_string()) {
    const std::string& text = attribute.text().bytes;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      keys.push_back(attribute_getter(interpreter, Value::string(text.substr(begin, end - begin))));
      begin = end + 1;
    }
  } else {
    keys.push_back(attribute_getter(interpreter, attribute));
  }
  return make_list(sorted(interpreter, iterate(value, interpreter.budget()), keys, case_sensitive, reverse));
}

Value filter_unique(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const bool case_sensitive = arguments.take_bool("case_sensitive", false);
  const Getter get = attribute_getter(interpreter, arguments.take("attribute", Value::none()));
  Dict seen;
  std::vector<Value> kept;
  for (Value& item : iterate(value, interpreter.budget())) {
    Value key = case_sensitive ? get(item) : ignore_case(get(item));
    const size_t before = seen.items.size();
    interpreter.budget().work(before / 8);
    seen.set(std::move(key), Value::none(), interpreter.budget());
    if (seen.items.size() > before) kept.push_back(std::move(item));
  }
  return make_generator(std::move(kept));
}

template <bool kMax>
Value filter_extreme(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const bool case_sensitive = arguments.take_bool("case_sensitive", false);
  const Getter get = attribute_getter(interpreter, arguments.take("attribute", Value::none()));
  const auto key = [&](const Value& item) { return case_sensitive ? get(item) : ignore_case(get(item)); };
  const std::vector<Value> items = iterate(value, interpreter.budget());
  if (items.empty()) return Undefined{"the largest or smallest item of an empty sequence"};
  size_t best = 0;
  Value best_key = key(items[0]);
  for (size_t i = 1; i < items.size(); ++i) {
    Value next = key(items[i]);
    if (kMax ? less(best_key, next, interpreter.budget(), ">") : less(next, best_key, interpreter.budget())) {
      best = i;
      best_key = std::move(next);
    }
  }
  return items[best];
}

Value filter_batch(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const Value count = arguments.need("linecount");
  const Value fill = arguments.take("fill_with", Value::none());
  if (!count.is_integral()) raise("batch: the count must be an integer");
  std::vector<Value> batches, batch;
  const auto close = [&] { batches.push_back(make_list(std::exchange(batch, {}))); };
  for (Value& item : iterate(value, interpreter.budget())) {
    if (static_cast<int64_t>(batch.size()) == count.as_int()) close();
    batch.push_back(std::move(item));
  }
  if (!batch.empty()) {
    while (!fill.is_none() && static_cast<int64_t>(batch.size()) < count.as_int()) {
      interpreter.budget().allocate(sizeof(Value));
      batch.push_back(fill);
    }
    close();
  }
  return make_generator(std::move(batches));
}

Value filter_slice(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const Value count = arguments.need("slices");
  const Value fill = arguments.take("fill_with", Value::none());
  const std::vector<Value> items = iterate(value, interpreter.budget());
  if (!count.is_integral() || count.as_int() <= 0) raise("slice: the number of slices must be positive");
  if (count.as_int() > 100000) raise("slice: too many slices");
  const auto slices = static_cast<size_t>(count.as_int());
  interpreter.budget().allocate(slices * sizeof(List));
  const size_t each = items.size() / slices, with_extra = items.size() % slices;
  std::vector<Value> out;
  size_t at = 0;
  for (size_t i = 0; i < slices; ++i) {
    const size_t size = each + (i < with_extra ? 1 : 0);
    std::vector<Value> part(items.begin() + static_cast<ptrdiff_t>(at),
                            items.begin() + static_cast<ptrdiff_t>(at + size));
    if (!fill.is_none() && i >= with_extra) part.push_back(fill);
    out.push_back(make_list(std::move(part)));
    at += size;
  }
  return make_generator(std::move(out));
}

Value filter_groupby(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const Value attribute = arguments.need("attribute");
  const Getter get = attribute_getter(interpreter, attribute, arguments.take("default", Value::none()));
  const bool case_sensitive = arguments.take_bool("case_sensitive", false);
  const std::vector<Value> items =
      sorted(interpreter, iterate(value, interpreter.budget()), {get}, case_sensitive, false);
  const auto key = [&](const Value& item) { return case_sensitive ? get(item) : ignore_case(get(item)); };
  std::vector<Value> groups;
  for (size_t i = 0; i < items.size();) {
    const Value first = key(items[i]);
    std::vector<Value> group;
    size_t end = i;
    for (; end < items.size() && equal(key(items[end]), first, interpreter.budget()); ++end)
      group.push_back(items[end]);
    if (end == i) group.push_back(items[end++]);  // nan is not equal to itself
    const Value label = get(items[i]);
    groups.push_back(Value::list({label, make_list(std::move(group))}, List::Kind::kTuple));
    i = end;
  }
  return make_list(std::move(groups));
}

Value filter_default(Interpreter&, const Value& value, ArgumentReader& arguments) {
  Value fallback = arguments.take("default_value", Value::string(""));
  const bool boolean = arguments.take_bool("boolean", false);
  return value.is_undefined() || (boolean && !truth(value)) ? fallback : value;
}

Value filter_attr(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const Text name = arguments.need_text("name");
  if (value.is_undefined()) raise("an undefined value has no attributes");
  return own_attribute(interpreter, value, name.bytes);
}

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> known = {
      {"abs", filter_abs},
      {"attr", filter_attr},
      {"batch", filter_batch},
      {"capitalize", map_text<capitalize>},
      {"center", filter_center},
      {"count", filter_length},
      {"d", filter_default},
      {"default", filter_default},
      {"dictsort", filter_dictsort},
      {"e", filter_escape},
      {"escape", filter_escape},
      {"first", filter_first},
      {"float", filter_float},
      {"forceescape", filter_force_escape},
      {"groupby", filter_groupby},
      {"indent", filter_indent},
      {"int", filter_int},
      {"items", filter_items},
      {"join", filter_join},
      {"last", filter_last},
      {"length", filter_length},
      {"list", filter_list},
      {"lower", map_text<to_lower>},
      {"max", filter_extreme<true>},
      {"min", filter_extreme<false>},
      {"replace", filter_replace},
      {"reverse", filter_reverse},
      {"round", filter_round},
      {"safe", filter_safe},
      {"slice", filter_slice},
      {"sort", filter_sort},
      {"string", filter_string},
      {"sum", filter_sum},
      {"title", map_text<title_words>},
      {"tojson", filter_tojson},
      {"trim", filter_trim},
      {"truncate", filter_truncate},
      {"unique", filter_unique},
      {"upper", map_text<to_upper>},
      {"urlencode", filter_urlencode},
      {"wordcount", filter_wordcount},
  };
  return known;
}

// Filters whose arguments are those of another filter or test.
constexpr std::string_view kHigherFilters[] = {"map", "select", "reject", "selectattr", "rejectattr", "format"};

Value map_items(Interpreter& interpreter, const Value& value, Arguments& arguments) {
  if (!truth(value)) return make_generator({});
  std::vector<Value> out;
  const auto is_named = [&](std::string_view name) {
    return std::any_of(arguments.named.begin(), arguments.named.end(),
                       [&](const auto& named) { return named.first == name; });
  };
  if (arguments.positional.empty() && is_named("attribute")) {
    ArgumentReader reader("map", arguments);
    const Value attribute = reader.need("attribute");
    const Getter get = attribute_getter(interpreter, attribute, reader.take("default", Value::none()));
    reader.finish();
    for (const Value& item : iterate(value, interpreter.budget())) out.push_back(get(item));
    return make_generator(std::move(out));
  }
  if (arguments.positional.empty()) raise("map requires a filter argument");
  const Value name = arguments.positional[0];
  if (!name.is_string()) raise("map: the filter's name must be a string");
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : iterate(value, interpreter.budget())) {
    Arguments own = rest;
    out.push_back(call_filter(interpreter, name.text().bytes, item, own));
  }
  return make_generator(std::move(out));
}

Value select_items(Interpreter& interpreter, const Value& value, Arguments& arguments, bool wanted, bool by_attribute) {
  if (!truth(value)) return make_generator({});
  Getter get = [](const Value& item) { return item; };
  Arguments rest = arguments;
  if (by_attribute) {
    if (rest.positional.empty()) raise("Missing parameter for attribute name");
    get = attribute_getter(interpreter, rest.positional[0]);
    rest.positional.erase(rest.positional.begin());
  }
  std::string test;
  if (!rest.positional.empty()) {
    if (!rest.positional[0].is_string()) raise("the test's name must be a string");
    test = rest.positional[0].text().bytes;
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<Value> kept;
  for (Value& item : iterate(value, interpreter.budget())) {
    Arguments own = rest;
    const Value tested = get(item);
    const bool holds = test.empty() ? truth(tested) : call_test(interpreter, test, tested, own);
    if (holds == wanted) kept.push_back(std::move(item));
  }
  return make_generator(std::move(kept));
}

Value format_text(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  Budget& budget = interpreter.budget();
  if (!arguments.named.empty()) {
    if (!arguments.positional.empty()) raise("can't handle positional and keyword arguments at the same time");
    Dict dict;
    for (const auto& [name, item] : arguments.named) dict.set(Value::string(name), item, budget);
    return printf_format(to_text(value, budget), dict, budget);
  }
  return printf_format(to_text(value, budget), Value::list(arguments.positional, List::Kind::kTuple), budget);
}

// ---- tests ----

using Test = bool (*)(Interpreter&, const Value&, ArgumentReader&);

template <bool (*kIs)(const Value&)>
bool is_kind(Interpreter&, const Value& value, ArgumentReader&) {
  return kIs(value);
}
bool is_defined(const Value& v) {
  return !v.is_undefined();
}
bool is_undefined(const Value& v) {
  return v.is_undefined();
}
bool is_none(const Value& v) {
  return v.is_none();
}
bool is_true(const Value& v) {
  return v.is_bool() && v.as_int() != 0;
}
bool is_false(const Value& v) {
  return v.is_bool() && v.as_int() == 0;
}
bool is_boolean(const Value& v) {
  return v.is_bool();
}
bool is_integer(const Value& v) {
  return v.is_int();
}
bool is_float(const Value& v) {
  return v.is_float();
}
bool is_number(const Value& v) {
  return v.is_number();
}
bool is_string(const Value& v) {
  return v.is_string();
}
bool is_mapping(const Value& v) {
  return v.is_dict();
}
bool is_sequence(const Value& v) {
  return v.is_string() || v.is_sequence() || v.is_dict() || v.is_undefined();
}
bool is_iterable(const Value& v) {
  return v.is_string() || v.is_list() || v.is_dict() || v.is_undefined() || v.is_loop();
}
bool is_callable(const Value& v) {
  return v.is_function() || v.is_loop() || v.is_undefined();
}
bool is_escaped(const Value& v) {
  return v.is_string() && v.text().is_markup;
}

bool test_in(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return contains(arguments.need("seq"), value, interpreter.budget());
}
bool test_equal(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return equal(value, arguments.need("b"), interpreter.budget());
}
bool test_unequal(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return !equal(value, arguments.need("b"), interpreter.budget());
}
bool test_less(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return compare("<", value, arguments.need("b"), interpreter.budget());
}
bool test_less_equal(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return compare("<=", value, arguments.need("b"), interpreter.budget());
}
bool test_greater(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return compare(">", value, arguments.need("b"), interpreter.budget());
}
bool test_greater_equal(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return compare(">=", value, arguments.need("b"), interpreter.budget());
}
bool test_same(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  const Value other = arguments.need("other");
  if (value.identity() != nullptr || other.identity() != nullptr) return value.identity() == other.identity();
  return type_name(value) == type_name(other) && equal(value, other, interpreter.budget());
}
template <int64_t kRest>
bool test_parity(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  return equal(binary("%", value, int64_t{2}, interpreter.budget()), kRest, interpreter.budget());
}
bool test_divisible(Interpreter& interpreter, const Value& value, ArgumentReader& arguments) {
  return equal(binary("%", value, arguments.need("num"), interpreter.budget()), int64_t{0}, interpreter.budget());
}
template <bool kUpper>
bool test_case(Interpreter& interpreter, const Value& value, ArgumentReader&) {
  Arguments none;
  const Value text = to_text(value, interpreter.budget());
  return truth(interpreter.call(own_attribute(interpreter, text, kUpper ? "isupper" : "islower"), none));
}
bool test_filter(Interpreter&, const Value& value, ArgumentReader&) {
  return value.is_string() && has_filter(value.text().bytes);
}
bool test_test(Interpreter&, const Value& value, ArgumentReader&) {
  return value.is_string() && has_test(value.text().bytes);
}

const std::map<std::string_view, Test>& tests() {
  static const std::map<std::string_view, Test> known = {
      {"!=", test_unequal},
      {"<", test_less},
      {"<=", test_less_equal},
      {"==", test_equal},
      {">", test_greater},
      {">=", test_greater_equal},
      {"boolean", is_kind<is_boolean>},
      {"callable", is_kind<is_callable>},
      {"defined", is_kind<is_defined>},
      {"divisibleby", test_divisible},
      {"eq", test_equal},
      {"equalto", test_equal},
      {"escaped", is_kind<is_escaped>},
      {"even", test_parity<0>},
      {"false", is_kind<is_false>},
      {"filter", test_filter},
      {"float", is_kind<is_float>},
      {"ge", test_greater_equal},
      {"greaterthan", test_greater},
      {"gt", test_greater},
      {"in", test_in},
      {"integer", is_kind<is_integer>},
      {"iterable", is_kind<is_iterable>},
      {"le", test_less_equal},
      {"lessthan", test_less},
      {"lower", test_case<false>},
      {"lt", test_less},
      {"mapping", is_kind<is_mapping>},
      {"ne", test_unequal},
      {"none", is_kind<is_none>},
      {"number", is_kind<is_number>},
      {"odd", test_parity<1>},
      {"sameas", test_same},
      {"sequence", is_kind<is_sequence>},
      {"string", is_kind<is_string>},
      {"test", test_test},
      {"true", is_kind<is_true>},
      {"undefined", is_kind<is_undefined>},
      {"upper", test_case<true>},
  };
  return known;
}

// ---- global functions ----

constexpr int64_t kMostRange = 100000;  // jinja2's sandbox has the same limit

Value function_range(Interpreter& interpreter, Arguments& arguments) {
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3 || !arguments.named.empty()) raise("range expected 1 to 3 arguments");
  int64_t bounds[3] = {0, 0, 1};
  for (size_t i = 0; i < count; ++i) {
    if (!arguments.positional[i].is_integral())
      raise(fmt::format("'{}' object cannot be interpreted as an integer", type_name(arguments.positional[i])));
    bounds[count == 1 ? 1 : i] = arguments.positional[i].as_int();
  }
  const auto [begin, end, step] = bounds;
  if (step == 0) raise("range() arg 3 must not be zero");
  List list;
  list.kind = List::Kind::kRange;
  list.name = step == 1 ? fmt::format("range({}, {})", begin, end) : fmt::format("range({}, {}, {})", begin, end, step);
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (static_cast<int64_t>(list.items.size()) >= kMostRange)
      raise("Range too big. The sandbox blocks ranges larger than 100000.");
    list.items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  interpreter.budget().allocate(list.items.size() * sizeof(Value));
  return list;
}

Dict dict_of(Interpreter& interpreter, Arguments& arguments) {
  Budget& budget = interpreter.budget();
  Dict dict;
  if (arguments.positional.size() > 1) raise("dict expected at most 1 argument");
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.is_dict()) {
      budget.allocate(from.dict().items.size() * 2 * sizeof(Value));
      dict = from.dict();
    } else {
      for (const Value& item : iterate(from, budget)) {
        const std::vector<Value> pair = iterate(item, budget);
        if (pair.size() != 2) raise("dictionary update sequence element has a wrong length; 2 is required");
        dict.set(pair[0], pair[1], budget);
      }
    }
  }
  for (auto& [name, value] : arguments.named) dict.set(Value::string(name), value, budget);
  return dict;
}

Value function_dict(Interpreter& interpreter, Arguments& arguments) {
  return dict_of(interpreter, arguments);
}
Value function_namespace(Interpreter& interpreter, Arguments& arguments) {
  return interpreter.make_namespace(dict_of(interpreter, arguments));
}

Value function_raise(Interpreter& interpreter, Arguments& arguments) {
  ArgumentReader reader("raise_exception", arguments);
  const Text message = to_text(reader.need("message"), interpreter.budget());
  reader.finish();
  raise(printable(message.bytes, 400));
}

Value function_strftime_now(Interpreter& interpreter, Arguments& arguments) {
  ArgumentReader reader("strftime_now", arguments);
  const Text format = reader.need_text("format");
  reader.finish();
  if (format.size() > 1000 || format.bytes.find('\0') != std::string::npos)
    raise("strftime_now: the format is too long");
  if (format.size() == 0) return Value::string("");
  const std::time_t now = interpreter.now();
  std::tm local{};
  if (localtime_r(&now, &local) == nullptr) raise("strftime_now: there is no such time");
  std::string text(64 + 100 * format.size(), '\0');
  text.resize(std::strftime(text.data(), text.size(), format.bytes.c_str(), &local));
  return Value::string(std::move(text));
}

}  // namespace

bool has_filter(std::string_view name) {
  return filters().contains(name) ||
         std::find(std::begin(kHigherFilters), std::end(kHigherFilters), name) != std::end(kHigherFilters);
}

bool has_test(std::string_view name) {
  return tests().contains(name);
}

Value call_filter(Interpreter& interpreter, std::string_view name, const Value& value, Arguments& arguments) {
  interpreter.budget().work(value.is_string() ? 1 + value.text().size() / 16 : 1);
  if (name == "map") return map_items(interpreter, value, arguments);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return select_items(interpreter, value, arguments, name.starts_with("select"), name.ends_with("attr"));
  if (name == "format") return format_text(interpreter, value, arguments);
  const auto found = filters().find(name);
  if (found == filters().end()) raise(fmt::format("no filter named '{}'", printable(name)));
  ArgumentReader reader(name, arguments);
  Value result = found->second(interpreter, value, reader);
  reader.finish();
  return result;
}

bool call_test(Interpreter& interpreter, std::string_view name, const Value& value, Arguments& arguments) {
  const auto found = tests().find(name);
  if (found == tests().end()) raise(fmt::format("no test named '{}'", printable(name)));
  ArgumentReader reader(name, arguments);
  const bool result = found->second(interpreter, value, reader);
  reader.finish();
  return result;
}

const std::vector<std::pair<std::string, Value>>& global_functions() {
  static const auto make = [](const char* name, Value (*call)(Interpreter&, Arguments&)) {
    auto function = std::make_shared<Function>();
    function->name = fmt::format("function {}", name);
    function->call = call;
    return std::pair<std::string, Value>(name, std::shared_ptr<const Function>(std::move(function)));
  };
  static const std::vector<std::pair<std::string, Value>> functions = {
      make("range", function_range),
      make("dict", function_dict),
      make("namespace", function_namespace),
      make("raise_exception", function_raise),
      make("strftime_now", function_strftime_now),
  };
  return functions;
}

}  // namespace foretoken::jinja
