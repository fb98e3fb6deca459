#include "tools/chat/conversation.h"

#include "kernels/base/error.h"

namespace foretoken {

Conversation::Conversation(Engine& engine, const ChatPrompts& prompts, const SchedulerOptions& options)
    : engine_(engine), prompts_(prompts), scheduler_(engine, options) {}

Conversation::Answer Conversation::ask(const std::string& text, const GenerationOptions& options,
                                       const std::function<bool(std::string_view)>& on_text,
                                       const std::function<bool()>& stops) {
  Json messages = Json::array();
  if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
  for (const Json& turn : turns_) messages.push_back(turn);
  messages.push_back({{"role", "user"}, {"content", text}});
  std::vector<TokenId> prompt = prompts_.encode(prompts_.render(messages, Json::array(), Json::object()));

  Answer answer;
  answer.prompt_tokens = static_cast<int64_t>(prompt.size());
  const Tokenizer& tokenizer = engine_.model().tokenizer();
  Utf8Stream characters;
  std::string said;
  GenerationOptions asked = options;
  asked.on_token = [&](TokenId id) {
    const std::string whole = characters.push(tokenizer.piece(id));
    said += whole;
    return on_text(whole);
  };
  Scheduler::Request& request = scheduler_.add(std::move(prompt), std::move(asked));
  while (!request.is_finished()) {
    if (stops()) {
      scheduler_.cancel(request);
      break;
    }
    FT_CHECK(scheduler_.step());
  }
  const std::string rest = characters.finish();
  said += rest;
  (void)on_text(rest);
  answer.reason = request.stop_reason();
  if (answer.reason == StopReason::kFailed) answer.failure = request.failure();
  answer.cached_tokens = request.cached_tokens();
  answer.statistics = request.statistics();
  scheduler_.forget(request);
  turns_.push_back({{"role", "user"}, {"content", text}});
  turns_.push_back({{"role", "assistant"}, {"content", said}});
  return answer;
}

std::string Conversation::take_back() {
  if (turns_.size() < 2) return {};
  turns_.erase(turns_.size() - 1);
  const std::string question = turns_.back()["content"];
  turns_.erase(turns_.size() - 1);
  return question;
}

}  // namespace foretoken
