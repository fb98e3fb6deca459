// A chat template, then after a zero byte a conversation in JSON: either one error, or a text of valid UTF-8 whose parts
// are the template's and the conversation's by turns.

#include <string>
#include <string_view>

#include "engine/text/chat_template.h"
#include "kernels/base/error.h"
#include "tests/fuzz/memory_file.h"

namespace foretoken {
namespace {

void run(std::string_view data) {
  const size_t end = std::min(data.find('\0'), data.size());
  ChatInput input;
  input.messages = nlohmann::ordered_json::parse(data.substr(std::min(end + 1, data.size())), nullptr,
                                                 /*allow_exceptions=*/false);
  if (input.messages.is_discarded()) {
    input.messages = nlohmann::ordered_json::parse(
        R"([{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"é <|im_end|>"}]},)"
        R"({"role":"assistant","content":"x","tool_calls":[{"function":{"name":"f","arguments":{"a":[1,2.5,null]}}}]}])");
  }
  input.tools = nlohmann::ordered_json::parse(R"([{"type":"function","function":{"name":"f","parameters":{}}}])");
  try {
    const std::vector<TextPart> parts = ChatTemplate::parse(data.substr(0, end)).render(input);
    for (size_t i = 0; i < parts.size(); ++i) {
      require(!parts[i].text.empty());
      require(i == 0 || parts[i].parse_special != parts[i - 1].parse_special);
    }
    std::string text;
    for (const TextPart& part : parts) text += part.text;
    require(find_invalid_utf8(text) == std::string_view::npos);
  } catch (const InputError& error) {
    require(std::string_view(error.what()).starts_with("chat template: "));
  }
}

}  // namespace
}  // namespace foretoken

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  foretoken::run({reinterpret_cast<const char*>(data), size});
  return 0;
}
