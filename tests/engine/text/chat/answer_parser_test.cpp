#include "engine/text/chat/answer_parser.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/text/grammar/grammar.h"
#include "engine/text/grammar/matcher.h"
#include "kernels/base/error.h"

namespace foretoken {
namespace {

using Json = nlohmann::ordered_json;

const char* const kTools = R"([
  {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {
      "city": {"type": "string"}, "days": {"type": "integer"}, "hours": {"type": "array", "items": {"type": "integer"}},
      "unit": {"type": "string", "enum": ["c", "f"]}}, "required": ["city", "days"]}}},
  {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}}])";

/// Content, thoughts and calls in one line, as far as they have been told.
struct Answer {
  std::string content, reasoning;
  std::vector<std::string> calls;
  void add(const AnswerDelta& delta) {
    content += delta.content;
    reasoning += delta.reasoning;
    for (const AnswerDelta::Call& call : delta.calls) {
      const auto index = static_cast<size_t>(call.index);
      CHECK(index + 1 >= calls.size());
      CHECK(index <= calls.size());
      if (index == calls.size()) calls.push_back(call.name);
      calls.back() += call.arguments;
    }
  }
  bool operator==(const Answer& other) const = default;
};

AnswerParser::Options options(AnswerForm form, bool in_thought) {
  AnswerParser::Options o;
  o.form = form;
  o.in_thought = in_thought;
  o.tools = Json::parse(kTools);
  return o;
}

Answer parse(const AnswerParser::Options& how, const std::vector<std::string_view>& pieces) {
  AnswerParser parser(how);
  Answer answer;
  for (const std::string_view piece : pieces) answer.add(parser.push(piece));
  answer.add(parser.finish());
  return answer;
}

// Whole, byte by byte, cut in two at every place, and cut at random.
void check(AnswerForm form, const std::string& text, const Answer& expected, bool in_thought = false) {
  INFO(text);
  const AnswerParser::Options how = options(form, in_thought);
  const Answer whole = parse(how, {text});
  for (const std::string& call : whole.calls) CHECK(Json::accept(call.substr(call.find('{'))));
  CHECK(whole.content == expected.content);
  CHECK(whole.reasoning == expected.reasoning);
  CHECK(whole.calls == expected.calls);
  const std::string_view view = text;
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < view.size(); ++i) bytes.push_back(view.substr(i, 1));
  REQUIRE(parse(how, bytes) == whole);
  for (size_t cut = 0; cut <= view.size(); ++cut) REQUIRE(parse(how, {view.substr(0, cut), view.substr(cut)}) == whole);
  std::mt19937 random(1);
  for (int n = 0; n < 200; ++n) {
    std::vector<std::string_view> pieces;
    for (size_t at = 0; at < view.size();) {
      pieces.push_back(view.substr(at, 1 + random() % 12));
      at += pieces.back().size();
    }
    REQUIRE(parse(how, pieces) == whole);
  }
}

TEST_CASE("The form of calls is read from the template", "[answer]") {
  CHECK(detect_answer_form("{{ '<tool_call>' }}{\"name\": ...}") == AnswerForm::kHermes);
  CHECK(detect_answer_form("<tool_call>\n<function=x>") == AnswerForm::kQwenXml);
  CHECK(detect_answer_form("<tool_call>{{ n }}<arg_key>") == AnswerForm::kGlm);
  CHECK(detect_answer_form("<|start|><|channel|>x<|message|>") == AnswerForm::kHarmony);
  CHECK(detect_answer_form("<|im_start|>") == AnswerForm::kPlain);
  CHECK(prompt_opens_thought("<|im_start|>assistant\n<think>\n"));
  CHECK_FALSE(prompt_opens_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
}

TEST_CASE("Thoughts are told from content", "[answer]") {
  check(AnswerForm::kPlain, "Hello\n", {"Hello\n", "", {}});
  check(AnswerForm::kPlain, " <think>\nI see\n</think>\n\nHello", {"Hello", "I see", {}});
  check(AnswerForm::kPlain, "I see\n</think>\n\nHello  \n", {"Hello  \n", "I see", {}}, true);
  check(AnswerForm::kPlain, "never done", {"", "never done", {}}, true);
  check(AnswerForm::kPlain, "a <think> b </think> c <tool_call>{}", {"a <think> b </think> c <tool_call>{}", "", {}});
  check(AnswerForm::kPlain, "<thin", {"<thin", "", {}});
  check(AnswerForm::kPlain, "", {"", "", {}});
  check(AnswerForm::kPlain, "  \n", {"  \n", "", {}});
  check(AnswerForm::kHermes, "<think>a</think>b</think>", {"b</think>", "a", {}});
}

TEST_CASE("Calls in JSON are parsed", "[answer]") {
  const std::string call =
      "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"</tool_call>\\\"\", \"days\": "
      "2}}\n</tool_call>";
  const std::string parsed = R"(weather{"city":"</tool_call>\"","days":2})";
  for (const AnswerForm form : {AnswerForm::kHermes, AnswerForm::kQwenXml}) {
    check(form, call, {"", "", {parsed}});
    check(form, "Let me see.\n\n" + call + "\n" + call + "\n", {"Let me see.", "", {parsed, parsed}});
    check(form, "<think>\nx\n</think>\n" + call + " done", {"done", "x", {parsed}});
    check(form, "<tool_call>{\"name\": \"noop\", \"arguments\": \"{}\"}", {"", "", {"noop{}"}});
    check(form, "a <tool_call>\n{\"name\": \"noop\", \"argu\n</tool_call> b",
          {"a <tool_call>\n{\"name\": \"noop\", \"argu\n</tool_call> b", "", {}});
    check(form, "<tool_call>{\"name\": 3}</tool_call>", {"<tool_call>{\"name\": 3}</tool_call>", "", {}});
    check(form, "<tool_call>{\"name\": \"x\", \"arguments\": [1]}</tool_call>",
          {"<tool_call>{\"name\": \"x\", \"arguments\": [1]}</tool_call>", "", {}});
    check(form, "<tool_call>", {"<tool_call>", "", {}});
    check(form, "<tool_cal> <tool_call></tool_call>", {"<tool_cal> <tool_call></tool_call>", "", {}});
  }
}

TEST_CASE("Calls in marks of XML are parsed", "[answer]") {
  const AnswerForm form = AnswerForm::kQwenXml;
  check(form,
        "Now.\n<tool_call>\n<function=weather>\n<parameter=city>\n 1\n2 "
        "\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "<parameter=hours>\n[1, 2]\n</parameter>\n<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>",
        {"Now.", "", {R"(weather{"city":" 1\n2 ","days":3,"hours":[1,2],"other":"7"})"}});
  check(form, "<tool_call>\n<function=noop>\n</function>\n</tool_call>", {"", "", {"noop{}"}});
  check(form, "<tool_call><function=noop></function>", {"", "", {"noop{}"}});
  check(form, "<tool_call><function=weather><parameter=days>three</parameter></function></tool_call>",
        {"", "", {R"(weather{"days":"three"})"}});
  for (const std::string wrong :
       {"<tool_call><function=noop</tool_call>", "<tool_call><function=noop><parameter=x></function></tool_call>",
        "<tool_call><function=noop>x</function></tool_call>", "<tool_call>noop</tool_call>"}) {
    check(form, wrong, {wrong, "", {}});
  }
}

TEST_CASE("Calls of GLM are parsed", "[answer]") {
  const AnswerForm form = AnswerForm::kGlm;
  check(form,
        "\n<think>hm</think>\nSure.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>12</"
        "arg_value>\n<arg_key>days</arg_key>\n"
        "<arg_value>12</arg_value>\n</tool_call>",
        {"Sure.", "hm", {R"(weather{"city":"12","days":12})"}});
  check(form, "<tool_call>noop</tool_call>", {"", "", {"noop{}"}});
  check(form, "<tool_call>noop<arg_key>a</arg_key></tool_call>",
        {"<tool_call>noop<arg_key>a</arg_key></tool_call>", "", {}});
  check(form, "<tool_call>{\"name\": \"noop\"}</tool_call>", {"<tool_call>{\"name\": \"noop\"}</tool_call>", "", {}});
}

TEST_CASE("Messages of harmony are parsed", "[answer]") {
  const AnswerForm form = AnswerForm::kHarmony;
  check(form, "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>final<|message|>Hello <b>\n",
        {"Hello <b>\n", "I think.", {}});
  check(form,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        "<|constrain|>json<|message|>"
        "{\"city\": \"Bern\", \"days\": 1}<|call|>",
        {"", "hm", {R"(weather{"city":"Bern","days":1})"}});
  check(form, "<|start|>assistant to=functions.noop<|channel|>commentary json<|message|>{}", {"", "", {"noop{}"}});
  check(form, "<|channel|>commentary<|message|>I will call.<|end|>", {"I will call.", "", {}});
  check(form, "<|channel|>commentary to=functions.noop<|message|>{broken<|call|>", {"{broken", "", {}});
  check(form, "Just text <|end", {"Just text <|end", "", {}});
  check(form, "<|channel|>final", {"", "", {}});
}

// Calls of each form, and the arguments that come of them.
struct CallText {
  AnswerForm form;
  std::string text, arguments;
};
std::vector<CallText> call_texts() {
  const std::string json =
      R"({"city": "B\u00fc\ud83d\ude00\"\n }", "days": -1.5e3, "hours": [1, {"a": [ ]}, "x", true, null], "unit": "c"})";
  const std::string minified =
      R"({"city":"B\u00fc\ud83d\ude00\"\n }","days":-1.5e3,"hours":[1,{"a":[]},"x",true,null],"unit":"c"})";
  const std::string bare = R"({"city":"a </b>\n\"c\"\\ \n","days":3,"hours":[1,2],"other":"x"})";
  return {{AnswerForm::kHermes, "<tool_call>\n{\"name\": \"weather\", \"arguments\": " + json + "}\n</tool_call>",
           minified},
          {AnswerForm::kQwenXml, "<tool_call>{\"name\":\"weather\",\"parameters\":" + json + "}</tool_call>", minified},
          {AnswerForm::kHarmony,
           "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + json + "<|call|>", minified},
          {AnswerForm::kQwenXml,
           "<tool_call>\n<function=weather>\n<parameter=city>\na </b>\n\"c\"\\ "
           "\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
           "<parameter=hours>\n[1, 2]\n</parameter>\n<parameter=other>\nx\n</parameter>\n</function>\n</tool_call>",
           bare},
          {AnswerForm::kGlm,
           "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>a </b>\n\"c\"\\ "
           "\n</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
           "<arg_key>hours</arg_key>\n<arg_value>[1, "
           "2]</arg_value>\n<arg_key>other</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
           bare}};
}

TEST_CASE("The arguments of a call are told while they are written", "[answer]") {
  for (const CallText& call : call_texts()) {
    check(call.form, call.text, {"", "", {"weather" + call.arguments}});
    INFO(call.text);
    // Text that leaves the parser at most some marks and names behind where it is written.
    AnswerParser parser(options(call.form, false));
    int deltas = 0;
    std::string told;
    for (size_t i = 0; i < call.text.size(); ++i) {
      const AnswerDelta delta = parser.push(call.text.substr(i, 1));
      for (const AnswerDelta::Call& part : delta.calls) {
        ++deltas;
        told += part.arguments;
        CHECK(part.name == "weather");
      }
    }
    CHECK(told == call.arguments);
    CHECK(deltas > 15);
    // Cut off anywhere, it is text, or arguments that are valid and the beginning of all.
    int num_calls = 0;
    for (size_t length = 0; length < call.text.size(); ++length) {
      const std::string_view cut = std::string_view(call.text).substr(0, length);
      const Answer answer = parse(options(call.form, false), {cut});
      std::vector<std::string_view> bytes;
      for (size_t i = 0; i < cut.size(); ++i) bytes.push_back(cut.substr(i, 1));
      REQUIRE(parse(options(call.form, false), bytes) == answer);
      REQUIRE(answer.calls.size() <= 1);
      num_calls += static_cast<int>(answer.calls.size());
      if (answer.calls.empty()) continue;
      const std::string arguments = answer.calls[0].substr(7);
      REQUIRE(Json::parse(arguments).is_object());
      REQUIRE(answer.content.empty());
      const size_t same = static_cast<size_t>(
          std::mismatch(arguments.begin(), arguments.end(), call.arguments.begin(), call.arguments.end()).first -
          arguments.begin());
      REQUIRE(arguments.find_first_not_of("\"]}", same) == std::string::npos);
    }
    CHECK(num_calls > 40);
  }
}

TEST_CASE("A call that goes wrong has the arguments that were right", "[answer]") {
  const std::string head = "<tool_call>{\"name\": \"weather\", \"arguments\": ";
  const std::string city = R"(weather{"city":"B"})";
  for (const AnswerForm form : {AnswerForm::kHermes, AnswerForm::kQwenXml}) {
    // Control characters and lone backslashes within strings are what was meant.
    check(form, head + "{\"city\": \"a\n\tb\\d\"}}</tool_call>", {"", "", {R"(weather{"city":"a\n\tb\\d"})"}});
    check(form, head + "{\"city\": \"B\"}</tool_call> x", {"x", "", {city}});
    check(form, head + "{\"city\": \"B\"}, \"id\": [{}]}\n</tool_call>\nx", {"x", "", {city}});
    check(form, head + "{\"city\": \"B\"}}\nNow x", {"Now x", "", {city}});
    check(form, head + "{\"city\": \"B\", }}</tool_call> x", {", }}</tool_call> x", "", {city}});
    check(form, head + "{\"city\": \"B\", \"days\": two}}</tool_call>", {", \"days\": two}}</tool_call>", "", {city}});
    check(form, head + "{\"city\": \"B\"}}</tool_call>" + head + "{\"days\": 1}}</tool_call>",
          {"", "", {city, R"(weather{"days":1})"}});
    // Nothing was told yet: text.
    for (const std::string rest :
         {"{\"city\": B}}</tool_call>", "{city: 1}}</tool_call>", "{\"days\": 01}}</tool_call>",
          "{\"city\"}}</tool_call>", "null}</tool_call>", "{\"days\": 1"})
      check(form, head + rest, {head + rest, "", {}});
    // In another order, or of a tool that nobody knows: read as a whole.
    check(form, "<tool_call>{\"arguments\": {\"city\": \"B\"}, \"name\": \"weather\"}</tool_call>", {"", "", {city}});
    check(form, "<tool_call>{\"name\": \"x\", \"arguments\": {\"city\": \"B\"}}</tool_call>",
          {"", "", {R"(x{"city":"B"})"}});
    check(form, "<tool_call>{\"name\": \"x\", \"arguments\": {\"city\": \"B\"",
          {"<tool_call>{\"name\": \"x\", \"arguments\": {\"city\": \"B\"", "", {}});
  }
  const std::string deep = head + "{\"city\": " + std::string(300, '[') + std::string(300, ']') + "}}</tool_call>";
  CHECK(parse(options(AnswerForm::kHermes, false), {deep}).calls.size() == 1);
  const std::string xml = "<tool_call>\n<function=weather>\n<parameter=city>\nB\n</parameter>\n";
  check(AnswerForm::kQwenXml, xml + "</tool_call>\nx", {"x", "", {city}});
  check(AnswerForm::kQwenXml, xml + "hm\n</tool_call>", {"hm\n</tool_call>", "", {city}});
  check(AnswerForm::kQwenXml, xml + "<parameter=city>\nC\n</parameter>\n</function>\n</tool_call>", {"", "", {city}});
  check(AnswerForm::kQwenXml, xml + "<parameter=days>\n1\n</function></tool_call>",
        {"<parameter=days>\n1\n</function></tool_call>", "", {city}});
  check(AnswerForm::kQwenXml, "<tool_call><function=weather><parameter=city></parameter></function></tool_call>",
        {"", "", {R"(weather{"city":""})"}});
  check(AnswerForm::kQwenXml, "<tool_call><function=weather><parameter=city>\n</tool_call>",
        {"<tool_call><function=weather><parameter=city>\n</tool_call>", "", {}});
  check(AnswerForm::kHarmony, "<|channel|>commentary to=functions.weather<|message|>{\"city\": \"B\", x<|call|>",
        {", x", "", {city}});
  check(AnswerForm::kQwenXml,
        "<tool_call><function=weather><parameter=city>\n</function> B\n</function>\n</tool_call>\nx",
        {"x", "", {R"(weather{"city":"</function> B"})"}});
}

TEST_CASE("Calls and thoughts stay text where that is asked for", "[answer]") {
  AnswerParser::Options how = options(AnswerForm::kHermes, false);
  how.parse_calls = how.parse_reasoning = false;
  const std::string text = "<think>a</think>\n<tool_call>{\"name\": \"noop\"}</tool_call>";
  CHECK(parse(how, {text}) == Answer{text, "", {}});
}

TEST_CASE("A forced call is one that is parsed again", "[answer]") {
  const Json tools = Json::parse(kTools);
  constexpr auto kNone = ThoughtBefore::kNone, kOpened = ThoughtBefore::kOpened, kMayOpen = ThoughtBefore::kMayOpen;
  const auto judge = [&](AnswerForm form, std::string_view name, bool several, ThoughtBefore thought,
                         const std::string& text) {
    INFO(text);
    static const auto none = std::make_shared<const TokenTrie>(std::vector<std::string_view>{}, std::vector<TokenId>{});
    GrammarMatcher matcher(
        std::make_shared<const Grammar>(Grammar::parse(tool_call_gbnf(form, tools, name, several, thought))), none);
    const auto state = matcher.accept_bytes(matcher.start(), text);
    const bool accepted = state != GrammarMatcher::kDead && matcher.is_complete(state);
    if (accepted) CHECK_FALSE(parse(options(form, thought == ThoughtBefore::kOpened), {text}).calls.empty());
    return accepted;
  };
  const std::string json =
      "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"B\", \"days\": 1}}\n</tool_call>";
  CHECK(judge(AnswerForm::kHermes, "weather", false, kNone, json));
  CHECK(judge(AnswerForm::kHermes, "", true, kNone, json + "\n" + json));
  CHECK_FALSE(judge(AnswerForm::kHermes, "", false, kNone, json + "\n" + json));
  CHECK_FALSE(judge(AnswerForm::kHermes, "noop", false, kNone, json));
  CHECK(judge(AnswerForm::kHermes, "", false, kOpened, "I < think </x\n</think>\n\n" + json));
  const std::string xml =
      "<tool_call>\n<function=weather>\n<parameter=city>\na <b> "
      "</c>\n</parameter>\n<parameter=days>\n12\n</parameter>\n"
      "<parameter=unit>\nc\n</parameter>\n</function>\n</tool_call>";
  CHECK(judge(AnswerForm::kQwenXml, "weather", false, kNone, xml));
  CHECK(judge(AnswerForm::kQwenXml, "", true, kOpened, "x</think>\n\n" + xml));
  CHECK_FALSE(judge(AnswerForm::kQwenXml, "", false, kNone, "hello"));
  CHECK(judge(AnswerForm::kQwenXml, "noop", false, kNone, "<tool_call>\n<function=noop>\n</function>\n</tool_call>"));
  CHECK(judge(AnswerForm::kGlm, "weather", false, kNone,
              "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>x < "
              "y</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>"));
  CHECK(judge(AnswerForm::kHermes, "", false, kMayOpen, "<think>\nI see\n</think>\n\n" + json));
  CHECK(judge(AnswerForm::kHermes, "", false, kMayOpen, json));
  CHECK_FALSE(judge(AnswerForm::kHermes, "", false, kNone, "<think>x</think>" + json));
  const std::string harmony =
      "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"B <|\", \"days\": 1}";
  CHECK(judge(AnswerForm::kHarmony, "", false, kMayOpen, harmony));
  CHECK(judge(AnswerForm::kHarmony, "weather", true, kMayOpen,
              "<|channel|>analysis<|message|>I < << see<|end|><|start|>assistant" + harmony));
  CHECK_FALSE(judge(AnswerForm::kHarmony, "noop", false, kMayOpen, harmony));
  CHECK_THROWS_WITH(tool_call_gbnf(AnswerForm::kPlain, tools, "", false, kNone), Catch::Contains("forced"));
  CHECK_THROWS_WITH(tool_call_gbnf(AnswerForm::kHermes, tools, "nobody", false, kNone), Catch::Contains("nobody"));
}

TEST_CASE("A schema rules the content and leaves thoughts free", "[answer]") {
  const auto accepts = [](AnswerForm form, ThoughtBefore thought, std::string_view text) {
    static const auto none = std::make_shared<const TokenTrie>(std::vector<std::string_view>{}, std::vector<TokenId>{});
    const std::string schema = json_schema_to_gbnf(Json::parse(R"({"type": "array", "items": {"type": "integer"}})"));
    GrammarMatcher matcher(std::make_shared<const Grammar>(Grammar::parse(content_gbnf(form, schema, thought))), none);
    const auto state = matcher.accept_bytes(matcher.start(), text);
    return state != GrammarMatcher::kDead && matcher.is_complete(state);
  };
  CHECK(accepts(AnswerForm::kHermes, ThoughtBefore::kNone, "[1, 2]"));
  CHECK_FALSE(accepts(AnswerForm::kHermes, ThoughtBefore::kNone, "x</think>[1]"));
  CHECK(accepts(AnswerForm::kPlain, ThoughtBefore::kOpened, "x [ </think>\n\n[1]"));
  CHECK_FALSE(accepts(AnswerForm::kPlain, ThoughtBefore::kOpened, "[1]"));
  CHECK(accepts(AnswerForm::kQwenXml, ThoughtBefore::kMayOpen, "[1]"));
  CHECK(accepts(AnswerForm::kQwenXml, ThoughtBefore::kMayOpen, "<think>x</think>[1]"));
  CHECK(accepts(AnswerForm::kHarmony, ThoughtBefore::kMayOpen,
                "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>[1]"));
}

TEST_CASE("Where one call is asked for, what follows it is dropped", "[answer]") {
  AnswerParser::Options how = options(AnswerForm::kHermes, false);
  how.most_calls = 1;
  const std::string call = "<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>";
  const std::string text = "I will.\n" + call + "\n" + call + "\nDone.";
  for (size_t cut = 0; cut <= text.size(); ++cut) {
    const std::string_view view = text;
    CHECK(parse(how, {view.substr(0, cut), view.substr(cut)}) == Answer{"I will.", "", {"noop{}"}});
  }
}

}  // namespace
}  // namespace foretoken
