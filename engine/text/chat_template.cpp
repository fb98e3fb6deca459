#include "engine/text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

// Python's str.isspace() knows more than these; templates have no others between their tags.
constexpr std::string_view kSpace = " \t\r\n\f\v";

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// A Jinja expression's words, one after the other.
class Words {
 public:
  explicit Words(std::string_view text) : rest_(text) { skip_space(); }

  [[nodiscard]] bool at_end() const { return rest_.empty(); }

  bool take(std::string_view word) {
    if (!rest_.starts_with(word)) return false;
    const bool is_name = is_name_char(word.back());
    if (is_name && rest_.size() > word.size() && is_name_char(rest_[word.size()])) return false;
    rest_.remove_prefix(word.size());
    skip_space();
    return true;
  }

  std::optional<std::string> take_name() {
    size_t length = 0;
    while (length < rest_.size() && is_name_char(rest_[length])) ++length;
    if (length == 0 || (rest_[0] >= '0' && rest_[0] <= '9')) return std::nullopt;
    std::string name(rest_.substr(0, length));
    rest_.remove_prefix(length);
    skip_space();
    return name;
  }

  // A string in quotes; nothing for one with an escape that is not known here.
  std::optional<std::string> take_string() {
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) return std::nullopt;
    const char quote = rest_[0];
    std::string text;
    for (size_t i = 1; i < rest_.size(); ++i) {
      if (rest_[i] == quote) {
        rest_.remove_prefix(i + 1);
        skip_space();
        return text;
      }
      if (rest_[i] != '\\') {
        text += rest_[i];
        continue;
      }
      constexpr std::string_view kLetters = "ntr\\'\"", kMeanings = "\n\t\r\\'\"";
      const size_t known = ++i < rest_.size() ? kLetters.find(rest_[i]) : std::string_view::npos;
      if (known == std::string_view::npos) return std::nullopt;
      text += kMeanings[known];
    }
    return std::nullopt;
  }

 private:
  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(kSpace), rest_.size())); }
  std::string_view rest_;
};

}  // namespace

class ChatTemplate::Parser {
 public:
  explicit Parser(std::string_view source) : rest_(source) {
    if (source.find('\r') != std::string_view::npos) fail("carriage returns");
    if (rest_.ends_with('\n')) rest_.remove_suffix(1);  // keep_trailing_newline is off
  }

  std::vector<Block> parse() {
    while (!rest_.empty()) {
      const size_t tag = next_tag();
      add_text(rest_.substr(0, tag), tag == std::string_view::npos ? ' ' : rest_[tag + 1],
               tag == std::string_view::npos ? ' ' : char_at(tag + 2));
      if (tag == std::string_view::npos) break;
      rest_.remove_prefix(tag);
      read_tag();
    }
    if (in_loop_ || depth_ != 0) fail("an end tag that is missing");
    const auto is_content = [](const Term& term) { return term.piece == Piece::kContent; };
    if (std::none_of(blocks_.begin(), blocks_.end(), [&](const Block& block) {
          return std::any_of(block.terms.begin(), block.terms.end(), is_content);
        })) {
      fail("no place for a message's content");
    }
    return std::move(blocks_);
  }

 private:
  [[noreturn]] static void fail(std::string_view what) {
    throw InputError(fmt::format(
        "--chat: the file's chat template has {}, which is not rendered here; leave --chat out and write the prompt in "
        "the model's form yourself, with --parse-special for its special tokens",
        what));
  }
  [[noreturn]] static void fail_tag(std::string_view tag) { fail(fmt::format("\"{}\"", printable(tag, 60))); }

  [[nodiscard]] char char_at(size_t i) const { return i < rest_.size() ? rest_[i] : ' '; }

  [[nodiscard]] size_t next_tag() const {
    for (size_t at = rest_.find('{'); at != std::string_view::npos; at = rest_.find('{', at + 1)) {
      const char next = char_at(at + 1);
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return std::string_view::npos;
  }

  // Text before a tag of the given kind, whose sign may be '-', '+' or something else.
  void add_text(std::string_view text, char kind, char sign) {
    if (sign == '-' && kind != ' ') {
      text = text.substr(0, text.find_last_not_of(kSpace) + 1);
    } else if (sign != '+' && (kind == '%' || kind == '#')) {
      // lstrip_blocks: blanks between the line's start and a block go.
      const size_t line = text.rfind('\n');
      const size_t begin = line == std::string_view::npos ? 0 : line + 1;
      const bool starts_line = line != std::string_view::npos || at_line_start_;
      if (starts_line && text.find_first_not_of(" \t\r\f\v", begin) == std::string_view::npos)
        text = text.substr(0, begin);
    }
    if (!text.empty()) add({Piece::kText, std::string(text)});
  }

  void add(Term term) {
    if (is_skipped_) return;
    if (blocks_.empty() || starts_block_ || blocks_.back().is_loop != in_loop_) blocks_.push_back({in_loop_, {}});
    starts_block_ = false;
    blocks_.back().terms.push_back(std::move(term));
  }

  // REQUIRES: rest_ begins with a tag.
  void read_tag() {
    const char kind = rest_[1];
    const std::string_view closing = kind == '{' ? "}}" : kind == '%' ? "%}" : "#}";
    size_t end = 2;
    char quote = 0;  // a closing sign within a string closes nothing
    while (end < rest_.size() && (quote != 0 || rest_.substr(end, 2) != closing)) {
      if (kind != '#' && quote != 0 && rest_[end] == '\\') {
        ++end;
      } else if (kind != '#' && quote != 0 && rest_[end] == quote) {
        quote = 0;
      } else if (kind != '#' && quote == 0 && (rest_[end] == '\'' || rest_[end] == '"')) {
        quote = rest_[end];
      }
      ++end;
    }
    if (end >= rest_.size()) fail_tag(rest_);
    const std::string_view tag = rest_.substr(0, end + 2);
    std::string_view body = rest_.substr(2, end - 2);
    rest_.remove_prefix(end + 2);
    if (body.starts_with('-') || body.starts_with('+')) body.remove_prefix(1);
    const bool strips = body.ends_with('-'), keeps = body.ends_with('+');
    if (strips || keeps) body.remove_suffix(1);
    at_line_start_ = false;
    if (strips) {
      const size_t text = std::min(rest_.find_first_not_of(kSpace), rest_.size());
      at_line_start_ = text > 0 && rest_[text - 1] == '\n';
      rest_.remove_prefix(text);
    } else if (!keeps && kind != '{' && rest_.starts_with('\n')) {
      at_line_start_ = true;  // trim_blocks
      rest_.remove_prefix(1);
    }
    if (kind == '{') read_output(tag, trimmed(body));
    if (kind == '%') read_block(tag, trimmed(body));
  }

  void read_block(std::string_view tag, std::string_view body) {
    Words words(body);
    if (words.take("for")) {
      const auto name = words.take_name();
      if (in_loop_ || depth_ > 0 || !name || !words.take("in") || !words.take("messages") || !words.at_end())
        fail_tag(tag);
      message_ = *name;
      in_loop_ = starts_block_ = true;
    } else if (words.take("endfor")) {
      if (!in_loop_ || depth_ > 0 || !words.at_end()) fail_tag(tag);
      in_loop_ = false;
    } else if (words.take("if")) {
      if (depth_ > 0 || !words.take("add_generation_prompt") || !words.at_end()) fail_tag(tag);
      ++depth_;
    } else if (words.take("else")) {
      if (depth_ == 0 || is_skipped_ || !words.at_end()) fail_tag(tag);
      is_skipped_ = true;  // the answer's turn is always opened
    } else if (words.take("endif")) {
      if (depth_ == 0 || !words.at_end()) fail_tag(tag);
      depth_ = 0;
      is_skipped_ = false;
    } else {
      fail_tag(tag);
    }
  }

  void read_output(std::string_view tag, std::string_view body) {
    Words words(body);
    do {
      if (auto text = words.take_string()) {
        add({Piece::kText, std::move(*text)});
        continue;
      }
      const auto name = words.take_name();
      if (!name) fail_tag(tag);
      if (in_loop_ && *name == message_) {
        add({read_field(tag, words), ""});
      } else if (*name == "bos_token") {
        add({Piece::kBos, ""});
      } else if (*name == "eos_token") {
        add({Piece::kEos, ""});
      } else {
        fail_tag(tag);
      }
    } while (words.take("+") || words.take("~"));
    if (!words.at_end()) fail_tag(tag);
  }

  // .role, ['role'], .content, ['content']
  static Piece read_field(std::string_view tag, Words& words) {
    std::optional<std::string> field;
    if (words.take(".")) {
      field = words.take_name();
    } else if (words.take("[")) {
      field = words.take_string();
      if (!words.take("]")) field.reset();
    }
    if (field == "role") return Piece::kRole;
    if (field == "content") return Piece::kContent;
    fail_tag(tag);
  }

  std::string_view rest_;
  std::vector<Block> blocks_;
  std::string message_;  // the loop's name for a message
  bool in_loop_ = false;
  bool starts_block_ = false;  // another loop than the last block's
  bool is_skipped_ = false;    // behind an else
  bool at_line_start_ = true;
  int depth_ = 0;  // of if
};

ChatTemplate ChatTemplate::chatml() {
  return parse(
      "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
      "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}");
}

ChatTemplate ChatTemplate::parse(std::string_view source) {
  ChatTemplate result;
  result.blocks_ = Parser(source).parse();
  return result;
}

std::vector<TextPart> ChatTemplate::render(std::span<const ChatMessage> messages, std::string_view bos_token,
                                           std::string_view eos_token) const {
  std::vector<TextPart> parts;
  const auto add = [&](std::string_view text, bool parse_special) {
    if (text.empty()) return;
    if (parts.empty() || parts.back().parse_special != parse_special) parts.push_back({"", parse_special});
    parts.back().text += text;
  };
  const auto add_token = [&](std::string_view token, std::string_view name) {
    if (token.empty())
      throw InputError(fmt::format("--chat: the file's chat template asks for {}, and the file names none", name));
    add(token, true);
  };
  const auto add_terms = [&](const Block& block, const ChatMessage& message) {
    for (const Term& term : block.terms) {
      switch (term.piece) {
        case Piece::kText:
          add(term.text, true);
          break;
        case Piece::kRole:
          add(message.role, true);
          break;
        case Piece::kContent:
          add(message.content, false);
          break;
        case Piece::kBos:
          add_token(bos_token, "bos_token");
          break;
        case Piece::kEos:
          add_token(eos_token, "eos_token");
          break;
      }
    }
  };
  for (const Block& block : blocks_) {
    if (!block.is_loop) {
      add_terms(block, {});
      continue;
    }
    for (const ChatMessage& message : messages) add_terms(block, message);
  }
  return parts;
}

}  // namespace foretoken
