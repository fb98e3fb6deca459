#include <fmt/format.h>

#include <map>

#include "pages.h"

namespace foretoken::help_pages {

namespace {

/// The name that the completion below has for a kind of value; of choices, their list.
std::string kind_word(std::string_view metavar) {
  switch (value_kind(metavar)) {
    case ValueKind::none:
      return "";
    case ValueKind::free:
      return "free";
    case ValueKind::file:
      return "file";
    case ValueKind::model:
      return "model";
    case ValueKind::choice:
      break;
  }
  return fmt::format("{}", fmt::join(choices(metavar), " "));
}

// Bash takes --flag=value apart at the equal sign, unless COMP_WORDBREAKS has none. File names are left to readline
// (-o default), which knows about quotes and ~.
constexpr std::string_view kCompletion = R"(
_foretoken() {
  local command=${COMP_WORDS[1]} word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
  local flags= argument= kind= optional= glued= prefix=
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    mapfile -t COMPREPLY < <(compgen -W "$_foretoken_commands" -- "$word")
    return
  fi
  if [[ $word == = ]]; then
    word= glued=1
  elif [[ $before == = ]]; then
    before=${COMP_WORDS[COMP_CWORD - 2]} glued=1
  elif [[ $word == --*=* ]]; then
    before=${word%%=*} word=${word#*=} prefix=$before= glued=1
  fi
  _foretoken_describe "$command" "$before"
  if [[ -z $kind && -n $glued ]]; then return; fi
  if [[ -n $kind && -n $optional && -z $glued ]]; then
    # The value may be left out: another flag can follow.
    [[ $kind == free ]] || flags="$kind $flags"
    kind=
  fi
  if [[ -z $kind && ($word == -* || -z $argument) ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$word")
    return
  fi
  case ${kind:-$argument} in
    free) ;;
    file) compopt -o default 2>/dev/null ;;
    model)
      mapfile -t COMPREPLY < <(compgen -f -X '!*.gguf' -P "$prefix" -- "$word"; compgen -d -P "$prefix" -- "$word")
      compopt -o filenames -o default 2>/dev/null
      ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$kind" -P "$prefix" -- "$word") ;;
  esac
} &&
  complete -F _foretoken foretoken
)";

}  // namespace

std::string bash_completion(const ProgramHelp& help) {
  std::string names, flags_of_commands;
  std::map<std::string, std::string> patterns_by_kind;
  for (const CommandHelp& command : help.commands) {
    names += command.name + ' ';
    std::string flags;
    for (const Flag& flag : command.text.all_flags()) {
      flags += flags.empty() ? flag.name : ' ' + flag.name;
      if (!flag.letter.empty()) flags += ' ' + flag.letter;
      if (flag.metavar.empty()) continue;
      std::string kind = fmt::format("kind='{}'", kind_word(flag.metavar));
      if (is_optional(flag.metavar)) kind += " optional=1";
      std::string& patterns = patterns_by_kind[kind];
      for (const std::string& name : {flag.letter, flag.name}) {
        if (!name.empty()) patterns += fmt::format("{}'{} {}'", patterns.empty() ? "" : " | ", command.name, name);
      }
    }
    const std::string positional = command.text.positional();
    flags_of_commands +=
        fmt::format("    {}) flags='{}' argument='{}' ;;\n", command.name, flags, kind_word(positional));
  }
  std::string text = "# Completion of foretoken for bash, generated from the program's --help.\n\n";
  text += fmt::format("_foretoken_commands='{}{}'\n\n", names, fmt::join(help.flags, " "));
  text += "# Sets the flags of a command, the kind of its argument, and the kind of value that follows a flag.\n";
  text += fmt::format("_foretoken_describe() {{\n  case $1 in\n{}  esac\n  case \"$1 $2\" in\n", flags_of_commands);
  for (const auto& [kind, patterns] : patterns_by_kind) text += fmt::format("    {}) {} ;;\n", patterns, kind);
  text += "  esac\n}\n";
  text += kCompletion;
  return text;
}

}  // namespace foretoken::help_pages
