#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mtp/scheduler.h"
#include "tools/serve/chat_prompts.h"

namespace foretoken {

/// A conversation with a model in one engine: each answer begins from the state that the last one has left, as far as
/// the text is the same.
class Conversation {
 public:
  /// What comes of one answer.
  struct Answer {
    std::string thoughts;  // in front of what was said
    StopReason reason = StopReason::kNone;
    std::string failure;  // of StopReason::kFailed
    int64_t prompt_tokens = 0, cached_tokens = 0;
    DecodeStatistics statistics;
  };

  /// REQUIRES: engine and prompts stay.
  Conversation(Engine& engine, const ChatPrompts& prompts, const SchedulerOptions& options);

  void set_system(const std::string& text) { system_ = text; }
  [[nodiscard]] const std::string& system() const { return system_; }
  void clear() { turns_ = Json::array(); }
  [[nodiscard]] const Json& turns() const { return turns_; }

  /// Gets whole characters, of a thought or of what is said. False ends the answer.
  using OnText = std::function<bool(std::string_view text, bool is_thought)>;
  /// Answers `text`. stops(), asked before each step, ends the answer: what was said until then stays. Throws InputError
  /// or ApiError, and forgets the turn, where nothing could be made.
  Answer ask(const std::string& text, const GenerationOptions& options, const OnText& on_text,
             const std::function<bool()>& stops);
  /// Takes the last answer back; the question before it, empty if there is none.
  [[nodiscard]] std::string take_back();

 private:
  const Engine& engine_;
  const ChatPrompts& prompts_;
  const std::vector<TokenId> marks_;  // of thoughts, where they are control tokens
  Scheduler scheduler_;
  std::string system_;
  Json turns_ = Json::array();
};

}  // namespace foretoken
