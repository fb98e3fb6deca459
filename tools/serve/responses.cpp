#include "tools/serve/responses.h"

#include <fmt/format.h>

#include <ctime>

namespace foretoken {

namespace {

using Kind = AnswerPart::Kind;

Json text_part(const AnswerPart& part) {
  if (part.kind == Kind::kThought) return {{"type", "reasoning_text"}, {"text", part.text}};
  return {{"type", "output_text"}, {"text", part.text}, {"annotations", Json::array()}};
}

// `is_begun`: nothing of its text is there yet.
Json describe_item(const AnswerPart& part, const std::string& id, const char* status, bool is_begun) {
  const Json content = is_begun ? Json::array() : Json::array({text_part(part)});
  switch (part.kind) {
    case Kind::kThought:
      return {{"type", "reasoning"}, {"id", id}, {"status", status}, {"summary", Json::array()}, {"content", content}};
    case Kind::kText:
      return {{"type", "message"}, {"id", id}, {"status", status}, {"role", "assistant"}, {"content", content}};
    case Kind::kCall:
      return {{"type", "function_call"}, {"id", id},          {"status", status},
              {"call_id", part.id},      {"name", part.name}, {"arguments", is_begun ? "" : part.text}};
  }
  return {};
}

}  // namespace

Json repeated_fields(const Json& body) {
  Json repeated = Json::object();
  for (const char* name : {"instructions", "metadata", "parallel_tool_calls", "reasoning", "safety_identifier", "text",
                           "tool_choice", "tools", "truncation", "user"}) {
    const auto field = body.find(name);
    if (field != body.end() && !field->is_null()) repeated[name] = *field;
  }
  if (repeated.contains("text") && repeated["text"].is_object() && !repeated["text"].contains("format"))
    repeated["text"]["format"] = {{"type", "text"}};
  return repeated;
}

ResponsesFormat::ResponsesFormat(const ServedModel& served, const GenerationRequest& request)
    : served_(served),
      request_(request),
      id_(make_id("resp_")),
      item_stem_(make_id("_")),
      created_at_(std::time(nullptr)) {}

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
  object.update(request_.repeated);
  if (answer == nullptr) return object;
  if (is_cut) object["incomplete_details"] = {{"reason", "max_output_tokens"}};
  object["output"] = items_of(*answer);
  const auto made = static_cast<int64_t>(answer->ids.size());
  object["usage"] = {{"input_tokens", answer->prompt_tokens},
                     {"input_tokens_details", {{"cached_tokens", answer->cached_tokens}}},
                     {"output_tokens", made},
                     {"output_tokens_details", {{"reasoning_tokens", answer->thought_tokens}}},
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

std::string ResponsesFormat::item_id(const AnswerPart& part, size_t index) const {
  const char* prefix = part.kind == Kind::kThought ? "rs" : part.kind == Kind::kText ? "msg" : "fc";
  return fmt::format("{}{}{}", prefix, item_stem_, index);
}

Json ResponsesFormat::items_of(const AnswerRecord& record) const {
  const char* status = record.ended_by_text() ? "completed" : "incomplete";
  Json items = Json::array();
  for (size_t i = 0; i < record.parts.size(); ++i)
    items.push_back(describe_item(record.parts[i], item_id(record.parts[i], i), status, /*is_begun=*/false));
  if (items.empty()) items.push_back(describe_item({}, item_id({}, 0), status, /*is_begun=*/false));
  return items;
}

Json ResponsesFormat::at_item(const AnswerPart& part, Json data) const {
  data["item_id"] = item_id(part, num_items_ - 1);
  data["output_index"] = num_items_ - 1;
  if (part.kind != Kind::kCall) data["content_index"] = 0;
  return data;
}

std::string ResponsesFormat::begin() {
  std::string events = event("response.created", {{"response", response(nullptr)}});
  return events + event("response.in_progress", {{"response", response(nullptr)}});
}

std::string ResponsesFormat::begin_item(const AnswerPart& part) {
  is_open_ = true;
  ++num_items_;
  AnswerPart empty = part;
  empty.text.clear();
  const size_t index = num_items_ - 1;
  std::string events =
      event("response.output_item.added",
            {{"output_index", index}, {"item", describe_item(empty, item_id(part, index), "in_progress", true)}});
  if (part.kind != Kind::kCall)
    events += event("response.content_part.added", at_item(part, {{"part", text_part(empty)}}));
  return events;
}

std::string ResponsesFormat::delta(const AnswerPart& part, const std::string& text) {
  switch (part.kind) {
    case Kind::kThought:
      return event("response.reasoning_text.delta", at_item(part, {{"delta", text}}));
    case Kind::kText:
      return event("response.output_text.delta", at_item(part, {{"delta", text}, {"logprobs", Json::array()}}));
    case Kind::kCall:
      return event("response.function_call_arguments.delta", at_item(part, {{"delta", text}}));
  }
  return {};
}

std::string ResponsesFormat::end_item(const AnswerRecord& record) {
  if (!is_open_) return {};
  is_open_ = false;
  const size_t index = num_items_ - 1;
  const AnswerPart part = index < record.parts.size() ? record.parts[index] : AnswerPart();
  std::string events;
  switch (part.kind) {
    case Kind::kThought:
      events = event("response.reasoning_text.done", at_item(part, {{"text", part.text}}));
      break;
    case Kind::kText:
      events = event("response.output_text.done", at_item(part, {{"text", part.text}, {"logprobs", Json::array()}}));
      break;
    case Kind::kCall:
      events = event("response.function_call_arguments.done", at_item(part, {{"arguments", part.text}}));
      break;
  }
  if (part.kind != Kind::kCall)
    events += event("response.content_part.done", at_item(part, {{"part", text_part(part)}}));
  const bool is_cut = record.end != nullptr && !record.ended_by_text();
  return events +
         event("response.output_item.done",
               {{"output_index", index},
                {"item", describe_item(part, item_id(part, index), is_cut ? "incomplete" : "completed", false)}});
}

std::string ResponsesFormat::changes_of(const AnswerRecord& record) {
  std::string events;
  for (const AnswerRecord::Change& change : record.changes) {
    const AnswerPart& part = record.parts[change.part];
    if (change.is_new) {
      events += end_item(record);
      events += begin_item(part);
    }
    events += delta(part, change.text);
  }
  return events;
}

std::string ResponsesFormat::token(const AnswerRecord& record, const AnswerEvent&) {
  return changes_of(record);
}

std::string ResponsesFormat::end_of(const AnswerRecord& record, const AnswerEvent&) {
  std::string events = changes_of(record);
  if (num_items_ == 0) events += begin_item({});
  events += end_item(record);
  return events + event(record.ended_by_text() ? "response.completed" : "response.incomplete",
                        {{"response", response(&record)}});
}

std::string ResponsesFormat::error(const ApiError& error) {
  return event("error", {{"code", error.type()}, {"message", error.what()}, {"param", nullptr}});
}

}  // namespace foretoken
