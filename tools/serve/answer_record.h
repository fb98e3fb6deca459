#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tools/serve/channel.h"
#include "tools/serve/json.h"

namespace foretoken {

/// What has come of one answer so far.
struct AnswerRecord {
  /// REQUIRES: events of this answer, in order.
  void add(const AnswerEvent& event);

  std::string text;
  std::vector<TokenId> ids;
  std::vector<std::string> texts;                   // [ids] what each let out
  std::vector<std::vector<TokenLogprob>> logprobs;  // [ids], or empty
  int64_t prompt_tokens = 0, cached_tokens = 0, prompt_read = 0;
  double prompt_ms = 0;
  int64_t windows = 0, drafted = 0, accepted = 0;
  std::vector<int64_t> accepted_by_position;
  std::chrono::steady_clock::time_point first_token, last_token;
  std::shared_ptr<const AnswerEnd> end;  // nullptr: it is not over

  [[nodiscard]] bool ended_by_text() const;  // its own end, or a stop string
  /// "stop" or "length".
  [[nodiscard]] std::string_view finish_reason() const { return ended_by_text() ? "stop" : "length"; }
  /// Times and drafts, as llama.cpp's server names them and with what only this engine has.
  [[nodiscard]] Json timings() const;
  /// OpenAI's count of tokens.
  [[nodiscard]] static Json usage(const std::vector<AnswerRecord>& answers);
};

/// [{id, token, bytes, logprob, top_logprobs}]: with ids as llama.cpp's server has it, without as OpenAI's chat.
[[nodiscard]] Json describe_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& found, bool with_ids);

/// How a token came: {kind: plain, draft, corrected, bonus; position; drafts}.
[[nodiscard]] Json describe_origin(const TokenOrigin& origin);

}  // namespace foretoken
