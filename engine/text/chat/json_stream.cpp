#include "engine/text/chat/json_stream.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "engine/text/chat/marks.h"

namespace foretoken {

namespace {

constexpr std::string_view kEscapes = "\"\\/bfnrt";

bool is_hex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

// "\uD83D" begins a pair, "\uDE00" ends one.
bool is_high_surrogate(std::string_view escape) {
  return escape.size() >= 4 && (escape[2] | 0x20) == 'd' &&
         std::string_view("89abAB").find(escape[3]) != std::string_view::npos;
}
bool is_low_surrogate(std::string_view escape) {
  return escape.size() >= 4 && (escape[2] | 0x20) == 'd' &&
         std::string_view("cdefCDEF").find(escape[3]) != std::string_view::npos;
}

}  // namespace

void append_json_text(std::string_view text, std::string& out) {
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
}

size_t JsonStream::push(std::string_view text, std::string& out) {
  for (size_t i = 0; i < text.size(); ++i) {
    const size_t before = out.size();
    if (!take(text[i], out)) {
      state_ = State::kFailed;
      return i;
    }
    ++num_read_;
    if (out.size() > before) num_told_ = num_read_;
    if (state_ == State::kWhole) return i + 1;
  }
  return text.size();
}

void JsonStream::close(std::string& out) {
  if (expect_ == Expect::kInString) out += '"';
  for (; !brackets_.empty(); brackets_.pop_back()) out += brackets_.back() == '{' ? '}' : ']';
  state_ = State::kWhole;
}

void JsonStream::hand_on(std::string& out) {
  out += pending_;
  pending_.clear();
  has_begun_ = true;
  if (state_ == State::kWaiting) state_ = State::kOpen;
}

// A character of a string; false: it cannot stand there. An unfinished escape waits.
bool JsonStream::take_in_string(char c, std::string& to) {
  if (escape_.empty()) {
    if (c == '\\') {
      escape_ = c;
    } else {
      append_json_text(std::string_view(&c, 1), to);
    }
    return true;
  }
  if (escape_.size() == 1) {
    if (c == 'u') {
      escape_ += c;
      return true;
    }
    escape_.clear();
    if (kEscapes.find(c) != std::string_view::npos) {
      to += '\\';
      to += c;
    } else {
      to += "\\\\";
      append_json_text(std::string_view(&c, 1), to);
    }
    return true;
  }
  // \uXXXX, and behind the first half of a pair the second.
  const size_t at = escape_.size();
  if (at == 6 || at == 7) {
    if (c != (at == 6 ? '\\' : 'u')) return false;
  } else if (!is_hex(c)) {
    return false;
  }
  escape_ += c;
  const bool is_pair = is_high_surrogate(escape_);
  if (escape_.size() == 6 && is_low_surrogate(escape_)) return false;
  if (escape_.size() == 12 && !is_low_surrogate(std::string_view(escape_).substr(6))) return false;
  if (escape_.size() == (is_pair ? 12 : 6)) {
    to += escape_;
    escape_.clear();
  }
  return true;
}

bool JsonStream::begin_value(char c, std::string& out) {
  if (c == '"') {
    pending_ += c;
    hand_on(out);
    expect_ = Expect::kInString;
  } else if (c == '{' || c == '[') {
    if (brackets_.size() >= kMostDepth) return false;
    pending_ += c;
    brackets_ += c;
    hand_on(out);
    expect_ = c == '{' ? Expect::kFirstName : Expect::kFirstValue;
  } else if (c == '-' || (c >= '0' && c <= '9')) {
    word_ = c;
    expect_ = Expect::kInNumber;
  } else if (c == 't' || c == 'f' || c == 'n') {
    word_ = c;
    expect_ = Expect::kInWord;
  } else {
    return false;
  }
  return true;
}

bool JsonStream::end_bracket(char c, std::string& out) {
  if (c != (brackets_.back() == '{' ? '}' : ']')) return false;
  brackets_.pop_back();
  pending_ += c;
  hand_on(out);
  expect_ = Expect::kComma;
  if (brackets_.empty()) state_ = State::kWhole;
  return true;
}

bool JsonStream::take(char c, std::string& out) {
  if (expect_ == Expect::kInString || expect_ == Expect::kInName) {
    std::string& to = expect_ == Expect::kInString ? out : pending_;
    if (c != '"' || !escape_.empty()) return take_in_string(c, to);
    to += c;
    expect_ = expect_ == Expect::kInString ? Expect::kComma : Expect::kColon;
    return true;
  }
  if (expect_ == Expect::kInWord) {
    word_ += c;
    bool may_be = false;
    for (const std::string_view word : {"true", "false", "null"}) {
      may_be = may_be || word.starts_with(word_);
      if (word != word_) continue;
      pending_ += word_;
      hand_on(out);
      expect_ = Expect::kComma;
    }
    return may_be;
  }
  if (expect_ == Expect::kInNumber) {
    constexpr size_t kLongestNumber = 400;
    if ((c >= '0' && c <= '9') || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-') {
      word_ += c;
      return word_.size() <= kLongestNumber;
    }
    if (!nlohmann::json::accept(word_)) return false;
    pending_ += word_;
    hand_on(out);
    expect_ = Expect::kComma;
  }
  if (kSpace.find(c) != std::string_view::npos) return true;
  switch (expect_) {
    case Expect::kObject:
      if (c != '{') return false;
      brackets_ = pending_ = c;
      expect_ = Expect::kFirstName;
      return true;
    case Expect::kFirstName:
      if (c == '}') return end_bracket(c, out);
      [[fallthrough]];
    case Expect::kName:
      pending_ += c;
      expect_ = Expect::kInName;
      return c == '"';
    case Expect::kColon:
      pending_ += c;
      expect_ = Expect::kValue;
      return c == ':';
    case Expect::kFirstValue:
      if (c == ']') return end_bracket(c, out);
      [[fallthrough]];
    case Expect::kValue:
      return begin_value(c, out);
    case Expect::kComma:
      if (c != ',') return end_bracket(c, out);
      pending_ = c;
      expect_ = brackets_.back() == '{' ? Expect::kName : Expect::kValue;
      return true;
    default:
      return false;
  }
}

}  // namespace foretoken
