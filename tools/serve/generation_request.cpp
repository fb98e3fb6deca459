#include "tools/serve/generation_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "kernels/base/error.h"
#include "tools/serve/api_error.h"

namespace foretoken {

namespace {

constexpr int kMostAnswers = 128, kMostStops = 64, kMostLogprobs = 128;
constexpr size_t kMostStopBytes = 4096;

/// What would change the answer and is not served must not be passed over.
void refuse_unserved(const Fields& fields) {
  const auto refuse = [&](std::string_view name) {
    throw not_supported(fmt::format("\"{}\" is not served here", fields.named(name)));
  };
  for (const char* name :
       {"image_data", "samplers", "lora", "input_prefix", "input_suffix", "suffix", "audio", "modalities"}) {
    const Json* value = fields.find(name);
    if (value == nullptr || value->empty() || (value->is_string() && value->get<std::string>().empty())) continue;
    if (std::string_view(name) == "modalities" && *value == Json::array({"text"})) continue;
    refuse(name);
  }
  struct Neutral {
    const char* name;
    double value;
  };
  for (const Neutral& neutral :
       {Neutral{"mirostat", 0}, {"xtc_probability", 0}, {"dry_multiplier", 0}, {"dynatemp_range", 0}}) {
    const std::optional<double> value = fields.number(neutral.name, -1e9, 1e9);
    if (value && *value != neutral.value) refuse(neutral.name);
  }
  if (const std::optional<double> sigma = fields.number("top_n_sigma", -1e9, 1e9); sigma && *sigma > 0)
    refuse("top_n_sigma");
}

uint64_t random_seed() {
  std::random_device source;
  return source();  // 32 bits: every client's number type holds them
}

SamplingOptions parse_sampling(const Fields& fields, const ServedModel& served) {
  SamplingOptions sampling = served.sampling;
  if (const auto value = fields.number("temperature", 0, 1e3)) sampling.temperature = static_cast<float>(*value);
  // Some clients say 0 or -1 for "no limit".
  if (const auto value = fields.integer("top_k", -1, INT32_MAX))
    sampling.top_k = static_cast<int>(std::max<int64_t>(0, *value));
  if (const auto value = fields.number("top_p", 0, 1)) sampling.top_p = std::max(static_cast<float>(*value), 1e-6f);
  if (const auto value = fields.number("typical_p", 0, 1))
    sampling.typical_p = std::max(static_cast<float>(*value), 1e-6f);
  if (const auto value = fields.number("min_p", 0, 1)) sampling.min_p = static_cast<float>(*value);
  const std::optional<int64_t> seed = fields.integer("seed", -1, INT64_MAX);
  sampling.seed = seed && *seed >= 0 ? static_cast<uint64_t>(*seed) : served.seed ? *served.seed : random_seed();
  return sampling;
}

int parse_drafts(const Fields& fields, const ServedModel& served) {
  int most = served.max_drafts;
  // "speculative.n_max" is a member of that name; an object "speculative" with "n_max" is read too.
  const auto read = [&](const Fields& in, const std::string& prefix) {
    if (const auto value = in.integer(prefix + "n_max", 0, 1 << 20))
      most = static_cast<int>(std::min<int64_t>(*value, most));
    // Hints about speed alone: the controller knows better.
    (void)in.integer(prefix + "n_min", 0, 1 << 20);
    (void)in.number(prefix + "p_min", 0, 1);
    if (const auto type = in.text(prefix + "type")) {
      if (*type == "none") {
        most = 0;
      } else if (*type != served.drafter && *type != "draft-" + served.drafter && *type != "auto") {
        in.fail(prefix + "type", fmt::format("\"{}\": this server has none, auto and {}", *type, served.drafter));
      }
    }
  };
  read(fields, "speculative.");
  if (const Json* object = fields.object("speculative")) read(Fields(*object, "speculative"), "");
  return most;
}

void parse_logprobs(const Fields& fields, GenerationRequest& request) {
  int64_t likeliest = 0;
  if (const auto value = fields.integer("n_probs", 0, kMostLogprobs)) {
    likeliest = *value;
    request.with_logprobs = *value > 0;
  }
  if (const Json* value = fields.find("logprobs"); value != nullptr && value->is_boolean()) {  // chat
    request.with_logprobs = request.with_logprobs || value->get<bool>();
  } else if (const auto count = fields.integer("logprobs", 0, kMostLogprobs)) {  // completions
    likeliest = std::max(likeliest, *count);
    request.with_logprobs = true;
  }
  if (const auto value = fields.integer("top_logprobs", 0, kMostLogprobs)) likeliest = std::max(likeliest, *value);
  request.num_logprobs = static_cast<int>(likeliest);
}

std::vector<TokenId> parse_mix(const Fields& fields, std::string_view name, const Json& items,
                               const Tokenizer& tokenizer) {
  std::vector<TokenId> ids;
  for (const Json& item : items) {
    if (item.is_string()) {
      const std::vector<TokenId> text = encode_prompt(tokenizer, item.get<std::string>(), ids.empty(), true);
      ids.insert(ids.end(), text.begin(), text.end());
    } else if (item.is_number_integer()) {
      const auto id = item.get<int64_t>();
      if (id < 0 || id >= tokenizer.vocab_size())
        fields.fail(name, fmt::format("{} is outside the vocabulary of {} tokens", id, tokenizer.vocab_size()));
      ids.push_back(static_cast<TokenId>(id));
    } else {
      fields.fail(name, "expected a string, or an array of strings and token ids");
    }
  }
  return ids;
}

}  // namespace

std::vector<TokenId> encode_prompt(const Tokenizer& tokenizer, std::string_view text, bool add_special,
                                   bool parse_special) {
  std::vector<TokenId> ids = tokenizer.encode(text, parse_special);
  if (add_special) tokenizer.begin_prompt(ids);
  return ids;
}

std::vector<std::vector<TokenId>> parse_prompts(const Fields& fields, std::string_view name,
                                                const Tokenizer& tokenizer) {
  const Json* value = fields.find(name);
  if (value == nullptr) throw invalid_request(fmt::format("\"{}\" is missing", fields.named(name)));
  if (value->is_string()) return {encode_prompt(tokenizer, value->get<std::string>(), true, true)};
  if (!value->is_array() || value->empty())
    fields.fail(name, "expected a string, or an array of strings and token ids");
  const bool has_ids = std::any_of(value->begin(), value->end(), [](const Json& item) { return item.is_number(); });
  if (has_ids) return {parse_mix(fields, name, *value, tokenizer)};
  std::vector<std::vector<TokenId>> prompts;
  for (const Json& item : *value)
    prompts.push_back(parse_mix(fields, name, item.is_array() ? item : Json::array({item}), tokenizer));
  return prompts;
}

GenerationRequest parse_generation(const Fields& fields, const ServedModel& served) {
  refuse_unserved(fields);
  (void)fields.text("model");  // one model is served, whatever its name is
  GenerationRequest request;
  const std::string_view limit =
      fields.first_of({"n_predict", "max_completion_tokens", "max_output_tokens", "max_tokens"});
  if (const auto value = fields.integer(limit, -1, INT32_MAX)) request.max_tokens = *value;
  if (const auto value = fields.integer("n", 1, kMostAnswers)) request.n = static_cast<int>(*value);
  const std::string_view stop = fields.first_of({"stop_sequences", "stop"});
  request.stops = fields.texts(stop);
  if (request.stops.size() > kMostStops) fields.fail(stop, fmt::format("more than {} strings", kMostStops));
  for (const std::string& text : request.stops) {
    if (text.size() > kMostStopBytes)
      fields.fail(stop, fmt::format("a string of {} bytes; {} are the most", text.size(), kMostStopBytes));
  }
  const auto flag = [&](const char* name, bool& value) { value = fields.boolean(name).value_or(value); };
  flag("stream", request.stream);
  flag("cache_prompt", request.cache_prompt);
  flag("return_tokens", request.return_tokens);
  flag("return_progress", request.return_progress);
  flag("timings_per_token", request.timings_per_token);
  flag("token_origins", request.token_origins);
  flag("ignore_eos", request.ignore_eos);
  if (const Json* options = fields.object("stream_options"))
    request.include_usage = Fields(*options, "stream_options").boolean("include_usage").value_or(false);
  // Taken for the clients that send them: any slot gives the same answer.
  (void)fields.integer("id_slot", -1, INT32_MAX);
  (void)fields.integer("n_keep", -1, INT32_MAX);
  if (const auto value = fields.number("t_max_predict_ms", -1, 1e12)) request.max_predict_ms = std::max(0.0, *value);
  request.sampling = parse_sampling(fields, served);
  request.rules = parse_rules(fields, *served.tokenizer);
  request.max_drafts = parse_drafts(fields, served);
  parse_logprobs(fields, request);
  return request;
}

GenerationRequest parse_completion(const Fields& fields, const ServedModel& served) {
  const Tokenizer& tokenizer = *served.tokenizer;
  GenerationRequest request = parse_generation(fields, served);
  request.prompts = parse_prompts(fields, "prompt", tokenizer);
  if (const std::optional<RequestGrammar> grammar = parse_request_grammar(fields)) {
    request.rules.grammar = make_matcher(fields, *grammar, served.trie->get(tokenizer, {}));
    request.grammar = grammar->gbnf;
  }
  return request;
}

std::vector<AnswerRequest> GenerationRequest::answers(const ServedModel& served) const {
  std::vector<AnswerRequest> answers;
  for (const std::vector<TokenId>& prompt : prompts) {
    for (int i = 0; i < n; ++i) {
      AnswerRequest answer;
      answer.prompt = prompt;
      answer.max_new_tokens = max_tokens < 0 ? served.ctx_size : max_tokens;
      answer.max_drafts = max_drafts;
      answer.sampling = sampling;
      answer.rules = rules;
      answer.sampling.seed += static_cast<uint64_t>(i);  // answers to one prompt differ
      answer.ignore_eos = ignore_eos;
      answer.stops = stops;
      if (parsing) answer.spelled = served.marks;
      answer.with_logprobs = with_logprobs;
      answer.num_logprobs = num_logprobs;
      answer.max_predict_ms = max_predict_ms;
      answer.uses_cache = cache_prompt;
      if (cache_prompt && i > 0) answer.follows = static_cast<int>(answers.size()) - i;
      answers.push_back(std::move(answer));
    }
  }
  return answers;
}

}  // namespace foretoken
