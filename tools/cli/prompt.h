#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tools/cli/command_line.h"

namespace foretoken {

/// Where a prompt comes from: -p TEXT, -f FILE, --ids FILE or standard input; and how its text is read.
struct PromptFlags {
  std::string text, text_path, ids_path;
  bool text_given = false;
  std::string text_flag = "-p";  // as it was typed
  bool parse_special = false, chat = false;
  std::string chat_template_path, chat_template_kwargs;
  bool offers_chat = false;  // there are flags --chat, --chat-template-file, --chat-template-kwargs

  void add_to(CommandLine& line);
  /// REQUIRES: line.parse() was called. Throws UsageError if more than one source was given, or ids for a chat.
  void resolve(const CommandLine& line);
  [[nodiscard]] bool any() const { return text_given || !text_path.empty() || !ids_path.empty(); }
};

/// A prompt that has been read: text, or ids where is_ids.
struct Prompt {
  std::string source;  // "-p", a path or "standard input", for messages
  std::string text;
  std::vector<TokenId> ids;
  bool is_ids = false;
  bool parse_special = false;  // text that spells a control token becomes that token
  bool chat = false;           // the text is a user's turn
  // With chat:
  std::string chat_template;         // empty: the model file's own
  std::string chat_template_kwargs;  // a JSON object of the template's variables; empty: none
};

/// Reads the prompt; standard input where no flag names another source. Throws InputError: unreadable, empty, text that
/// is not UTF-8 (naming the byte offset), ids that are not whole numbers.
[[nodiscard]] Prompt read_prompt(const PromptFlags& flags);

/// The prompts of a file, separated by blank lines. Throws InputError: as read_prompt, and no prompt in it.
[[nodiscard]] std::vector<Prompt> read_prompts(const std::string& path, const PromptFlags& flags);

/// Takes a byte order mark off the text, with a note. Throws InputError if the text is empty or not UTF-8; UTF-16 and
/// UTF-32 are named.
void check_prompt_text(Prompt& prompt);

/// The parts of a text between lines of white space only, each with its last line end; empty parts are left out.
[[nodiscard]] std::vector<std::string> split_at_blank_lines(std::string_view text);

/// The whole of a file. Throws InputError (directory, no permission, missing).
[[nodiscard]] std::string read_file(const std::string& path);

/// Whitespace-separated ids. Throws InputError naming source and position.
[[nodiscard]] std::vector<TokenId> parse_ids(std::string_view source, std::string_view text);

/// Ids of a prompt, the token that begins a text included where the file asks for one. chat: the text becomes a user's
/// turn in the file's chat template, with the answer's turn opened; what it spells stays plain text.
/// Throws InputError: a template that is wrong or refuses the prompt, ids outside the vocabulary, nothing left.
[[nodiscard]] std::vector<TokenId> tokenize_prompt(const Prompt& prompt, const Tokenizer& tokenizer);

}  // namespace foretoken
