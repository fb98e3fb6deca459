#include "tools/cli/command_line.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <sstream>

#include "kernels/base/error.h"
#include "tools/cli/output.h"

namespace foretoken {

namespace po = boost::program_options;

namespace {

constexpr unsigned kHelpWidth = 110;
constexpr const char* kSurplus = "surplus arguments";  // with a blank: nobody can write it as a flag

/// "n-predict,n" -> "--n-predict", for messages.
std::string long_flag(std::string_view name) {
  return "--" + std::string(name.substr(0, name.find(',')));
}

/// A value that may be left out. Boost's own help text for one, "[=K(=auto)]", says that an equal sign is needed; it is
/// not.
class OptionalValue : public po::typed_value<std::string> {
 public:
  explicit OptionalValue(std::string metavar) : typed_value(nullptr), metavar_(std::move(metavar)) {}
  [[nodiscard]] std::string name() const override { return "[" + metavar_ + "]"; }

 private:
  std::string metavar_;
};

/// Boost's messages quote options with single quotes and name the canonical flag; one line each already.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return text;
}

/// A value as messages show it.
std::string shown(std::string_view text) {
  return text.empty() ? "''" : one_line(std::string(text));
}

}  // namespace

int64_t parse_int(std::string_view what, std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < min || value > max) {
    throw UsageError(fmt::format("{} {}: must be a whole number from {} to {}", what, shown(text), min, max));
  }
  return value;
}

double parse_float(std::string_view what, std::string_view text, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || value < min || value > max) {
    throw UsageError(fmt::format("{} {}: must be a number from {:g} to {:g}", what, shown(text), min, max));
  }
  return value;
}

CommandLine::CommandLine(std::string_view command, std::string_view usage, std::string_view summary)
    : command_(command), usage_(usage), summary_(summary) {
  section("Options");
}

void CommandLine::section(std::string_view heading) {
  sections_.push_back(std::make_unique<po::options_description>(std::string(heading), kHelpWidth, kHelpWidth / 2));
}

void CommandLine::add_value(std::string_view name, std::string_view metavar, std::string_view help,
                            const std::string& shown_default, Setter setter, std::string_view implicit) {
  auto* semantic = implicit.empty() ? po::value<std::string>() : new OptionalValue(std::string(metavar));
  semantic->value_name(std::string(metavar))->notifier(std::move(setter));
  if (!implicit.empty()) semantic->implicit_value(std::string(implicit));
  std::string text(help);
  if (!shown_default.empty()) text += fmt::format(" (default {})", shown_default);
  sections_.back()->add_options()(std::string(name).c_str(), semantic, text.c_str());
}

void CommandLine::add_switch(std::string_view name, bool* value, std::string_view help) {
  auto* semantic = po::bool_switch()->notifier([value](bool given) { *value = *value || given; });
  sections_.back()->add_options()(std::string(name).c_str(), semantic, std::string(help).c_str());
}

void CommandLine::add_text(std::string_view name, std::string* value, std::string_view metavar, std::string_view help) {
  add_value(name, metavar, help, *value, [value](const std::string& text) { *value = text; });
}

void CommandLine::add_text(std::string_view name, std::string* value, std::string_view implicit,
                           std::string_view metavar, std::string_view help) {
  add_value(
      name, metavar, help, *value, [value](const std::string& text) { *value = text; }, implicit);
}

void CommandLine::add_output(std::string_view name, std::string* value, std::string_view metavar,
                             std::string_view help) {
  add_value(name, metavar, help, *value, [value, flag = long_flag(name)](const std::string& text) {
    if (text.empty()) throw UsageError(fmt::format("{}: the file's name is empty", flag));
    *value = text;
  });
}

void CommandLine::add_choice(std::string_view name, std::string* value, std::vector<std::string> choices,
                             std::string_view help) {
  const std::string metavar = fmt::format("{}", fmt::join(choices, "|"));
  add_value(name, metavar, help, *value, [=, flag = long_flag(name)](const std::string& text) {
    for (const std::string& choice : choices) {
      if (text == choice) {
        *value = text;
        return;
      }
    }
    throw UsageError(fmt::format("{} {}: unknown value; known: {}", flag, one_line(text), fmt::join(choices, ", ")));
  });
}

void CommandLine::add_int(std::string_view name, int64_t* value, int64_t min, int64_t max, std::string_view metavar,
                          std::string_view help) {
  add_value(name, metavar, help, std::to_string(*value),
            [=, flag = long_flag(name)](const std::string& text) { *value = parse_int(flag, text, min, max); });
}

void CommandLine::add_int(std::string_view name, int* value, int min, int max, std::string_view metavar,
                          std::string_view help) {
  add_value(name, metavar, help, std::to_string(*value), [=, flag = long_flag(name)](const std::string& text) {
    *value = static_cast<int>(parse_int(flag, text, min, max));
  });
}

void CommandLine::add_int(std::string_view name, std::optional<int>* value, int min, int max, std::string_view metavar,
                          std::string_view help) {
  add_value(name, metavar, help, "", [=, flag = long_flag(name)](const std::string& text) {
    *value = static_cast<int>(parse_int(flag, text, min, max));
  });
}

void CommandLine::add_seed(std::string_view name, uint64_t* value, std::string_view help) {
  add_value(name, "N", help, std::to_string(*value), [=, flag = long_flag(name)](const std::string& text) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
    if (error != std::errc() || end != text.data() + text.size()) {
      throw UsageError(fmt::format("{} {}: must be a whole number from 0 to {}", flag, one_line(text), UINT64_MAX));
    }
  });
}

void CommandLine::add_float(std::string_view name, double* value, double min, double max, std::string_view metavar,
                            std::string_view help) {
  add_value(name, metavar, help, fmt::format("{:g}", *value),
            [=, flag = long_flag(name)](const std::string& text) { *value = parse_float(flag, text, min, max); });
}

void CommandLine::add_float(std::string_view name, float* value, double min, double max, std::string_view metavar,
                            std::string_view help) {
  add_value(name, metavar, help, fmt::format("{:g}", *value), [=, flag = long_flag(name)](const std::string& text) {
    *value = static_cast<float>(parse_float(flag, text, min, max));
  });
}

void CommandLine::add_float(std::string_view name, std::optional<double>* value, double min, double max,
                            std::string_view metavar, std::string_view help) {
  add_value(name, metavar, help, "",
            [=, flag = long_flag(name)](const std::string& text) { *value = parse_float(flag, text, min, max); });
}

void CommandLine::add_positional(std::string_view name, std::string* value, std::string_view metavar,
                                 std::string_view help) {
  FT_CHECK(positional_help_.empty());
  positional_help_ = fmt::format("  {:<30}{}\n", metavar, help);
  positional_.add(std::string(name).c_str(), 1);
  hidden_.add_options()(std::string(name).c_str(),
                        po::value<std::string>()->notifier([value](const std::string& text) { *value = text; }));
}

void CommandLine::epilogue(std::string_view text) {
  epilogue_ = text;
}

bool CommandLine::parse(int argc, const char* const* argv) {
  sections_.front()->add_options()("help,h", "show this text");
  po::options_description all;
  for (const auto& section : sections_) all.add(*section);
  hidden_.add_options()(kSurplus, po::value<std::vector<std::string>>()->notifier(
                                      [this](const std::vector<std::string>& texts) { surplus_ = texts; }));
  positional_.add(kSurplus, -1);
  all.add(hidden_);
  try {
    // No guessing of shortened flags: a script that writes --pro today would mean something else once there are two.
    po::store(po::command_line_parser(argc, argv)
                  .options(all)
                  .positional(positional_)
                  .style(po::command_line_style::unix_style & ~po::command_line_style::allow_guessing)
                  .run(),
              values_);
    if (values_.count("help") != 0) {
      print_help();
      return false;
    }
    po::notify(values_);
  } catch (const po::error& error) {
    throw UsageError(fmt::format("{}: {}; see foretoken {} --help", command_, one_line(error.what()), command_));
  }
  if (!surplus_.empty()) {
    throw UsageError(fmt::format("{}: the argument '{}' stands without a flag; see foretoken {} --help", command_,
                                 surplus_.front(), command_));
  }
  return true;
}

bool CommandLine::given(const std::string& long_name) const {
  const auto found = values_.find(long_name);
  return found != values_.end() && !found->second.defaulted();
}

void CommandLine::print_help() const {
  std::ostringstream text;
  text << "foretoken " << command_ << " " << usage_ << "\n\n" << summary_ << "\n";
  if (!positional_help_.empty()) text << "\n" << positional_help_;
  for (const auto& section : sections_) {
    if (!section->options().empty()) text << "\n" << *section;
  }
  if (!epilogue_.empty()) text << "\n" << epilogue_;
  ResultStream().write(text.str());
}

}  // namespace foretoken
