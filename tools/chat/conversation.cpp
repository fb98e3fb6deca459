#include "tools/chat/conversation.h"

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken {

Conversation::Conversation(Engine& engine, const ChatPrompts& prompts, const SchedulerOptions& options)
    : engine_(engine),
      prompts_(prompts),
      marks_(find_mark_tokens(engine.model().tokenizer(), prompts.form())),
      scheduler_(engine, options) {}

Conversation::Answer Conversation::ask(const std::string& text, const GenerationOptions& options, const OnText& on_text,
                                       const std::function<bool()>& stops) {
  Json messages = Json::array();
  if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
  for (const Json& turn : turns_) messages.push_back(turn);
  messages.push_back({{"role", "user"}, {"content", text}});
  ChatRequest chat;
  chat.messages = std::move(messages);
  const std::vector<TextPart> parts = prompts_.render(chat);
  std::vector<TokenId> prompt = prompts_.encode(parts);

  Answer answer;
  answer.prompt_tokens = static_cast<int64_t>(prompt.size());
  const Tokenizer& tokenizer = engine_.model().tokenizer();
  Utf8Stream characters;
  AnswerParser::Options parsing;
  parsing.form = prompts_.form();
  parsing.in_thought = prompts_.thought_before(chat, parts) == ThoughtBefore::kOpened;
  parsing.parse_calls = false;
  AnswerParser parser(parsing);
  std::string said;
  const auto tell = [&](const AnswerDelta& delta) {
    answer.thoughts += delta.reasoning;
    said += delta.content;
    return (delta.reasoning.empty() || on_text(delta.reasoning, /*is_thought=*/true)) &&
           (delta.content.empty() || on_text(delta.content, /*is_thought=*/false));
  };
  GenerationOptions asked = options;
  asked.on_token = [&](TokenId id) {
    const bool is_mark = std::binary_search(marks_.begin(), marks_.end(), id);
    return tell(parser.push(characters.push(tokenizer.piece(id, is_mark))));
  };
  Scheduler::Request& request = scheduler_.add(std::move(prompt), std::move(asked));
  while (!request.is_finished()) {
    if (stops()) {
      scheduler_.cancel(request);
      break;
    }
    FT_CHECK(scheduler_.step());
  }
  (void)tell(parser.push(characters.finish()));
  (void)tell(parser.finish());
  answer.reason = request.stop_reason();
  if (answer.reason == StopReason::kFailed) answer.failure = request.failure();
  answer.cached_tokens = request.cached_tokens();
  answer.statistics = request.statistics();
  scheduler_.forget(request);
  turns_.push_back({{"role", "user"}, {"content", text}});
  turns_.push_back({{"role", "assistant"}, {"content", said}});
  if (!answer.thoughts.empty()) turns_.back()["reasoning_content"] = answer.thoughts;
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
