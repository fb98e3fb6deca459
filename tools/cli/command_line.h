#pragma once

#include <boost/program_options.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

/// The flags of one command. Declare them, then parse(): values go straight to the variables named, checked against
/// their range. What each variable holds before parse() is the default that --help shows.
///
///   CommandLine line("decode", "-m MODEL [-p TEXT | -f FILE]", "Continues a prompt.");
///   line.add_int("n-predict,n", &options.max_new_tokens, 1, kMaxTokens, "N", "tokens to make at most");
///   if (!line.parse(argc, argv)) return 0;  // --help was asked for and printed
class CommandLine {
 public:
  CommandLine(std::string_view command, std::string_view usage, std::string_view summary);

  /// Following flags go under this heading of the help text.
  void section(std::string_view heading);

  // `name` is "long" or "long,s" with the short letter. `metavar` names the value in the help text.
  void add_switch(std::string_view name, bool* value, std::string_view help);
  void add_text(std::string_view name, std::string* value, std::string_view metavar, std::string_view help);
  /// A file to write; an empty name is an error.
  void add_output(std::string_view name, std::string* value, std::string_view metavar, std::string_view help);
  /// The flag's value may be left out (`--mtp` alone): then it counts as `implicit`.
  void add_text(std::string_view name, std::string* value, std::string_view implicit, std::string_view metavar,
                std::string_view help);
  /// One of `choices`.
  void add_choice(std::string_view name, std::string* value, std::vector<std::string> choices, std::string_view help);
  void add_int(std::string_view name, int64_t* value, int64_t min, int64_t max, std::string_view metavar,
               std::string_view help);
  void add_int(std::string_view name, int* value, int min, int max, std::string_view metavar, std::string_view help);
  // With std::optional there is no default: the help text says what counts where the flag is not given.
  void add_int(std::string_view name, std::optional<int>* value, int min, int max, std::string_view metavar,
               std::string_view help);
  void add_seed(std::string_view name, uint64_t* value, std::string_view help);
  void add_float(std::string_view name, double* value, double min, double max, std::string_view metavar,
                 std::string_view help);
  void add_float(std::string_view name, float* value, double min, double max, std::string_view metavar,
                 std::string_view help);
  void add_float(std::string_view name, std::optional<double>* value, double min, double max, std::string_view metavar,
                 std::string_view help);
  /// One argument without a flag. REQUIRES: at most once.
  void add_positional(std::string_view name, std::string* value, std::string_view metavar, std::string_view help);

  /// Text printed after the flags in --help.
  void epilogue(std::string_view text);

  /// argv[0] is the command's name. Returns false if --help was printed. Throws UsageError: unknown flag, missing or
  /// bad value.
  [[nodiscard]] bool parse(int argc, const char* const* argv);

  /// True if the flag stood on the command line. REQUIRES: parse() returned true.
  [[nodiscard]] bool given(const std::string& long_name) const;

 private:
  using Setter = std::function<void(const std::string&)>;
  void add_value(std::string_view name, std::string_view metavar, std::string_view help,
                 const std::string& shown_default, Setter setter, std::string_view implicit = {});
  void print_help() const;

  std::string command_, usage_, summary_, epilogue_;
  std::vector<std::unique_ptr<boost::program_options::options_description>> sections_;
  boost::program_options::options_description hidden_;
  boost::program_options::positional_options_description positional_;
  std::string positional_help_;
  std::vector<std::string> surplus_;  // arguments without a flag that the command does not take
  boost::program_options::variables_map values_;
};

/// Whole number in [min, max]. Throws UsageError naming `what`, the text and the limits.
[[nodiscard]] int64_t parse_int(std::string_view what, std::string_view text, int64_t min, int64_t max);
/// Finite number in [min, max].
[[nodiscard]] double parse_float(std::string_view what, std::string_view text, double min, double max);

}  // namespace foretoken
