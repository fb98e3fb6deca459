#pragma once

#include "tools/serve/answer_format.h"

namespace foretoken {

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
  /// The events of the last event's changes.
  [[nodiscard]] std::string changes_of(const AnswerRecord& record);
  [[nodiscard]] std::string begin_block(const AnswerPart& part);
  [[nodiscard]] std::string end_block();

  const ServedModel& served_;
  const GenerationRequest request_;
  const std::string id_;
  int num_blocks_ = 0;
  AnswerPart::Kind kind_ = AnswerPart::Kind::kText;  // of the last block
  bool is_open_ = false;                             // it has no end yet
};

/// {"type": "error", "error": {...}}, as its clients know errors.
[[nodiscard]] Json anthropic_error(const ApiError& error);

}  // namespace foretoken
