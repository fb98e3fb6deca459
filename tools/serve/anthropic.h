#pragma once

#include "tools/serve/answer_format.h"
#include "tools/serve/chat_prompts.h"

namespace foretoken {

/// An Anthropic request's `system`, `messages` and `tools` as a chat template reads them. Throws ApiError.
struct AnthropicChat {
  Json messages, tools;
};
[[nodiscard]] AnthropicChat parse_anthropic_chat(const Fields& fields);

/// Anthropic's /v1/messages.
class MessagesFormat final : public AnswerFormat {
 public:
  MessagesFormat(const ServedModel& served, const GenerationRequest& request);
  Json whole(const std::vector<AnswerRecord>& answers) override;
  std::string begin() override;
  std::string token(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end_of(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end(const std::vector<AnswerRecord>&) override { return {}; }
  std::string error(const ApiError& error) override;

 private:
  [[nodiscard]] Json message(Json content, Json stop_reason, Json stop_sequence, Json usage) const;
  [[nodiscard]] std::string text_delta(const std::string& text);

  const ServedModel& served_;
  const GenerationRequest request_;
  const std::string id_;
  bool has_block_ = false;
};

/// {"type": "error", "error": {...}}, as its clients know errors.
[[nodiscard]] Json anthropic_error(const ApiError& error);

}  // namespace foretoken
