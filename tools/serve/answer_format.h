#pragma once

#include <string>
#include <vector>

#include "tools/serve/answer_record.h"
#include "tools/serve/api_error.h"
#include "tools/serve/channel.h"
#include "tools/serve/generation_request.h"
#include "tools/serve/sse.h"

namespace foretoken {

/// How one route puts a request's answers: as one JSON object, or as a stream of events. One object a request; what is
/// returned by the stream's functions is sent as it stands, and may be empty.
class AnswerFormat {
 public:
  virtual ~AnswerFormat() = default;

  /// All answers, once they are over.
  [[nodiscard]] virtual Json whole(const std::vector<AnswerRecord>& answers) = 0;

  // The stream.
  virtual std::string begin() { return {}; }
  /// `record` holds the event already.
  virtual std::string prompt(const AnswerRecord& record, const AnswerEvent& event) {
    static_cast<void>(record);
    static_cast<void>(event);
    return {};
  }
  virtual std::string token(const AnswerRecord& record, const AnswerEvent& event) = 0;
  /// One answer is over; event.text is the last of its text.
  virtual std::string end_of(const AnswerRecord& record, const AnswerEvent& event) = 0;
  /// All are.
  virtual std::string end(const std::vector<AnswerRecord>& answers) = 0;
  virtual std::string error(const ApiError& error) { return sse_data(error.body()); }
};

/// llama.cpp's /completion.
class NativeFormat final : public AnswerFormat {
 public:
  NativeFormat(const ServedModel& served, const GenerationRequest& request);
  Json whole(const std::vector<AnswerRecord>& answers) override;
  std::string prompt(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string token(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end_of(const AnswerRecord& record, const AnswerEvent& event) override;
  std::string end(const std::vector<AnswerRecord>&) override { return {}; }

 private:
  [[nodiscard]] Json finished(const AnswerRecord& record, int index, bool with_text) const;

  const ServedModel& served_;
  const GenerationRequest request_;
};

/// "generation_settings" of an answer.
[[nodiscard]] Json describe_settings(const ServedModel& served, const GenerationRequest& request);

/// {total, cache, processed, time_ms}
[[nodiscard]] Json describe_progress_of(const AnswerRecord& record);

}  // namespace foretoken
