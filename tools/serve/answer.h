#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "mtp/scheduler.h"
#include "mtp/stopwatch.h"
#include "tools/serve/channel.h"
#include "tools/serve/stop_matcher.h"

namespace foretoken {

/// What is asked of one answer.
struct AnswerRequest {
  std::vector<TokenId> prompt;
  int64_t max_new_tokens = 0;  // 0: the prompt is read and nothing made
  int max_drafts = 0;
  SamplingOptions sampling;
  LogitRules rules;
  bool ignore_eos = false;
  std::vector<std::string> stops;
  std::vector<TokenId> spelled;  // control tokens that are part of the text, by their names; rising
  bool with_logprobs = false;
  int num_logprobs = 0;       // of the most likely tokens at each position
  double max_predict_ms = 0;  // after the first token; 0: no limit
  bool uses_cache = true;
  int follows = -1;  // another answer of the same request, with the same prompt: its prompt is read first; -1: none
};

/// One answer on the engine's thread: turns what the scheduler makes into events of its request's channel.
class Answer {
 public:
  /// `index`: which of the request's answers. REQUIRES: model and channel stay.
  Answer(const Model& model, AnswerChannel& channel, int index, AnswerRequest request);

  /// Puts it into the scheduler's queue. Throws as Scheduler::add.
  void begin(Scheduler& scheduler);
  [[nodiscard]] int index() const { return index_; }
  [[nodiscard]] bool has_begun() const { return request_ != nullptr; }
  [[nodiscard]] Scheduler::Request& request() { return *request_; }
  [[nodiscard]] const Scheduler::Request& request() const { return *request_; }
  /// It has tokens: its prompt was read.
  [[nodiscard]] bool was_read() const { return was_read_; }

  /// Before each step: the end of its time in the queue.
  void note_begin();
  /// After each step: tells how far the prompt was read.
  void report_prompt();
  /// Gives its last event. REQUIRES: it did not before.
  std::shared_ptr<const AnswerEnd> end();
  /// The same of one that never came into the scheduler, or that an error of the engine ended.
  std::shared_ptr<const AnswerEnd> fail(StopReason reason, std::string failure);

  [[nodiscard]] const AnswerRequest& asked() const { return asked_; }
  [[nodiscard]] int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] double time_to_first_token_ms() const { return first_token_ms_; }

 private:
  bool on_token(TokenId id);
  void on_logits(const float* logits);
  std::shared_ptr<const AnswerEnd> finish(AnswerEnd end);

  const Model& model_;
  AnswerChannel& channel_;
  const int index_;
  AnswerRequest asked_;  // the prompt moves on to the scheduler
  const int64_t prompt_tokens_;
  Scheduler::Request* request_ = nullptr;

  Utf8Stream characters_;
  StopMatcher stops_;
  TokenOrigin origin_;
  std::vector<float> logits_;  // of the coming token, where logprobs are asked for
  Stopwatch since_arrival_;
  double queue_ms_ = 0, first_token_ms_ = 0;
  bool left_queue_ = false, was_read_ = false;
  int64_t reported_ = -1;
  int64_t num_tokens_ = 0;
  Stopwatch since_first_token_;
};

}  // namespace foretoken
