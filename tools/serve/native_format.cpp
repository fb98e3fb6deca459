#include <cmath>

#include "tools/serve/answer_format.h"

namespace foretoken {

namespace {

std::string_view stop_type(const AnswerEnd& end) {
  if (end.reason == StopReason::kEndOfGeneration) return "eos";
  return !end.stopping_word.empty() ? "word" : "limit";
}

}  // namespace

Json describe_settings(const ServedModel& served, const GenerationRequest& request) {
  const SamplingOptions& sampling = request.sampling;
  const LogitRules& rules = request.rules;
  Json biases = Json::array();
  for (const auto& [id, bias] : rules.bias)
    biases.push_back({{"token", id}, {"bias", std::isfinite(bias) ? Json(bias) : Json(false)}});
  return {{"seed", sampling.seed},
          {"temperature", sampling.temperature},
          {"top_k", sampling.top_k},
          {"top_p", sampling.top_p},
          {"min_p", sampling.min_p},
          {"typical_p", sampling.typical_p},
          {"repeat_penalty", rules.repeat_penalty},
          {"repeat_last_n", rules.repeat_last_n},
          {"presence_penalty", rules.presence_penalty},
          {"frequency_penalty", rules.frequency_penalty},
          {"logit_bias", std::move(biases)},
          {"grammar", request.grammar},
          {"stop", request.stops},
          {"max_tokens", request.max_tokens},
          {"n_predict", request.max_tokens},
          {"ignore_eos", request.ignore_eos},
          {"stream", request.stream},
          {"n_probs", request.num_logprobs},
          {"timings_per_token", request.timings_per_token},
          {"speculative.n_max", request.max_drafts},
          {"speculative.type", request.max_drafts == 0 ? "none" : served.drafter}};
}

Json describe_progress_of(const AnswerRecord& record) {
  return {{"total", record.prompt_tokens},
          {"cache", record.cached_tokens},
          {"processed", record.prompt_read},
          {"time_ms", static_cast<int64_t>(record.prompt_ms)}};
}

NativeFormat::NativeFormat(const ServedModel& served, const GenerationRequest& request)
    : served_(served), request_(request) {}

Json NativeFormat::finished(const AnswerRecord& record, int index, bool with_text) const {
  Json object;
  object["index"] = index;
  object["content"] = with_text ? record.text : "";
  object["tokens"] = with_text && request_.return_tokens ? Json(record.ids) : Json::array();
  object["id_slot"] = record.slot;
  object["stop"] = true;
  object["model"] = served_.name;
  object["tokens_predicted"] = record.ids.size();
  object["tokens_evaluated"] = record.prompt_tokens;
  object["generation_settings"] = describe_settings(served_, request_);
  const std::vector<TokenId>& prompt = request_.prompts[index / request_.n];
  object["prompt"] = served_.tokenizer->decode(prompt, /*keep_special=*/true);
  object["has_new_line"] = record.text.find('\n') != std::string::npos;
  object["truncated"] = record.end->reason == StopReason::kContextFull;
  object["stop_type"] = stop_type(*record.end);
  object["stopping_word"] = record.end->stopping_word;
  object["tokens_cached"] = record.cached_tokens;
  if (with_text && request_.with_logprobs) {
    Json& all = object["completion_probabilities"] = Json::array();
    for (const std::vector<TokenLogprob>& found : record.logprobs)
      all.push_back(describe_logprobs(*served_.tokenizer, found, /*with_ids=*/true));
  }
  object["timings"] = record.timings();
  return object;
}

Json NativeFormat::whole(const std::vector<AnswerRecord>& answers) {
  if (answers.size() == 1) return finished(answers[0], 0, /*with_text=*/true);
  Json all = Json::array();
  for (size_t i = 0; i < answers.size(); ++i) all.push_back(finished(answers[i], static_cast<int>(i), true));
  return all;
}

std::string NativeFormat::prompt(const AnswerRecord& record, const AnswerEvent& event) {
  if (!request_.return_progress) return {};
  return sse_data({{"index", event.answer},
                   {"content", ""},
                   {"tokens", Json::array()},
                   {"stop", false},
                   {"prompt_progress", describe_progress_of(record)}});
}

std::string NativeFormat::token(const AnswerRecord& record, const AnswerEvent& event) {
  Json object;
  object["index"] = event.answer;
  object["content"] = event.text;
  object["tokens"] = Json::array({event.id});
  object["stop"] = false;
  object["id_slot"] = record.slot;
  object["tokens_predicted"] = record.ids.size();
  object["tokens_evaluated"] = record.prompt_tokens;
  if (request_.with_logprobs) {
    object["completion_probabilities"] =
        Json::array({describe_logprobs(*served_.tokenizer, event.logprobs, /*with_ids=*/true)});
  }
  if (request_.token_origins) object["origin"] = describe_origin(event.origin);
  if (request_.timings_per_token) object["timings"] = record.timings();
  return sse_data(object);
}

std::string NativeFormat::end_of(const AnswerRecord& record, const AnswerEvent& event) {
  Json object = finished(record, event.answer, /*with_text=*/false);
  object["content"] = event.text;
  return sse_data(object);
}

}  // namespace foretoken
