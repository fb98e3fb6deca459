#include "engine/text/chat_template.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/text/template/interpreter.h"
#include "engine/text/template/methods.h"
#include "kernels/base/error.h"

namespace foretoken {

struct ChatTemplate::Program {
  jinja::Body body;
};

namespace {

using Json = nlohmann::ordered_json;

jinja::Value from_json(const Json& json, jinja::Budget& budget, int depth = 0) {
  if (depth > jinja::Budget::kMostDepth - 10) jinja::raise("the conversation is nested too deeply");
  budget.allocate(sizeof(jinja::Value));
  switch (json.type()) {
    case Json::value_t::null:
      return jinja::Value::none();
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<int64_t>();
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
        jinja::raise("a number of the conversation is too large");
      return json.get<int64_t>();
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (find_invalid_utf8(text) != std::string_view::npos) jinja::raise("a string of the conversation is not UTF-8");
      budget.allocate(2 * text.size());
      return jinja::Text::of_user(text);
    }
    case Json::value_t::array: {
      std::vector<jinja::Value> items;
      for (const Json& item : json) items.push_back(from_json(item, budget, depth + 1));
      return jinja::Value::list(std::move(items));
    }
    case Json::value_t::object: {
      jinja::Dict dict;
      for (const auto& [key, item] : json.items()) {
        if (find_invalid_utf8(key) != std::string_view::npos) jinja::raise("a key of the conversation is not UTF-8");
        dict.set(jinja::Text::of_user(key), from_json(item, budget, depth + 1), budget);
      }
      return dict;
    }
    default:
      jinja::raise("the conversation has a value that is no JSON");
  }
}

// The text up to where the last message's content ends, without the white space that the template took from its end.
void cut_after_final_message(const Json& messages, jinja::Text& text) {
  if (!messages.is_array() || messages.empty() || !messages.back().is_object() || !messages.back().contains("content"))
    jinja::raise("there is no final message to be continued");
  const Json* content = &messages.back()["content"];
  if (content->is_array()) {
    const auto part = std::find_if(content->rbegin(), content->rend(),
                                   [](const Json& p) { return p.is_object() && p.contains("text"); });
    if (part == content->rend()) jinja::raise("the final message has no text to be continued");
    content = &(*part)["text"];
  }
  if (!content->is_string()) jinja::raise("the final message has no text to be continued");
  const jinja::Text final_text{content->get<std::string>(), {}, false};
  const jinja::Text stripped = strip(final_text, jinja::Value::none(), true, true);
  const size_t begin = text.bytes.rfind(stripped.bytes);
  if (begin == std::string::npos)
    jinja::raise("the final message is not in the rendered text as it is, so it cannot be continued");
  const jinja::Text spaced = strip(final_text, jinja::Value::none(), true, false);
  const bool is_whole = text.bytes.compare(begin, spaced.size(), final_text.bytes) == 0;
  text = text.substr(0, begin + (is_whole ? spaced : stripped).size());
}

}  // namespace

ChatTemplate::ChatTemplate() = default;
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

ChatTemplate ChatTemplate::chatml() {
  return parse(
      "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
      "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}");
}

ChatTemplate ChatTemplate::parse(std::string_view source) {
  constexpr size_t kMostBytes = size_t{4} << 20;
  if (source.size() > kMostBytes)
    throw InputError(fmt::format("chat template: {} bytes; the limit is {}", source.size(), kMostBytes));
  if (find_invalid_utf8(source) != std::string_view::npos) throw InputError("chat template: it is not UTF-8");
  ChatTemplate result;
  try {
    result.program_ = std::make_unique<const Program>(Program{jinja::parse_template(source)});
  } catch (const jinja::TemplateError& error) {
    throw jinja::TemplateError(fmt::format("chat template: {}", error.what()));
  }
  result.source_ = source;
  return result;
}

std::vector<TextPart> ChatTemplate::render(const ChatInput& input) const {
  jinja::Text text;
  try {
    if (input.continue_final_message && input.add_generation_prompt)
      jinja::raise("a final message is continued or the answer's turn is opened, not both");
    jinja::Interpreter interpreter(input.now);
    jinja::Budget& budget = interpreter.budget();
    std::vector<std::pair<std::string, jinja::Value>> variables;
    if (input.variables.is_object()) {
      for (const auto& [name, value] : input.variables.items()) variables.emplace_back(name, from_json(value, budget));
    } else if (!input.variables.is_null()) {
      jinja::raise("the template's variables must be an object");
    }
    variables.emplace_back("messages", from_json(input.messages, budget));
    variables.emplace_back("tools", from_json(input.tools, budget));
    variables.emplace_back("documents", jinja::Value::none());
    variables.emplace_back("add_generation_prompt", input.add_generation_prompt);
    // Names that the file does not have are undefined.
    if (!input.bos_token.empty()) variables.emplace_back("bos_token", jinja::Value::string(input.bos_token));
    if (!input.eos_token.empty()) variables.emplace_back("eos_token", jinja::Value::string(input.eos_token));
    text = interpreter.run(program_->body, std::move(variables));
    if (input.continue_final_message) cut_after_final_message(input.messages, text);
  } catch (const jinja::TemplateError& error) {
    throw jinja::TemplateError(fmt::format("chat template: {}", error.what()));
  }
  std::vector<TextPart> parts;
  for (size_t at = 0; at < text.size();) {
    const auto is_user = [&](size_t i) { return !text.origin.empty() && text.origin[i] != 0; };
    size_t end = at + 1;
    while (end < text.size() && is_user(end) == is_user(at)) ++end;
    parts.push_back({text.bytes.substr(at, end - at), /*parse_special=*/!is_user(at)});
    at = end;
  }
  return parts;
}

}  // namespace foretoken
