#include "tools/serve/responses.h"

#include <fmt/format.h>

#include <ctime>

namespace foretoken {

namespace {

void add_item(const Json& item, const std::string& name, Json& messages) {
  const Fields fields(item, name);
  const std::string type = fields.text("type").value_or("message");
  if (type == "message") {
    messages.push_back({{"role", fields.text("role").value_or("")}});
    if (const Json* content = fields.find("content"))
      messages.back()["content"] = text_of_content(*content, name + ".content");
  } else if (type == "function_call") {
    messages.push_back({{"role", "assistant"},
                        {"content", ""},
                        {"tool_calls", Json::array({{{"id", fields.text("call_id").value_or("")},
                                                     {"type", "function"},
                                                     {"function",
                                                      {{"name", fields.text("name").value_or("")},
                                                       {"arguments", fields.text("arguments").value_or("{}")}}}}})}});
  } else if (type == "function_call_output") {
    const Json* output = fields.find("output");
    messages.push_back({{"role", "tool"},
                        {"tool_call_id", fields.text("call_id").value_or("")},
                        {"content", output == nullptr ? "" : text_of_content(*output, name + ".output")}});
  } else if (type != "reasoning") {
    throw not_supported(fmt::format("\"{}\": an item of type \"{}\" is not served here", name, type));
  }
}

Json text_part(const std::string& text) {
  return {{"type", "output_text"}, {"text", text}, {"annotations", Json::array()}};
}

}  // namespace

Json parse_responses_input(const Fields& fields) {
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    if (fields.has(name)) throw not_supported(fmt::format("\"{}\" is not served here: nothing is stored", name));
  }
  if (fields.boolean("background").value_or(false)) throw not_supported("\"background\" is not served here");
  if (const Json* text = fields.object("text")) {
    const Json* format = Fields(*text, "text").object("format");
    if (format != nullptr && Fields(*format, "text.format").text("type").value_or("text") != "text")
      throw not_supported("\"text.format\" is not served here");
  }
  Json messages = Json::array();
  if (const auto instructions = fields.text("instructions"))
    messages.push_back({{"role", "system"}, {"content", *instructions}});
  const Json* input = fields.find("input");
  if (input == nullptr) fields.fail("input", "is missing");
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
  } else if (input->is_array()) {
    for (size_t i = 0; i < input->size(); ++i) add_item((*input)[i], fmt::format("input[{}]", i), messages);
  } else {
    fields.fail("input", "expected a string or an array of items");
  }
  return messages;
}

ResponsesFormat::ResponsesFormat(const ServedModel& served, const GenerationRequest& request)
    : served_(served),
      request_(request),
      id_(make_id("resp_")),
      item_id_(make_id("msg_")),
      created_at_(std::time(nullptr)) {}

Json ResponsesFormat::item(const AnswerRecord* answer) const {
  const char* status = answer == nullptr ? "in_progress" : answer->ended_by_text() ? "completed" : "incomplete";
  return {{"type", "message"},
          {"id", item_id_},
          {"status", status},
          {"role", "assistant"},
          {"content", answer == nullptr ? Json::array() : Json::array({text_part(answer->text)})}};
}

// As it stands; answer == nullptr: nothing of it is there.
Json ResponsesFormat::response(const AnswerRecord* answer) const {
  const bool is_cut = answer != nullptr && !answer->ended_by_text();
  Json object = {{"id", id_},
                 {"object", "response"},
                 {"created_at", created_at_},
                 {"status", answer == nullptr ? "in_progress"
                            : is_cut          ? "incomplete"
                                              : "completed"},
                 {"error", nullptr},
                 {"incomplete_details", nullptr},
                 {"instructions", nullptr},
                 {"max_output_tokens", request_.max_tokens < 0 ? Json() : Json(request_.max_tokens)},
                 {"model", served_.name},
                 {"output", Json::array()},
                 {"parallel_tool_calls", true},
                 {"previous_response_id", nullptr},
                 {"store", false},
                 {"temperature", request_.sampling.temperature},
                 {"text", {{"format", {{"type", "text"}}}}},
                 {"tool_choice", "auto"},
                 {"tools", Json::array()},
                 {"top_p", request_.sampling.top_p},
                 {"usage", nullptr},
                 {"metadata", Json::object()}};
  if (answer == nullptr) return object;
  if (is_cut) object["incomplete_details"] = {{"reason", "max_output_tokens"}};
  object["output"].push_back(item(answer));
  const auto made = static_cast<int64_t>(answer->ids.size());
  object["usage"] = {{"input_tokens", answer->prompt_tokens},
                     {"input_tokens_details", {{"cached_tokens", answer->cached_tokens}}},
                     {"output_tokens", made},
                     {"output_tokens_details", {{"reasoning_tokens", 0}}},
                     {"total_tokens", answer->prompt_tokens + made}};
  return object;
}

Json ResponsesFormat::whole(const std::vector<AnswerRecord>& answers) {
  return response(&answers[0]);
}

std::string ResponsesFormat::event(const char* type, Json data) {
  data["type"] = type;
  data["sequence_number"] = next_number_++;
  return sse_event(type, data);
}

Json ResponsesFormat::at_part(Json data) const {
  data["item_id"] = item_id_;
  data["output_index"] = 0;
  data["content_index"] = 0;
  return data;
}

std::string ResponsesFormat::begin() {
  std::string events = event("response.created", {{"response", response(nullptr)}});
  events += event("response.in_progress", {{"response", response(nullptr)}});
  events += event("response.output_item.added", {{"output_index", 0}, {"item", item(nullptr)}});
  return events + event("response.content_part.added", at_part({{"part", text_part("")}}));
}

std::string ResponsesFormat::delta(const std::string& text) {
  if (text.empty()) return {};
  return event("response.output_text.delta", at_part({{"delta", text}, {"logprobs", Json::array()}}));
}

std::string ResponsesFormat::token(const AnswerRecord&, const AnswerEvent& event) {
  return delta(event.text);
}

std::string ResponsesFormat::end_of(const AnswerRecord& record, const AnswerEvent& last) {
  std::string events = delta(last.text);
  events += event("response.output_text.done", at_part({{"text", record.text}, {"logprobs", Json::array()}}));
  events += event("response.content_part.done", at_part({{"part", text_part(record.text)}}));
  events += event("response.output_item.done", {{"output_index", 0}, {"item", item(&record)}});
  return events + event(record.ended_by_text() ? "response.completed" : "response.incomplete",
                        {{"response", response(&record)}});
}

std::string ResponsesFormat::error(const ApiError& error) {
  return event("error", {{"code", error.type()}, {"message", error.what()}, {"param", nullptr}});
}

}  // namespace foretoken
