#include <fmt/format.h>

#include <cctype>

#include "pages.h"

namespace foretoken::help_pages {

namespace {

/// Text as roff shows it unchanged: hyphens stay ASCII so that flags can be copied, and no line is read as a request.
std::string roff(std::string_view text) {
  std::string out;
  if (text.starts_with('.') || text.starts_with('\'')) out = "\\&";
  for (char c : text) {
    switch (c) {
      case '\\':
        out += "\\e";
        break;
      case '-':
        out += "\\-";
        break;
      case '\'':
        out += "\\(aq";
        break;
      case '`':
        out += "\\(ga";
        break;
      case '^':
        out += "\\(ha";
        break;
      case '~':
        out += "\\(ti";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string upper(std::string_view text) {
  std::string out;
  for (char c : text) out += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return out;
}

/// "-c, --ctx-size N" with the flag bold and the value in italics.
std::string flag_term(const Flag& flag) {
  std::string term;
  if (!flag.letter.empty()) term += fmt::format("\\fB{}\\fR, ", roff(flag.letter));
  term += fmt::format("\\fB{}\\fR", roff(flag.name));
  if (!flag.metavar.empty()) term += fmt::format(" \\fI{}\\fR", roff(flag.metavar));
  return term;
}

void append_item(std::string& page, std::string_view term, std::string_view help) {
  page += fmt::format(".TP\n{}\n{}\n", term, roff(help));
}

void append_list(std::string& page, const Block& block) {
  for (const Entry& entry : block.entries) append_item(page, fmt::format("\\fB{}\\fR", roff(entry.term)), entry.help);
  for (const Flag& flag : block.flags) append_item(page, flag_term(flag), flag.help);
}

/// "foretoken decode -m MODEL": name and command in bold, the rest as it is.
std::string synopsis(std::string_view usage, std::string_view bold) {
  std::string_view rest = usage.substr(std::min(bold.size(), usage.size()));
  return fmt::format("\\fB{}\\fR{}", roff(bold), roff(rest));
}

/// "Decodes models. More." gives "decodes models": what stands behind the name in an index of man pages.
std::string name_line(const HelpText& text) {
  for (const Block& block : text.blocks) {
    if (block.paragraph.empty()) continue;
    std::string sentence = block.paragraph.substr(0, block.paragraph.find(". "));
    if (sentence.ends_with('.')) sentence.pop_back();
    sentence[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(sentence[0])));
    return sentence;
  }
  return "";
}

bool is_environment(const Block& block) {
  return block.heading.starts_with(kEnvironmentHeading);
}

void append_command(std::string& page, const CommandHelp& command) {
  page += fmt::format(".SH {}\n{}\n", upper(command.name),
                      synopsis(command.text.usage, fmt::format("foretoken {}", command.name)));
  for (const Block& block : command.text.blocks) {
    if (is_environment(block)) continue;  // the same in all commands: it has a section of its own
    if (!block.paragraph.empty()) {
      page += fmt::format(".PP\n{}\n", roff(block.paragraph));
      continue;
    }
    if (!block.heading.empty()) page += fmt::format(".SS {}\n", roff(block.heading));
    append_list(page, block);
  }
}

}  // namespace

std::string man_page(const ProgramHelp& help, std::string_view version) {
  std::string page = ".\\\" Generated from the program's --help.\n";
  page += fmt::format(".TH FORETOKEN 1 \"\" \"foretoken {}\" \"User Commands\"\n", roff(version));
  page += ".nh\n.ad l\n";  // flags and paths are neither hyphenated nor spaced out
  page += fmt::format(".SH NAME\nforetoken \\- {}\n", roff(name_line(help.text)));
  page += fmt::format(".SH SYNOPSIS\n{}\n", synopsis(help.text.usage, "foretoken"));
  for (const CommandHelp& command : help.commands) {
    page += fmt::format(".br\n{}\n", synopsis(command.text.usage, fmt::format("foretoken {}", command.name)));
  }
  page += ".SH DESCRIPTION\n";
  for (const Block& block : help.text.blocks) {
    if (!block.paragraph.empty()) page += fmt::format(".PP\n{}\n", roff(block.paragraph));
  }
  for (const Block& block : help.text.blocks) {
    if (!block.paragraph.empty() || is_environment(block)) continue;
    page += fmt::format(".SH {}\n", upper(block.heading));
    append_list(page, block);
  }
  for (const CommandHelp& command : help.commands) append_command(page, command);
  for (const Block& block : help.text.blocks) {
    if (!is_environment(block)) continue;
    page += ".SH ENVIRONMENT\n";
    const size_t remark = block.heading.find('(');
    if (remark != std::string::npos) page += fmt::format("{}\n", roff(block.heading.substr(remark)));
    append_list(page, block);
  }
  page +=
      ".SH SEE ALSO\nIn the documentation's folder (/usr/share/doc/foretoken on Debian): commands.md says what the "
      "output "
      "means, models.md which files run.\n";
  return page;
}

}  // namespace foretoken::help_pages
