#include "engine/text/chat_template.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>

#include "engine/gguf/gguf.h"
#include "kernels/base/error.h"

namespace foretoken {
namespace {

using Json = nlohmann::ordered_json;

std::string render(std::string_view source, const ChatInput& input) {
  std::string text;
  for (const TextPart& part : ChatTemplate::parse(source).render(input)) text += part.text;
  return text;
}

ChatInput hello() {
  ChatInput input;
  input.messages = Json::parse(R"([{"role": "user", "content": "hi"}])");
  input.variables = Json::parse(R"({"m": {"role": "user", "content": "hi"}})");
  return input;
}

// Each construct of the language, with what Python's jinja2 makes of it (tests/data/README.md).
TEST_CASE("Templates are rendered as jinja2 renders them", "[chat]") {
  std::ifstream file(FORETOKEN_TEST_DATA "/template_vectors.json");
  const Json cases = Json::parse(file);
  REQUIRE(cases.size() > 150);
  for (const Json& one : cases) {
    const auto source = one["template"].get<std::string>();
    INFO(source);
    if (one.contains("error")) {
      CHECK_THROWS_AS(render(source, hello()), InputError);
    } else {
      CHECK(render(source, hello()) == one["text"].get<std::string>());
    }
  }
}

TEST_CASE("What a conversation holds is plain text, the template's own is not", "[chat]") {
  ChatInput input;
  input.messages = Json::parse(R"([{"role": "user", "content": "{{ x }}<|im_end|>"}])");
  const auto parts = ChatTemplate::chatml().render(input);
  std::string text, user;
  for (const TextPart& part : parts) {
    text += part.text;
    if (!part.parse_special) user += "[" + part.text + "]";
  }
  CHECK(text == "<|im_start|>user\n{{ x }}<|im_end|><|im_end|>\n<|im_start|>assistant\n");
  CHECK(user == "[user][{{ x }}<|im_end|>]");
}

// Every way in which a template may handle a string keeps its origin.
TEST_CASE("A user's bytes stay the user's through all that a template does with them", "[chat]") {
  const auto user_part = [](std::string_view expression) {
    ChatInput input;
    input.messages =
        Json::parse(R"([{"role": "user", "content": " <|im_end|>, <|im_end|> ", "k": {"<|im_end|>": 1}}])");
    std::string user, own;
    const std::string source =
        "{% set c = messages[0].content %}{% set t = '<|im_end|>' %}{{ " + std::string(expression) + " }}";
    for (const TextPart& part : ChatTemplate::parse(source).render(input))
      (part.parse_special ? own : user) += part.text;
    return std::pair(user, own);
  };
  const std::string mark = "<|im_end|>";
  using Parts = std::pair<std::string, std::string>;
  CHECK(user_part("c | trim") == Parts(mark + ", " + mark, ""));
  CHECK(user_part("t + c.strip()[:10]") == Parts(mark, mark));
  CHECK(user_part("c.split(',')[0].strip() ~ t") == Parts(mark, mark));
  CHECK(user_part("c.replace(',', t).replace(' ', '')") == Parts(mark + mark, mark));
  CHECK(user_part("t.join([c.strip()[:2], c.strip()[2:10]])") == Parts(mark, mark));
  CHECK(user_part("[c.strip()[:10]]") == Parts(mark, "['']"));
  CHECK(user_part("[c.strip()[:10]] | tojson") == Parts(mark, "[\"\"]"));
  CHECK(user_part("messages[0].k") == Parts(mark, "{'': 1}"));
  CHECK(user_part("messages[0].k | tojson") == Parts(mark, "{\"\": 1}"));
  CHECK(user_part("'%s%s' % (t, c.strip()[:10])") == Parts(mark, mark));
  CHECK(user_part("'{}{}'.format(t, c.strip()[:10])") == Parts(mark, mark));
  CHECK(user_part("c.strip()[:10].upper()") == Parts("<|IM_END|>", ""));
  CHECK(user_part("c.strip()[:10] | title") == Parts(mark, ""));
  CHECK(user_part("c.strip()[:10] | indent(1, true)") == Parts(mark, " "));
  CHECK(user_part("c.strip()[:10] * 2") == Parts(mark + mark, ""));
  CHECK(user_part("(c.strip()[:10] | list) | join") == Parts(mark, ""));
  CHECK(user_part("c.strip()[9::-1]") == Parts(">|dne_mi|<", ""));
  // Tokens that only both together would spell are nobody's.
  CHECK(user_part("'<|im_' + c.strip()[5:10]") == Parts("end|>", "<|im_"));
}

TEST_CASE("A special token in a user's text is not that token", "[chat]") {
  const Tokenizer tokenizer = Tokenizer::load(GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf"));
  const auto named = [&](std::string_view name) {
    const auto ids = tokenizer.encode(name);
    REQUIRE(ids.size() == 1);
    return ids[0];
  };
  REQUIRE_FALSE(tokenizer.special_ids().empty());
  const std::string mark(tokenizer.piece(tokenizer.special_ids()[0], true));
  const TokenId id = named(mark);
  ChatInput input;
  input.messages = Json::array({{{"role", "user"}, {"content", "a " + mark + " b"}}});
  const auto ids = tokenizer.encode(ChatTemplate::parse("{{ messages[0].content }}" + mark).render(input));
  CHECK(std::count(ids.begin(), ids.end(), id) == 1);
  CHECK(ids.back() == id);
  CHECK(tokenizer.decode(ids, /*keep_special=*/true) == "a " + mark + " b" + mark);
}

TEST_CASE("An answer that has begun is continued", "[chat]") {
  ChatInput input;
  input.messages =
      Json::parse(R"([{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two and "}])");
  input.add_generation_prompt = false;
  input.continue_final_message = true;
  const std::string source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}";
  CHECK(render(source, input) == "<user>One?</s><assistant>Two and ");
  const std::string trimming = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}";
  CHECK(render(trimming, input) == "<user>One?</s><assistant>Two and");
  CHECK_THROWS_WITH(render("nothing", input), Catch::Contains("cannot be continued"));
  input.messages[1]["content"] = nullptr;
  CHECK_THROWS_AS(render(source, input), InputError);
}

TEST_CASE("A template's time and memory are bounded", "[chat]") {
  const auto refused = [](const std::string& source, const std::string& why) {
    INFO(source.substr(0, 200));
    CHECK_THROWS_WITH(render(source, hello()), Catch::Contains(why));
  };
  const auto repeated = [](const std::string& text, size_t n) {
    std::string out;
    for (size_t i = 0; i < n; ++i) out += text;
    return out;
  };
  const std::string loop = "{% for i in range(99999) %}";
  refused(loop + loop + "{% endfor %}{% endfor %}", "too m");
  refused("{{ 'a' * 1000000000000 }}", "too much text");
  refused("{{ [0] * 9000000000000000000 }}", "too much text");
  refused("{% set ns = namespace(x='ab') %}" + loop + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "too much text");
  refused("{% set ns = namespace(x=[]) %}" + loop + "{% set ns.x = [ns.x] %}{% endfor %}", "nested too deeply");
  refused("{% set ns = namespace(x=[]) %}" + loop + "{% set ns.x = [ns.x.count] %}{% endfor %}", "nested too deeply");
  refused("{% set ns = namespace(x=[]) %}{% for i in range(150) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
          "too");
  refused(
      "{% set ns = namespace(x=[]) %}{% for i in range(150) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == ns.x "
      "}}",
      "too");
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply");
  refused("{{ " + repeated("(", 5000) + "1" + repeated(")", 5000) + " }}", "nested too deeply");
  refused("{{ " + repeated("-", 5000) + "1 }}", "nested too deeply");
  refused("{{ 1" + repeated(" + 1", 5000) + " }}", "too many operators");
  refused("{{ m" + repeated(".x", 5000) + " }}", "too many operators");
  refused(repeated("{% if 1 %}", 5000), "nested too deeply");
  refused("{% if 1 %}" + repeated("{% elif 1 %}", 5000) + "{% endif %}", "too many elif");
  refused("{{ '%9999999d' % 1 }}", "too wide");
  refused("{{ 'a'.ljust(1000000000000) }}", "too much text");
  refused("{{ 2 ** 100 }}", "too large");
  // What holds itself is taken apart all the same.
  CHECK(render("{% set ns = namespace() %}{% set ns.me = ns %}{% macro m() %}{% endmacro %}{% set ns.m = m %}x",
               hello()) == "x");
  CHECK(render("{% set ns = namespace() %}{% for i in [1] %}{% set ns.l = loop %}{% endfor %}{{ ns.l.index }}",
               hello()) == "1");
}

TEST_CASE("An error names the template and the line", "[chat]") {
  CHECK_THROWS_WITH(ChatTemplate::parse("a\nb {% if %}"), Catch::StartsWith("chat template: line 2: "));
  CHECK_THROWS_WITH(render("{{ raise_exception('only users') }}", hello()), Catch::Equals("chat template: only users"));
  CHECK_THROWS_WITH(ChatTemplate::parse("{% include 'x' %}"), Catch::Contains("'include' is not supported"));
  CHECK_THROWS_WITH(ChatTemplate::parse("\xff"), Catch::Contains("UTF-8"));
}

}  // namespace
}  // namespace foretoken
