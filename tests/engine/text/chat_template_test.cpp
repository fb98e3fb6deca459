#include "engine/text/chat_template.h"

#include <catch2/catch.hpp>

#include "kernels/base/error.h"

namespace foretoken {
namespace {

std::string render(std::string_view source, std::string_view content = "hi") {
  const ChatMessage message{"user", content};
  std::string text;
  for (const TextPart& part : ChatTemplate::parse(source).render({&message, 1}, "<s>", "</s>")) text += part.text;
  return text;
}

constexpr const char* kChatml = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";

TEST_CASE("ChatML is rendered from every spelling of it", "[chat]") {
  for (const char* source : {
           "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
           "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
           "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
           "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
           "{%- for message in messages -%}\n  {{- \"<|im_start|>\" ~ message[\"role\"] ~ \"\\n\" -}}\n"
           "  {{- message.content + '<|im_end|>\\n' -}}\n{%- endfor -%}\n"
           "{%- if add_generation_prompt -%}\n  {{- '<|im_start|>assistant\\n' -}}\n{%- endif -%}\n",
           "{# ChatML #}\n{% for message in messages %}\n    {{ '<|im_start|>' + message.role }}\n"
           "{{ message.content }}<|im_end|>\n    {% endfor %}\n{% if add_generation_prompt %}\n"
           "<|im_start|>assistant\n\n{% else %}\nnothing {{ eos_token }}{% endif %}",
       }) {
    INFO(source);
    // The indentation of an output stays, that of a block does not.
    std::string text = render(source);
    if (text.starts_with("    <|im_start|>user")) {
      CHECK(text == "    <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n\n");
    } else {
      CHECK(text == kChatml);
    }
  }
}

// Expected texts by Jinja2 3.1 with trim_blocks and lstrip_blocks.
TEST_CASE("White space goes by trim_blocks and lstrip_blocks", "[chat]") {
  const std::string body = "{{ m.content }}";
  CHECK(render("{% for m in messages %}\n" + body + "\n{% endfor %}\nend\n") == "hi\nend");
  CHECK(render("  {% for m in messages %}  " + body + "  {% endfor %}  \nend") == "  hi    \nend");
  CHECK(render("a  {% for m in messages %}" + body + "{% endfor %}") == "a  hi");
  CHECK(render("a\n  {% for m in messages %}\n  " + body + "\n\t{% endfor %}\n\n") == "a\n  hi\n");
  CHECK(render("a\n  {%+ for m in messages %}" + body + "{% endfor +%}\nb") == "a\n  hi\nb");
  CHECK(render("a \n {%- for m in messages -%} \n " + body + " {%- endfor %} b") == "ahi b");
  CHECK(render("x {# {{ no }} #}\n{% for m in messages %}" + body + "{% endfor %}") == "x hi");
  CHECK(render("{% for m in messages %}{{- ' a ' -}} " + body + "{% endfor %}") == " a hi");
  CHECK(render("{% for m in messages %}{{ '%}' + \"}}\" }}" + body + "{% endfor %}") == "%}}}hi");
  CHECK(render("{{ bos_token }}{% for m in messages %}" + body + "{{ eos_token }}{% endfor %}") == "<s>hi</s>");
  CHECK(render("{% for m in messages %}" + body + "{% endfor %}<think>\n") == "hi<think>");
  CHECK(render("{% for m in messages %}" + body + "{% endfor %}<think>\n\n") == "hi<think>\n");
}

TEST_CASE("What a message holds is plain text, the template's own is not", "[chat]") {
  const ChatMessage message{"user", "{{ x }}<|im_end|>"};
  const auto parts = ChatTemplate::chatml().render({&message, 1}, "", "");
  REQUIRE(parts.size() == 3);
  CHECK((parts[0].parse_special && !parts[1].parse_special && parts[2].parse_special));
  CHECK(parts[1].text == "{{ x }}<|im_end|>");
  CHECK(parts[2].text == "<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("A template that does more is refused, and the message quotes what", "[chat]") {
  const std::string loop = "{% for m in messages %}{{ m.content }}{% endfor %}";
  const auto refused = [](const std::string& source, const std::string& quoted) {
    INFO(source);
    CHECK_THROWS_WITH(ChatTemplate::parse(source),
                      Catch::StartsWith("--chat: the file's chat template has ") && Catch::Contains(quoted));
  };
  refused("{% for m in messages %}{{ m.content | trim }}{% endfor %}", "m.content | trim");  // Qwen3.5
  refused("{%- if tools %}{{ 'x' }}{%- endif %}" + loop, "{%- if tools %}");                 // Qwen2.5, QwQ
  refused("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}", "loop.first");
  refused("{% set content = 'x' %}" + loop, "{% set content");
  refused("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", "m.role == 'user'");
  refused("{{ raise_exception('no') }}" + loop, "raise_exception");
  refused("{% for m in messages %}{{ m.content.strip() }}{% endfor %}", "m.content.strip()");
  refused("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", "messages[1:]");
  refused("{% for m in messages %}{{ '\\u2581' + m.content }}{% endfor %}", "u2581");
  refused("{% for m in messages %}{{ m['content'][0] }}{% endfor %}", "m['content'][0]");
  refused("{% for m in messages %}{{ m.content }}", "end tag");
  refused("{% raw %}{{ x }}{% endraw %}" + loop, "raw");
  refused("{% for m in messages %}{{ m.content }}{% else %}{% endfor %}", "else");
  refused("{% for m in messages %}{{ m.role }}{% endfor %}", "no place for a message's content");
  refused("hello", "no place");
  refused(loop + "{{ 'open", "'open");
  refused(loop + "{{ enable_thinking }}", "enable_thinking");
  refused("{% if not add_generation_prompt %}x{% endif %}" + loop, "not add_generation_prompt");
  refused("{% for m in messages %}{{ m.contents }}{% endfor %}", "m.contents");
  refused("a\r\n" + loop, "carriage");
  CHECK_THROWS_WITH(ChatTemplate::parse("{{ bos_token }}" + loop).render({}, "", ""), Catch::Contains("bos_token"));
}

}  // namespace
}  // namespace foretoken
