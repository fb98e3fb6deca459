#include "engine/text/template/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "engine/text/template/value.h"
#include "engine/text/utf8.h"

namespace foretoken::jinja {

namespace {

// Line ends of every kind become \n, and the last one goes.
std::string normal_lines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
    } else {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normal_lines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) read_text();
    add(Token::Kind::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { raise(fmt::format("line {}: {}", line_, what)); }

  [[nodiscard]] std::string_view rest() const { return std::string_view(source_).substr(at_); }
  [[nodiscard]] char peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }

  void advance(size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
    line_starting_ = at_ > 0 && source_[at_ - 1] == '\n';
  }

  Token& add(Token::Kind kind, std::string text = {}) {
    Token& token = tokens_.emplace_back();
    token.kind = kind;
    token.text = std::move(text);
    token.line = line_;
    return token;
  }

  // Bytes of white space at the front of `text`.
  static size_t leading_space(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
      const Utf8Char c = decode_utf8(text.substr(at));
      if (!c.valid || !is_python_space(c.code_point)) break;
      at += c.length;
    }
    return at;
  }
  // `text` without the white space at its end.
  static std::string_view without_trailing_space(std::string_view text) {
    size_t end = 0;  // behind the last character that is none
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = decode_utf8(text.substr(at));
      at += c.length;
      if (!c.valid || !is_python_space(c.code_point)) end = at;
    }
    return text.substr(0, end);
  }

  // Text before a tag that begins with `sign` behind its delimiter.
  void add_data(std::string_view text, char sign, bool strips_line) {
    if (sign == '-') {
      text = without_trailing_space(text);
    } else if (sign != '+' && strips_line) {
      const size_t newline = text.rfind('\n');
      const size_t begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((begin > 0 || line_starting_) && leading_space(text.substr(begin)) == text.size() - begin)
        text = text.substr(0, begin);
    }
    if (!text.empty()) add(Token::Kind::kData, std::string(text));
  }

  void read_text() {
    size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) break;
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    if (tag == std::string::npos) {
      add_data(rest(), '\0', false);
      return advance(source_.size() - at_);
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    add_data(std::string_view(source_).substr(at_, tag - at_), sign, kind != '{');
    advance(tag - at_);
    const size_t opening = sign == '-' || sign == '+' ? 3 : 2;
    if (kind == '#') return read_comment(opening);
    if (kind == '%' && read_raw(opening)) return;
    add(kind == '%' ? Token::Kind::kBlockBegin : Token::Kind::kOutputBegin);
    advance(opening);
    read_expression(kind == '%' ? '%' : '}');
  }

  // What follows a closing delimiter: all white space behind "-", one line end behind a block.
  void skip_after(char sign, bool trims_line) {
    if (sign == '-') {
      advance(leading_space(rest()));
    } else if (sign != '+' && trims_line && peek() == '\n') {
      advance(1);
    }
  }

  void read_comment(size_t opening) {
    const size_t end = source_.find("#}", at_ + opening);
    if (end == std::string::npos) fail("a comment has no end");
    const char sign = end > at_ + opening - 1 ? source_[end - 1] : '\0';
    const bool has_sign = (sign == '-' || sign == '+') && end - 1 >= at_ + opening;
    advance(end + 2 - at_);
    skip_after(has_sign ? sign : '\0', true);
  }

  // {% raw %} ... {% endraw %}
  bool read_raw(size_t opening) {
    const auto skip_space = [&](size_t at) { return at + leading_space(std::string_view(source_).substr(at)); };
    const auto has = [&](size_t at, std::string_view word) {
      return std::string_view(source_).substr(at).starts_with(word);
    };
    size_t at = skip_space(at_ + opening);
    if (!has(at, "raw")) return false;
    at = skip_space(at + 3);
    const bool strips = has(at, "-%}");
    if (!strips && !has(at, "%}")) return false;
    advance(at + (strips ? 3 : 2) - at_);
    if (strips) advance(leading_space(rest()));
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      size_t end = skip_space(tag + (sign == '-' || sign == '+' ? 3 : 2));
      if (!has(end, "endraw")) continue;
      end = skip_space(end + 6);
      const char closing = end < source_.size() ? source_[end] : '\0';
      if (closing == '-' || closing == '+') ++end;
      if (!has(end, "%}")) continue;
      add_data(std::string_view(source_).substr(at_, tag - at_), sign, true);
      advance(end + 2 - at_);
      skip_after(closing, true);
      return true;
    }
    fail("{% raw %} has no {% endraw %}");
  }

  // Up to the closing delimiter, which counts only outside of brackets.
  void read_expression(char closing) {
    std::string open;  // brackets to be closed
    while (true) {
      advance(leading_space(rest()));
      if (at_ >= source_.size()) fail("a tag has no end");
      if (open.empty()) {
        const bool has_sign = peek() == '-' || (peek() == '+' && closing == '%');
        const size_t at = has_sign ? 1 : 0;
        if (peek(at) == closing && peek(at + 1) == '}') {
          const char sign = has_sign ? peek() : '\0';
          add(closing == '%' ? Token::Kind::kBlockEnd : Token::Kind::kOutputEnd);
          advance(at + 2);
          return skip_after(sign, closing == '%');
        }
      }
      read_word(open);
    }
  }

  void read_word(std::string& open) {
    const char c = peek();
    if (is_name_start(c)) {
      size_t n = 1;
      while (is_name_start(peek(n)) || is_digit(peek(n))) ++n;
      add(Token::Kind::kName, source_.substr(at_, n));
      return advance(n);
    }
    if (is_digit(c)) return read_number();
    if (c == '\'' || c == '"') return read_string(c);
    static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                      "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!rest().starts_with(op)) continue;
      if (op == "(" || op == "[" || op == "{") open += op == "(" ? ')' : op == "[" ? ']' : '}';
      if (op == ")" || op == "]" || op == "}") {
        if (open.empty() || open.back() != op[0]) fail(fmt::format("unexpected '{}'", op));
        open.pop_back();
      }
      add(Token::Kind::kOperator, std::string(op));
      return advance(op.size());
    }
    fail(fmt::format("unexpected \"{}\"", printable(rest().substr(0, 1))));
  }

  // Digits with single underscores between them.
  [[nodiscard]] size_t digits_at(size_t at) const {
    size_t n = 0;
    while (is_digit(peek(at + n)) || (n > 0 && peek(at + n) == '_' && is_digit(peek(at + n + 1)))) ++n;
    return n;
  }

  void read_number() {
    const auto plain = [](std::string text) {
      std::erase(text, '_');
      return text;
    };
    const size_t whole = digits_at(0);
    size_t n = whole;
    bool is_float = false;
    const bool behind_dot = at_ > 0 && source_[at_ - 1] == '.';
    if (!behind_dot) {
      if (peek(n) == '.' && is_digit(peek(n + 1))) {
        n += 1 + digits_at(n + 1);
        is_float = true;
      }
      if (peek(n) == 'e' || peek(n) == 'E') {
        const size_t sign = peek(n + 1) == '+' || peek(n + 1) == '-' ? 1 : 0;
        if (is_digit(peek(n + 1 + sign))) {
          n += 1 + sign;
          n += digits_at(n);
          is_float = true;
        }
      }
    }
    if (is_float) {
      const std::string text = plain(source_.substr(at_, n));
      Token& token = add(Token::Kind::kFloat);
      const auto result = std::from_chars(text.data(), text.data() + text.size(), token.number);
      if (result.ec != std::errc()) fail("a number is too large");
      return advance(n);
    }
    int base = 10;
    size_t begin = 0;
    if (peek() == '0' && whole == 1) {
      const char mark = static_cast<char>(peek(1) | 0x20);
      base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
      if (base != 10) {
        begin = n = 2;
        const auto is_of_base = [&](char d) {
          const int value = is_digit(d) ? d - '0' : (d | 0x20) >= 'a' && (d | 0x20) <= 'f' ? (d | 0x20) - 'a' + 10 : 99;
          return value < base;
        };
        while (is_of_base(peek(n)) || (peek(n) == '_' && is_of_base(peek(n + 1)))) ++n;
        if (n == 2) fail("a number has no digits");
      }
    }
    const std::string text = plain(source_.substr(at_ + begin, n - begin));
    if (base == 10 && text.size() > 1 && text[0] == '0' && text.find_first_not_of('0') != std::string::npos)
      fail("a number begins with 0");
    Token& token = add(Token::Kind::kInt);
    const auto result = std::from_chars(text.data(), text.data() + text.size(), token.integer, base);
    if (result.ec != std::errc()) fail("a number is too large");
    advance(n);
  }

  void read_string(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string has no end");
    const std::string_view body = std::string_view(source_).substr(at_ + 1, end - at_ - 1);
    std::string text;
    for (size_t i = 0; i < body.size();) {
      if (body[i] != '\\') {
        text += body[i++];
      } else {
        i += 1 + unescape(body.substr(i + 1), text);
      }
    }
    add(Token::Kind::kString, std::move(text));
    advance(end + 1 - at_);
  }

  // Python's escapes; `body` begins behind the backslash. Returns the bytes that were read.
  size_t unescape(std::string_view body, std::string& out) const {
    constexpr std::string_view kLetters = "ntrbfav\\'\"\n", kMeanings = "\n\t\r\b\f\a\v\\'\"";
    const char c = body[0];
    if (const size_t known = kLetters.find(c); known != std::string_view::npos) {
      if (c != '\n') out += kMeanings[known];
      return 1;
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
      uint32_t code = read_code(body, digits);
      size_t used = 1 + digits;
      if (code >= 0xd800 && code < 0xdc00 && body.substr(used).starts_with("\\u")) {
        const uint32_t low = read_code(body.substr(used + 1), 4);
        if (low < 0xdc00 || low > 0xdfff) fail("half a surrogate pair in a string");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        used += 6;
      }
      if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("a string has an escape that is no character");
      append_utf8(code, out);
      return used;
    }
    if (c >= '0' && c <= '7') {
      size_t n = 0;
      uint32_t code = 0;
      while (n < 3 && n < body.size() && body[n] >= '0' && body[n] <= '7')
        code = code * 8 + static_cast<uint32_t>(body[n++] - '0');
      append_utf8(code, out);
      return n;
    }
    if (c == 'N') fail("escapes by a character's name are not supported");
    out += '\\';
    return 0;
  }

  [[nodiscard]] uint32_t read_code(std::string_view body, size_t digits) const {
    uint32_t code = 0;
    const std::string_view text = body.substr(std::min<size_t>(1, body.size()), digits);
    const auto result = std::from_chars(text.data(), text.data() + text.size(), code, 16);
    if (text.size() < digits || result.ec != std::errc() || result.ptr != text.data() + text.size())
      fail("a string has an escape without its digits");
    return code;
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace foretoken::jinja
