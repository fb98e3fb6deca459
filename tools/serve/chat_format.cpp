#include "tools/serve/openai_format.h"

#include <ctime>

namespace foretoken {

namespace {

Json message_of(const AnswerRecord& answer) {
  Json message = {{"role", "assistant"}};
  const std::string content = answer.text_of(AnswerPart::Kind::kText);
  message["content"] = content.empty() && answer.has_calls() ? Json() : Json(content);
  const std::string thoughts = answer.text_of(AnswerPart::Kind::kThought);
  if (!thoughts.empty()) message["reasoning_content"] = thoughts;
  for (const AnswerPart& part : answer.parts) {
    if (part.kind == AnswerPart::Kind::kCall) message["tool_calls"].push_back(describe_call(part));
  }
  return message;
}

// The deltas that bring a change: a call's name comes first, its arguments behind it.
void add_deltas(const AnswerPart& part, const AnswerRecord::Change& change, std::vector<Json>& deltas) {
  switch (part.kind) {
    case AnswerPart::Kind::kThought:
      deltas.push_back({{"reasoning_content", change.text}});
      return;
    case AnswerPart::Kind::kText:
      deltas.push_back({{"content", change.text}});
      return;
    case AnswerPart::Kind::kCall:
      if (change.is_new) {
        Json call = {{"index", part.call_index}};
        call.update(describe_call(part));
        call["function"]["arguments"] = "";
        deltas.push_back({{"tool_calls", Json::array({std::move(call)})}});
      }
      deltas.push_back(
          {{"tool_calls", Json::array({{{"index", part.call_index}, {"function", {{"arguments", change.text}}}}})}});
      return;
  }
}

std::vector<Json> deltas_of(const AnswerRecord& record) {
  std::vector<Json> deltas;
  for (const AnswerRecord::Change& change : record.changes) add_deltas(record.parts[change.part], change, deltas);
  return deltas;
}

}  // namespace

ChatFormat::ChatFormat(const ServedModel& served, const GenerationRequest& request)
    : served_(served), request_(request), id_(make_id("chatcmpl-")) {}

Json ChatFormat::object(const char* kind, Json choices) const {
  return {{"id", id_},
          {"object", kind},
          {"created", static_cast<int64_t>(std::time(nullptr))},
          {"model", served_.name},
          {"choices", std::move(choices)}};
}

Json ChatFormat::chunk(int answer, Json delta) const {
  return object("chat.completion.chunk",
                Json::array({{{"index", answer}, {"delta", std::move(delta)}, {"finish_reason", nullptr}}}));
}

Json ChatFormat::whole(const std::vector<AnswerRecord>& answers) {
  const Tokenizer& tokenizer = *served_.tokenizer;
  Json choices = Json::array();
  for (size_t i = 0; i < answers.size(); ++i) {
    const AnswerRecord& answer = answers[i];
    Json logprobs;
    if (request_.with_logprobs) {
      logprobs["content"] = Json::array();
      for (const auto& found : answer.logprobs)
        logprobs["content"].push_back(describe_logprobs(tokenizer, found, /*with_ids=*/false));
    }
    choices.push_back({{"index", i},
                       {"message", message_of(answer)},
                       {"logprobs", std::move(logprobs)},
                       {"finish_reason", answer.finish_reason()}});
    if (request_.return_tokens) choices.back()["tokens"] = answer.ids;
  }
  Json result = object("chat.completion", std::move(choices));
  result["usage"] = AnswerRecord::usage(answers, request_.n);
  result["timings"] = answers[0].timings();
  return result;
}

std::string ChatFormat::begin() {
  std::string text;
  for (int i = 0; i < request_.n; ++i) text += sse_data(chunk(i, {{"role", "assistant"}, {"content", nullptr}}));
  return text;
}

std::string ChatFormat::prompt(const AnswerRecord& record, const AnswerEvent& event) {
  if (!request_.return_progress) return {};
  Json result = chunk(event.answer, Json::object());
  result["prompt_progress"] = describe_progress_of(record);
  return sse_data(result);
}

std::string ChatFormat::token(const AnswerRecord& record, const AnswerEvent& event) {
  std::vector<Json> deltas = deltas_of(record);
  if (deltas.empty()) {
    if (!request_.with_logprobs && !request_.return_tokens && !request_.token_origins) return {};
    deltas.push_back({{"content", ""}});
  }
  std::string text;
  for (size_t i = 0; i + 1 < deltas.size(); ++i) text += sse_data(chunk(event.answer, std::move(deltas[i])));
  // What is told of the token stands in the last of its chunks.
  Json result = chunk(event.answer, std::move(deltas.back()));
  Json& choice = result["choices"][0];
  if (request_.with_logprobs) {
    choice["logprobs"]["content"] =
        Json::array({describe_logprobs(*served_.tokenizer, event.logprobs, /*with_ids=*/false)});
  }
  if (request_.return_tokens) choice["tokens"] = Json::array({event.id});
  if (request_.token_origins) choice["origin"] = describe_origin(event.origin);
  if (request_.timings_per_token) result["timings"] = record.timings();
  return text + sse_data(result);
}

std::string ChatFormat::end_of(const AnswerRecord& record, const AnswerEvent& event) {
  std::string text;
  for (Json& delta : deltas_of(record)) text += sse_data(chunk(event.answer, std::move(delta)));
  Json result = chunk(event.answer, Json::object());
  result["choices"][0]["finish_reason"] = record.finish_reason();
  result["timings"] = record.timings();
  return text + sse_data(result);
}

std::string ChatFormat::end(const std::vector<AnswerRecord>& answers) {
  std::string text;
  if (request_.include_usage) {
    Json usage = object("chat.completion.chunk", Json::array());
    usage["usage"] = AnswerRecord::usage(answers, request_.n);
    text = sse_data(usage);
  }
  return text + std::string(kSseDone);
}

}  // namespace foretoken
