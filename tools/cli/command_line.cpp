#include "tools/cli/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options/parsers.hpp>
#include <boost/program_options/variables_map.hpp>
#include <charconv>
#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/base/error.h"
#include "tools/cli/habits.h"
#include "tools/cli/output.h"

namespace foretoken {

namespace po = boost::program_options;

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

std::string long_name_of(std::string_view name) {
  return std::string(name.substr(0, name.find(',')));
}

/// The flag's short letter; 0: it has none.
char letter_of(const po::option_description& flag) {
  const std::string name = flag.canonical_display_name(po::command_line_style::allow_dash_for_short);
  return name[0] == '-' ? name[1] : '\0';
}

bool is_switch(const po::option_description& flag) {
  return flag.semantic()->max_tokens() == 0;
}

bool may_leave_value_out(const po::option_description& flag) {
  return !is_switch(flag) && flag.semantic()->min_tokens() == 0;
}

std::string take_first(std::vector<std::string>& tokens) {
  std::string first = std::move(tokens.front());
  tokens.erase(tokens.begin());
  return first;
}

/// A value that `read` converts, or refuses with a message that names the flag as it was typed.
template <class T>
class CheckedValue : public po::typed_value<T> {
 public:
  using Read = std::function<T(const std::string& typed, const std::string& text)>;

  CheckedValue(const CommandLine& line, std::string_view name, T* variable, std::string_view metavar, Read read)
      : po::typed_value<T>(variable), line_(line), long_name_(long_name_of(name)), read_(std::move(read)) {
    this->value_name(std::string(metavar));
  }

  void xparse(boost::any& value, const std::vector<std::string>& tokens) const override {
    value = read_(line_.typed(long_name_), tokens.front());
  }

 private:
  const CommandLine& line_;
  std::string long_name_;
  Read read_;
};

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
  add_flag("help,h", po::value<bool>()->zero_tokens()->implicit_value(true, ""), "show this text");
}

void CommandLine::section(std::string_view heading) {
  sections_.push_back({std::string(heading), flags_.options().size()});
}

void CommandLine::add_flag(std::string_view name, po::value_semantic* semantic, std::string_view help,
                           const std::string& shown_default) {
  std::string text(help);
  if (!shown_default.empty()) text += fmt::format(" (default {})", shown_default);
  flags_.add_options()(std::string(name).c_str(), semantic, text.c_str());
  const po::option_description& added = *flags_.options().back();
  for (const auto& other : flags_.options()) {
    if (other.get() == &added) continue;
    FT_CHECK(other->long_name() != added.long_name() &&
             (letter_of(added) == 0 || letter_of(*other) != letter_of(added)));
  }
}

// The empty text of each implicit value keeps it out of the value's name in the help text.
void CommandLine::add_switch(std::string_view name, bool* value, std::string_view help) {
  add_flag(name, po::value(value)->zero_tokens()->implicit_value(true, ""), help);
}

void CommandLine::add_text(std::string_view name, std::string* value, std::string_view metavar, std::string_view help) {
  add_flag(name, po::value(value)->value_name(std::string(metavar)), help, *value);
}

void CommandLine::add_text(std::string_view name, std::string* value, std::string_view implicit,
                           std::string_view metavar, std::string_view help) {
  add_flag(name, po::value(value)->value_name(fmt::format("[{}]", metavar))->implicit_value(std::string(implicit), ""),
           help, *value);
}

void CommandLine::add_output(std::string_view name, std::string* value, std::string_view metavar,
                             std::string_view help) {
  const auto read = [](const std::string& typed, const std::string& text) {
    if (text.empty()) throw UsageError(fmt::format("{}: the file's name is empty", typed));
    return text;
  };
  add_flag(name, new CheckedValue<std::string>(*this, name, value, metavar, read), help, *value);
}

void CommandLine::add_choice(std::string_view name, std::string* value, std::vector<std::string> choices,
                             std::string_view help) {
  const std::string metavar = fmt::format("{}", fmt::join(choices, "|"));
  const auto read = [choices = std::move(choices)](const std::string& typed, const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) == choices.end()) {
      throw UsageError(fmt::format("{} {}: unknown value; known: {}", typed, shown(text), fmt::join(choices, ", ")));
    }
    return text;
  };
  add_flag(name, new CheckedValue<std::string>(*this, name, value, metavar, read), help, *value);
}

namespace {

/// Reads whole numbers; `name` may have its letter behind it.
template <class T>
typename CheckedValue<T>::Read int_reader(std::string_view name, int64_t min, int64_t max) {
  return [=, long_name = long_name_of(name)](const std::string& typed, const std::string& text) {
    const auto number = as_int(text, min, max);
    if (!number) {
      throw UsageError(
          fmt::format("{} must be a whole number from {} to {}", value_in_message(typed, long_name, text), min, max));
    }
    return static_cast<T>(*number);
  };
}

template <class T>
typename CheckedValue<T>::Read float_reader(std::string_view name, double min, double max) {
  return [=, long_name = long_name_of(name)](const std::string& typed, const std::string& text) {
    const auto number = as_float(text, min, max);
    if (!number) {
      throw UsageError(
          fmt::format("{} must be a number from {:g} to {:g}", value_in_message(typed, long_name, text), min, max));
    }
    return static_cast<T>(*number);
  };
}

}  // namespace

void CommandLine::add_int(std::string_view name, int64_t* value, int64_t min, int64_t max, std::string_view metavar,
                          std::string_view help) {
  add_flag(name, new CheckedValue<int64_t>(*this, name, value, metavar, int_reader<int64_t>(name, min, max)), help,
           std::to_string(*value));
}

void CommandLine::add_int(std::string_view name, int* value, int min, int max, std::string_view metavar,
                          std::string_view help) {
  add_flag(name, new CheckedValue<int>(*this, name, value, metavar, int_reader<int>(name, min, max)), help,
           std::to_string(*value));
}

void CommandLine::add_int(std::string_view name, std::optional<int>* value, int min, int max, std::string_view metavar,
                          std::string_view help) {
  auto* semantic = new CheckedValue<int>(*this, name, nullptr, metavar, int_reader<int>(name, min, max));
  add_flag(name, semantic->notifier([value](int number) { *value = number; }), help);
}

void CommandLine::add_seed(std::string_view name, uint64_t* value, std::string_view help) {
  const auto read = [](const std::string& typed, const std::string& text) {
    uint64_t seed = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
    if (error != std::errc() || end != text.data() + text.size()) {
      throw UsageError(fmt::format("{} {}: must be a whole number from 0 to {}", typed, shown(text), UINT64_MAX));
    }
    return seed;
  };
  add_flag(name, new CheckedValue<uint64_t>(*this, name, value, "N", read), help, std::to_string(*value));
}

void CommandLine::add_float(std::string_view name, double* value, double min, double max, std::string_view metavar,
                            std::string_view help) {
  add_flag(name, new CheckedValue<double>(*this, name, value, metavar, float_reader<double>(name, min, max)), help,
           fmt::format("{:g}", *value));
}

void CommandLine::add_float(std::string_view name, float* value, double min, double max, std::string_view metavar,
                            std::string_view help) {
  add_flag(name, new CheckedValue<float>(*this, name, value, metavar, float_reader<float>(name, min, max)), help,
           fmt::format("{:g}", *value));
}

void CommandLine::add_float(std::string_view name, std::optional<double>* value, double min, double max,
                            std::string_view metavar, std::string_view help) {
  auto* semantic = new CheckedValue<double>(*this, name, nullptr, metavar, float_reader<double>(name, min, max));
  add_flag(name, semantic->notifier([value](double number) { *value = number; }), help);
}

void CommandLine::add_positional(std::string_view name, std::string* value, std::string_view metavar,
                                 std::string_view help) {
  positional_.add_options()(std::string(name).c_str(), po::value(value));
  std::string entry = fmt::format("  {}", metavar);
  append_wrapped(entry, entry.size(), help);
  positional_help_ += entry;
}

void CommandLine::epilogue(std::string_view text) {
  epilogue_ = text;
}

const po::option_description* CommandLine::match(std::string_view argument) const {
  for (const auto& flag : flags_.options()) {
    if (argument.starts_with("--") && argument.substr(2, argument.find('=') - 2) == flag->long_name())
      return flag.get();
    if (argument.size() == 2 && argument[0] == '-' && argument[1] == letter_of(*flag)) return flag.get();
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
  std::string nearest;
  size_t best = 3;
  for (const auto& flag : flags_.options()) {
    const std::string& long_name = flag->long_name();
    const char letter = letter_of(*flag);
    if (!is_long && letter == argument[1] && body.size() > 1) {
      const std::string_view value = body.substr(body[1] == '=' ? 2 : 1);
      const bool looks_like_value = long_name != name && (body[1] == '=' || (value[0] >= '0' && value[0] <= '9'));
      if (looks_like_value)
        fail(fmt::format("{}: no such flag; a short flag's value stands apart: -{} {}", typed, letter, shown(value)));
    }
    const size_t distance = long_name.starts_with(name) && name.size() > 2 ? 1 : edit_distance(long_name, name);
    if (distance < best && distance < long_name.size() / 2 + 1) {
      best = distance;
      nearest = long_name;
    }
  }
  if (!nearest.empty()) fail(fmt::format("{}: no such flag; did you mean --{}?", typed, nearest));
  fail(fmt::format("{}: no such flag", typed));
}

po::option CommandLine::read_flag(std::vector<std::string>& tokens) {
  const std::string argument = take_first(tokens);
  const po::option_description* flag = match(argument);
  if (flag == nullptr) fail_unknown(argument);
  const size_t equals = argument[1] == '-' ? argument.find('=') : std::string::npos;
  const std::string typed = argument.substr(0, equals);
  const auto [earlier, is_first] = typed_.emplace(flag->long_name(), typed);
  if (!is_first) {
    fail(earlier->second == typed ? fmt::format("{} stands twice", typed)
                                  : fmt::format("{} and {} are the same flag, give it once", earlier->second, typed));
  }
  po::option option(flag->long_name(), {});
  option.original_tokens = {argument};
  if (is_switch(*flag)) {
    if (equals != std::string::npos) fail(fmt::format("{}: {} takes no value", shown(argument), typed));
  } else if (equals != std::string::npos) {
    option.value = {argument.substr(equals + 1)};
  } else if (may_leave_value_out(*flag)) {
    const bool has_value = !tokens.empty() && (!tokens[0].starts_with('-') || is_number(tokens[0]));
    if (has_value) option.value = {take_first(tokens)};
  } else {
    if (tokens.empty()) fail(fmt::format("{}: its value is missing", typed));
    if (match(tokens[0]) != nullptr) {
      fail(
          fmt::format("{}: its value is missing, the flag {} follows; a value that is spelled like a flag is written "
                      "--{}={}",
                      typed, shown(tokens[0]), flag->long_name(), shown(tokens[0])));
    }
    option.value = {take_first(tokens)};
  }
  return option;
}

bool CommandLine::parse(int argc, const char* const* argv) {
  bool only_arguments = false;
  size_t num_positional = 0;
  // Boost calls this until no token is left. Each call takes at least one, so Boost's own spellings never apply. An
  // argument without a flag gets its name here: Boost would hand a nameless one to a flag whose value was left out.
  const auto read_tokens = [&](std::vector<std::string>& tokens) -> std::vector<po::option> {
    const std::string& argument = tokens[0];
    if (only_arguments || argument.size() < 2 || argument[0] != '-') {
      if (num_positional == positional_.options().size())
        fail(fmt::format("the argument '{}' stands without a flag", shown(argument)));
      return {po::option(positional_.options()[num_positional++]->long_name(), {take_first(tokens)})};
    }
    if (argument == "--") {
      only_arguments = true;
      tokens.erase(tokens.begin());
      return {};
    }
    return {read_flag(tokens)};
  };
  po::options_description known;
  known.add(flags_).add(positional_);
  const po::parsed_options parsed =
      po::command_line_parser(argc, argv).options(known).extra_style_parser(read_tokens).run();
  if (given("help")) {
    print_help();
    return false;
  }
  // store() checks the values in the order of the command line; notify() then assigns the variables, sorted by name.
  po::variables_map values;
  po::store(parsed, values);
  po::notify(values);
  return true;
}

bool CommandLine::given(std::string_view long_name) const {
  FT_CHECK(flags_.find_nothrow(std::string(long_name), /*approx=*/false) != nullptr);
  return typed_.contains(long_name);
}

std::string CommandLine::typed(std::string_view long_name) const {
  return given(long_name) ? typed_.find(long_name)->second : fmt::format("--{}", long_name);
}

void CommandLine::print_help() const {
  std::string text = fmt::format("foretoken {} {}\n\n{}\n", command_, usage_, summary_);
  if (!positional_help_.empty()) text += "\n" + positional_help_;
  for (size_t idx = 0; idx < sections_.size(); ++idx) {
    const size_t end = idx + 1 < sections_.size() ? sections_[idx + 1].first_flag : flags_.options().size();
    if (sections_[idx].first_flag == end) continue;
    text += fmt::format("\n{}:\n", sections_[idx].heading);
    for (size_t flag_idx = sections_[idx].first_flag; flag_idx < end; ++flag_idx) {
      const po::option_description& flag = *flags_.options()[flag_idx];
      std::string left = letter_of(flag) == 0 ? "  " : fmt::format("  -{}, ", letter_of(flag));
      left += "--" + flag.long_name();
      if (!is_switch(flag)) left += " " + flag.semantic()->name();
      text += left;
      append_wrapped(text, left.size(), flag.description());
    }
  }
  if (!epilogue_.empty()) text += "\n" + epilogue_;
  ResultStream().write(text);
}

}  // namespace foretoken
