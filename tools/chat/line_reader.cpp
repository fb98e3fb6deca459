#include "tools/chat/line_reader.h"

#include <unistd.h>

// libedit's header needs it before.
#include <cstdio>
#include <cstdlib>

#include <editline/readline.h>

#include <iostream>

#include "tools/cli/interruption.h"
#include "tools/cli/terminal.h"

namespace foretoken {

LineReader::LineReader() : edits_(isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1) {
  if (edits_) using_history();
}

std::optional<std::string> LineReader::read_line(const char* prompt, bool& is_dropped) const {
  if (edits_) {
    char* line = readline(prompt);
    if (line == nullptr && interrupted()) {  // Ctrl-C: what was typed is dropped, and nothing else
      clear_interrupt();
      print_message("\n");
      is_dropped = true;
    }
    if (line == nullptr) return std::nullopt;
    std::string text(line);
    std::free(line);
    return text;
  }
  std::string text;
  if (!std::getline(std::cin, text)) return std::nullopt;
  return text;
}

std::optional<std::string> LineReader::read(const char* prompt) {
  std::string message;
  while (true) {
    bool is_dropped = false;
    std::optional<std::string> line = read_line(message.empty() ? prompt : "... ", is_dropped);
    if (is_dropped) return "";
    if (!line) return message.empty() ? std::nullopt : std::optional(message);
    const bool goes_on = line->ends_with('\\');
    if (goes_on) line->pop_back();
    message += *line;
    if (!goes_on) break;
    message += '\n';
  }
  if (edits_ && !message.empty()) add_history(message.c_str());
  return message;
}

}  // namespace foretoken
