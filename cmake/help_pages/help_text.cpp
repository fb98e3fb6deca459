#include "help_text.h"

#include <fmt/format.h>
#include <stdio.h>

#include <algorithm>
#include <array>
#include <stdexcept>

namespace foretoken::help_pages {

namespace {

constexpr size_t kListIndent = 2;   // an entry of a list; what stands further right continues the line before
constexpr size_t kHelpColumn = 32;  // where the help of a flag begins

std::string_view trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(' ');
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(' ') + 1 - begin);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

/// An entry's line in two: what it is about, and the help behind it (empty where that begins on the next line).
Entry split_entry(std::string_view line) {
  const std::string_view entry = line.substr(kListIndent);
  size_t end = entry.find("  ");
  // A term that ends just before the help column is followed by a single space.
  if (end == std::string_view::npos && line.size() > kHelpColumn && line[kHelpColumn - 1] == ' ') {
    end = kHelpColumn - 1 - kListIndent;
  }
  if (end == std::string_view::npos) return {std::string(entry), ""};
  return {std::string(entry.substr(0, end)), std::string(trim(entry.substr(end)))};
}

/// "-c, --ctx-size N" with its help.
Flag parse_flag(const Entry& entry) {
  Flag flag;
  flag.help = entry.help;
  std::string_view rest = entry.term;
  if (rest.size() > 4 && rest.substr(2, 2) == ", ") {
    flag.letter = rest.substr(0, 2);
    rest.remove_prefix(4);
  }
  const size_t space = std::min(rest.find(' '), rest.size());
  flag.name = rest.substr(0, space);
  flag.metavar = trim(rest.substr(space));
  if (!flag.name.starts_with("--") || flag.metavar.find(' ') != std::string::npos) {
    throw std::runtime_error(fmt::format("'{}' was not understood as a flag of a help text", entry.term));
  }
  return flag;
}

void append_sentence(std::string& text, std::string_view more) {
  if (!text.empty()) text += ' ';
  text += more;
}

/// Standard output of a program. Throws std::runtime_error if it fails.
std::string output_of(const std::string& program, const std::string& arguments) {
  std::string quoted = "'";
  for (char c : program) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  const std::string command = fmt::format("{}' {}", quoted, arguments);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error(fmt::format("{}: cannot be run", command));
  std::string text;
  std::array<char, 4096> part;
  for (size_t n; (n = fread(part.data(), 1, part.size(), pipe)) > 0;) text.append(part.data(), n);
  const int status = pclose(pipe);
  if (status != 0) throw std::runtime_error(fmt::format("{}: ended with status {}", command, status));
  return text;
}

/// The --flags that paragraphs name; the program has no list of its own flags.
std::vector<std::string> flags_in_paragraphs(const HelpText& text) {
  std::vector<std::string> flags;
  for (const Block& block : text.blocks) {
    for (std::string_view word : split(block.paragraph, ' ')) {
      if (!word.starts_with("--")) continue;
      std::string flag(word.substr(0, word.find_first_not_of("-abcdefghijklmnopqrstuvwxyz")));
      if (std::find(flags.begin(), flags.end(), flag) == flags.end()) flags.push_back(std::move(flag));
    }
  }
  return flags;
}

}  // namespace

const Block* HelpText::find(std::string_view heading) const {
  for (const Block& block : blocks) {
    if (block.paragraph.empty() && block.heading == heading) return &block;
  }
  return nullptr;
}

std::vector<Flag> HelpText::all_flags() const {
  std::vector<Flag> flags;
  for (const Block& block : blocks) flags.insert(flags.end(), block.flags.begin(), block.flags.end());
  return flags;
}

std::string HelpText::positional() const {
  const Block* block = find("");
  return block == nullptr || block->entries.empty() ? "" : block->entries.front().term;
}

HelpText parse_help(std::string_view text) {
  HelpText help;
  bool new_block = true;
  std::string* continued = nullptr;  // what a line with a margin is added to
  for (std::string_view line : split(text, '\n')) {
    if (trim(line).empty()) {
      new_block = true;
      continued = nullptr;
      continue;
    }
    if (help.usage.empty()) {
      help.usage = line;
      continue;
    }
    const size_t indent = line.find_first_not_of(' ');
    if (new_block || indent == 0) {
      // Lines at the margin are a paragraph, but for one that ends with a colon.
      const bool is_heading = indent == 0 && line.back() == ':';
      const bool goes_on = !new_block && !is_heading && !help.blocks.back().paragraph.empty();
      if (!goes_on) help.blocks.emplace_back();
      new_block = false;
      continued = nullptr;
      if (is_heading) {
        help.blocks.back().heading = line.substr(0, line.size() - 1);
        continue;
      }
      if (indent == 0) {
        append_sentence(help.blocks.back().paragraph, line);
        continue;
      }
    }
    Block& block = help.blocks.back();
    if (indent == kListIndent && block.paragraph.empty()) {
      Entry entry = split_entry(line);
      if (entry.term.starts_with('-')) {
        continued = &block.flags.emplace_back(parse_flag(entry)).help;
      } else {
        continued = &block.entries.emplace_back(std::move(entry)).help;
      }
    } else if (continued != nullptr) {
      append_sentence(*continued, trim(line));
    } else {
      throw std::runtime_error(fmt::format("'{}' was not understood as a line of a help text", line));
    }
  }
  return help;
}

ProgramHelp read_help(const std::string& program) {
  ProgramHelp help;
  help.text = parse_help(output_of(program, "--help"));
  help.flags = flags_in_paragraphs(help.text);
  const Block* commands = help.text.find(kCommandsHeading);
  if (commands == nullptr || commands->entries.empty()) {
    throw std::runtime_error(fmt::format("{} --help lists no commands under '{}:'", program, kCommandsHeading));
  }
  for (const Entry& entry : commands->entries) {
    help.commands.push_back({entry.term, entry.help, parse_help(output_of(program, entry.term + " --help"))});
  }
  return help;
}

ValueKind value_kind(std::string_view metavar) {
  if (metavar.empty()) return ValueKind::none;
  if (metavar == "MODEL") return ValueKind::model;
  // OUT.npy, OUT.gguf: a file to write.
  if (metavar == "FILE" || metavar == "FOLDER" || metavar.starts_with("OUT.")) return ValueKind::file;
  return choices(metavar).empty() ? ValueKind::free : ValueKind::choice;
}

bool is_optional(std::string_view metavar) {
  return metavar.starts_with('[');
}

std::vector<std::string> choices(std::string_view metavar) {
  std::vector<std::string> values;
  if (metavar.find('|') == std::string_view::npos) return values;
  if (is_optional(metavar)) metavar = metavar.substr(1, metavar.find(']') - 1);
  for (std::string_view value : split(metavar, '|')) {
    const bool plain = value.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789.-_") == std::string_view::npos;
    if (plain && !value.empty()) values.emplace_back(value);
  }
  return values;
}

}  // namespace foretoken::help_pages
