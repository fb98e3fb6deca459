#pragma once

#include <cstdint>

#include "tools/serve/answer_format.h"

namespace foretoken {

/// What an answer of /v1/responses repeats of its request.
[[nodiscard]] Json repeated_fields(const Json& body);

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
  /// With its type and the next sequence number.
  [[nodiscard]] std::string event(const char* type, Json data);
  /// The events of the last event's changes.
  [[nodiscard]] std::string changes_of(const AnswerRecord& record);
  [[nodiscard]] std::string begin_item(const AnswerPart& part);
  [[nodiscard]] std::string delta(const AnswerPart& part, const std::string& text);
  [[nodiscard]] std::string end_item(const AnswerRecord& record);
  [[nodiscard]] Json items_of(const AnswerRecord& record) const;
  /// The identifier of the item that part `index` is.
  [[nodiscard]] std::string item_id(const AnswerPart& part, size_t index) const;
  /// The item's number, and where it has parts the first of them, added to an event's data.
  [[nodiscard]] Json at_item(const AnswerPart& part, Json data) const;

  const ServedModel& served_;
  const GenerationRequest request_;
  const std::string id_, item_stem_;
  const int64_t created_at_;
  int64_t next_number_ = 0;
  size_t num_items_ = 0;  // that have begun; the last one is open until end_item()
  bool is_open_ = false;
};

}  // namespace foretoken
