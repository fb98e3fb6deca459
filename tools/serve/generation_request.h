#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/text/chat/answer_parser.h"
#include "tools/serve/answer.h"
#include "tools/serve/fields.h"
#include "tools/serve/rules.h"

namespace foretoken {

/// What the server's start settled about its model, for all requests.
struct ServedModel {
  const Model* model = nullptr;
  const Tokenizer* tokenizer = nullptr;  // the model's
  std::string name;                      // --alias, or the file's name
  int64_t ctx_size = 0;                  // positions of one answer
  int max_drafts = 0;                    // --mtp
  std::string drafter;                   // "mtp", "ngram", "ngram,mtp", or "none"
  SamplingOptions sampling;              // where a request asks for nothing else
  std::optional<uint64_t> seed;          // --seed, if it was given; otherwise each request draws its own
  int64_t created = 0;                   // seconds since 1970
  std::shared_ptr<SharedTrie> trie = std::make_shared<SharedTrie>();
  std::vector<TokenId> marks;  // find_mark_tokens()
};

/// The fields that all routes share, as they were asked for.
struct GenerationRequest {
  int64_t max_tokens = -1;  // -1: to the context's end
  int n = 1;
  std::vector<std::string> stops;
  bool stream = false, include_usage = false;
  bool cache_prompt = true;
  bool return_tokens = false, return_progress = false, timings_per_token = false;
  bool token_origins = false;  // stream how each token came
  double max_predict_ms = 0;
  bool ignore_eos = false;
  SamplingOptions sampling;
  LogitRules rules;     // its grammar is shared by the answers
  std::string grammar;  // as GBNF; empty: none
  bool with_logprobs = false;
  int num_logprobs = 0;
  int max_drafts = 0;

  std::vector<std::vector<TokenId>> prompts;     // n answers to each
  std::optional<AnswerParser::Options> parsing;  // of chats: how thoughts and calls are told from the text
  Json repeated = Json::object();                // fields that the answer repeats as they were asked for

  /// The answers that it asks for, those to a prompt one after the other.
  [[nodiscard]] std::vector<AnswerRequest> answers(const ServedModel& served) const;
};

/// Reads the shared fields; prompts and grammars are left to the route. Throws ApiError for a wrong type or range, and for what would
/// change the answer and is not served.
[[nodiscard]] GenerationRequest parse_generation(const Fields& fields, const ServedModel& served);

/// The fields of a route without chats: those above, the prompts, and a grammar. Throws ApiError.
[[nodiscard]] GenerationRequest parse_completion(const Fields& fields, const ServedModel& served);

/// A string, an array of ids, an array that mixes strings and ids, or an array of any of these: the prompts.
[[nodiscard]] std::vector<std::vector<TokenId>> parse_prompts(const Fields& fields, std::string_view name,
                                                              const Tokenizer& tokenizer);
/// One text of a request as ids, with the token that begins a text where the file asks for one.
[[nodiscard]] std::vector<TokenId> encode_prompt(const Tokenizer& tokenizer, std::string_view text, bool add_special,
                                                 bool parse_special);

}  // namespace foretoken
