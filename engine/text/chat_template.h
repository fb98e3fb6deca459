#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

struct ChatMessage {
  std::string_view role;
  std::string_view content;
};

/// A chat template (tokenizer.chat_template, a Jinja program) of the simple kind that this program renders byte for
/// byte: text, a loop over the messages, role and content of a message, strings joined by + or ~, bos_token and
/// eos_token, and what depends on add_generation_prompt alone. White space goes by the rules that the models' own
/// programs set (trim_blocks and lstrip_blocks on, keep_trailing_newline off). parse() refuses every other template.
class ChatTemplate {
 public:
  /// ChatML, the form of the Qwen models: for files without a template of their own.
  [[nodiscard]] static ChatTemplate chatml();

  /// Throws InputError that quotes the first thing that is not rendered here.
  [[nodiscard]] static ChatTemplate parse(std::string_view source);

  /// The messages with the answer's turn opened. What came from a message is plain text. Throws InputError if bos_token
  /// or eos_token is asked for and empty.
  [[nodiscard]] std::vector<TextPart> render(std::span<const ChatMessage> messages, std::string_view bos_token,
                                             std::string_view eos_token) const;

 private:
  enum class Piece { kText, kRole, kContent, kBos, kEos };
  struct Term {
    Piece piece;
    std::string text;
  };
  /// The program: a list of terms, some of which are repeated for each message.
  struct Block {
    bool is_loop = false;
    std::vector<Term> terms;
  };
  class Parser;
  std::vector<Block> blocks_;
};

}  // namespace foretoken
