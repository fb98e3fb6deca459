#pragma once

#include "tools/serve/answer_format.h"

namespace foretoken {

/// OpenAI's /v1/completions.
class CompletionsFormat final : public AnswerFormat {
 public:
  CompletionsFormat(const ServedModel& served, const GenerationRequest& request);
  Json whole(const std::vector<AnswerRecord>& answers) override;
  std::string prompt(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string token(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end_of(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end(const std::vector<AnswerRecord>& answers) override;

 private:
  [[nodiscard]] Json object(Json choices) const;
  [[nodiscard]] Json logprobs(const std::vector<std::vector<TokenLogprob>>& found,
                              const std::vector<std::string>& texts, size_t offset) const;

  const ServedModel& served_;
  const GenerationRequest request_;
  const std::string id_;
};

/// OpenAI's /v1/chat/completions.
class ChatFormat final : public AnswerFormat {
 public:
  ChatFormat(const ServedModel& served, const GenerationRequest& request);
  Json whole(const std::vector<AnswerRecord>& answers) override;
  std::string begin() override;
  std::string prompt(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string token(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end_of(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end(const std::vector<AnswerRecord>& answers) override;

 private:
  [[nodiscard]] Json object(const char* kind, Json choices) const;
  [[nodiscard]] Json chunk(int answer, Json delta) const;

  const ServedModel& served_;
  const GenerationRequest request_;
  const std::string id_;
};

}  // namespace foretoken
