#pragma once

#include <string>
#include <string_view>

#include "help_text.h"

namespace foretoken::help_pages {

/// foretoken(1), in the man macros of roff.
[[nodiscard]] std::string man_page(const ProgramHelp& help, std::string_view version);

// Completion of commands, flags, values out of a list, and names of files. Models are offered as *.gguf and folders.
[[nodiscard]] std::string bash_completion(const ProgramHelp& help);
[[nodiscard]] std::string zsh_completion(const ProgramHelp& help);

}  // namespace foretoken::help_pages
