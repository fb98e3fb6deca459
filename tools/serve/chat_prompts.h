#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat/answer_parser.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tools/serve/fields.h"
#include "tools/serve/json.h"

namespace foretoken {

/// What the server's start settled for all chats.
struct ChatDefaults {
  Json kwargs = Json::object();  // variables of the template, where a request has none of that name
  bool parse_reasoning = true;   // thoughts apart from the content
};

/// A conversation that waits for an answer, whichever API it came by.
struct ChatRequest {
  enum class ToolUse { kNone, kAuto, kRequired };

  Json messages;               // of check_messages()
  Json tools = Json::array();  // of check_tools()
  ToolUse tool_use = ToolUse::kAuto;
  std::string forced_tool;        // of kRequired: this one; empty: any
  bool parallel_calls = true;     // false: one call at most
  Json kwargs = Json::object();   // variables of the template
  bool opens_answer = true;       // add_generation_prompt
  bool continues_answer = false;  // the last message is the beginning of the answer
  bool parse_reasoning = true;
};

/// Conversations as prompts, by a model's chat template.
class ChatPrompts {
 public:
  /// `source`: the template; empty: ChatML. A template that is not rendered here is an error of each render(), with
  /// the reason, and of nothing else. REQUIRES: the tokenizer stays.
  ChatPrompts(const Tokenizer& tokenizer, std::string source, ChatDefaults defaults = {});

  /// Throws ApiError.
  [[nodiscard]] std::vector<TextPart> render(const ChatRequest& chat) const;
  [[nodiscard]] std::vector<TokenId> encode(const std::vector<TextPart>& parts) const;

  /// How the model's answers have to be taken apart, from the template.
  [[nodiscard]] AnswerForm form() const { return form_; }
  /// Whether the answer to this prompt begins with a thought.
  [[nodiscard]] ThoughtBefore thought_before(const ChatRequest& chat, const std::vector<TextPart>& prompt) const;

  [[nodiscard]] const std::string& source() const { return source_; }
  [[nodiscard]] const ChatDefaults& defaults() const { return defaults_; }
  [[nodiscard]] const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  const Tokenizer& tokenizer_;
  const std::string source_;
  const ChatDefaults defaults_;
  const AnswerForm form_;
  ChatTemplate template_ = ChatTemplate::chatml();
  std::string refusal_;  // why the template is not rendered
};

/// Messages as clients send them, put into the form that templates read: roles that are known, the text of content
/// parts joined, arguments of calls as objects. Throws ApiError naming the message.
[[nodiscard]] Json check_messages(const Json& messages);

/// Text of a message's content: a string, null, or parts of text. `name` is for messages.
[[nodiscard]] std::string text_of_content(const Json& content, const std::string& name);

/// The control tokens among the marks of a form: answers spell them out for AnswerParser. Rising.
[[nodiscard]] std::vector<TokenId> find_mark_tokens(const Tokenizer& tokenizer, AnswerForm form);

}  // namespace foretoken
