// Renders chat templates for scripts/check-templates.py: a line of JSON in, a line of JSON out.
// In: {"template": ..., "messages": ..., "tools": ..., "variables": ..., "add_generation_prompt": ..., "continue": ...,
// "bos_token": ..., "eos_token": ..., "now": ...}. Out: {"text": ..., "user": [[begin, end], ...]}: the byte ranges of
// the text that are the conversation's; or {"error": ...}.

#include <iostream>
#include <string>

#include "engine/text/chat_template.h"
#include "kernels/base/error.h"

namespace foretoken {
namespace {

nlohmann::ordered_json answer(const nlohmann::ordered_json& request) {
  nlohmann::ordered_json out;
  try {
    const ChatTemplate form = ChatTemplate::parse(request.at("template").get<std::string>());
    ChatInput input;
    input.messages = request.at("messages");
    input.tools = request.at("tools");
    input.variables = request.at("variables");
    input.add_generation_prompt = request.at("add_generation_prompt").get<bool>();
    input.continue_final_message = request.at("continue").get<bool>();
    input.bos_token = request.at("bos_token").get<std::string>();
    input.eos_token = request.at("eos_token").get<std::string>();
    input.now = request.at("now").get<std::time_t>();
    std::string text;
    nlohmann::ordered_json user = nlohmann::ordered_json::array();
    for (const TextPart& part : form.render(input)) {
      if (!part.parse_special) user.push_back({text.size(), text.size() + part.text.size()});
      text += part.text;
    }
    out["text"] = text;
    out["user"] = user;
  } catch (const InputError& error) {
    out["error"] = error.what();
  }
  return out;
}

}  // namespace
}  // namespace foretoken

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::cout << foretoken::answer(nlohmann::ordered_json::parse(line)).dump() << std::endl;
  }
  return 0;
}
