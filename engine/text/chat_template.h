#pragma once

#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken {

/// A conversation, as templates see it.
struct ChatInput {
  nlohmann::ordered_json messages;    // an array of {"role": ..., "content": ..., ...}
  nlohmann::ordered_json tools;       // an array, or null: none
  nlohmann::ordered_json variables;   // an object of further variables (enable_thinking ...), or null; they come first
  bool add_generation_prompt = true;  // open the answer's turn
  /// The last message is the beginning of the answer: the prompt ends with it. Not with add_generation_prompt.
  bool continue_final_message = false;
  std::string bos_token, eos_token;
  std::time_t now = 0;  // what strftime_now shows, in local time

  /// No messages yet, and a model's own special tokens.
  [[nodiscard]] static ChatInput of(const Tokenizer& tokenizer, std::time_t now) {
    const auto name_of = [&](TokenId id) {
      return std::string(id < 0 ? std::string_view() : tokenizer.piece(id, /*keep_special=*/true));
    };
    ChatInput input;
    input.bos_token = name_of(tokenizer.bos());
    input.eos_token = name_of(tokenizer.eos());
    input.now = now;
    return input;
  }
};

/// A chat template (tokenizer.chat_template): a Jinja program. It is run as Python's jinja2 does under the settings of
/// the models' own programs (sandboxed, trim_blocks and lstrip_blocks, break and continue, tojson without escapes for
/// HTML, raise_exception, strftime_now, the tag `generation`): same bytes, or an error where jinja2 has one. Not there:
/// block, extends, include, import, autoescape, whole numbers beyond 64 bits, and filters that write HTML.
///
/// Special tokens. Every string remembers byte by byte whether it came from the template (and bos_token, eos_token) or
/// from the conversation, through all that the template does with it. The rendered text is cut up accordingly: in the
/// template's own parts, what spells a special token becomes that token; what the conversation holds stays plain text
/// even where it spells one, so no user can end a turn. The bytes of all parts together are jinja2's.
///
/// Time and memory of a render are bounded (jinja::Budget). Immutable; any number of threads may use it at once.
class ChatTemplate {
 public:
  /// ChatML, the form of the Qwen models: for files without a template of their own.
  [[nodiscard]] static ChatTemplate chatml();

  /// Throws InputError, with the line, for what is no program of Jinja.
  [[nodiscard]] static ChatTemplate parse(std::string_view source);

  /// Throws InputError for what the template refuses or cannot do with this conversation.
  [[nodiscard]] std::vector<TextPart> render(const ChatInput& input) const;

  /// What it was made of.
  [[nodiscard]] const std::string& source() const { return source_; }

  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

 private:
  ChatTemplate();
  struct Program;
  std::string source_;
  std::unique_ptr<const Program> program_;
};

}  // namespace foretoken
