#include "tools/serve/chat_request.h"

#include <catch2/catch.hpp>

#include "tests/tools/subprocess.h"
#include "tools/serve/api_error.h"

namespace foretoken::test {
namespace {

using Catch::Matchers::Contains;
using ToolUse = ChatRequest::ToolUse;

const Model& model() {
  static const Model model = Model::load(kDemoModel, {});
  return model;
}

const ChatPrompts& prompts(const std::string& form) {
  static std::map<std::string, ChatPrompts> known;
  const auto found = known.find(form);
  if (found != known.end()) return found->second;
  const std::string source = read_all(FORETOKEN_SOURCE_DIR "/tests/tools/serve/templates/" + form + ".jinja");
  return known.try_emplace(form, model().tokenizer(), source).first->second;
}

using Parse = ChatRequest (*)(const Fields&, const ChatDefaults&);

ChatRequest parse(Parse parse_api, const std::string& body) {
  const Json json = parse_body(body);
  return parse_api(Fields(json), {});
}

std::string refusal(Parse parse_api, const std::string& body) {
  try {
    (void)parse(parse_api, body);
  } catch (const ApiError& error) {
    return std::to_string(error.status()) + " " + error.what();
  }
  return "taken";
}

std::string rendered(const std::string& form, const ChatRequest& chat) {
  std::string text;
  for (const TextPart& part : prompts(form).render(chat)) text += part.text;
  return text;
}

GenerationRequest generation(const std::string& form, const std::string& body) {
  ServedModel served;
  served.tokenizer = &model().tokenizer();
  served.ctx_size = 2048;
  const Json json = parse_body(body);
  return parse_chat_generation(Fields(json), served, prompts(form), parse_openai_chat(Fields(json), {}));
}

/// Whether the rules let an answer be this text.
bool allows(const GenerationRequest& request, std::string_view text) {
  REQUIRE(request.rules.grammar != nullptr);
  GrammarMatcher& matcher = *request.rules.grammar;
  const auto state = matcher.accept_bytes(matcher.start(), text);
  return state != GrammarMatcher::kDead && matcher.is_complete(state);
}

const std::string kOpenAiTools =
    R"("tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object",
       "properties": {"city": {"type": "string"}}, "required": ["city"]}}}, {"type": "function", "function": {"name": "noop"}}])";

}  // namespace

TEST_CASE("Three APIs ask for the same conversation in their own words", "[serve]") {
  const ChatRequest openai = parse(parse_openai_chat, R"({"messages": [
      {"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
      {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Bern\"}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "rain"}], )" +
                                                          kOpenAiTools + "}");
  const ChatRequest anthropic = parse(parse_anthropic_chat, R"({"system": "Be brief.", "messages": [
      {"role": "user", "content": "Weather?"},
      {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]}]}],
    "tools": [{"name": "weather", "description": "d", "input_schema": {"type": "object",
      "properties": {"city": {"type": "string"}}, "required": ["city"]}}, {"type": "custom", "name": "noop"}]})");
  const ChatRequest responses = parse(parse_responses_chat, R"({"instructions": "Be brief.", "input": [
      {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
      {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
      {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Bern\"}"},
      {"type": "function_call_output", "call_id": "c1", "output": "rain"}],
    "tools": [{"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object",
      "properties": {"city": {"type": "string"}}, "required": ["city"]}}, {"type": "function", "name": "noop"}]})");
  for (const char* form : {"hermes", "qwen_xml", "glm", "harmony"}) {
    INFO(form);
    const std::string text = rendered(form, openai);
    CHECK(text == rendered(form, anthropic));
    CHECK(text == rendered(form, responses));
    CHECK_THAT(text, Contains("Bern") && Contains("rain") && Contains("noop"));
  }
  CHECK_THAT(rendered("hermes", openai), Contains("<think>\nhm\n</think>\n\n<tool_call>\n{\"name\": \"weather\", "
                                                  "\"arguments\": {\"city\": \"Bern\"}}\n</tool_call>") &&
                                             Contains("<tool_response>\nrain\n</tool_response>"));
  CHECK_THAT(rendered("qwen_xml", openai), Contains("<function=weather>\n<parameter=city>\nBern\n</parameter>"));
  CHECK_THAT(rendered("harmony", openai),
             Contains("<|channel|>analysis<|message|>hm<|end|>") &&
                 Contains("to=functions.weather<|channel|>commentary json<|message|>{\"city\": "
                          "\"Bern\"}<|call|>"));
}

TEST_CASE("Arguments that are no JSON reach the template as they are", "[serve]") {
  const ChatRequest chat = parse(parse_openai_chat, R"({"messages": [{"role": "user", "content": "x"},
      {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{broken"}}]}]})");
  CHECK(chat.messages[1]["tool_calls"][0]["function"]["arguments"] == "{broken");
  // A template that joins them to a string is given strings.
  const ChatPrompts joins(model().tokenizer(),
                          "{% for m in messages %}{% for c in m.tool_calls %}{{ 'call ' + c.function.arguments }}"
                          "{% endfor %}{% endfor %}");
  const ChatRequest call = parse(parse_openai_chat, R"({"messages": [{"role": "assistant", "tool_calls": [
      {"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}]})");
  CHECK(joins.render(call)[0].text + joins.render(call)[1].text == "call {\"a\":1}");
}

TEST_CASE("How tools may be called is read from each API", "[serve]") {
  struct Case {
    Parse parse;
    std::string fields;
    ToolUse use;
    const char* forced;
    bool parallel;
  };
  const std::string chat = R"({"messages": [{"role": "user", "content": "x"}], )" + kOpenAiTools;
  const std::string messages =
      R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "noop", "input_schema": {}}])";
  const std::string input = R"({"input": "x", "tools": [{"type": "function", "name": "noop", "parameters": {}}])";
  const Case cases[] = {
      {parse_openai_chat, chat + "}", ToolUse::kAuto, "", true},
      {parse_openai_chat, chat + R"(, "tool_choice": "auto", "parallel_tool_calls": false})", ToolUse::kAuto, "",
       false},
      {parse_openai_chat, chat + R"(, "tool_choice": "none"})", ToolUse::kNone, "", true},
      {parse_openai_chat, chat + R"(, "tool_choice": "required"})", ToolUse::kRequired, "", true},
      {parse_openai_chat, chat + R"(, "tool_choice": {"type": "function", "function": {"name": "noop"}}})",
       ToolUse::kRequired, "noop", true},
      {parse_anthropic_chat, messages + R"(, "tool_choice": {"type": "any", "disable_parallel_tool_use": true}})",
       ToolUse::kRequired, "", false},
      {parse_anthropic_chat, messages + R"(, "tool_choice": {"type": "tool", "name": "noop"}})", ToolUse::kRequired,
       "noop", true},
      {parse_anthropic_chat, messages + R"(, "tool_choice": {"type": "none"}})", ToolUse::kNone, "", true},
      {parse_responses_chat, input + R"(, "tool_choice": {"type": "function", "name": "noop"}})", ToolUse::kRequired,
       "noop", true},
      {parse_responses_chat, input + R"(, "tool_choice": "required"})", ToolUse::kRequired, "", true},
  };
  for (const Case& one : cases) {
    INFO(one.fields);
    const ChatRequest got = parse(one.parse, one.fields);
    CHECK(got.tool_use == one.use);
    CHECK(got.forced_tool == one.forced);
    CHECK(got.parallel_calls == one.parallel);
  }
  // Where none may be called the model is told of none.
  CHECK_THAT(rendered("hermes", parse(parse_openai_chat, chat + R"(, "tool_choice": "none"})")), !Contains("weather"));
}

TEST_CASE("Chats that cannot be are refused with the field's name", "[serve]") {
  const std::string chat = R"({"messages": [{"role": "user", "content": "x"}], )" + kOpenAiTools;
  const std::string bare = R"({"messages": [{"role": "user", "content": "x"}])";
  CHECK_THAT(refusal(parse_openai_chat, chat + R"(, "tool_choice": "king"})"), Contains("400 \"tool_choice\""));
  CHECK_THAT(refusal(parse_openai_chat, chat + R"(, "tool_choice": 7})"), Contains("400 \"tool_choice\""));
  CHECK_THAT(refusal(parse_openai_chat, chat + R"(, "tool_choice": {"type": "function", "function": {"name": "x"}}})"),
             Contains("there is no tool \"x\""));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "tool_choice": "required"})"), Contains("there are no tools"));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "tools": [{"type": "web_search"}]})"), Contains("501 "));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "tools": [{"type": "function"}]})"),
             Contains("\"tools[0].function\""));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "tools": [{"function": {"name": "a b"}}]})"), Contains("400 "));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "tools": [{"function": {"name": "a", "parameters": 1}}]})"),
             Contains("400 "));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "functions": []})"), Contains("501 "));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "reasoning_format": "x"})"), Contains("400 \"reasoning_format\""));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "continue_final_message": true})"),
             Contains("not the assistant's"));
  CHECK_THAT(refusal(parse_openai_chat, bare + R"(, "continue_final_message": true, "add_generation_prompt": true})"),
             Contains("not both"));
  CHECK_THAT(refusal(parse_openai_chat, R"({"messages": [{"role": "assistant", "tool_calls": [{}]}]})"),
             Contains("\"messages[0].tool_calls[0].function\""));
  CHECK_THAT(refusal(parse_responses_chat, R"({"input": "x", "tools": [{"type": "web_search"}]})"), Contains("501 "));
  CHECK_THAT(refusal(parse_anthropic_chat, bare + R"(, "thinking": {"type": "x"}})"),
             Contains("400 \"thinking.type\""));
}

TEST_CASE("What a chat says of thoughts reaches the template", "[serve]") {
  const std::string bare = R"({"messages": [{"role": "user", "content": "x"}])";
  const auto thought = [](const std::string& form, const ChatRequest& chat) {
    return prompts(form).thought_before(chat, prompts(form).render(chat));
  };
  const ChatRequest plain = parse(parse_openai_chat, bare + "}");
  CHECK(thought("qwen_xml", plain) == ThoughtBefore::kOpened);
  CHECK(thought("hermes", plain) == ThoughtBefore::kMayOpen);
  CHECK(thought("harmony", plain) == ThoughtBefore::kMayOpen);
  for (const char* fields :
       {R"(, "enable_thinking": false})", R"(, "chat_template_kwargs": {"enable_thinking": false}})",
        R"(, "reasoning_effort": "none"})"}) {
    const ChatRequest chat = parse(parse_openai_chat, bare + fields);
    for (const char* form : {"qwen_xml", "hermes", "glm"}) CHECK(thought(form, chat) == ThoughtBefore::kNone);
  }
  CHECK(thought("hermes", parse(parse_anthropic_chat, bare + R"(, "thinking": {"type": "disabled"}})")) ==
        ThoughtBefore::kNone);
  CHECK_THAT(rendered("harmony", parse(parse_responses_chat, R"({"input": "x", "reasoning": {"effort": "high"}})")),
             Contains("Reasoning: high"));
  // What the user writes opens no thought, and the server's own variables hold where a request has none.
  CHECK(thought("hermes", parse(parse_openai_chat, R"({"messages": [{"role": "user", "content": "<think>"}]})")) ==
        ThoughtBefore::kMayOpen);
  ChatDefaults defaults;
  defaults.kwargs["enable_thinking"] = false;
  const ChatPrompts quiet(model().tokenizer(), prompts("hermes").source(), defaults);
  CHECK(quiet.thought_before(plain, quiet.render(plain)) == ThoughtBefore::kNone);
}

TEST_CASE("An answer that has begun is continued", "[serve]") {
  const std::string begun =
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Once upon"}])";
  const ChatRequest openai = parse(parse_openai_chat, begun + R"(, "continue_final_message": true})");
  CHECK_THAT(rendered("hermes", openai), Catch::Matchers::EndsWith("assistant\nOnce upon"));
  CHECK(rendered("hermes", parse(parse_anthropic_chat, begun + "}")) == rendered("hermes", openai));
  CHECK_THAT(rendered("hermes", parse(parse_openai_chat, begun + "}")), Catch::Matchers::EndsWith("assistant\n"));
  CHECK_THAT(rendered("hermes", parse(parse_openai_chat, begun + R"(, "add_generation_prompt": false})")),
             Catch::Matchers::EndsWith("Once upon<|im_end|>\n"));
  const ChatRequest thinks = parse(parse_openai_chat, R"({"messages": [{"role": "user", "content": "x"},
      {"role": "assistant", "content": "<think>\nI see"}], "continue_final_message": true})");
  CHECK(prompts("hermes").thought_before(thinks, prompts("hermes").render(thinks)) == ThoughtBefore::kOpened);
}

TEST_CASE("Calls and schemas are held to by grammars that know the form", "[serve]") {
  const std::string chat = R"({"messages": [{"role": "user", "content": "x"}], )" + kOpenAiTools;
  const GenerationRequest any = generation("hermes", chat + R"(, "tool_choice": "required"})");
  const std::string noop = "<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>";
  CHECK(allows(any, noop));
  CHECK(allows(any, "<think>\nhm\n</think>\n\n" + noop + "\n" + noop));
  CHECK_FALSE(allows(any, "Hello"));
  const GenerationRequest named = generation(
      "qwen_xml",
      chat +
          R"(, "parallel_tool_calls": false, "tool_choice": {"type": "function", "function": {"name": "weather"}}})");
  CHECK(named.parsing->in_thought);
  CHECK(named.parsing->most_calls == 1);
  CHECK(allows(named,
               "hm\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n"
               "</tool_call>"));
  CHECK_FALSE(allows(named, "hm\n</think>\n\n<tool_call>\n<function=noop>\n</function>\n</tool_call>"));
  CHECK(allows(generation("harmony", chat + R"(, "tool_choice": "required"})"),
               "<|channel|>commentary to=functions.noop <|constrain|>json<|message|>{}"));
  const GenerationRequest schema = generation(
      "qwen_xml", R"({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}})");
  CHECK(allows(schema, "hm\n</think>\n\n{}"));
  CHECK_FALSE(allows(schema, "{}"));
  const GenerationRequest own =
      generation("qwen_xml", R"({"messages": [{"role": "user", "content": "x"}], "grammar": "root ::= \"a\""})");
  CHECK(allows(own, "a"));
  CHECK_THROWS_WITH(generation("hermes", chat + R"(, "tool_choice": "required", "grammar": "root ::= \"a\""})"),
                    Contains("\"grammar\" asks for another text"));
}

}  // namespace foretoken::test
