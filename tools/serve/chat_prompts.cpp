#include "tools/serve/chat_prompts.h"

#include <fmt/format.h>

#include <ctime>

#include "kernels/base/error.h"
#include "tools/serve/api_error.h"

namespace foretoken {

ChatPrompts::ChatPrompts(const Tokenizer& tokenizer, std::string source)
    : tokenizer_(tokenizer), source_(std::move(source)) {
  if (source_.empty()) return;
  try {
    template_ = ChatTemplate::parse(source_);
  } catch (const InputError& error) {
    refusal_ = error.what();
  }
}

std::vector<TextPart> ChatPrompts::render(const Json& messages, const Json& tools, const Json& kwargs) const {
  if (!refusal_.empty())
    throw not_supported(
        fmt::format("the model's chat template is not rendered here: {}; start with --chat-template chatml", refusal_));
  ChatInput input = ChatInput::of(tokenizer_, std::time(nullptr));
  input.messages = messages;
  if (!tools.empty()) input.tools = tools;
  input.variables = kwargs;
  std::vector<TextPart> parts;
  try {
    parts = template_.render(input);
  } catch (const InputError& error) {
    throw invalid_request(fmt::format("\"messages\": {}", error.what()));
  }
  if (parts.empty()) throw invalid_request("\"messages\": the chat template makes no text of them");
  return parts;
}

std::vector<TokenId> ChatPrompts::encode(const std::vector<TextPart>& parts) const {
  std::vector<TokenId> ids = tokenizer_.encode(parts);
  tokenizer_.begin_prompt(ids);
  return ids;
}

std::string text_of_content(const Json& content, const std::string& name) {
  if (content.is_null()) return {};
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) throw invalid_request(fmt::format("\"{}\": expected a string or an array of parts", name));
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Fields part(content[i], fmt::format("{}[{}]", name, i));
    const std::string type = part.text("type").value_or("text");
    if (type != "text" && type != "input_text" && type != "output_text")
      throw not_supported(fmt::format("\"{}[{}]\": content of type \"{}\" is not served here", name, i, type));
    const auto piece = part.text("text");
    if (!piece) part.fail("text", "is missing");
    text += *piece;
  }
  return text;
}

Json check_messages(const Json& messages) {
  if (!messages.is_array() || messages.empty()) throw invalid_request("\"messages\": expected an array of messages");
  Json checked = Json::array();
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string name = fmt::format("messages[{}]", i);
    const Fields fields(messages[i], name);
    std::optional<std::string> role = fields.text("role");
    if (!role) fields.fail("role", "is missing");
    if (*role == "developer") role = "system";
    if (*role != "system" && *role != "user" && *role != "assistant" && *role != "tool")
      fields.fail("role", fmt::format("\"{}\" is none of system, developer, user, assistant, tool", *role));
    Json message = messages[i];
    message["role"] = *role;
    const Json* content = fields.find("content");
    message["content"] = content == nullptr ? std::string() : text_of_content(*content, name + ".content");
    checked.push_back(std::move(message));
  }
  return checked;
}

std::vector<TextPart> render_chat(const Fields& fields, const ChatPrompts& chat) {
  const Json* messages = fields.find("messages");
  if (messages == nullptr) throw invalid_request("\"messages\" is missing");
  const Json* tools = fields.array("tools");
  const Json* kwargs = fields.object("chat_template_kwargs");
  return chat.render(check_messages(*messages), tools == nullptr ? Json::array() : *tools,
                     kwargs == nullptr ? Json::object() : *kwargs);
}

}  // namespace foretoken
