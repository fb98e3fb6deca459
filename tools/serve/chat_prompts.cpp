#include "tools/serve/chat_prompts.h"

#include <fmt/format.h>

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
  if (!tools.empty()) throw not_supported("\"tools\": this chat template does not know tools");
  if (!kwargs.empty()) throw not_supported("\"chat_template_kwargs\": this chat template does not know them");
  std::vector<ChatMessage> turns;
  for (const Json& message : messages)
    turns.push_back(
        {message.at("role").get_ref<const std::string&>(), message.at("content").get_ref<const std::string&>()});
  const auto name_of = [&](TokenId id) { return id < 0 ? std::string_view() : tokenizer_.piece(id, true); };
  return template_.render(turns, name_of(tokenizer_.bos()), name_of(tokenizer_.eos()));
}

std::vector<TokenId> ChatPrompts::encode(const std::vector<TextPart>& parts) const {
  std::vector<TokenId> ids = tokenizer_.encode(parts);
  if (tokenizer_.add_bos() && tokenizer_.bos() >= 0 && (ids.empty() || ids.front() != tokenizer_.bos()))
    ids.insert(ids.begin(), tokenizer_.bos());
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
