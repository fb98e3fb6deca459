#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "mtp/generation.h"
#include "mtp/statistics.h"

namespace foretoken {

/// A token and the logarithm of its probability, before any filter.
struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;
};

/// How an answer ended.
struct AnswerEnd {
  StopReason reason = StopReason::kNone;
  std::string stopping_word;  // of StopReason::kCallback: the stop string; empty: its time was over
  std::string failure;        // of StopReason::kFailed and kInterrupted: one line
  DecodeStatistics statistics;
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt
  double queue_ms = 0;        // until it had a sequence
};

/// Something that happened to one of a request's answers.
struct AnswerEvent {
  enum class Kind { kPrompt, kToken, kEnd };
  Kind kind = Kind::kToken;
  int answer = 0;  // which of the request's

  // kPrompt: so much of the prompt has been read.
  int64_t prompt_read = 0;
  double prompt_ms = 0;
  // kPrompt and kToken.
  int64_t prompt_tokens = 0, cached_tokens = 0;
  int slot = -1;  // of the engine
  // kToken
  TokenId id = 0;
  std::string text;  // what it lets out: whole characters, nothing that may become a stop string
  TokenOrigin origin;
  std::vector<TokenLogprob> logprobs;  // of the token itself, then of the most likely ones; empty unless asked for
  std::chrono::steady_clock::time_point made;
  // kEnd; `text` is then what was still held back.
  std::shared_ptr<const AnswerEnd> end;
};

/// Events on their way from the engine's thread to the one that writes a request's answer. What waits is bounded by the
/// answers' length: a slow reader holds up nobody.
class AnswerChannel {
 public:
  void push(AnswerEvent event);
  /// The next event; nothing if none came in time.
  [[nodiscard]] std::optional<AnswerEvent> pop(std::chrono::milliseconds wait);

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<AnswerEvent> events_;
};

}  // namespace foretoken
