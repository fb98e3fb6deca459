#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace foretoken::help_pages {

/// A flag as --help lists it: "-c, --ctx-size N", "--mtp [K]", "--chat".
struct Flag {
  std::string letter;   // "-c"; empty: none
  std::string name;     // "--ctx-size"
  std::string metavar;  // "N", "f16|f32", "[K]"; empty: the flag takes no value
  std::string help;
};

/// Another line of a list: a command, an environment variable, an argument without a flag.
struct Entry {
  std::string term;
  std::string help;
};

/// A part of a help text: a paragraph, or a list with or without a heading.
struct Block {
  std::string paragraph;  // empty: the block is a list
  std::string heading;    // "Options", without the colon
  std::vector<Flag> flags;
  std::vector<Entry> entries;
};

struct HelpText {
  std::string usage;  // "foretoken decode -m MODEL [-p TEXT | -f FILE | --ids FILE]"
  std::vector<Block> blocks;

  /// The block with this heading, nullptr if there is none.
  [[nodiscard]] const Block* find(std::string_view heading) const;
  [[nodiscard]] std::vector<Flag> all_flags() const;
  /// The argument without a flag ("MODEL"); empty: none.
  [[nodiscard]] std::string positional() const;
};

struct CommandHelp {
  std::string name;
  std::string summary;
  HelpText text;
};

/// What the whole program says of itself.
struct ProgramHelp {
  HelpText text;
  std::vector<std::string> flags;  // --help, --version
  std::vector<CommandHelp> commands;
};

/// The heading under which the program lists its commands, and how the heading of its variables begins.
inline constexpr std::string_view kCommandsHeading = "Commands";
inline constexpr std::string_view kEnvironmentHeading = "Environment";

/// Takes the text of --help apart. Throws std::runtime_error with the line that it cannot read: a flag that would be
/// missing in man page and completion must not go unnoticed.
[[nodiscard]] HelpText parse_help(std::string_view text);

/// Runs `program --help` and `program COMMAND --help` for each command listed there.
[[nodiscard]] ProgramHelp read_help(const std::string& program);

// What completion offers for a flag's value or an argument without a flag, by the name that stands for it.
enum class ValueKind { none, free, file, model, choice };
[[nodiscard]] ValueKind value_kind(std::string_view metavar);
/// "[K]": the value may be left out.
[[nodiscard]] bool is_optional(std::string_view metavar);
/// "cpu|cuda|split": all three; "N|auto": auto alone. Names in capitals stand for a value that the user makes up.
[[nodiscard]] std::vector<std::string> choices(std::string_view metavar);

}  // namespace foretoken::help_pages
