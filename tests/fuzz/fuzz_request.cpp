// The first byte chooses the route and the chat template; the rest is a request's body. Either an error of the client's
// (4xx) or of what is not served (501), or a request within all limits, whose prompt is one of the vocabulary's.

#include <set>
#include <string>
#include <string_view>

#include "engine/gguf/gguf.h"
#include "kernels/base/error.h"
#include "tests/fuzz/memory_file.h"
#include "tools/serve/api_error.h"
#include "tools/serve/chat_request.h"

namespace foretoken {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load(GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf"));
  return loaded;
}

const ChatPrompts& prompts(int which) {
  static const char* const kMarks[] = {
      "<tool_call>", "<tool_call><function=", "<tool_call><arg_key>", "<|channel|><|message|>", "<think>", ""};
  static const auto all = [] {
    std::vector<std::unique_ptr<ChatPrompts>> made;
    for (const char* marks : kMarks) {
      made.push_back(std::make_unique<ChatPrompts>(
          tokenizer(), std::string("{# ") + marks +
                           " #}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% for message in messages %}"
                           "<|im_start|>{{ message.role }}{{ message.reasoning_content }}{{ message.content }}"
                           "{% for call in message.tool_calls %}{{ call.function.name }}"
                           "{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}"
                           "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"));
    }
    return made;
  }();
  return *all[static_cast<size_t>(which) % all.size()];
}

void check(const GenerationRequest& request, const ServedModel& served) {
  require(request.n >= 1 && request.n <= 128 && request.max_tokens >= -1);
  require(request.max_drafts >= 0 && request.max_drafts <= served.max_drafts);
  const SamplingOptions& sampling = request.sampling;
  require(sampling.temperature >= 0 && sampling.top_k >= 0 && sampling.top_p > 0 && sampling.top_p <= 1);
  require(sampling.typical_p > 0 && sampling.typical_p <= 1 && sampling.min_p >= 0 && sampling.min_p <= 1);
  require(request.rules.repeat_penalty > 0 && request.rules.repeat_last_n >= -1);
  std::set<TokenId> biased;
  for (const auto& [id, bias] : request.rules.bias) {
    require(id >= 0 && id < tokenizer().vocab_size() && biased.insert(id).second);
    require(!(bias > 1e38f) && bias == bias);
  }
  require(!request.prompts.empty());
  for (const std::vector<TokenId>& prompt : request.prompts) {
    for (const TokenId id : prompt) require(id >= 0 && id < tokenizer().vocab_size());
  }
  require(request.answers(served).size() == request.prompts.size() * static_cast<size_t>(request.n));
  if (!request.parsing) return;
  AnswerParser parser(*request.parsing);
  (void)parser.push("<think>a</think><tool_call>{\"name\": \"f\", \"arguments\": {}}");
  (void)parser.finish();
}

void run(std::string_view data) {
  if (data.empty()) return;
  static const ServedModel served = [] {
    ServedModel made;
    made.tokenizer = &tokenizer();
    made.ctx_size = 4096;
    made.max_drafts = 4;
    made.drafter = "mtp";
    return made;
  }();
  const auto route = static_cast<unsigned char>(data[0]) % 4;
  const ChatPrompts& chats = prompts(static_cast<unsigned char>(data[0]) / 4);
  try {
    const Json body = parse_body(data.substr(1));
    const Fields fields(body);
    if (route == 0) {
      check(parse_completion(fields, served), served);
    } else {
      const auto parse = route == 1 ? parse_openai_chat : route == 2 ? parse_anthropic_chat : parse_responses_chat;
      check(parse_chat_generation(fields, served, chats, parse(fields, chats.defaults())), served);
    }
  } catch (const ApiError& error) {
    require((error.status() >= 400 && error.status() < 500) || error.status() == 501);
    require(error.what()[0] != '\0');
    require(!to_text(error.body()).empty());
  } catch (const InputError&) {  // a 400 too
  } catch (const UsageError&) {
  }
}

}  // namespace
}  // namespace foretoken

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  foretoken::run({reinterpret_cast<const char*>(data), size});
  return 0;
}
