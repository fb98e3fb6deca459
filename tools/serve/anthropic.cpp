#include "tools/serve/anthropic.h"

#include <fmt/format.h>

namespace foretoken {

namespace {

// One block of an answer's content.
Json describe_block(const AnswerPart& part) {
  switch (part.kind) {
    case AnswerPart::Kind::kThought:
      return {{"type", "thinking"}, {"thinking", part.text}, {"signature", ""}};
    case AnswerPart::Kind::kText:
      return {{"type", "text"}, {"text", part.text}};
    case AnswerPart::Kind::kCall:
      return {{"type", "tool_use"},
              {"id", part.id},
              {"name", part.name},
              {"input", part.text.empty() ? Json::object() : Json::parse(part.text)}};
  }
  return {};
}

Json describe_delta(AnswerPart::Kind kind, const std::string& text) {
  switch (kind) {
    case AnswerPart::Kind::kThought:
      return {{"type", "thinking_delta"}, {"thinking", text}};
    case AnswerPart::Kind::kText:
      return {{"type", "text_delta"}, {"text", text}};
    case AnswerPart::Kind::kCall:
      return {{"type", "input_json_delta"}, {"partial_json", text}};
  }
  return {};
}

std::string delta_event(int index, Json delta) {
  return sse_event("content_block_delta",
                   {{"type", "content_block_delta"}, {"index", index}, {"delta", std::move(delta)}});
}

std::string stop_reason(const AnswerRecord& answer) {
  if (!answer.end->stopping_word.empty()) return "stop_sequence";
  return !answer.ended_by_text() ? "max_tokens" : answer.has_calls() ? "tool_use" : "end_turn";
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
  Json content = Json::array();
  for (const AnswerPart& part : answer.parts) content.push_back(describe_block(part));
  if (content.empty()) content.push_back(describe_block({}));
  return message(std::move(content), stop_reason(answer), stop_sequence(answer), usage(answer));
}

std::string MessagesFormat::begin() {
  AnswerRecord nothing;
  nothing.prompt_tokens = static_cast<int64_t>(request_.prompts[0].size());
  return sse_event("message_start",
                   {{"type", "message_start"}, {"message", message(Json::array(), nullptr, nullptr, usage(nothing))}}) +
         sse_event("ping", {{"type", "ping"}});
}

std::string MessagesFormat::begin_block(const AnswerPart& part) {
  std::string events = end_block();
  is_open_ = true;
  kind_ = part.kind;
  AnswerPart empty = part;
  empty.text.clear();
  return events + sse_event("content_block_start", {{"type", "content_block_start"},
                                                    {"index", num_blocks_++},
                                                    {"content_block", describe_block(empty)}});
}

std::string MessagesFormat::end_block() {
  if (!is_open_) return {};
  is_open_ = false;
  const int index = num_blocks_ - 1;
  std::string events;
  // Nobody signs thoughts here; clients wait for it.
  if (kind_ == AnswerPart::Kind::kThought)
    events = delta_event(index, {{"type", "signature_delta"}, {"signature", ""}});
  return events + sse_event("content_block_stop", {{"type", "content_block_stop"}, {"index", index}});
}

std::string MessagesFormat::changes_of(const AnswerRecord& record) {
  std::string events;
  for (const AnswerRecord::Change& change : record.changes) {
    const AnswerPart& part = record.parts[change.part];
    if (change.is_new) events += begin_block(part);
    events += delta_event(num_blocks_ - 1, describe_delta(part.kind, change.text));
  }
  return events;
}

std::string MessagesFormat::token(const AnswerRecord& record, const AnswerEvent&) {
  return changes_of(record);
}

std::string MessagesFormat::end_of(const AnswerRecord& record, const AnswerEvent&) {
  std::string events = changes_of(record);
  if (num_blocks_ == 0) events += begin_block({});
  return events + end_block() +
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
