#include <fmt/format.h>

#include "pages.h"

namespace foretoken::help_pages {

namespace {

/// Text inside single quotes with these characters escaped, which mean something to _arguments or _describe.
std::string quoted(std::string_view text, std::string_view special) {
  std::string out;
  for (char c : text) {
    if (c == '\'') {
      out += "'\\''";
      continue;
    }
    if (special.find(c) != std::string_view::npos || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

/// ":MODEL:action", what _arguments needs to know about a value.
std::string value_spec(std::string_view metavar) {
  std::string action;
  switch (value_kind(metavar)) {
    case ValueKind::none:
      return "";
    case ValueKind::free:
      action = " ";
      break;  // shows the name, offers nothing
    case ValueKind::file:
      action = "_files";
      break;
    case ValueKind::model:
      action = "_files -g \"*.gguf(-.)\"";
      break;
    case ValueKind::choice:
      action = fmt::format("({})", fmt::join(choices(metavar), " "));
      break;
  }
  if (!is_optional(metavar)) return fmt::format(":{}:{}", quoted(metavar, ":"), action);
  return fmt::format("::{}:{}", quoted(metavar.substr(1, metavar.find(']') - 1), ":"), action);
}

/// The specs of a flag, one for each spelling; "--name=" stands for "--name VALUE" and "--name=VALUE".
std::string flag_specs(const Flag& flag) {
  const std::string tail = fmt::format("[{}]{}", quoted(flag.help, "[]"), value_spec(flag.metavar));
  const std::string equals = flag.metavar.empty() ? "" : "=";
  if (flag.letter.empty()) return fmt::format("        '{}{}{}' \\\n", flag.name, equals, tail);
  const std::string excluded = fmt::format("({} {})", flag.letter, flag.name);
  return fmt::format("        '{}{}{}' \\\n        '{}{}{}{}' \\\n", excluded, flag.letter, tail, excluded, flag.name,
                     equals, tail);
}

}  // namespace

std::string zsh_completion(const ProgramHelp& help) {
  std::string names, commands;
  for (const CommandHelp& command : help.commands) {
    names += fmt::format("    '{}:{}'\n", command.name, quoted(command.summary, ""));
    commands += fmt::format("    {})\n      _arguments \\\n", command.name);
    for (const Flag& flag : command.text.all_flags()) commands += flag_specs(flag);
    const std::string positional = command.text.positional();
    if (!positional.empty()) commands += fmt::format("        '1{}' \\\n", value_spec(positional));
    commands.erase(commands.size() - 3);  // the last line is not continued
    commands += "\n      ;;\n";
  }
  std::string text =
      "#compdef foretoken\n# Completion of foretoken for zsh, generated from the program's --help.\n\n"
      "_foretoken() {\n  local -a commands\n  commands=(\n";
  text += names;
  text += fmt::format(
      "  )\n  if (( CURRENT == 2 )); then\n    _describe -t commands command commands\n    compadd -- {}\n    return\n "
      " fi\n",
      fmt::join(help.flags, " "));
  text += "  local command=$words[2]\n  shift words\n  (( CURRENT -= 1 ))\n  case $command in\n" + commands +
          "  esac\n}\n\n";
  text +=
      "# Loaded by the completion system, or sourced.\n"
      "if [[ $funcstack[1] == _foretoken ]]; then\n  _foretoken \"$@\"\nelse\n  compdef _foretoken foretoken\nfi\n";
  return text;
}

}  // namespace foretoken::help_pages
