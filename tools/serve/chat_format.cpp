#include "tools/serve/openai_format.h"

#include <ctime>

namespace foretoken {

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
  const Tokenizer& tokenizer = served_.model->tokenizer();
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
                       {"message", {{"role", "assistant"}, {"content", answer.text}}},
                       {"logprobs", std::move(logprobs)},
                       {"finish_reason", answer.finish_reason()}});
    if (request_.return_tokens) choices.back()["tokens"] = answer.ids;
  }
  Json result = object("chat.completion", std::move(choices));
  result["usage"] = AnswerRecord::usage(answers);
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
  if (event.text.empty() && !request_.with_logprobs && !request_.return_tokens && !request_.token_origins) return {};
  Json result = chunk(event.answer, {{"content", event.text}});
  Json& choice = result["choices"][0];
  if (request_.with_logprobs) {
    choice["logprobs"]["content"] =
        Json::array({describe_logprobs(served_.model->tokenizer(), event.logprobs, /*with_ids=*/false)});
  }
  if (request_.return_tokens) choice["tokens"] = Json::array({event.id});
  if (request_.token_origins) choice["origin"] = describe_origin(event.origin);
  if (request_.timings_per_token) result["timings"] = record.timings();
  return sse_data(result);
}

std::string ChatFormat::end_of(const AnswerRecord& record, const AnswerEvent& event) {
  std::string text;
  if (!event.text.empty()) text = sse_data(chunk(event.answer, {{"content", event.text}}));
  Json result = chunk(event.answer, Json::object());
  result["choices"][0]["finish_reason"] = record.finish_reason();
  result["timings"] = record.timings();
  return text + sse_data(result);
}

std::string ChatFormat::end(const std::vector<AnswerRecord>& answers) {
  std::string text;
  if (request_.include_usage) {
    Json usage = object("chat.completion.chunk", Json::array());
    usage["usage"] = AnswerRecord::usage(answers);
    text = sse_data(usage);
  }
  return text + std::string(kSseDone);
}

}  // namespace foretoken
