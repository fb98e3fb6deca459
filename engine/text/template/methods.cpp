#include "engine/text/template/methods.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "engine/text/utf8.h"

namespace foretoken::jinja {

// ---- arguments ----

const Value* ArgumentReader::find(std::string_view name) {
  if (position_ < arguments_.positional.size()) {
    const Value* value = &arguments_.positional[position_++];
    for (const auto& [known, unused] : arguments_.named) {
      if (known == name) raise(fmt::format("{} got two values for '{}'", function_, name));
    }
    return value;
  }
  for (const auto& [known, value] : arguments_.named) {
    if (known != name) continue;
    ++num_named_;
    return &value;
  }
  return nullptr;
}

Value ArgumentReader::take(std::string_view name, Value fallback) {
  const Value* found = find(name);
  return found != nullptr ? *found : fallback;
}

Value ArgumentReader::need(std::string_view name) {
  const Value* found = find(name);
  if (found == nullptr) raise(fmt::format("{} needs the argument '{}'", function_, name));
  return *found;
}

int64_t ArgumentReader::take_int(std::string_view name, int64_t fallback) {
  const Value* found = find(name);
  if (found == nullptr) return fallback;
  if (!found->is_integral())
    raise(fmt::format("{}: '{}' must be an integer, not {}", function_, name, type_name(*found)));
  return found->as_int();
}

Text ArgumentReader::need_text(std::string_view name) {
  const Value value = need(name);
  if (!value.is_string()) raise(fmt::format("{}: '{}' must be a string, not {}", function_, name, type_name(value)));
  return value.text();
}

void ArgumentReader::finish() const {
  if (position_ < arguments_.positional.size()) raise(fmt::format("{} got too many arguments", function_));
  if (num_named_ < arguments_.named.size())
    raise(fmt::format("{} got an argument that it does not know: '{}'", function_,
                      printable(arguments_.named.back().first)));
}

// ---- strings ----

namespace {

template <class Map>
Text map_characters(const Text& text, const Map& map) {
  Text out;
  out.is_markup = text.is_markup;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(std::string_view(text.bytes).substr(at));
    if (c.valid) {
      std::string made;
      map(c.code_point, made);
      out.append_like(made, text, at);
    } else {
      out.append(text, at, c.length);
    }
    at += c.length;
  }
  return out;
}

// Characters whose upper case is several.
void append_upper(char32_t c, std::string& out) {
  static const std::map<char32_t, std::string_view> kSpecial = {
      {0xdf, "SS"},   {0x149, "\u02bcN"}, {0x1f0, "J\u030c"}, {0x587, "\u0535\u0552"}, {0xfb00, "FF"}, {0xfb01, "FI"},
      {0xfb02, "FL"}, {0xfb03, "FFI"},    {0xfb04, "FFL"},    {0xfb05, "ST"},          {0xfb06, "ST"},
  };
  if (const auto found = kSpecial.find(c); found != kSpecial.end()) {
    out += found->second;
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  }
}
void append_lower(char32_t c, std::string& out) {
  if (c == 0x130) {
    out += "i\u0307";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  }
}
void append_title(char32_t c, std::string& out) {
  if (c == 0xdf) {
    out += "Ss";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), out);
  }
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}
bool is_letter(char32_t c) {
  const auto kind = category(c);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}
bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xaa || c == 0xba;
}
bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU;
}
bool is_cased(char32_t c) {
  return is_lower(c) || is_upper(c) || category(c) == UTF8PROC_CATEGORY_LT;
}
bool is_decimal(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}
bool is_numeric(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}
// Decimal digits and those that stand raised, lowered or in circles.
bool is_digit(char32_t c) {
  return is_decimal(c) || c == 0xb2 || c == 0xb3 || c == 0xb9 || c == 0x2070 || (c >= 0x2074 && c <= 0x2079) ||
         (c >= 0x2080 && c <= 0x2089) || (c >= 0x2460 && c <= 0x2468);
}

std::vector<char32_t> characters(std::string_view text) {
  std::vector<char32_t> out;
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = decode_utf8(text.substr(at));
    out.push_back(c.code_point);
    at += c.length;
  }
  return out;
}

// The first place of `part` in [from, to) of `text`, or npos. Linear in the length, whatever the bytes are.
size_t find_in(std::string_view text, std::string_view part, size_t from, size_t to) {
  if (from > to) return std::string_view::npos;
  const void* found = memmem(text.data() + from, to - from, part.data(), part.size());
  return found == nullptr ? std::string_view::npos : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t find_last_in(std::string_view text, std::string_view part, size_t from, size_t to) {
  if (from > to || to - from < part.size()) return std::string_view::npos;
  if (part.empty()) return to;
  // The last of the places that linear searches find, one behind the other.
  size_t last = std::string_view::npos;
  for (size_t at = find_in(text, part, from, to); at != std::string_view::npos; at = find_in(text, part, at + 1, to))
    last = at;
  return last;
}

}  // namespace

Text to_upper(const Text& text) {
  return map_characters(text, append_upper);
}

Text to_lower(const Text& text) {
  const std::vector<char32_t> chars =
      text.bytes.find("\u03a3") == std::string::npos ? std::vector<char32_t>() : characters(text.bytes);
  size_t i = 0;
  return map_characters(text, [&](char32_t c, std::string& out) {
    // A sigma at the end of a word has a form of its own.
    if (c == 0x3a3) {
      const auto is_ignored = [](char32_t x) {
        return x == '\'' || x == '.' || x == ':' || category(x) == UTF8PROC_CATEGORY_MN || x == 0xb7 || x == 0x2019;
      };
      size_t before = i, after = i + 1;
      while (before > 0 && is_ignored(chars[before - 1])) --before;
      while (after < chars.size() && is_ignored(chars[after])) ++after;
      const bool is_final =
          before > 0 && is_cased(chars[before - 1]) && !(after < chars.size() && is_cased(chars[after]));
      append_utf8(is_final ? 0x3c2 : 0x3c3, out);
    } else {
      append_lower(c, out);
    }
    ++i;
  });
}

Text capitalize(const Text& text) {
  Text lower = to_lower(text);
  if (text.size() == 0) return lower;
  const Utf8Char first = decode_utf8(text.bytes);
  std::string title, small;
  append_title(first.code_point, title);
  append_lower(first.code_point, small);
  Text out;
  out.is_markup = text.is_markup;
  out.append_like(title, text, 0);
  out.append(lower, small.size(), lower.size() - small.size());
  return out;
}

Text strip(const Text& text, const Value& chars, bool left, bool right) {
  std::vector<char32_t> set;
  if (!chars.is_none()) {
    if (!chars.is_string()) raise("strip arg must be None or str");
    set = characters(chars.text().bytes);
    std::sort(set.begin(), set.end());
  }
  const auto goes = [&](char32_t c) {
    return chars.is_none() ? is_python_space(c) : std::binary_search(set.begin(), set.end(), c);
  };
  const std::string_view bytes = text.bytes;
  size_t begin = 0, end = bytes.size();
  while (left && begin < end) {
    const Utf8Char c = decode_utf8(bytes.substr(begin));
    if (!goes(c.code_point)) break;
    begin += c.length;
  }
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(bytes[last]) & 0xc0) == 0x80) --last;
    if (!goes(decode_utf8(bytes.substr(last)).code_point)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

Text replace(const Text& text, const Text& from, const Text& to, int64_t most, Budget& budget) {
  Text out;
  out.is_markup = text.is_markup;
  const std::string_view bytes = text.bytes;
  size_t at = 0;
  budget.allocate(text.size());
  for (int64_t n = 0; most < 0 || n < most; ++n) {
    budget.allocate(to.size());
    if (from.size() == 0) {
      out.append(to);
      if (at >= bytes.size()) return out;
      const size_t length = decode_utf8(bytes.substr(at)).length;
      out.append(text, at, length);
      at += length;
      continue;
    }
    const size_t found = find_in(bytes, from.bytes, at, bytes.size());
    if (found == std::string_view::npos) break;
    out.append(text, at, found - at);
    out.append(to);
    at = found + from.size();
  }
  out.append(text, at, bytes.size() - at);
  return out;
}

std::vector<Text> split_lines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  const std::string_view bytes = text.bytes;
  size_t begin = 0;
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Char c = decode_utf8(bytes.substr(at));
    const char32_t code = c.code_point;
    const size_t end = at;
    at += c.length;
    if (!((code >= 0x0a && code <= 0x0d) || (code >= 0x1c && code <= 0x1e) || code == 0x85 || code == 0x2028 ||
          code == 0x2029))
      continue;
    if (code == '\r' && at < bytes.size() && bytes[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < bytes.size()) lines.push_back(text.substr(begin, bytes.size() - begin));
  return lines;
}

std::vector<Text> split(const Text& text, const Value& separator, int64_t most, bool from_right, Budget& budget) {
  budget.allocate(text.size());
  std::vector<Text> parts;
  const std::string_view bytes = text.bytes;
  std::vector<std::pair<size_t, size_t>> gaps;  // begin and end of each separator
  if (!separator.is_none()) {
    if (!separator.is_string()) raise(fmt::format("must be str or None, not {}", type_name(separator)));
    const std::string& by = separator.text().bytes;
    if (by.empty()) raise("empty separator");
    if (from_right) {
      // From the end: separators that overlap are told apart otherwise than from the front.
      std::vector<size_t> places;
      for (size_t at = find_in(bytes, by, 0, bytes.size()); at != std::string_view::npos;
           at = find_in(bytes, by, at + 1, bytes.size()))
        places.push_back(at);
      size_t end = bytes.size();
      for (size_t i = places.size(); i-- > 0 && (most < 0 || static_cast<int64_t>(gaps.size()) < most);) {
        if (places[i] + by.size() > end) continue;
        gaps.emplace_back(places[i], places[i] + by.size());
        end = places[i];
      }
      std::reverse(gaps.begin(), gaps.end());
    } else {
      for (size_t at = 0; most < 0 || static_cast<int64_t>(gaps.size()) < most;) {
        const size_t found = find_in(bytes, by, at, bytes.size());
        if (found == std::string_view::npos) break;
        gaps.emplace_back(found, found + by.size());
        at = found + by.size();
      }
    }
    size_t begin = 0;
    budget.allocate(gaps.size() * (sizeof(Text) + sizeof(Value)));
    for (const auto& [gap_begin, gap_end] : gaps) {
      parts.push_back(text.substr(begin, gap_begin - begin));
      begin = gap_end;
    }
    parts.push_back(text.substr(begin, bytes.size() - begin));
    return parts;
  }
  // By runs of white space; those at the ends part nothing.
  std::vector<std::pair<size_t, size_t>> words;
  bool in_word = false;
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Char c = decode_utf8(bytes.substr(at));
    const bool space = is_python_space(c.code_point);
    if (!space && !in_word) words.emplace_back(at, at);
    in_word = !space;
    at += c.length;
    if (in_word) words.back().second = at;
  }
  budget.allocate(words.size() * (sizeof(Text) + sizeof(Value)));
  const auto count = static_cast<int64_t>(words.size());
  if (most >= 0 && count > most) {
    if (from_right) {
      const auto rest = static_cast<size_t>(count - most);
      parts.push_back(text.substr(0, words[rest - 1].second));
      words.erase(words.begin(), words.begin() + static_cast<ptrdiff_t>(rest));
    } else {
      const auto kept = static_cast<size_t>(most);
      for (size_t i = 0; i < kept; ++i) parts.push_back(text.substr(words[i].first, words[i].second - words[i].first));
      parts.push_back(text.substr(words[kept].first, bytes.size() - words[kept].first));
      return parts;
    }
    // What is left of the words stands at the front, its own leading space gone only where nothing was cut.
    if (most > 0 || !words.empty()) parts.front() = strip(parts.front(), Value::none(), false, true);
  }
  for (const auto& [begin, end] : words) parts.push_back(text.substr(begin, end - begin));
  return parts;
}

Text join(const Text& separator, const std::vector<Text>& parts, Budget& budget) {
  Text out;
  out.is_markup = separator.is_markup;
  for (size_t i = 0; i < parts.size(); ++i) {
    budget.allocate(parts[i].size() + separator.size());
    if (i > 0) out.append(separator);
    out.append(parts[i]);
  }
  return out;
}

namespace {

Text pad(const Text& text, int64_t left, int64_t right, std::string_view fill, Budget& budget) {
  left = std::max<int64_t>(left, 0);
  right = std::max<int64_t>(right, 0);
  if (left + right > Budget::kMostBytes) raise("the template makes too much text");
  budget.allocate(static_cast<size_t>(left + right) * fill.size() + text.size());
  Text out;
  out.is_markup = text.is_markup;
  for (int64_t i = 0; i < left; ++i) out.append(fill);
  out.append(text);
  for (int64_t i = 0; i < right; ++i) out.append(fill);
  return out;
}

}  // namespace

Text center(const Text& text, int64_t width, std::string_view fill, Budget& budget) {
  const int64_t missing = std::max<int64_t>(width - count_characters(text.bytes), 0);
  const int64_t left = missing / 2 + (missing & width & 1);
  return pad(text, left, missing - left, fill, budget);
}

// ---- methods ----

namespace {

using Method = Value (*)(Interpreter&, const Value& self, ArgumentReader&);

std::vector<Value> values_of(std::vector<Text> texts) {
  std::vector<Value> values;
  for (Text& text : texts) values.emplace_back(std::move(text));
  return values;
}

template <bool kLeft, bool kRight>
Value strip_method(Interpreter&, const Value& self, ArgumentReader& arguments) {
  return strip(self.text(), arguments.take("chars", Value::none()), kLeft, kRight);
}

template <bool kFromRight>
Value split_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Value separator = arguments.take("sep", Value::none());
  const int64_t most = arguments.take_int("maxsplit", -1);
  return Value::list(values_of(split(self.text(), separator, most, kFromRight, interpreter.budget())));
}

// Byte offsets of the range that start and end arguments (in characters) name; false where start is behind the end.
bool take_range(const Text& text, ArgumentReader& arguments, size_t& begin, size_t& end) {
  const Value first = arguments.take("start", Value::none()), last = arguments.take("end", Value::none());
  if (first.is_none() && last.is_none()) {
    begin = 0;
    end = text.size();
    return true;
  }
  const std::vector<size_t> offsets = character_offsets(text.bytes);
  const auto size = static_cast<int64_t>(offsets.size()) - 1;
  const auto place = [&](const Value& value, int64_t if_none) {
    if (value.is_none()) return if_none;
    if (!value.is_integral()) raise("slice indices must be integers or None");
    return value.as_int() < 0 ? std::max<int64_t>(value.as_int() + size, 0) : value.as_int();
  };
  const int64_t from = place(first, 0), to = std::min(place(last, size), size);
  if (from > to) return false;
  begin = offsets[from];
  end = offsets[to];
  return true;
}

template <bool kAtEnd>
Value has_affix(Interpreter&, const Value& self, ArgumentReader& arguments) {
  const Value affix = arguments.need("prefix");
  size_t begin = 0, end = 0;
  const bool in_range = take_range(self.text(), arguments, begin, end);
  const auto matches = [&](const Value& value) {
    if (!value.is_string()) raise(fmt::format("the argument must be str or a tuple of str, not {}", type_name(value)));
    if (!in_range) return false;
    const std::string_view text = std::string_view(self.text().bytes).substr(begin, end - begin);
    return kAtEnd ? text.ends_with(value.text().bytes) : text.starts_with(value.text().bytes);
  };
  if (!affix.is_list(List::Kind::kTuple)) return matches(affix);
  return std::any_of(affix.list().items.begin(), affix.list().items.end(), matches);
}

template <bool kLast, bool kMustBeThere>
Value find_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Text part = arguments.need_text("sub");
  size_t begin = 0, end = 0;
  const std::string_view text = self.text().bytes;
  interpreter.budget().work(text.size() / 8);
  size_t found = std::string_view::npos;
  if (take_range(self.text(), arguments, begin, end))
    found = kLast ? find_last_in(text, part.bytes, begin, end) : find_in(text, part.bytes, begin, end);
  if (found != std::string_view::npos) return count_characters(text.substr(0, found));
  if (kMustBeThere) raise("substring not found");
  return int64_t{-1};
}

Value count_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Text part = arguments.need_text("sub");
  size_t begin = 0, end = 0;
  const std::string_view text = self.text().bytes;
  interpreter.budget().work(text.size() / 8);
  if (!take_range(self.text(), arguments, begin, end)) return int64_t{0};
  if (part.size() == 0) return count_characters(text.substr(begin, end - begin)) + 1;
  int64_t count = 0;
  for (size_t at = find_in(text, part.bytes, begin, end); at != std::string_view::npos;
       at = find_in(text, part.bytes, at + part.size(), end))
    ++count;
  return count;
}

Value replace_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Text from = arguments.need_text("old"), to = arguments.need_text("new");
  return replace(self.text(), from, to, arguments.take_int("count", -1), interpreter.budget());
}

Value join_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  std::vector<Text> parts;
  for (const Value& value : iterate(arguments.need("iterable"), interpreter.budget())) {
    if (!value.is_string()) raise(fmt::format("sequence item: expected str instance, {} found", type_name(value)));
    parts.push_back(value.text());
  }
  return join(self.text(), parts, interpreter.budget());
}

template <Text (*kMap)(const Text&)>
Value map_method(Interpreter&, const Value& self, ArgumentReader&) {
  return kMap(self.text());
}

Text title_of(const Text& text) {
  bool in_word = false;
  return map_characters(text, [&](char32_t c, std::string& out) {
    if (in_word) {
      append_lower(c, out);
    } else {
      append_title(c, out);
    }
    in_word = is_cased(c);
  });
}

Text swapcase_of(const Text& text) {
  return map_characters(text, [&](char32_t c, std::string& out) {
    if (is_upper(c)) {
      append_lower(c, out);
    } else {
      append_upper(c, out);
    }
  });
}

template <bool (*kIs)(char32_t)>
Value all_are(Interpreter&, const Value& self, ArgumentReader&) {
  const std::vector<char32_t> chars = characters(self.text().bytes);
  return !chars.empty() && std::all_of(chars.begin(), chars.end(), kIs);
}
bool is_letter_or_number(char32_t c) {
  return is_letter(c) || is_numeric(c);
}

template <bool kUpper>
Value has_case(Interpreter&, const Value& self, ArgumentReader&) {
  const std::vector<char32_t> chars = characters(self.text().bytes);
  const bool any = std::any_of(chars.begin(), chars.end(), is_cased);
  return any && std::none_of(chars.begin(), chars.end(), [](char32_t c) {
           return (kUpper ? is_lower(c) : is_upper(c)) || category(c) == UTF8PROC_CATEGORY_LT;
         });
}

Value split_lines_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  interpreter.budget().allocate(self.text().size() * 2);
  return Value::list(values_of(split_lines(self.text(), arguments.take_bool("keepends", false))));
}

template <bool kFromRight>
Value partition_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Text& text = self.text();
  const Text by = arguments.need_text("sep");
  if (by.size() == 0) raise("empty separator");
  interpreter.budget().allocate(text.size());
  const size_t at =
      kFromRight ? find_last_in(text.bytes, by.bytes, 0, text.size()) : find_in(text.bytes, by.bytes, 0, text.size());
  std::vector<Value> parts;
  if (at == std::string_view::npos) {
    parts = {Value::string(""), Value::string("")};
    parts.insert(kFromRight ? parts.end() : parts.begin(), self);
  } else {
    parts = {text.substr(0, at), text.substr(at, by.size()), text.substr(at + by.size(), text.size())};
  }
  return Value::list(std::move(parts), List::Kind::kTuple);
}

template <bool kAtEnd>
Value remove_affix(Interpreter&, const Value& self, ArgumentReader& arguments) {
  const Text affix = arguments.need_text("prefix");
  const Text& text = self.text();
  const bool has = kAtEnd ? text.bytes.ends_with(affix.bytes) : text.bytes.starts_with(affix.bytes);
  if (!has) return self;
  return text.substr(kAtEnd ? 0 : affix.size(), text.size() - affix.size());
}

template <bool kLeft, bool kRight>
Value justify(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Value width = arguments.need("width");
  if (!width.is_integral()) raise("the width must be an integer");
  std::string fill = " ";
  if (const Value given = arguments.take("fillchar", Value::none()); !given.is_none()) {
    if (!given.is_string() || count_characters(given.text().bytes) != 1)
      raise("the fill character must be exactly one character long");
    fill = given.text().bytes;
  }
  Budget& budget = interpreter.budget();
  if (kLeft && kRight) return center(self.text(), width.as_int(), fill, budget);
  const int64_t missing = width.as_int() - count_characters(self.text().bytes);
  return pad(self.text(), kLeft ? missing : 0, kRight ? missing : 0, fill, budget);
}

Value zfill_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Value width = arguments.need("width");
  if (!width.is_integral()) raise("the width must be an integer");
  const Text& text = self.text();
  const bool has_sign = text.bytes.starts_with('-') || text.bytes.starts_with('+');
  Text out = text.substr(0, has_sign ? 1 : 0);
  out.append(pad(text.substr(has_sign ? 1 : 0, text.size()), width.as_int() - count_characters(text.bytes), 0, "0",
                 interpreter.budget()));
  return out;
}

// str.format with {}, {0} and {name}, and widths and alignments of strings and whole numbers.
Value format_method(Interpreter& interpreter, const Value& self, const Arguments& arguments) {
  const Text& text = self.text();
  Budget& budget = interpreter.budget();
  Text out;
  out.is_markup = text.is_markup;
  size_t next = 0;
  char numbering = 0;  // 'a': by {}, 'm': by {0}
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text.bytes[at];
    if ((c == '{' || c == '}') && at + 1 < text.size() && text.bytes[at + 1] == c) {
      out.append(text, at++, 1);
      continue;
    }
    if (c == '}') raise("Single '}' encountered in format string");
    if (c != '{') {
      out.append(text, at, 1);
      continue;
    }
    const size_t end = text.bytes.find('}', at);
    if (end == std::string::npos) raise("expected '}' before end of string");
    std::string field = text.bytes.substr(at + 1, end - at - 1), spec, conversion;
    if (const size_t colon = field.find(':'); colon != std::string::npos) {
      spec = field.substr(colon + 1);
      field.resize(colon);
    }
    if (const size_t mark = field.find('!'); mark != std::string::npos) {
      conversion = field.substr(mark + 1);
      field.resize(mark);
    }
    if (field.find_first_of(".[{") != std::string::npos) raise("attributes in a format string are not supported");
    Value value;
    if (field.empty() || field.find_first_not_of("0123456789") == std::string::npos) {
      const size_t index = field.empty() ? next++ : field.size() > 6 ? SIZE_MAX : std::stoul(field);
      if (index >= arguments.positional.size()) raise("Replacement index out of range for positional args tuple");
      if (std::exchange(numbering, field.empty() ? 'a' : 'm') == (field.empty() ? 'm' : 'a'))
        raise("cannot switch between manual and automatic field numbering");
      value = arguments.positional[index];
    } else {
      const auto found = std::find_if(arguments.named.begin(), arguments.named.end(),
                                      [&](const auto& named) { return named.first == field; });
      if (found == arguments.named.end()) raise("a key of the format string is missing");
      value = found->second;
    }
    Text made;
    if (conversion == "r") {
      append_repr(value, made, budget);
      value = made;
    } else if (conversion == "s") {
      value = to_text(value, budget);
    } else if (!conversion.empty()) {
      raise("a conversion of a format string is not supported");
    }
    if (spec.empty()) {
      made = to_text(value, budget);
    } else {
      // [alignment][0][width][.precision][type]
      size_t i = 0;
      char align = value.is_number() ? '>' : '<';
      if (std::strchr("<>^", spec[0]) != nullptr) align = spec[i++];
      const bool zeros = i < spec.size() && spec[i] == '0';
      const auto number = [&] {
        size_t digits = 0;
        while (i + digits < spec.size() && spec[i + digits] >= '0' && spec[i + digits] <= '9') ++digits;
        if (digits == 0 || digits > 4) raise("a format specification is not supported");
        const int n = std::stoi(spec.substr(i, digits));
        i += digits;
        return n;
      };
      int width = 0, precision = -1;
      if (i < spec.size() && spec[i] >= '0' && spec[i] <= '9') width = number();
      if (i < spec.size() && spec[i] == '.') {
        ++i;
        precision = number();
      }
      const char type = i < spec.size() ? spec[i++] : '\0';
      if (i != spec.size()) raise("a format specification is not supported");
      if (value.is_string() && (type == '\0' || type == 's') && !zeros) {
        made = value.text();
        const auto offsets = character_offsets(made.bytes);
        if (precision >= 0 && static_cast<size_t>(precision) + 1 < offsets.size())
          made = made.substr(0, offsets[precision]);
      } else if (value.is_int() && (type == '\0' || type == 'd') && precision < 0) {
        made.append(std::to_string(value.as_int()));
      } else if (value.is_number() && (type == 'f' || type == 'e' || type == 'g')) {
        Text format;
        format.append(fmt::format("%.{}{}", precision < 0 ? 6 : precision, type));
        made = printf_format(format, value, budget);
      } else {
        raise("a format specification is not supported");
      }
      const int64_t missing = std::max<int64_t>(width - count_characters(made.bytes), 0);
      if (zeros) {
        const bool negative = made.bytes.starts_with('-');
        Text sign = made.substr(0, negative ? 1 : 0);
        sign.append(pad(made.substr(negative ? 1 : 0, made.size()), missing, 0, "0", budget));
        made = std::move(sign);
      } else {
        const int64_t left = align == '>' ? missing : align == '^' ? missing / 2 : 0;
        made = pad(made, left, missing - left, " ", budget);
      }
    }
    out.append(made);
    at = end;
  }
  budget.allocate(out.size());
  return out;
}

const std::map<std::string_view, Method>& string_methods() {
  static const std::map<std::string_view, Method> methods = {
      {"strip", strip_method<true, true>},
      {"lstrip", strip_method<true, false>},
      {"rstrip", strip_method<false, true>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"splitlines", split_lines_method},
      {"startswith", has_affix<false>},
      {"endswith", has_affix<true>},
      {"find", find_method<false, false>},
      {"rfind", find_method<true, false>},
      {"index", find_method<false, true>},
      {"rindex", find_method<true, true>},
      {"count", count_method},
      {"replace", replace_method},
      {"join", join_method},
      {"upper", map_method<to_upper>},
      {"lower", map_method<to_lower>},
      {"casefold", map_method<to_lower>},
      {"title", map_method<title_of>},
      {"capitalize", map_method<capitalize>},
      {"swapcase", map_method<swapcase_of>},
      {"isspace", all_are<is_python_space>},
      {"isalpha", all_are<is_letter>},
      {"isalnum", all_are<is_letter_or_number>},
      {"isdigit", all_are<is_digit>},
      {"isdecimal", all_are<is_decimal>},
      {"isnumeric", all_are<is_numeric>},
      {"isupper", has_case<true>},
      {"islower", has_case<false>},
      {"partition", partition_method<false>},
      {"rpartition", partition_method<true>},
      {"removeprefix", remove_affix<false>},
      {"removesuffix", remove_affix<true>},
      {"ljust", justify<false, true>},
      {"rjust", justify<true, false>},
      {"center", justify<true, true>},
      {"zfill", zfill_method},
  };
  return methods;
}

Value view_of(const Dict& dict, std::string name, bool keys, bool values) {
  List list;
  list.kind = List::Kind::kView;
  list.name = std::move(name);
  for (const auto& [key, value] : dict.items) {
    if (keys && values) {
      list.items.push_back(Value::list({key, value}, List::Kind::kTuple));
    } else {
      list.items.push_back(keys ? key : value);
    }
  }
  return list;
}

Value items_method(Interpreter& interpreter, const Value& self, ArgumentReader&) {
  interpreter.budget().allocate(self.dict().items.size() * (sizeof(List) + 3 * sizeof(Value)));
  return view_of(self.dict(), "dict_items", true, true);
}
Value keys_method(Interpreter& interpreter, const Value& self, ArgumentReader&) {
  interpreter.budget().allocate(self.dict().items.size() * sizeof(Value));
  return view_of(self.dict(), "dict_keys", true, false);
}
Value values_method(Interpreter& interpreter, const Value& self, ArgumentReader&) {
  interpreter.budget().allocate(self.dict().items.size() * sizeof(Value));
  return view_of(self.dict(), "dict_values", false, true);
}
Value get_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Value key = arguments.need("key");
  Value fallback = arguments.take("default", Value::none());
  if (!is_hashable(key)) raise(fmt::format("unhashable type: '{}'", type_name(key)));
  const Value* found = self.dict().find(key, interpreter.budget());
  return found != nullptr ? *found : fallback;
}
Value copy_method(Interpreter&, const Value& self, ArgumentReader&) {
  return self;
}

const std::map<std::string_view, Method>& dict_methods() {
  static const std::map<std::string_view, Method> methods = {{"items", items_method},
                                                             {"keys", keys_method},
                                                             {"values", values_method},
                                                             {"get", get_method},
                                                             {"copy", copy_method}};
  return methods;
}

Value list_count_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Value wanted = arguments.need("value");
  const auto& items = self.list().items;
  return static_cast<int64_t>(std::count_if(items.begin(), items.end(),
                                            [&](const Value& v) { return equal(v, wanted, interpreter.budget()); }));
}
Value list_index_method(Interpreter& interpreter, const Value& self, ArgumentReader& arguments) {
  const Value wanted = arguments.need("value");
  const auto& items = self.list().items;
  const auto found =
      std::find_if(items.begin(), items.end(), [&](const Value& v) { return equal(v, wanted, interpreter.budget()); });
  if (found == items.end()) raise("the value is not in the list");
  return static_cast<int64_t>(found - items.begin());
}

const std::map<std::string_view, Method>& list_methods() {
  static const std::map<std::string_view, Method> methods = {
      {"count", list_count_method}, {"index", list_index_method}, {"copy", copy_method}};
  return methods;
}

Value bind(const std::map<std::string_view, Method>& methods, const Value& self, const std::string& name) {
  const auto found = methods.find(name);
  if (found == methods.end()) return {};
  auto function = std::make_shared<Function>();
  function->name = "built-in method " + name;
  function->depth = depth_above(self.depth());
  function->call = [method = found->second, name = found->first, self](Interpreter& interpreter, Arguments& arguments) {
    interpreter.budget().work(self.is_string() ? self.text().size() / 16 : 1);
    ArgumentReader reader(name, arguments);
    Value result = method(interpreter, self, reader);
    reader.finish();
    return result;
  };
  return std::shared_ptr<const Function>(std::move(function));
}

Value loop_attribute(const std::shared_ptr<Loop>& loop, const std::string& name) {
  const auto index = static_cast<int64_t>(loop->index), size = static_cast<int64_t>(loop->items.size());
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return size - index;
  if (name == "revindex0") return size - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 >= size;
  if (name == "length") return size;
  if (name == "depth") return int64_t{loop->depth};
  if (name == "depth0") return int64_t{loop->depth - 1};
  if (name == "previtem")
    return index > 0 ? loop->items[loop->index - 1] : Value(Undefined{"there is no previous item"});
  if (name == "nextitem")
    return index + 1 < size ? loop->items[loop->index + 1] : Value(Undefined{"there is no next item"});
  if (name != "cycle" && name != "changed") return {};
  auto function = std::make_shared<Function>();
  function->name = name;
  function->depth = depth_above(loop->nesting);
  // The loop may change on; these look at it when they are called.
  function->call = [loop, cycle = name == "cycle"](Interpreter& interpreter, Arguments& arguments) -> Value {
    if (cycle) {
      if (arguments.positional.empty()) raise("no items for cycling given");
      return arguments.positional[loop->index % arguments.positional.size()];
    }
    if (loop->is_over) raise("the loop is over");
    Value now = Value::list(arguments.positional, List::Kind::kTuple);
    const bool changed = !loop->has_changed || !equal(loop->last_changed, now, interpreter.budget());
    loop->has_changed = true;
    loop->last_changed = std::move(now);
    return changed;
  };
  return std::shared_ptr<const Function>(std::move(function));
}

}  // namespace

Value own_attribute(Interpreter& interpreter, const Value& object, const std::string& name) {
  if (name.starts_with('_')) return {};
  if (object.is_string()) {
    if (name == "format") {
      auto function = std::make_shared<Function>();
      function->name = "format";
      function->call = [object](Interpreter& called, Arguments& arguments) {
        return format_method(called, object, arguments);
      };
      return std::shared_ptr<const Function>(std::move(function));
    }
    return bind(string_methods(), object, name);
  }
  if (object.is_dict()) return bind(dict_methods(), object, name);
  if (object.is_list(List::Kind::kList) || object.is_list(List::Kind::kTuple)) {
    if (object.is_list(List::Kind::kTuple) && name == "copy") return {};
    return bind(list_methods(), object, name);
  }
  if (object.is_loop()) return loop_attribute(object.loop(), name);
  if (object.is_namespace()) {
    const Value* found = object.name_space().attributes.find(Value::string(name), interpreter.budget());
    return found != nullptr ? *found : Value();
  }
  return {};
}

}  // namespace foretoken::jinja
