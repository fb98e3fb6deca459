#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tools/serve/fields.h"
#include "tools/serve/json.h"

namespace foretoken {

/// Conversations as prompts, by a model's chat template.
class ChatPrompts {
 public:
  /// `source`: the template; empty: ChatML. A template that is not rendered here is an error of each render(), with
  /// the reason, and of nothing else. REQUIRES: the tokenizer stays.
  ChatPrompts(const Tokenizer& tokenizer, std::string source);

  /// The messages of check_messages() with the answer's turn opened. Throws ApiError.
  [[nodiscard]] std::vector<TextPart> render(const Json& messages, const Json& tools, const Json& kwargs) const;
  [[nodiscard]] std::vector<TokenId> encode(const std::vector<TextPart>& parts) const;

  [[nodiscard]] const std::string& source() const { return source_; }

 private:
  const Tokenizer& tokenizer_;
  const std::string source_;
  ChatTemplate template_ = ChatTemplate::chatml();
  std::string refusal_;  // why the template is not rendered
};

/// Messages as clients send them, put into the form that templates read: roles that are known, the text of content
/// parts joined. Throws ApiError naming the message.
[[nodiscard]] Json check_messages(const Json& messages);

/// The prompt of a request's fields: messages, tools, chat_template_kwargs.
[[nodiscard]] std::vector<TextPart> render_chat(const Fields& fields, const ChatPrompts& chat);

/// Text of a message's content: a string, null, or parts of text. `name` is for messages.
[[nodiscard]] std::string text_of_content(const Json& content, const std::string& name);

}  // namespace foretoken
