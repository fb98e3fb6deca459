#include "tools/serve/request_log.h"

#include <chrono>

#include "tools/cli/terminal.h"

namespace foretoken {

void RequestLog::write(std::string_view route, int status, const GenerationRequest& request, const Tokenizer& tokenizer,
                       const std::vector<AnswerRecord>& answers, double ms) {
  Json line;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  line["time"] = std::chrono::duration<double>(now).count();
  line["id"] = next_id_++;
  line["route"] = route;
  line["status"] = status;
  line["stream"] = request.stream;
  line["ms"] = ms;
  line["answers"] = Json::array();
  for (const AnswerRecord& answer : answers) {
    Json entry;
    entry["prompt"] = answer.prompt_tokens;
    entry["cached"] = answer.cached_tokens;
    entry["new"] = answer.ids.size();
    entry["stop"] = answer.end == nullptr ? "client_left" : std::string(stop_reason_name(answer.end->reason));
    if (answer.end != nullptr) {
      entry["queue_ms"] = answer.end->queue_ms;
      entry["prompt_ms"] = answer.end->statistics.prompt_ms;
      entry["decode_ms"] = answer.end->statistics.decode_ms;
      entry["acceptance_length"] = answer.end->statistics.acceptance_length();
      if (!answer.end->failure.empty()) entry["failure"] = answer.end->failure;
    }
    if (with_prompts_) entry["text"] = answer.text;
    line["answers"].push_back(std::move(entry));
  }
  if (with_prompts_) {
    line["prompts"] = Json::array();
    for (const std::vector<TokenId>& prompt : request.prompts)
      line["prompts"].push_back(tokenizer.decode(prompt, /*keep_special=*/true));
  }
  print_message(to_text(line) + "\n");
}

}  // namespace foretoken
