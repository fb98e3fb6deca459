#pragma once

#include <boost/program_options/option.hpp>
#include <boost/program_options/options_description.hpp>
#include <cstdint>
#include <map>
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
///
/// One spelling for each kind of flag: --long VALUE, --long=VALUE, -s VALUE. Nothing is glued to a short flag and no
/// name is shortened, so that a flag of another program (-fa, -ngl99) is never read as one of ours with a value.
/// Messages name a flag as it was typed.
class CommandLine {
 public:
  CommandLine(std::string_view command, std::string_view usage, std::string_view summary);
  CommandLine(const CommandLine&) = delete;  // the checks of values refer to it
  CommandLine& operator=(const CommandLine&) = delete;

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
  /// An argument without a flag; several are taken in the order of declaration.
  void add_positional(std::string_view name, std::string* value, std::string_view metavar, std::string_view help);

  /// Text printed after the flags in --help.
  void epilogue(std::string_view text);

  /// argv[0] is the command's name. Returns false if --help was printed. Throws UsageError: unknown flag, missing or
  /// bad value.
  [[nodiscard]] bool parse(int argc, const char* const* argv);

  /// True if the flag stood on the command line. REQUIRES: parse() returned true.
  [[nodiscard]] bool given(std::string_view long_name) const;
  /// The flag as it was typed, "-c" or "--ctx-size"; its long form where it was not given.
  [[nodiscard]] std::string typed(std::string_view long_name) const;

 private:
  /// A heading of the help text, over the flags from this one up to the next section's first.
  struct Section {
    std::string heading;
    size_t first_flag;
  };

  /// Takes ownership of `semantic`, which says whether a flag takes a value, checks it and stores it.
  void add_flag(std::string_view name, boost::program_options::value_semantic* semantic, std::string_view help,
                const std::string& shown_default = "");
  /// The flag that `argument` spells exactly, its value left aside; nullptr: none.
  [[nodiscard]] const boost::program_options::option_description* match(std::string_view argument) const;
  /// Takes the flag at the front of `tokens`, and its value where it stands apart.
  [[nodiscard]] boost::program_options::option read_flag(std::vector<std::string>& tokens);
  [[noreturn]] void fail_unknown(std::string_view argument) const;
  [[noreturn]] void fail(std::string_view what) const;
  void print_help() const;

  std::string command_, usage_, summary_, epilogue_;
  boost::program_options::options_description flags_, positional_;
  std::vector<Section> sections_;
  std::string positional_help_;
  std::map<std::string, std::string, std::less<>> typed_;  // long name -> the flag as it was typed, if it was given
};

/// Whole number in [min, max]. Throws UsageError naming `what`, the text and the limits.
[[nodiscard]] int64_t parse_int(std::string_view what, std::string_view text, int64_t min, int64_t max);
/// Bytes: a whole number with K, M or G (1024 each) behind it, or of MiB without. Throws UsageError.
[[nodiscard]] size_t parse_size(std::string_view what, std::string_view text);
/// Finite number in [min, max].
[[nodiscard]] double parse_float(std::string_view what, std::string_view text, double min, double max);

/// "-c 5: --ctx-size" for a flag typed in its short form, "--ctx-size 5:" else: how a message about a value begins.
[[nodiscard]] std::string value_in_message(std::string_view typed, std::string_view long_name, std::string_view value);

}  // namespace foretoken
