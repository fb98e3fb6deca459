#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat/answer_parser.h"
#include "engine/text/tokenizer.h"
#include "tools/serve/channel.h"
#include "tools/serve/json.h"

namespace foretoken {

/// A part of a chat's answer: a thought, text, or a call of a tool. Neighbours are of different kinds, but for calls.
struct AnswerPart {
  enum class Kind { kThought, kText, kCall };
  Kind kind = Kind::kText;
  std::string text;      // of a call: its arguments, JSON
  std::string name, id;  // of a call
  int call_index = 0;    // among the answer's calls
};

/// What has come of one answer so far.
struct AnswerRecord {
  AnswerRecord() = default;
  /// Of a chat: takes the text apart.
  explicit AnswerRecord(const AnswerParser::Options& parsing) : parser(std::in_place, parsing) {}

  /// REQUIRES: events of this answer, in order.
  void add(const AnswerEvent& event);

  std::string text;  // as the model wrote it
  std::optional<AnswerParser> parser;
  std::vector<AnswerPart> parts;  // of a chat
  /// What the last event has added to the parts, in order.
  struct Change {
    size_t part = 0;
    bool is_new = false;
    std::string text;
  };
  std::vector<Change> changes;
  int64_t thought_tokens = 0;
  std::vector<TokenId> ids;
  std::vector<std::string> texts;                   // [ids] what each let out
  std::vector<std::vector<TokenLogprob>> logprobs;  // [ids], or empty
  int64_t prompt_tokens = 0, cached_tokens = 0, prompt_read = 0;
  int slot = -1;  // of the engine; -1: it never had one
  double prompt_ms = 0;
  int64_t windows = 0, drafted = 0, accepted = 0;
  std::vector<int64_t> accepted_by_position;
  std::chrono::steady_clock::time_point first_token, last_token;
  std::shared_ptr<const AnswerEnd> end;  // nullptr: it is not over

  [[nodiscard]] bool ended_by_text() const;  // its own end, or a stop string
  /// "stop", "length" or "tool_calls".
  [[nodiscard]] std::string_view finish_reason() const {
    return !ended_by_text() ? "length" : has_calls() ? "tool_calls" : "stop";
  }
  [[nodiscard]] bool has_calls() const;
  /// Of the parts of a kind, all text.
  [[nodiscard]] std::string text_of(AnswerPart::Kind kind) const;
  /// Times and drafts, as llama.cpp's server names them and with what only this engine has.
  [[nodiscard]] Json timings() const;
  /// OpenAI's count of tokens; the answers to a prompt stand one after the other.
  [[nodiscard]] static Json usage(const std::vector<AnswerRecord>& answers, int answers_a_prompt);

 private:
  void add_parts(AnswerDelta delta);
};

/// A new identifier, "chatcmpl-" and 24 random digits and letters.
[[nodiscard]] std::string make_id(std::string_view prefix);

/// {id, type, function: {name, arguments}}, as OpenAI's chats have a call.
[[nodiscard]] Json describe_call(const AnswerPart& call);

/// [{id, token, bytes, logprob, top_logprobs}]: with ids as llama.cpp's server has it, without as OpenAI's chat.
[[nodiscard]] Json describe_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& found, bool with_ids);

/// How a token came: {kind: plain, draft, corrected, bonus; position; drafts}.
[[nodiscard]] Json describe_origin(const TokenOrigin& origin);

}  // namespace foretoken
