#include "engine/text/grammar/grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr char32_t kLastCharacter = 0x10ffff;

struct CharRange {
  char32_t first = 0, last = 0;
};

// Rising, without overlaps.
std::vector<CharRange> merged(std::vector<CharRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const CharRange& a, const CharRange& b) { return a.first < b.first; });
  std::vector<CharRange> out;
  for (const CharRange& range : ranges) {
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

std::vector<CharRange> complement(const std::vector<CharRange>& ranges) {
  std::vector<CharRange> out;
  char32_t next = 0;
  for (const CharRange& range : ranges) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCharacter) out.push_back({next, kLastCharacter});
  return out;
}

}  // namespace

class Grammar::Parser {
 public:
  Parser(std::string_view text, Grammar& grammar) : text_(text), grammar_(grammar) {}

  void run() {
    if (text_.size() > kMostBytes)
      throw InputError(fmt::format("grammar: {} bytes; the limit is {}", text_.size(), kMostBytes));
    if (find_invalid_utf8(text_) != std::string_view::npos) throw InputError("grammar: it is not UTF-8");
    skip_space(true);
    while (at_ < text_.size()) parse_rule();
    for (const auto& [name, rule] : rules_) {
      if (!rule.is_defined)
        throw InputError(fmt::format("grammar: line {}: the rule \"{}\" is not there", rule.line, printable(name)));
    }
    const auto root = rules_.find("root");
    if (root == rules_.end()) throw InputError("grammar: it has no rule \"root\"");
    grammar_.root_ = root->second.start;
    refuse_left_recursion();
  }

 private:
  struct Rule {
    int32_t start = 0;
    int line = 0;
    bool is_defined = false;
  };
  // An automaton between two nodes.
  struct Part {
    int32_t begin = 0, end = 0;
  };

  [[noreturn]] void fail(std::string_view what) const {
    const auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n');
    throw InputError(fmt::format("grammar: line {}: {}", line, what));
  }

  [[nodiscard]] char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  void skip_space(bool over_lines) {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#') {
        while (at_ < text_.size() && text_[at_] != '\n') ++at_;
      } else if (c == ' ' || c == '\t' || ((c == '\n' || c == '\r') && over_lines)) {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string parse_name() {
    const size_t begin = at_;
    const auto is_name = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    };
    while (is_name(peek())) ++at_;
    if (at_ == begin) fail("a name is needed");
    return std::string(text_.substr(begin, at_ - begin));
  }

  int32_t new_node() {
    if (grammar_.nodes_.size() >= kMostNodes) fail("the grammar is too large");
    grammar_.nodes_.emplace_back();
    return static_cast<int32_t>(grammar_.nodes_.size() - 1);
  }
  Node& node(int32_t id) { return grammar_.nodes_[id]; }
  void link(int32_t from, int32_t to) { node(from).silent.push_back(to); }

  Rule& rule_of(const std::string& name) {
    const auto [found, is_new] = rules_.try_emplace(name);
    if (is_new) {
      found->second.start = new_node();
      found->second.line =
          static_cast<int>(1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n'));
      names_.emplace(found->second.start, name);
    }
    return found->second;
  }

  void parse_rule() {
    const std::string name = parse_name();
    skip_space(false);
    if (text_.substr(at_, 3) != "::=") fail("\"::=\" is needed behind a rule's name");
    at_ += 3;
    skip_space(true);
    Rule& rule = rule_of(name);
    if (rule.is_defined) fail(fmt::format("the rule \"{}\" is there twice", name));
    rule.is_defined = true;
    const int32_t start = rule.start;
    const Part body = parse_alternatives(0);
    link(start, body.begin);
    node(body.end).is_end = true;
    if (at_ < text_.size() && peek() != '\n' && peek() != '\r')
      fail(fmt::format("unexpected \"{}\"", printable(text_.substr(at_, 10))));
    skip_space(true);
  }

  Part parse_alternatives(int depth) {
    if (depth > 100) fail("nested too deeply");
    const Part part{new_node(), new_node()};
    while (true) {
      const Part one = parse_sequence(depth);
      link(part.begin, one.begin);
      link(one.end, part.end);
      skip_space(depth > 0);
      if (peek() != '|') return part;
      ++at_;
      skip_space(true);
    }
  }

  Part parse_sequence(int depth) {
    Part sequence;
    sequence.begin = sequence.end = new_node();
    while (true) {
      skip_space(depth > 0);
      // Behind a line's end the rule goes on only with another alternative.
      if (depth == 0 && (peek() == '\n' || peek() == '\r')) {
        const size_t before = at_;
        skip_space(true);
        if (peek() != '|') at_ = before;
        return sequence;
      }
      if (at_ >= text_.size() || peek() == '|' || peek() == ')') return sequence;
      const size_t begin = at_;
      Part item = parse_item(depth);
      const size_t end = at_;
      item = parse_repeat(item, begin, end, depth);
      link(sequence.end, item.begin);
      sequence.end = item.end;
    }
  }

  Part parse_item(int depth) {
    const char c = peek();
    if (c == '"') return parse_string();
    if (c == '[') return parse_class();
    if (c == '.') {
      ++at_;
      return make_class({{0, kLastCharacter}});
    }
    if (c == '(') {
      ++at_;
      skip_space(true);
      const Part part = parse_alternatives(depth + 1);
      if (peek() != ')') fail("\")\" is needed");
      ++at_;
      return part;
    }
    if (c == '<' || c == '!') fail("tokens in a grammar (<...>) are not supported");
    const std::string name = parse_name();
    const int32_t start = rule_of(name).start;
    const Part part{new_node(), new_node()};
    node(part.begin).calls.push_back({start, part.end});
    return part;
  }

  // The text of the item stands in [begin, end): each copy of it is read again.
  Part parse_repeat(Part item, size_t begin, size_t end, int depth) {
    int64_t least = 1, most = 1;  // most < 0: without end
    const char c = peek();
    if (c == '*' || c == '+' || c == '?') {
      ++at_;
      least = c == '+' ? 1 : 0;
      most = c == '?' ? 1 : -1;
    } else if (c == '{') {
      ++at_;
      skip_space(false);
      least = parse_count();
      most = least;
      skip_space(false);
      if (peek() == ',') {
        ++at_;
        skip_space(false);
        most = peek() == '}' ? -1 : parse_count();
        skip_space(false);
      }
      if (peek() != '}') fail("\"}\" is needed");
      ++at_;
      if (most >= 0 && most < least) fail("a repetition whose end is before its begin");
    } else {
      return item;
    }
    if (const char next = peek(); next == '*' || next == '+' || next == '?' || next == '{')
      fail("a repetition of a repetition: put the inner one into ( )");
    const size_t behind = at_;
    const auto copy = [&] {
      at_ = begin;
      const Part again = parse_item(depth);
      FT_CHECK(at_ == end);
      return again;
    };
    Part out;
    out.begin = new_node();
    int32_t last = out.begin;
    const auto append = [&](const Part& part) {
      link(last, part.begin);
      last = part.end;
    };
    bool used = false;
    const auto next = [&] { return std::exchange(used, true) ? copy() : item; };
    for (int64_t i = 0; i < least; ++i) append(next());
    out.end = new_node();
    if (most < 0) {
      const int32_t loop = new_node();
      link(last, loop);
      const Part again = next();
      link(loop, again.begin);
      link(again.end, loop);
      link(loop, out.end);
    } else {
      for (int64_t i = least; i < most; ++i) {
        link(last, out.end);
        append(next());
      }
      link(last, out.end);
    }
    at_ = behind;
    return out;
  }

  int64_t parse_count() {
    int64_t n = 0;
    size_t digits = 0;
    for (; peek() >= '0' && peek() <= '9'; ++digits) {
      n = n * 10 + (text_[at_++] - '0');
      if (n > 100000) fail("a repetition is too long");
    }
    if (digits == 0) fail("a number is needed");
    return n;
  }

  char32_t parse_char() {
    if (at_ >= text_.size()) fail("the grammar ends within a string or a class");
    if (peek() != '\\') {
      const Utf8Char c = decode_utf8(text_.substr(at_));
      at_ += c.length;
      return c.code_point;
    }
    const char kind = peek(1);
    at_ += 2;
    constexpr std::string_view kLetters = "nrt\\\"[]-^/'", kMeanings = "\n\r\t\\\"[]-^/'";
    if (const size_t known = kLetters.find(kind); kind != '\0' && known != std::string_view::npos)
      return static_cast<unsigned char>(kMeanings[known]);
    const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    if (digits == 0) fail(fmt::format("the escape \"\\{}\" is not known", printable(std::string_view(&kind, 1))));
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char c = static_cast<char>(peek() | 0x20);
      const int value = peek() >= '0' && peek() <= '9' ? peek() - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
      if (value < 0) fail("an escape without its digits");
      code = code * 16 + static_cast<uint32_t>(value);
    }
    if (code > kLastCharacter || (code >= 0xd800 && code < 0xe000)) fail("an escape that is no character");
    return code;
  }

  Part parse_string() {
    ++at_;
    Part part;
    part.begin = part.end = new_node();
    while (peek() != '"' || at_ >= text_.size()) {
      std::string bytes;
      append_utf8(parse_char(), bytes);
      for (const char byte : bytes) {
        const int32_t next = new_node();
        node(part.end).edges.push_back({static_cast<uint8_t>(byte), static_cast<uint8_t>(byte), next});
        part.end = next;
      }
    }
    ++at_;
    return part;
  }

  Part parse_class() {
    ++at_;
    const bool negated = peek() == '^';
    if (negated) ++at_;
    std::vector<CharRange> ranges;
    while (peek() != ']' || at_ >= text_.size()) {
      CharRange range;
      range.first = range.last = parse_char();
      if (peek() == '-' && peek(1) != ']') {
        ++at_;
        range.last = parse_char();
        if (range.last < range.first) fail("a range of characters whose end is before its begin");
      }
      ranges.push_back(range);
    }
    ++at_;
    ranges = merged(std::move(ranges));
    return make_class(negated ? complement(ranges) : ranges);
  }

  Part make_class(const std::vector<CharRange>& ranges) {
    const Part part{new_node(), new_node()};
    // Lengths of UTF-8, and no surrogates.
    static constexpr CharRange kBlocks[] = {
        {0, 0x7f}, {0x80, 0x7ff}, {0x800, 0xd7ff}, {0xe000, 0xffff}, {0x10000, kLastCharacter}};
    for (const CharRange& range : ranges) {
      for (const CharRange& block : kBlocks) {
        const CharRange both{std::max(range.first, block.first), std::min(range.last, block.last)};
        if (both.first <= both.last) add_range(part.begin, part.end, both);
      }
    }
    return part;
  }

  // Characters whose encodings have the same length, from node to node.
  void add_range(int32_t from, int32_t to, CharRange range) {
    std::string first, last;
    append_utf8(range.first, first);
    append_utf8(range.last, last);
    add_bytes(from, to, first, last);
  }
  void add_bytes(int32_t from, int32_t to, std::string_view first, std::string_view last) {
    const auto byte = [](std::string_view s) { return static_cast<uint8_t>(s[0]); };
    if (first.size() == 1) {
      node(from).edges.push_back({byte(first), byte(last), to});
      return;
    }
    const auto step = [&](uint8_t low, uint8_t high) {
      const int32_t next = new_node();
      node(from).edges.push_back({low, high, next});
      return next;
    };
    const std::string lowest(first.size() - 1, '\x80'), highest(first.size() - 1, '\xbf');
    if (byte(first) == byte(last))
      return add_bytes(step(byte(first), byte(first)), to, first.substr(1), last.substr(1));
    uint8_t low = byte(first), high = byte(last);
    if (first.substr(1) != lowest) {
      add_bytes(step(low, low), to, first.substr(1), highest);
      ++low;
    }
    if (last.substr(1) != highest) {
      add_bytes(step(high, high), to, lowest, last.substr(1));
      --high;
    }
    if (low <= high) add_bytes(step(low, high), to, lowest, highest);
  }

  // A rule that can come to call itself before a byte was read.
  void refuse_left_recursion() {
    const size_t n = grammar_.nodes_.size();
    // Nodes from which the rule's end is reached without a byte.
    std::vector<char> nullable(n, 0);
    std::vector<std::vector<int32_t>> needs(n);  // who looks at this node
    for (size_t i = 0; i < n; ++i) {
      for (const int32_t to : grammar_.nodes_[i].silent) needs[to].push_back(static_cast<int32_t>(i));
      for (const Call& call : grammar_.nodes_[i].calls) {
        needs[call.start].push_back(static_cast<int32_t>(i));
        needs[call.back].push_back(static_cast<int32_t>(i));
      }
    }
    std::vector<int32_t> work;
    const auto mark = [&](size_t i) {
      if (!std::exchange(nullable[i], 1)) work.push_back(static_cast<int32_t>(i));
    };
    for (size_t i = 0; i < n; ++i) {
      if (grammar_.nodes_[i].is_end) mark(i);
    }
    const auto is_nullable = [&](int32_t i) { return nullable[i] != 0; };
    while (!work.empty()) {
      const auto done = static_cast<size_t>(work.back());
      work.pop_back();
      for (const int32_t i : needs[done]) {
        const Node& x = grammar_.nodes_[i];
        if (std::any_of(x.silent.begin(), x.silent.end(), is_nullable) ||
            std::any_of(x.calls.begin(), x.calls.end(),
                        [&](const Call& c) { return is_nullable(c.start) && is_nullable(c.back); }))
          mark(static_cast<size_t>(i));
      }
    }
    // Components of the graph of silent steps; a call within one is left recursion. Tarjan, without recursion.
    std::vector<int32_t> index(n, -1), low(n, 0), component(n, -1), stack;
    std::vector<char> on_stack(n, 0);
    int32_t counter = 0, components = 0;
    const auto successors = [&](int32_t id) {
      const Node& x = grammar_.nodes_[id];
      std::vector<int32_t> out = x.silent;
      for (const Call& call : x.calls) {
        out.push_back(call.start);
        if (is_nullable(call.start)) out.push_back(call.back);
      }
      return out;
    };
    for (size_t root = 0; root < n; ++root) {
      if (index[root] >= 0) continue;
      std::vector<std::pair<int32_t, std::vector<int32_t>>> frames;
      const auto open = [&](int32_t id) {
        const auto i = static_cast<size_t>(id);
        index[i] = low[i] = counter++;
        stack.push_back(id);
        on_stack[i] = 1;
        frames.emplace_back(id, successors(id));
      };
      open(static_cast<int32_t>(root));
      while (!frames.empty()) {
        auto& [id, rest] = frames.back();
        const auto i = static_cast<size_t>(id);
        if (!rest.empty()) {
          const auto to = static_cast<size_t>(rest.back());
          rest.pop_back();
          if (index[to] < 0) {
            open(static_cast<int32_t>(to));
          } else if (on_stack[to] != 0) {
            low[i] = std::min(low[i], index[to]);
          }
          continue;
        }
        if (low[i] == index[i]) {
          while (true) {
            const int32_t member = stack.back();
            stack.pop_back();
            on_stack[member] = 0;
            component[member] = components;
            if (member == id) break;
          }
          ++components;
        }
        const int32_t child_low = low[i];
        frames.pop_back();
        if (!frames.empty()) {
          const auto parent = static_cast<size_t>(frames.back().first);
          low[parent] = std::min(low[parent], child_low);
        }
      }
    }
    for (size_t i = 0; i < n; ++i) {
      for (const Call& call : grammar_.nodes_[i].calls) {
        if (component[i] != component[call.start]) continue;
        throw InputError(
            fmt::format("grammar: the rule \"{}\" can begin with itself (left recursion); write it as a repetition",
                        printable(names_.at(call.start))));
      }
    }
  }

  const std::string_view text_;
  Grammar& grammar_;
  size_t at_ = 0;
  std::map<std::string, Rule> rules_;
  std::map<int32_t, std::string> names_;  // of the rules, by start node
};

Grammar Grammar::parse(std::string_view gbnf) {
  Grammar grammar;
  Parser(gbnf, grammar).run();
  grammar.finish();
  return grammar;
}

Grammar Grammar::from_json_schema(const nlohmann::ordered_json& schema) {
  return parse(json_schema_to_gbnf(schema));
}

// Takes away what leads nowhere, so that whatever is allowed can be ended, and sorts the bytes into classes.
void Grammar::finish() {
  const size_t n = nodes_.size();
  std::vector<std::vector<int32_t>> needs(n);
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<int32_t>(i);
    for (const int32_t to : nodes_[i].silent) needs[to].push_back(id);
    for (const Edge& edge : nodes_[i].edges) needs[edge.to].push_back(id);
    for (const Call& call : nodes_[i].calls) {
      needs[call.start].push_back(id);
      needs[call.back].push_back(id);
    }
  }
  std::vector<char> ends(n, 0);  // the rule's end can be reached from here
  std::vector<int32_t> work;
  const auto mark = [&](size_t i) {
    if (!std::exchange(ends[i], 1)) work.push_back(static_cast<int32_t>(i));
  };
  const auto can_end = [&](int32_t i) { return ends[i] != 0; };
  for (size_t i = 0; i < n; ++i) {
    if (nodes_[i].is_end) mark(i);
  }
  while (!work.empty()) {
    const auto done = static_cast<size_t>(work.back());
    work.pop_back();
    for (const int32_t i : needs[done]) {
      const Node& x = nodes_[i];
      if (std::any_of(x.silent.begin(), x.silent.end(), can_end) ||
          std::any_of(x.edges.begin(), x.edges.end(), [&](const Edge& e) { return can_end(e.to); }) ||
          std::any_of(x.calls.begin(), x.calls.end(),
                      [&](const Call& c) { return can_end(c.start) && can_end(c.back); }))
        mark(static_cast<size_t>(i));
    }
  }
  if (!can_end(root_)) throw InputError("grammar: no text matches it");
  std::array<bool, 257> cuts{};
  for (Node& x : nodes_) {
    std::erase_if(x.silent, [&](int32_t to) { return !can_end(to); });
    std::erase_if(x.edges, [&](const Edge& e) { return !can_end(e.to); });
    std::erase_if(x.calls, [&](const Call& c) { return !can_end(c.start) || !can_end(c.back); });
    for (const Edge& edge : x.edges) cuts[edge.first] = cuts[static_cast<size_t>(edge.last) + 1] = true;
  }
  int current = -1;
  for (size_t byte = 0; byte < 256; ++byte) {
    if (byte == 0 || cuts[byte]) ++current;
    byte_classes_[byte] = static_cast<uint8_t>(current);
  }
  num_byte_classes_ = current + 1;
}

}  // namespace foretoken
