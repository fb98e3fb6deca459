#include "tools/cli/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <type_traits>

#include "kernels/base/error.h"
#include "tools/cli/habits.h"
#include "tools/cli/output.h"

namespace foretoken {

namespace {

constexpr size_t kHelpWidth = 110;
constexpr size_t kHelpColumn = 32;

/// A value as messages show it: one line, and visible where there is nothing.
std::string shown(std::string_view text) {
  if (text.empty()) return "''";
  std::string line(text);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return line;
}

std::optional<int64_t> as_int(std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) return std::nullopt;
  return value;
}

std::optional<double> as_float(std::string_view text, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= min && value <= max)) return std::nullopt;
  return value;
}

/// Letters to insert, drop or exchange to make one text the other.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t exchanged = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({exchanged, diagonal + 1, row[j] + 1});
    }
  }
  return row[b.size()];
}

bool is_number(std::string_view text) {
  return text.size() > 1 && text[0] == '-' && ((text[1] >= '0' && text[1] <= '9') || text[1] == '.');
}

/// Appends `text` in lines from column kHelpColumn on; the cursor stands at `column`.
void append_wrapped(std::string& to, size_t column, std::string_view text) {
  const std::string margin(kHelpColumn, ' ');
  if (column + 1 > kHelpColumn) {
    to += "\n" + margin;
  } else {
    to += std::string(kHelpColumn - column, ' ');
  }
  size_t used = kHelpColumn;
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of(" \n"), text.size());
    if (used > kHelpColumn && used + 1 + end > kHelpWidth) {
      to += "\n" + margin;
      used = kHelpColumn;
    } else if (used > kHelpColumn) {
      to += ' ';
      ++used;
    }
    to += text.substr(0, end);
    used += end;
    if (end < text.size() && text[end] == '\n') {
      to += "\n" + margin;
      used = kHelpColumn;
    }
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  to += '\n';
}

}  // namespace

int64_t parse_int(std::string_view what, std::string_view text, int64_t min, int64_t max) {
  if (const auto value = as_int(text, min, max)) return *value;
  throw UsageError(fmt::format("{} {}: must be a whole number from {} to {}", what, shown(text), min, max));
}

size_t parse_size(std::string_view what, std::string_view text) {
  constexpr int64_t kMost = int64_t{1} << 20;
  int shift = 20;
  std::string_view digits = text;
  if (!digits.empty()) {
    const char last = digits.back();
    const size_t unit = std::string_view("KkMmGg").find(last);
    if (unit != std::string_view::npos) {
      shift = 10 * (static_cast<int>(unit) / 2 + 1);
      digits.remove_suffix(1);
    }
  }
  try {
    return static_cast<size_t>(parse_int(what, digits, 1, kMost)) << shift;
  } catch (const UsageError&) {
    throw UsageError(
        fmt::format("{} {}: a size is 1 to {} with K, M or G behind it, as 800M or 4G", what, text, kMost));
  }
}

double parse_float(std::string_view what, std::string_view text, double min, double max) {
  if (const auto value = as_float(text, min, max)) return *value;
  throw UsageError(fmt::format("{} {}: must be a number from {:g} to {:g}", what, shown(text), min, max));
}

std::string value_in_message(std::string_view typed, std::string_view long_name, std::string_view value) {
  const std::string head = fmt::format("{} {}:", typed, shown(value));
  return typed.starts_with("--") ? head : fmt::format("{} --{}", head, long_name);
}

CommandLine::CommandLine(std::string_view command, std::string_view usage, std::string_view summary)
    : command_(command), usage_(usage), summary_(summary) {
  section("Options");
  add_switch("help,h", &help_, "show this text");
}

void CommandLine::section(std::string_view heading) {
  sections_.push_back({std::string(heading), {}});
}

void CommandLine::add_value(std::string_view name, std::string_view metavar, std::string_view help,
                            const std::string& shown_default, Setter set, std::optional<std::string> implicit) {
  Flag flag;
  const size_t comma = name.find(',');
  flag.name = name.substr(0, comma);
  if (comma != std::string_view::npos) flag.letter = name[comma + 1];
  for (const Flag& other : flags_) {
    FT_CHECK(other.name != flag.name && (flag.letter == 0 || other.letter != flag.letter));
  }
  flag.metavar = metavar;
  flag.help = help;
  if (!shown_default.empty()) flag.help += fmt::format(" (default {})", shown_default);
  flag.implicit = std::move(implicit);
  flag.set = std::move(set);
  sections_.back().flags.push_back(flags_.size());
  flags_.push_back(std::move(flag));
}

void CommandLine::add_switch(std::string_view name, bool* value, std::string_view help) {
  add_value(name, "", help, "", [value](const std::string&, const std::string&) { *value = true; });
  flags_.back().is_switch = true;
}

void CommandLine::add_text(std::string_view name, std::string* value, std::string_view metavar, std::string_view help) {
  add_value(name, metavar, help, *value, [value](const std::string&, const std::string& text) { *value = text; });
}

void CommandLine::add_text(std::string_view name, std::string* value, std::string_view implicit,
                           std::string_view metavar, std::string_view help) {
  add_value(
      name, fmt::format("[{}]", metavar), help, *value,
      [value](const std::string&, const std::string& text) { *value = text; }, std::string(implicit));
}

void CommandLine::add_output(std::string_view name, std::string* value, std::string_view metavar,
                             std::string_view help) {
  add_value(name, metavar, help, *value, [value](const std::string& typed, const std::string& text) {
    if (text.empty()) throw UsageError(fmt::format("{}: the file's name is empty", typed));
    *value = text;
  });
}

void CommandLine::add_choice(std::string_view name, std::string* value, std::vector<std::string> choices,
                             std::string_view help) {
  const std::string metavar = fmt::format("{}", fmt::join(choices, "|"));
  add_value(name, metavar, help, *value, [=](const std::string& typed, const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      throw UsageError(fmt::format("{} {}: unknown value; known: {}", typed, shown(text), fmt::join(choices, ", ")));
    }
    *value = text;
  });
}

namespace {

/// A setter for whole numbers; `name` may have its letter behind it.
template <class Value>
auto int_setter(std::string_view name, Value* value, int64_t min, int64_t max) {
  using Number = std::conditional_t<std::is_same_v<Value, int64_t>, int64_t, int>;
  return
      [=, long_name = std::string(name.substr(0, name.find(',')))](const std::string& typed, const std::string& text) {
        const auto number = as_int(text, min, max);
        if (!number) {
          throw UsageError(fmt::format("{} must be a whole number from {} to {}",
                                       value_in_message(typed, long_name, text), min, max));
        }
        *value = static_cast<Number>(*number);
      };
}

template <class Value>
auto float_setter(std::string_view name, Value* value, double min, double max) {
  using Number = std::conditional_t<std::is_same_v<Value, float>, float, double>;
  return
      [=, long_name = std::string(name.substr(0, name.find(',')))](const std::string& typed, const std::string& text) {
        const auto number = as_float(text, min, max);
        if (!number) {
          throw UsageError(
              fmt::format("{} must be a number from {:g} to {:g}", value_in_message(typed, long_name, text), min, max));
        }
        *value = static_cast<Number>(*number);
      };
}

}  // namespace

void CommandLine::add_int(std::string_view name, int64_t* value, int64_t min, int64_t max, std::string_view metavar,
                          std::string_view help) {
  add_value(name, metavar, help, std::to_string(*value), int_setter(name, value, min, max));
}

void CommandLine::add_int(std::string_view name, int* value, int min, int max, std::string_view metavar,
                          std::string_view help) {
  add_value(name, metavar, help, std::to_string(*value), int_setter(name, value, min, max));
}

void CommandLine::add_int(std::string_view name, std::optional<int>* value, int min, int max, std::string_view metavar,
                          std::string_view help) {
  add_value(name, metavar, help, "", int_setter(name, value, min, max));
}

void CommandLine::add_seed(std::string_view name, uint64_t* value, std::string_view help) {
  add_value(name, "N", help, std::to_string(*value), [=](const std::string& typed, const std::string& text) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
    if (error != std::errc() || end != text.data() + text.size()) {
      throw UsageError(fmt::format("{} {}: must be a whole number from 0 to {}", typed, shown(text), UINT64_MAX));
    }
  });
}

void CommandLine::add_float(std::string_view name, double* value, double min, double max, std::string_view metavar,
                            std::string_view help) {
  add_value(name, metavar, help, fmt::format("{:g}", *value), float_setter(name, value, min, max));
}

void CommandLine::add_float(std::string_view name, float* value, double min, double max, std::string_view metavar,
                            std::string_view help) {
  add_value(name, metavar, help, fmt::format("{:g}", *value), float_setter(name, value, min, max));
}

void CommandLine::add_float(std::string_view name, std::optional<double>* value, double min, double max,
                            std::string_view metavar, std::string_view help) {
  add_value(name, metavar, help, "", float_setter(name, value, min, max));
}

void CommandLine::add_positional(std::string_view, std::string* value, std::string_view metavar,
                                 std::string_view help) {
  FT_CHECK(positional_ == nullptr);
  positional_ = value;
  positional_help_ = fmt::format("  {}", metavar);
  append_wrapped(positional_help_, positional_help_.size(), help);
}

void CommandLine::epilogue(std::string_view text) {
  epilogue_ = text;
}

const CommandLine::Flag& CommandLine::find(std::string_view long_name) const {
  const auto found =
      std::find_if(flags_.begin(), flags_.end(), [&](const Flag& flag) { return flag.name == long_name; });
  FT_CHECK(found != flags_.end());
  return *found;
}

CommandLine::Flag* CommandLine::match(std::string_view argument) {
  for (Flag& flag : flags_) {
    if (argument.starts_with("--") && argument.substr(2, argument.find('=') - 2) == flag.name) return &flag;
    if (argument.size() == 2 && argument[0] == '-' && argument[1] == flag.letter) return &flag;
  }
  return nullptr;
}

void CommandLine::fail(std::string_view what) const {
  throw UsageError(fmt::format("{}: {}; see foretoken {} --help", command_, what, command_));
}

void CommandLine::fail_unknown(std::string_view argument) const {
  const std::string typed = shown(argument);
  if (const std::string_view answer = answer_to_habit(argument, command_); !answer.empty())
    throw UsageError(fmt::format("{}: {} has no such flag: {}", typed, command_, answer));
  const bool is_long = argument.starts_with("--");
  const std::string_view body = argument.substr(is_long ? 2 : 1);
  std::string name(body.substr(0, body.find('=')));
  std::replace(name.begin(), name.end(), '_', '-');
  const Flag* nearest = nullptr;
  size_t best = 3;
  for (const Flag& flag : flags_) {
    if (!is_long && flag.letter == argument[1] && body.size() > 1) {
      const std::string_view value = body.substr(body[1] == '=' ? 2 : 1);
      const bool looks_like_value = flag.name != name && (body[1] == '=' || (value[0] >= '0' && value[0] <= '9'));
      if (looks_like_value)
        fail(fmt::format("{}: no such flag; a short flag's value stands apart: -{} {}", typed, flag.letter,
                         shown(value)));
    }
    const size_t distance = flag.name.starts_with(name) && name.size() > 2 ? 1 : edit_distance(flag.name, name);
    if (distance < best && distance < flag.name.size() / 2 + 1) {
      best = distance;
      nearest = &flag;
    }
  }
  if (nearest != nullptr) fail(fmt::format("{}: no such flag; did you mean --{}?", typed, nearest->name));
  fail(fmt::format("{}: no such flag", typed));
}

bool CommandLine::parse(int argc, const char* const* argv) {
  bool only_arguments = false, has_positional = false;
  std::vector<Flag*> given;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (only_arguments || argument.size() < 2 || argument[0] != '-') {
      if (positional_ == nullptr || has_positional)
        fail(fmt::format("the argument '{}' stands without a flag", shown(argument)));
      *positional_ = argument;
      has_positional = true;
      continue;
    }
    if (argument == "--") {
      only_arguments = true;
      continue;
    }
    Flag* flag = match(argument);
    if (flag == nullptr) fail_unknown(argument);
    const size_t equals = argument[1] == '-' ? argument.find('=') : std::string::npos;
    const std::string typed = argument.substr(0, equals);
    if (!flag->typed.empty()) {
      fail(flag->typed == typed ? fmt::format("{} stands twice", typed)
                                : fmt::format("{} and {} are the same flag, give it once", flag->typed, typed));
    }
    flag->typed = typed;
    given.push_back(flag);
    const char* next = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag->is_switch) {
      if (equals != std::string::npos) fail(fmt::format("{}: {} takes no value", shown(argument), typed));
    } else if (equals != std::string::npos) {
      flag->value = argument.substr(equals + 1);
    } else if (flag->implicit) {
      const bool has_value = next != nullptr && (next[0] != '-' || is_number(next));
      flag->value = has_value ? next : *flag->implicit;
      if (has_value) ++i;
    } else {
      if (next == nullptr) fail(fmt::format("{}: its value is missing", typed));
      if (match(next) != nullptr) {
        fail(
            fmt::format("{}: its value is missing, the flag {} follows; a value that is spelled like a flag is written "
                        "--{}={}",
                        typed, shown(next), flag->name, shown(next)));
      }
      flag->value = next;
      ++i;
    }
  }
  if (this->given("help")) {
    print_help();
    return false;
  }
  for (const Flag* flag : given) flag->set(flag->typed, flag->value);
  return true;
}

bool CommandLine::given(std::string_view long_name) const {
  return !find(long_name).typed.empty();
}

std::string CommandLine::typed(std::string_view long_name) const {
  const std::string& typed = find(long_name).typed;
  return typed.empty() ? fmt::format("--{}", long_name) : typed;
}

void CommandLine::print_help() const {
  std::string text = fmt::format("foretoken {} {}\n\n{}\n", command_, usage_, summary_);
  if (positional_ != nullptr) text += "\n" + positional_help_;
  for (const Section& section : sections_) {
    if (section.flags.empty()) continue;
    text += fmt::format("\n{}:\n", section.heading);
    for (size_t idx : section.flags) {
      const Flag& flag = flags_[idx];
      std::string left = flag.letter == 0 ? "  " : fmt::format("  -{}, ", flag.letter);
      left += fmt::format("--{}{}{}", flag.name, flag.metavar.empty() ? "" : " ", flag.metavar);
      text += left;
      append_wrapped(text, left.size(), flag.help);
    }
  }
  if (!epilogue_.empty()) text += "\n" + epilogue_;
  ResultStream().write(text);
}

}  // namespace foretoken
