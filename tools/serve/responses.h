#pragma once

#include <cstdint>

#include "tools/serve/answer_format.h"
#include "tools/serve/chat_prompts.h"

namespace foretoken {

/// A Responses request's `instructions` and `input` as messages for a chat template. Throws ApiError.
[[nodiscard]] Json parse_responses_input(const Fields& fields);

/// OpenAI's /v1/responses. Nothing is stored: a request brings its whole conversation.
class ResponsesFormat final : public AnswerFormat {
 public:
  ResponsesFormat(const ServedModel& served, const GenerationRequest& request);
  Json whole(const std::vector<AnswerRecord>& answers) override;
  std::string begin() override;
  std::string token(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end_of(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end(const std::vector<AnswerRecord>&) override { return {}; }
  std::string error(const ApiError& error) override;

 private:
  [[nodiscard]] Json response(const AnswerRecord* answer) const;
  [[nodiscard]] Json item(const AnswerRecord* answer) const;
  /// With its type and the next sequence number.
  [[nodiscard]] std::string event(const char* type, Json data);
  [[nodiscard]] Json at_part(Json data) const;
  [[nodiscard]] std::string delta(const std::string& text);

  const ServedModel& served_;
  const GenerationRequest request_;
  const std::string id_, item_id_;
  const int64_t created_at_;
  int64_t next_number_ = 0;
};

}  // namespace foretoken
