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

  /// Answers `text`. on_text gets whole characters; false ends the answer, and so does stops(), asked before each step:
  /// what was said until then stays. Throws InputError or ApiError, and forgets the turn, where nothing could be made.
  Answer ask(const std::string& text, const GenerationOptions& options,
             const std::function<bool(std::string_view)>& on_text, const std::function<bool()>& stops);
  /// Takes the last answer back; the question before it, empty if there is none.
  [[nodiscard]] std::string take_back();

 private:
  const Engine& engine_;
  const ChatPrompts& prompts_;
  Scheduler scheduler_;
  std::string system_;
  Json turns_ = Json::array();
};

}  // namespace foretoken
