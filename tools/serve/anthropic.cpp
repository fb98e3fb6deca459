#include "tools/serve/anthropic.h"

#include <fmt/format.h>

namespace foretoken {

namespace {

/// A content block's text for a template. What a tool has returned may itself be blocks.
void add_block(const Json& block, const std::string& name, Json& message, Json& tool_results) {
  const Fields fields(block, name);
  const std::string type = fields.text("type").value_or("");
  if (type == "text") {
    message["content"].get_ref<std::string&>() += fields.text("text").value_or("");
  } else if (type == "thinking") {
    message["reasoning_content"] = fields.text("thinking").value_or("");
  } else if (type == "tool_use") {
    const Json* input = fields.object("input");
    message["tool_calls"].push_back(
        {{"id", fields.text("id").value_or("")},
         {"type", "function"},
         {"function",
          {{"name", fields.text("name").value_or("")}, {"arguments", input == nullptr ? Json::object() : *input}}}});
  } else if (type == "tool_result") {
    const Json* content = fields.find("content");
    tool_results.push_back({{"role", "tool"},
                            {"tool_call_id", fields.text("tool_use_id").value_or("")},
                            {"content", content == nullptr ? "" : text_of_content(*content, name + ".content")}});
  } else if (type != "redacted_thinking") {
    throw not_supported(fmt::format("\"{}\": content of type \"{}\" is not served here", name, type));
  }
}

void add_message(const Json& message, const std::string& name, Json& messages) {
  const Fields fields(message, name);
  const std::string role = fields.text("role").value_or("");
  if (role != "user" && role != "assistant")
    fields.fail("role", fmt::format("\"{}\" is none of user, assistant", role));
  const Json* content = fields.find("content");
  if (content == nullptr) fields.fail("content", "is missing");
  Json turn = {{"role", role}, {"content", ""}};
  Json tool_results = Json::array();
  if (content->is_string()) {
    turn["content"] = *content;
  } else if (content->is_array()) {
    for (size_t i = 0; i < content->size(); ++i)
      add_block((*content)[i], fmt::format("{}.content[{}]", name, i), turn, tool_results);
  } else {
    fields.fail("content", "expected a string or an array of blocks");
  }
  // Results are turns of their own, before what the user says to them.
  const bool says_nothing =
      turn["content"] == "" && !turn.contains("tool_calls") && !turn.contains("reasoning_content");
  const bool has_results = !tool_results.empty();
  for (Json& result : tool_results) messages.push_back(std::move(result));
  if (!says_nothing || !has_results) messages.push_back(std::move(turn));
}

Json parse_tools(const Fields& fields) {
  Json tools = Json::array();
  const Json* given = fields.array("tools");
  for (size_t i = 0; given != nullptr && i < given->size(); ++i) {
    const Fields tool((*given)[i], fmt::format("tools[{}]", i));
    const Json* schema = tool.object("input_schema");
    if (schema == nullptr) tool.fail("input_schema", "is missing");
    tools.push_back({{"type", "function"},
                     {"function",
                      {{"name", tool.text("name").value_or("")},
                       {"description", tool.text("description").value_or("")},
                       {"parameters", *schema}}}});
  }
  return tools;
}

std::string stop_reason(const AnswerRecord& answer) {
  if (!answer.end->stopping_word.empty()) return "stop_sequence";
  return answer.ended_by_text() ? "end_turn" : "max_tokens";
}

Json stop_sequence(const AnswerRecord& answer) {
  return answer.end->stopping_word.empty() ? Json() : Json(answer.end->stopping_word);
}

Json usage(const AnswerRecord& answer) {
  return {{"input_tokens", answer.prompt_tokens - answer.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", answer.cached_tokens},
          {"output_tokens", answer.ids.size()}};
}

}  // namespace

AnthropicChat parse_anthropic_chat(const Fields& fields) {
  AnthropicChat chat{Json::array(), parse_tools(fields)};
  if (const Json* system = fields.find("system"); system != nullptr)
    chat.messages.push_back({{"role", "system"}, {"content", text_of_content(*system, "system")}});
  const Json* messages = fields.array("messages");
  if (messages == nullptr || messages->empty()) fields.fail("messages", "expected an array of messages");
  for (size_t i = 0; i < messages->size(); ++i)
    add_message((*messages)[i], fmt::format("messages[{}]", i), chat.messages);
  return chat;
}

Json anthropic_error(const ApiError& error) {
  Json body = {{"type", "error"}};
  body.update(error.body());
  return body;
}

MessagesFormat::MessagesFormat(const ServedModel& served, const GenerationRequest& request)
    : served_(served), request_(request), id_(make_id("msg_")) {}

Json MessagesFormat::message(Json content, Json stop_reason, Json stop_sequence, Json usage) const {
  return {{"id", id_},
          {"type", "message"},
          {"role", "assistant"},
          {"model", served_.name},
          {"content", std::move(content)},
          {"stop_reason", std::move(stop_reason)},
          {"stop_sequence", std::move(stop_sequence)},
          {"usage", std::move(usage)}};
}

Json MessagesFormat::whole(const std::vector<AnswerRecord>& answers) {
  const AnswerRecord& answer = answers[0];
  return message(Json::array({{{"type", "text"}, {"text", answer.text}}}), stop_reason(answer), stop_sequence(answer),
                 usage(answer));
}

std::string MessagesFormat::begin() {
  AnswerRecord nothing;
  nothing.prompt_tokens = static_cast<int64_t>(request_.prompts[0].size());
  return sse_event("message_start",
                   {{"type", "message_start"}, {"message", message(Json::array(), nullptr, nullptr, usage(nothing))}}) +
         sse_event("ping", {{"type", "ping"}});
}

std::string MessagesFormat::text_delta(const std::string& text) {
  std::string events;
  if (!has_block_) {
    events =
        sse_event("content_block_start",
                  {{"type", "content_block_start"}, {"index", 0}, {"content_block", {{"type", "text"}, {"text", ""}}}});
  }
  has_block_ = true;
  if (text.empty()) return events;
  return events + sse_event("content_block_delta", {{"type", "content_block_delta"},
                                                    {"index", 0},
                                                    {"delta", {{"type", "text_delta"}, {"text", text}}}});
}

std::string MessagesFormat::token(const AnswerRecord&, const AnswerEvent& event) {
  return event.text.empty() ? std::string() : text_delta(event.text);
}

std::string MessagesFormat::end_of(const AnswerRecord& record, const AnswerEvent& event) {
  return text_delta(event.text) + sse_event("content_block_stop", {{"type", "content_block_stop"}, {"index", 0}}) +
         sse_event("message_delta",
                   {{"type", "message_delta"},
                    {"delta", {{"stop_reason", stop_reason(record)}, {"stop_sequence", stop_sequence(record)}}},
                    {"usage", usage(record)}}) +
         sse_event("message_stop", {{"type", "message_stop"}});
}

std::string MessagesFormat::error(const ApiError& error) {
  return sse_event("error", anthropic_error(error));
}

}  // namespace foretoken
