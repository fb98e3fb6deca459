#include "tools/serve/openai_format.h"

#include <ctime>

namespace foretoken {

CompletionsFormat::CompletionsFormat(const ServedModel& served, const GenerationRequest& request)
    : served_(served), request_(request), id_(make_id("cmpl-")) {}

Json CompletionsFormat::object(Json choices) const {
  return {{"id", id_},
          {"object", "text_completion"},
          {"created", static_cast<int64_t>(std::time(nullptr))},
          {"model", served_.name},
          {"choices", std::move(choices)}};
}

Json CompletionsFormat::logprobs(const std::vector<std::vector<TokenLogprob>>& found,
                                 const std::vector<std::string>& texts, size_t offset) const {
  const Tokenizer& tokenizer = *served_.tokenizer;
  Json tokens = Json::array(), values = Json::array(), likeliest = Json::array(), offsets = Json::array();
  for (size_t i = 0; i < found.size(); ++i) {
    const Json entry = describe_logprobs(tokenizer, found[i], /*with_ids=*/false);
    tokens.push_back(entry["token"]);
    values.push_back(entry["logprob"]);
    offsets.push_back(offset);
    offset += texts[i].size();
    Json top = Json::object();
    for (const Json& other : entry["top_logprobs"]) top[other["token"].get<std::string>()] = other["logprob"];
    likeliest.push_back(std::move(top));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(likeliest)},
          {"text_offset", std::move(offsets)}};
}

Json CompletionsFormat::whole(const std::vector<AnswerRecord>& answers) {
  Json choices = Json::array();
  for (size_t i = 0; i < answers.size(); ++i) {
    const AnswerRecord& answer = answers[i];
    choices.push_back({{"index", i},
                       {"text", answer.text},
                       {"logprobs", request_.with_logprobs ? logprobs(answer.logprobs, answer.texts, 0) : Json()},
                       {"finish_reason", answer.finish_reason()}});
    if (request_.return_tokens) choices.back()["tokens"] = answer.ids;
  }
  Json result = object(std::move(choices));
  result["usage"] = AnswerRecord::usage(answers, request_.n);
  result["timings"] = answers[0].timings();
  return result;
}

std::string CompletionsFormat::prompt(const AnswerRecord& record, const AnswerEvent& event) {
  if (!request_.return_progress) return {};
  Json result =
      object(Json::array({{{"index", event.answer}, {"text", ""}, {"logprobs", nullptr}, {"finish_reason", nullptr}}}));
  result["prompt_progress"] = describe_progress_of(record);
  return sse_data(result);
}

std::string CompletionsFormat::token(const AnswerRecord& record, const AnswerEvent& event) {
  if (event.text.empty() && !request_.with_logprobs && !request_.return_tokens && !request_.token_origins) return {};
  Json choice = {{"index", event.answer}, {"text", event.text}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
  if (request_.with_logprobs)
    choice["logprobs"] = logprobs({event.logprobs}, {event.text}, record.text.size() - event.text.size());
  if (request_.return_tokens) choice["tokens"] = Json::array({event.id});
  if (request_.token_origins) choice["origin"] = describe_origin(event.origin);
  Json result = object(Json::array({std::move(choice)}));
  if (request_.timings_per_token) result["timings"] = record.timings();
  return sse_data(result);
}

std::string CompletionsFormat::end_of(const AnswerRecord& record, const AnswerEvent& event) {
  Json result = object(Json::array({{{"index", event.answer},
                                     {"text", event.text},
                                     {"logprobs", nullptr},
                                     {"finish_reason", record.finish_reason()}}}));
  result["timings"] = record.timings();
  return sse_data(result);
}

std::string CompletionsFormat::end(const std::vector<AnswerRecord>& answers) {
  std::string text;
  if (request_.include_usage) {
    Json usage = object(Json::array());
    usage["usage"] = AnswerRecord::usage(answers, request_.n);
    text = sse_data(usage);
  }
  return text + std::string(kSseDone);
}

}  // namespace foretoken
