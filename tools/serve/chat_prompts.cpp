#include "tools/serve/chat_prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "engine/text/chat/marks.h"
#include "kernels/base/error.h"
#include "tools/serve/api_error.h"

namespace foretoken {

namespace {

// Arguments of calls as text, as some templates expect them.
Json with_texts_as_arguments(Json messages) {
  for (Json& message : messages) {
    if (!message.contains("tool_calls")) continue;
    for (Json& call : message["tool_calls"]) {
      Json& arguments = call["function"]["arguments"];
      if (!arguments.is_string()) arguments = to_text(arguments);
    }
  }
  return messages;
}

void check_calls(const Fields& fields, Json& message) {
  const Json* calls = fields.array("tool_calls");
  if (calls == nullptr || calls->empty()) {
    message.erase("tool_calls");  // null and [] are no calls, whatever a template makes of them
    return;
  }
  for (size_t i = 0; i < calls->size(); ++i) {
    const std::string name = fmt::format("{}[{}]", fields.named("tool_calls"), i);
    const Fields call((*calls)[i], name);
    const Json* function = call.object("function");
    if (function == nullptr) call.fail("function", "is missing");
    const Fields inner(*function, name + ".function");
    if (!inner.text("name")) inner.fail("name", "is missing");
    const Json* given = inner.find("arguments");
    Json& arguments = message["tool_calls"][i]["function"]["arguments"];
    if (given == nullptr) {
      arguments = Json::object();
    } else if (given->is_string()) {
      const Json parsed = Json::parse(given->get<std::string>(), nullptr, /*allow_exceptions=*/false);
      if (parsed.is_object()) arguments = parsed;
    } else if (!given->is_object()) {
      inner.fail("arguments", "expected a string of JSON");
    }
  }
}

}  // namespace

ChatPrompts::ChatPrompts(const Tokenizer& tokenizer, std::string source, ChatDefaults defaults)
    : tokenizer_(tokenizer),
      source_(std::move(source)),
      defaults_(std::move(defaults)),
      form_(detect_answer_form(source_)) {
  if (source_.empty()) return;
  try {
    template_ = ChatTemplate::parse(source_);
  } catch (const InputError& error) {
    refusal_ = error.what();
  }
}

std::vector<TextPart> ChatPrompts::render(const ChatRequest& chat) const {
  if (!refusal_.empty())
    throw not_supported(
        fmt::format("the model's chat template is not rendered here: {}; start with --chat-template chatml", refusal_));
  ChatInput input = ChatInput::of(tokenizer_, std::time(nullptr));
  input.messages = chat.messages;
  if (!chat.tools.empty() && chat.tool_use != ChatRequest::ToolUse::kNone) input.tools = chat.tools;
  input.variables = defaults_.kwargs;
  input.variables.update(chat.kwargs);
  input.add_generation_prompt = chat.opens_answer;
  input.continue_final_message = chat.continues_answer;
  std::vector<TextPart> parts;
  try {
    parts = template_.render(input);
  } catch (const InputError& error) {
    input.messages = with_texts_as_arguments(std::move(input.messages));
    try {
      if (input.messages == chat.messages) throw;
      parts = template_.render(input);
    } catch (const InputError&) {
      throw invalid_request(fmt::format("\"messages\": {}", error.what()));
    }
  }
  if (parts.empty()) throw invalid_request("\"messages\": the chat template makes no text of them");
  return parts;
}

ThoughtBefore ChatPrompts::thought_before(const ChatRequest& chat, const std::vector<TextPart>& prompt) const {
  if (chat.continues_answer) {
    // It goes on with what the client has written of it.
    const Json& begun = chat.messages.back()["content"];
    const std::string text = begun.is_string() ? begun.get<std::string>() : "";
    const size_t begin = text.rfind("<think>"), end = text.rfind("</think>");
    return begin != std::string::npos && (end == std::string::npos || end < begin) ? ThoughtBefore::kOpened
                                                                                   : ThoughtBefore::kNone;
  }
  if (form_ == AnswerForm::kHarmony) return ThoughtBefore::kMayOpen;
  std::string end;
  // What the conversation holds opens nothing.
  for (const TextPart& part : prompt) end = part.parse_special ? end + part.text : std::string();
  if (prompt_opens_thought(end)) return ThoughtBefore::kOpened;
  const bool is_known = source_.find("<think>") != std::string::npos;
  return is_known && !trimmed(end).ends_with("</think>") ? ThoughtBefore::kMayOpen : ThoughtBefore::kNone;
}

std::vector<TokenId> find_mark_tokens(const Tokenizer& tokenizer, AnswerForm form) {
  std::vector<TokenId> found;
  for (const std::string_view mark : answer_marks(form)) {
    const std::vector<TokenId> ids = tokenizer.encode(mark, /*parse_special=*/true);
    // Those that end a text are not part of it.
    if (ids.size() == 1 && tokenizer.is_special(ids[0]) && !tokenizer.is_end_of_generation(ids[0]))
      found.push_back(ids[0]);
  }
  std::sort(found.begin(), found.end());
  return found;
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
    if (content == nullptr && *role != "assistant") fields.fail("content", "is missing");
    message["content"] = content == nullptr ? std::string() : text_of_content(*content, name + ".content");
    check_calls(fields, message);
    // Other names for the same: OpenRouter's and gpt-oss' template's.
    const auto thoughts = fields.text(fields.first_of({"reasoning_content", "reasoning"}));
    if (thoughts) message["reasoning_content"] = *thoughts;
    if (thoughts && !message.contains("thinking") && message["content"] == "") message["thinking"] = *thoughts;
    checked.push_back(std::move(message));
  }
  return checked;
}

}  // namespace foretoken
